"""Prepare raw files as arrays for training: decode once, balance, pad, describe.

The order of the steps is part of the definition:

1. decode the published images; resize them and average squares of pixels if the recipe says so;
2. channel mean and standard deviation of the *published* train images, before balancing and before
   padding, over all their pixels, in [0, 1], population form.  This gives MNIST the 0.1307 and
   0.3081 of the authors' notebook.  Where images are single files (ImageNet, a folder of images)
   only those that the balanced subset keeps are ever decoded, and the two numbers are over those;
3. draw the balanced or unbalanced subset of the recipe, keeping the published order, and shuffle
   labels if the recipe says so;
4. pad with zeros (black, before normalising, as in the notebook).

The output folder holds `train_images.npy`, `test_images.npy` (uint8, N x channels x height x
width), `train_labels.npy`, `test_labels.npy` (int64, N) and `card.json`, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..io.errors import UserError
from ..io.files import atomic_path, reading, sha256_of, write_text_atomically, written
from ..io.locks import one_at_a_time
from ..io.progress import say
from ..io.text import shown
from .archives import AGAIN, verify_file
from .decoding import Decoding, decode_images
from .download import custom_source
from .image_files import ImageIndex, index_ilsvrc, index_image_folder
from .parsers import Arrays, read_cifar, read_mnist, read_npz, read_stl10, read_svhn
from .pixels import average_pooled, check_square, mean_and_std, padded, resized
from .recipe import DataRecipe
from .registry import CustomDataset, DatasetEntry, dataset_entry

CARD_FILE = "card.json"
CARD_VERSION = 1
ARRAY_FILES = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
IMAGENET_RESIZE_PX = 256

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def balanced_subset(
    labels: np.ndarray, num_classes: int, count: int | Sequence[int] | None, seed: int, key: str
) -> np.ndarray:
    """Ascending indices of a subset with `count` examples per class (one number for all classes, or
    one for each); all indices if `count` is None.

    Examples of class c are ranked by random numbers from a generator seeded with (seed, c), so the
    order within a class depends neither on other classes nor on `count`.

    Raises:
        UserError: a class has too few examples; the message names the class and the config key.
    """
    if count is None:
        return np.arange(len(labels))
    kept = []
    counts = [count] * num_classes if isinstance(count, int) else count
    available = np.bincount(labels, minlength=num_classes)
    for label, count in enumerate(counts):
        if available[label] < count:
            # Under an imbalance the smallest class may be asked for fewer than it has.
            equal = len(set(counts)) == 1
            smallest = f" (the smallest class has {available.min()})" if equal else ""
            raise UserError(
                f"{key}: asks for {count} images of class {label}, which has {available[label]}"
                f"{smallest}; lower it"
            )
        ranks = np.random.default_rng([seed, label]).random(available[label])
        first = np.argsort(ranks, kind="stable")[:count]
        kept.append(np.flatnonzero(labels == label)[first])
    return np.sort(np.concatenate(kept))


def _kept(
    recipe: DataRecipe, published: dict[str, np.ndarray], num_classes: int
) -> dict[str, np.ndarray]:
    """The rows of each split that a recipe keeps; `published`: labels."""
    train: int | list[int] | None = recipe.examples_per_class
    if recipe.imbalance is not None:
        available = np.bincount(published["train"], minlength=num_classes).tolist()
        train = recipe.train_counts(available)
    counts = {
        "train": ("data.examples_per_class", train),
        "test": ("data.test_examples_per_class", recipe.test_examples_per_class),
    }
    return {
        split: balanced_subset(published[split], num_classes, count, recipe.subset_seed, key)
        for split, (key, count) in counts.items()
    }


def shuffled_labels(labels: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """The labels (N,), with those of round(share N) random examples permuted.

    As in Zhang et al. (2017, arXiv:1611.03530), but class counts do not change. `seed` and
    `num_classes` seed the generator of the examples and of the permutation.
    """
    generator = np.random.default_rng([seed, num_classes])  # classes' own end at num_classes - 1
    chosen = generator.permutation(len(labels))[: round(share * len(labels))]
    shuffled = labels.copy()
    shuffled[np.sort(chosen)] = labels[chosen]
    return shuffled


def data_hash(array_hashes: dict[str, str], mean: list[float], std: list[float]) -> str:
    """A hash of the input of training: the four arrays, mean and standard deviation."""
    lines = [f"{name} {array_hashes[name]}" for name in sorted(array_hashes)]
    lines += [
        f"{name} {[value.hex() for value in v]}" for name, v in (("mean", mean), ("std", std))
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# --------------------------------------------------------------------------- reading


def _source(raw_folder: Path, entry: DatasetEntry) -> dict[str, Any]:
    """What source.json says; raises UserError."""
    path, name = raw_folder / "source.json", entry.name
    kinds = {"embedded": ("npz",), "ilsvrc": ("ilsvrc", "image_folder")}
    published = {f.name for one in entry.files for f in (one, *one.alternatives)}
    with reading(path, f"{name}'s source.json", f"download {name} first"):
        source = json.loads(path.read_text(encoding="utf-8"))
        if source["dataset"] != name:
            raise ValueError("it is of another dataset")
        if source["kind"] not in kinds.get(entry.format, (entry.format,)):
            raise ValueError(f"it is of kind {source['kind']!r}")
        names = {file["name"] for file in source["files"]}
        if bool(names) == (source["kind"] == "image_folder"):
            raise ValueError(f"it names {len(names)} files")
        if published and not names <= published:
            raise ValueError("it names other files than the published ones")
        Path(source["folder"] or raw_folder, *names)  # fails unless all are text
    return source


def _read(entry: DatasetEntry, source: dict[str, Any], folder: Path) -> Arrays | ImageIndex:
    """The arrays of raw files, or where the images lie; published files are verified once more."""
    names = [file["name"] for file in source["files"]]
    if source["kind"] == "npz":
        return read_npz(folder / names[0])
    if source["kind"] == "ilsvrc":
        return index_ilsvrc(folder)
    if source["kind"] == "image_folder":
        return index_image_folder(folder)
    published = {f.name: f for one in entry.files for f in (one, *one.alternatives)}
    for name in names:
        try:
            verify_file(folder / name, published[name])
        except UserError as error:
            reason = str(error).removesuffix(f"; {AGAIN}")
            raise UserError(f"{reason}; delete source.json beside it and run again") from None
    if source["kind"] == "idx":
        return read_mnist(folder)
    if source["kind"] == "svhn":
        return read_svhn(folder)
    archive, file = folder / names[0], published[names[0]]
    if source["kind"] == "stl10":
        return read_stl10(archive, file)
    return read_cifar(archive, file, entry.num_classes or 10)


def _num_classes(entry: DatasetEntry, train: np.ndarray, test: np.ndarray, where: Path) -> int:
    """The number of classes; raises UserError for labels with gaps, without train images, or of
    more or fewer classes than a built-in dataset has."""
    present = np.unique(train)
    if len(present) < 2 or (present != np.arange(len(present))).any():
        raise UserError(
            f"{where}: its train labels are {shown(present.tolist())}; they must be two or more "
            "classes 0, 1, 2, ... without a gap"
        )
    if entry.num_classes not in (None, len(present)):
        raise UserError(
            f"{where}: holds {len(train)} train images of {len(present)} classes, but {entry.name} "
            f"has {entry.num_classes} classes; give the whole dataset, or name it under "
            "custom_datasets"
        )
    if len(test) == 0:
        raise UserError(f"{where}: holds no test images")
    unknown = np.setdiff1d(test, present).tolist()
    if unknown:
        raise UserError(f"{where}: class {unknown[0]} of its test images has no train images")
    absent = np.setdiff1d(present, test).tolist()
    if absent:
        say(
            f"warning: {where}: there are no test images of class {shown(absent)[1:-1]}, so of the "
            "test set only errors and NC4 are measured"
        )
    return len(present)


# --------------------------------------------------------------------------- writing


def _store(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, np.ascontiguousarray(array), allow_pickle=False)


def _store_arrays(
    arrays: Arrays, kept: dict[str, np.ndarray], recipe: DataRecipe, folder: Path
) -> dict[str, Any]:
    """Write the images of arrays to `folder`; returns what the card says of mean and std."""

    def smaller(images: np.ndarray) -> np.ndarray:
        return average_pooled(resized(images, recipe.image_size_px), recipe.average_pooling)

    train, test = smaller(arrays.train_images), smaller(arrays.test_images[kept["test"]])
    _store(folder / "train_images.npy", padded(train[kept["train"]], recipe.padding_pixels))
    _store(folder / "test_images.npy", padded(test, recipe.padding_pixels))
    mean, std = mean_and_std(train)
    return {"mean": mean, "std": std, "mean_and_std_over": "published train images"}


def _store_files(
    entry: DatasetEntry,
    index: ImageIndex,
    kept: dict[str, np.ndarray],
    recipe: DataRecipe,
    folder: Path,
    workers: int,
    progress: Progress,
) -> dict[str, Any]:
    """Decode image files to `folder`; returns what the card says of mean and std."""
    if index.left_out:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in index.left_out.items())
        say(
            f"{entry.name}: {len(index.train)} train and {len(index.test)} test images found; "
            f"files left out, with the first of each kind: {reasons}"
        )
    splits = {
        "train": [index.train[row] for row in kept["train"]],
        "test": [index.test[row] for row in kept["test"]],
    }
    resize_px = IMAGENET_RESIZE_PX if entry.name == "imagenet" else entry.image_size_px
    sizes = recipe.average_pooling, recipe.padding_pixels, recipe.image_size_px
    decoding = Decoding(resize_px, entry.image_size_px, *sizes)
    decode_images(splits, decoding, folder, workers, progress)
    images = np.load(folder / "train_images.npy", mmap_mode="r", allow_pickle=False)
    inner = slice(recipe.padding_pixels, images.shape[2] - recipe.padding_pixels)
    mean, std = mean_and_std(images[:, :, inner, inner])
    return {"mean": mean, "std": std, "mean_and_std_over": "kept train images"}


def _deliver(folder: Path, output: Path, progress: Progress) -> dict[str, str]:
    """Move the finished arrays of `folder` to `output`; returns their checksums."""
    hashes = {}
    for number, file in enumerate(ARRAY_FILES):
        hashes[file] = sha256_of(folder / file)
        progress("checksums", number + 1, len(ARRAY_FILES))
    (output / CARD_FILE).unlink(missing_ok=True)  # it describes the arrays that are replaced now
    for file in ARRAY_FILES:  # only now, so that a job killed before resumes from there
        os.replace(folder / file, output / file)
    shutil.rmtree(folder, ignore_errors=True)
    return hashes


def _store_labels(
    published: dict[str, np.ndarray],
    kept: dict[str, np.ndarray],
    classes: int,
    recipe: DataRecipe,
    folder: Path,
) -> None:
    for split, rows in kept.items():
        labels = published[split][rows]
        if split == "train" and (share := recipe.random_labels):
            labels = shuffled_labels(labels, classes, share, recipe.subset_seed)
        _store(folder / f"{split}_labels.npy", labels)


def _counts(
    published: dict[str, np.ndarray], kept: dict[str, np.ndarray], classes: int
) -> dict[str, dict[str, list[int]]]:
    """The examples of each class, published and kept, by split."""

    def counts(labels: np.ndarray) -> list[int]:
        return np.bincount(labels, minlength=classes).tolist()

    return {
        split: {"published": counts(published[split]), "kept": counts(published[split][rows])}
        for split, rows in kept.items()
    }


def _rows_sha256(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def prepare_dataset(
    name: str,
    raw_folder: str | Path,
    output_folder: str | Path,
    recipe: DataRecipe,
    *,
    custom: CustomDataset | None = None,
    workers: int = 1,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Make the arrays of one dataset from the output of :func:`.download.download_dataset`.

    `workers` threads decode image files, with bounded memory; their number does not change the
    output. If it is killed while decoding, the next call resumes from `<output_folder>.partial`.

    Returns:
        The content of card.json.

    Raises:
        UserError: raw files are missing or corrupt, a class has too few images for
            `recipe.examples_per_class`, or images differ in size.
    """
    entry = dataset_entry({name: custom} if custom else {}, name)
    output = Path(output_folder)
    partial = output.with_name(output.name + ".partial")
    source = _source(Path(raw_folder), entry)
    if custom is not None:  # it may have changed since its source.json was written
        source |= custom_source(entry)
    where = Path(source["folder"] or raw_folder)
    with written(output), one_at_a_time(output / ".lock"):
        read = _read(entry, source, where)
        if source["kind"] == "npz":
            where /= source["files"][0]["name"]
        published = {"train": read.train_labels, "test": read.test_labels}
        classes = _num_classes(entry, *published.values(), where)
        kept = _kept(recipe, published, classes)
        if isinstance(read, Arrays):
            check_square(read.train_images.shape, where)
            size: int | None = read.train_images.shape[2]
            statistics = _store_arrays(read, kept, recipe, partial)
        else:
            size = entry.image_size_px
            statistics = _store_files(entry, read, kept, recipe, partial, workers, progress)
        _store_labels(published, kept, classes, recipe, partial)
        hashes = _deliver(partial, output, progress)
        _, channels, side, _ = np.load(output / "train_images.npy", mmap_mode="r").shape
        card = {
            "version": CARD_VERSION,
            "name": entry.name,
            "label": entry.label,
            "num_classes": classes,
            "class_names": list(read.class_names or entry.class_names or map(str, range(classes))),
            "channels": channels,
            "image_size_px": side,
            "recipe": recipe.model_dump(mode="json"),
            "counts": _counts(published, kept, classes),
            **statistics,
            "subset_seed": recipe.subset_seed,
            "subset_sha256": {split: _rows_sha256(rows) for split, rows in kept.items()},
            "arrays_sha256": hashes,
            "data_hash": data_hash(hashes, statistics["mean"], statistics["std"]),
            "published_image_size_px": size,
            "source": source,
        }
        write_text_atomically(output / CARD_FILE, json.dumps(card, indent=2) + "\n")
    return card
