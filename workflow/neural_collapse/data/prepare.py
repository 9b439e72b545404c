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

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..io.errors import UserError
from ..io.files import atomic_path, reading, sha256_of, write_text_atomically, written
from ..io.locks import one_at_a_time
from ..io.progress import say
from .archives import AGAIN
from .decoding import Decoding, decode_images
from .image_files import ImageIndex, index_ilsvrc, index_image_folder
from .parsers import Arrays, read_cifar, read_mnist, read_npz, read_stl10, read_svhn
from .pixels import (
    average_pooled,
    channel_sums,
    check_square,
    mean_and_std,
    padded,
    resized,
)
from .recipe import DataRecipe
from .registry import CustomDataset, DatasetEntry, dataset_entry

CARD_FILE = "card.json"
CARD_VERSION = 1
ARRAY_FILES = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
IMAGENET_RESIZE_PX = 256

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def balanced_subset(
    labels: np.ndarray,
    num_classes: int,
    count: int | Sequence[int] | None,
    seed: int,
    key: str,
    most: int | None = None,
) -> np.ndarray:
    """The indices, ascending, of `count` examples a class, or of so many of each class; all where
    `count` is None.

    Class c keeps the examples that the first numbers of the generator seeded with (seed, c) rank
    lowest, so that neither other classes nor `count` change who comes first.  Raises UserError
    naming the class and the config key where there are too few; most: the value of that key for
    which there are enough, where it is not the number of the smallest class.
    """
    if count is None:
        return np.arange(len(labels))
    kept = []
    counts = [count] * num_classes if isinstance(count, int) else count
    for label, count in enumerate(counts):
        of_class = np.flatnonzero(labels == label)
        if len(of_class) < count:
            most = most or int(np.bincount(labels, minlength=num_classes).min())
            raise UserError(
                f"{key}: asks for {count} images of class {label}, which has {len(of_class)}; "
                f"lower {key} to at most {most}"
            )
        ranks = np.argsort(
            np.random.default_rng([seed, label]).random(len(of_class)), kind="stable"
        )
        kept.append(of_class[ranks[:count]])
    return np.sort(np.concatenate(kept))


def _kept(
    recipe: DataRecipe, published: dict[str, np.ndarray], num_classes: int
) -> dict[str, np.ndarray]:
    """The rows of each split that a recipe keeps; `published`: labels."""
    train: int | list[int] | None = recipe.examples_per_class
    most = None
    if recipe.imbalance is not None:
        available = np.bincount(published["train"], minlength=num_classes).tolist()
        train, most = recipe.train_counts(available), recipe.imbalance.most_of_each(available)
    counts = {
        "train": ("examples_per_class", train, most),
        "test": ("test_examples_per_class", recipe.test_examples_per_class, None),
    }
    seed = recipe.subset_seed
    return {
        split: balanced_subset(published[split], num_classes, count, seed, f"data.{key}", most)
        for split, (key, count, most) in counts.items()
    }


def shuffled_labels(labels: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """The labels (N,), those of round(share N) examples permuted among themselves.

    As in Zhang et al. (2017, arXiv:1611.03530), but counts a class stay. seed: with `num_classes`
    it draws the examples and the permutation.
    """
    generator = np.random.default_rng([seed, num_classes])  # classes' own end at num_classes - 1
    chosen = generator.permutation(len(labels))[: round(share * len(labels))]
    shuffled = labels.copy()
    shuffled[np.sort(chosen)] = labels[chosen]
    return shuffled


def data_hash(array_hashes: dict[str, str], mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """One hash over all that training sees: the four arrays, mean and standard deviation."""
    lines = [f"{name} {array_hashes[name]}" for name in sorted(array_hashes)]
    lines += [
        f"{name} {[value.hex() for value in v]}" for name, v in (("mean", mean), ("std", std))
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# --------------------------------------------------------------------------- reading


def _source(raw_folder: Path, name: str) -> tuple[dict[str, Any], Path]:
    """What source.json says, and where the raw files are; raises UserError."""
    path = raw_folder / "source.json"
    with reading(path, f"{name}'s source.json", f"download {name} first"):
        source = json.loads(path.read_text(encoding="utf-8"))
        complete = [file["name"] for file in source["files"]] or source["kind"] == "image_folder"
        if not complete or source["dataset"] != name or not isinstance(source["kind"], str):
            raise ValueError("it is incomplete, or another dataset's")
        return source, Path(source["folder"] or raw_folder)


def _check_unchanged(folder: Path, source: dict[str, Any]) -> None:
    """Raise UserError for a raw file that is not the one that was verified."""
    for record in source["files"]:
        path = folder / record["name"]
        with reading(path, "the file that was downloaded", AGAIN):
            if sha256_of(path) != record.get("sha256"):
                raise ValueError("its checksum has changed since")


def _read(entry: DatasetEntry, source: dict[str, Any], folder: Path) -> Arrays | ImageIndex:
    if source["kind"] == "npz":
        return read_npz(folder / source["files"][0]["name"])
    if source["kind"] == "ilsvrc":
        return index_ilsvrc(folder)
    if source["kind"] == "image_folder":
        return index_image_folder(folder)
    _check_unchanged(folder, source)
    if source["kind"] == "idx":
        return read_mnist(folder)
    if source["kind"] == "svhn":
        return read_svhn(folder)
    # One archive: the published one, or another with the same data.
    forms = {f.name: f for one in entry.files for f in (one, *one.alternatives)}
    name = source["files"][0]["name"]
    if name not in forms:
        raise UserError(f"{folder / name}: is not a file of {entry.name}; download it again")
    if source["kind"] == "stl10":
        return read_stl10(folder / name, forms[name])
    return read_cifar(folder / name, forms[name], entry.num_classes or 10)


def _num_classes(entry: DatasetEntry, train: np.ndarray, test: np.ndarray, where: Path) -> int:
    """The number of classes; raises UserError for one without train images or an unknown label."""
    lowest = min((int(labels.min()) for labels in (train, test) if len(labels)), default=0)
    highest = max(int(train.max(initial=-1)), int(test.max(initial=-1)))
    num_classes = entry.num_classes or highest + 1
    if lowest < 0 or highest >= num_classes:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"{where}: a label is {wrong}, outside 0 to {num_classes - 1}")
    if lowest > 0 and entry.num_classes is None:
        raise UserError(f"{where}: its labels begin at {lowest}; they must begin at 0")
    if num_classes < 2 or num_classes > len(train):
        raise UserError(f"{where}: holds {len(train)} train images of {num_classes} classes")
    if len(test) == 0:
        raise UserError(f"{where}: holds no test images")
    missing = [
        np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0).tolist()
        for labels in (train, test)
    ]
    if missing[0]:
        raise UserError(f"{where}: class {missing[0][0]} has no train images")
    if missing[1]:
        shown = ", ".join(map(str, missing[1][:5])) + (", ..." if len(missing[1]) > 5 else "")
        say(
            f"warning: {where}: there are no test images of class {shown}, so of the test set "
            "only errors and NC4 are measured"
        )
    return num_classes


# --------------------------------------------------------------------------- arrays


@dataclass(frozen=True)
class _Prepared:
    """Where train_images.npy and test_images.npy are, and what to normalise them with."""

    folder: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    statistics_over: str


def _store(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, np.ascontiguousarray(array), allow_pickle=False)


def _remove_card(output: Path) -> None:
    """Delete the card before the first array that it describes is replaced."""
    with written(output / CARD_FILE):
        (output / CARD_FILE).unlink(missing_ok=True)


def _mean_and_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return mean_and_std(channel_sums(images), images[:, 0].size)


def _prepare_arrays(
    arrays: Arrays, kept: dict[str, np.ndarray], output: Path, recipe: DataRecipe
) -> _Prepared:
    def smaller(images: np.ndarray) -> np.ndarray:
        return average_pooled(resized(images, recipe.image_size_px), recipe.average_pooling)

    pooled = smaller(arrays.train_images)
    mean, std = _mean_and_std(pooled)
    _remove_card(output)
    _store(output / "train_images.npy", padded(pooled[kept["train"]], recipe.padding_pixels))
    test = smaller(arrays.test_images[kept["test"]])
    _store(output / "test_images.npy", padded(test, recipe.padding_pixels))
    return _Prepared(output, mean, std, "published train images")


def _prepare_files(
    index: ImageIndex,
    kept: dict[str, np.ndarray],
    output: Path,
    decoding: Decoding,
    workers: int,
    progress: Progress,
) -> _Prepared:
    splits = {
        "train": [index.train[i] for i in kept["train"]],
        "test": [index.test[i] for i in kept["test"]],
    }
    try:
        folder = decode_images(splits, decoding, _partial(output), workers, progress)
    except OSError as error:
        raise UserError(
            f"{output}: the images cannot be prepared: {error.strerror or error}"
        ) from None
    _remove_card(output)
    prepared = np.load(folder / "train_images.npy", mmap_mode="r", allow_pickle=False)
    pad = decoding.padding_pixels
    inner = prepared[:, :, pad : prepared.shape[2] - pad, pad : prepared.shape[3] - pad]
    return _Prepared(folder, *_mean_and_std(inner), "kept train images")


def _say_left_out(name: str, index: ImageIndex) -> None:
    if index.left_out:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in index.left_out.items())
        say(
            f"{name}: {len(index.train)} train and {len(index.test)} test images found; files "
            f"left out, with the first of each kind: {reasons}"
        )


def _partial(output: Path) -> Path:
    """Where image files are decoded to until all are."""
    return output.with_name(output.name + ".partial")


# --------------------------------------------------------------------------- entry point


def prepare_dataset(
    name: str,
    raw_folder: str | Path,
    output_folder: str | Path,
    recipe: DataRecipe,
    *,
    custom: CustomDataset | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the arrays of one dataset from what :func:`.download.download_dataset` left.

    `raw_folder` holds source.json.  `workers` processes decode image files; the bytes written do
    not depend on how many.  Killed while decoding, it resumes where it stopped: the work so far
    is in `<output_folder>.partial`.  Memory stays bounded for image files whatever their number.

    Returns what card.json holds.  Raises UserError where raw files are missing or corrupt, a
    class has too few images for `recipe.examples_per_class`, or images differ in size.
    """
    entry = dataset_entry({name: custom} if custom else {}, name)
    raw_folder, output = Path(raw_folder), Path(output_folder)
    source, where = _source(raw_folder, name)
    report: Progress = progress or (lambda *_: None)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from None
    with contextlib.ExitStack() as held:
        if source["kind"] in ("ilsvrc", "image_folder"):
            held.enter_context(one_at_a_time(_partial(output) / ".lock"))
        read = _read(entry, source, where)
        if source["kind"] == "npz":
            where /= source["files"][0]["name"]
        published = {"train": read.train_labels, "test": read.test_labels}
        classes = _num_classes(entry, *published.values(), where)
        kept = _kept(recipe, published, classes)
        if isinstance(read, Arrays):
            check_square(read.train_images.shape, where)
            size: int | None = read.train_images.shape[2]
            prepared = _prepare_arrays(read, kept, output, recipe)
        else:
            _say_left_out(name, read)
            size = entry.image_size_px
            resize = IMAGENET_RESIZE_PX if name == "imagenet" else size
            sizes = recipe.average_pooling, recipe.padding_pixels, recipe.image_size_px
            decoding = Decoding(resize, size, *sizes)
            prepared = _prepare_files(read, kept, output, decoding, workers, report)
        labels = {split: published[split][rows] for split, rows in kept.items()}
        if share := recipe.random_labels:
            labels["train"] = shuffled_labels(labels["train"], classes, share, recipe.subset_seed)
        for split, values in labels.items():
            _store(output / f"{split}_labels.npy", values)
        hashes = _deliver(prepared, output, report)
        card = _card(entry, read, kept, recipe, prepared, hashes, output)
        card |= {"published_image_size_px": size, "source": source}
        write_text_atomically(output / CARD_FILE, json.dumps(card, indent=2) + "\n")
    return card


def _deliver(prepared: _Prepared, output: Path, progress: Progress) -> dict[str, str]:
    """Move decoded arrays to the output folder; returns the arrays' checksums."""
    hashes = {}
    for number, file in enumerate(ARRAY_FILES):
        hashes[file] = sha256_of((prepared.folder if "images" in file else output) / file)
        progress("checksums", number + 1, len(ARRAY_FILES))
    if prepared.folder != output:  # only now, so that a job killed before resumes from there
        for file in ("train_images.npy", "test_images.npy"):
            os.replace(prepared.folder / file, output / file)
        shutil.rmtree(_partial(output), ignore_errors=True)
    return hashes


def _card(
    entry: DatasetEntry,
    read: Arrays | ImageIndex,
    kept: dict[str, np.ndarray],
    recipe: DataRecipe,
    prepared: _Prepared,
    hashes: dict[str, str],
    output: Path,
) -> dict[str, Any]:
    """What is known of the prepared arrays."""
    labels = {"train": read.train_labels, "test": read.test_labels}
    classes = int(read.train_labels.max()) + 1  # every class has train images
    images = np.load(output / "train_images.npy", mmap_mode="r", allow_pickle=False)

    def counts(labels: np.ndarray) -> list[int]:
        return np.bincount(labels, minlength=classes).tolist()

    def digest(rows: np.ndarray) -> str:
        return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()

    return {
        "version": CARD_VERSION,
        "name": entry.name,
        "label": entry.label,
        "num_classes": classes,
        "class_names": list(read.class_names or entry.class_names or map(str, range(classes))),
        "channels": images.shape[1],
        "image_size_px": images.shape[2],
        "recipe": recipe.model_dump(mode="json"),
        "counts": {
            split: {"published": counts(labels[split]), "kept": counts(labels[split][rows])}
            for split, rows in kept.items()
        },
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "mean_and_std_over": prepared.statistics_over,
        "subset_seed": recipe.subset_seed,
        "subset_sha256": {split: digest(rows) for split, rows in kept.items()},
        "arrays_sha256": hashes,
        "data_hash": data_hash(hashes, prepared.mean, prepared.std),
    }
