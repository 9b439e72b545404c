"""From raw files to the arrays that are trained on: decode once, balance, pad, describe.

The order of the steps is part of the definition:

1. decode the published images; average squares of pixels where the recipe asks for it;
2. channel mean and standard deviation of the *published* train images, before balancing and before
   padding, over all their pixels, in [0, 1], population form.  This gives MNIST the 0.1307 and
   0.3081 of the authors' notebook.  Where images are single files (ImageNet, a folder of images)
   only those that the balanced subset keeps are ever decoded, and the two numbers are over those;
3. draw the balanced subset, keeping the published order;
4. pad with zeros (black, before normalising, as in the notebook).

The output folder holds `train_images.npy`, `test_images.npy` (uint8, N x channels x height x
width), `train_labels.npy`, `test_labels.npy` (int64, N) and `card.json`, which is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..io.errors import UserError
from ..io.files import one_at_a_time, sha256_of, write_atomically, write_text_atomically, written
from .parsers import (
    Arrays,
    ImageIndex,
    ImageRef,
    decode_image,
    index_ilsvrc,
    index_image_folder,
    read_cifar,
    read_mnist,
    read_npz,
    read_stl10,
    read_svhn,
)
from .registry import CustomDataset, DatasetEntry, dataset_entry

if TYPE_CHECKING:
    from ..experiment.config import DataRecipe

CARD_FILE = "card.json"
CARD_VERSION = 1
ARRAY_FILES = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
CHUNK_IMAGES = 64
IMAGENET_RESIZE_PX = 256

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


# --------------------------------------------------------------------------- pure steps


def average_pooled(images: np.ndarray, side: int) -> np.ndarray:
    """The mean of each `side` x `side` square, rounded half up; uint8 (..., H/side, W/side).

    Raises UserError where `side` does not divide height and width.
    """
    if side == 1:
        return images
    height, width = images.shape[-2:]
    if height % side or width % side:
        raise UserError(
            f"data.average_pooling: {side} does not divide the images' {height} x {width} pixels"
        )
    squares = images.reshape(*images.shape[:-2], height // side, side, width // side, side)
    sums = squares.sum(axis=(-3, -1), dtype=np.uint32)
    return ((sums + side * side // 2) // (side * side)).astype(np.uint8)


def padded(images: np.ndarray, pixels: int) -> np.ndarray:
    """`pixels` zeros on each side of height and width."""
    if pixels == 0:
        return images
    return np.pad(images, [(0, 0)] * (images.ndim - 2) + [(pixels, pixels)] * 2)


def channel_sums(images: np.ndarray) -> np.ndarray:
    """Exact sums and sums of squares a channel of uint8 images (N, C, H, W); int64 (2, C)."""
    total = np.zeros((2, images.shape[1]), np.int64)
    for start in range(0, len(images), 256):  # bounded memory
        block = images[start : start + 256]
        total[0] += block.sum(axis=(0, 2, 3), dtype=np.int64)
        squares = np.multiply(block, block, dtype=np.uint16)  # 255 squared still fits
        total[1] += squares.sum(axis=(0, 2, 3), dtype=np.int64)
    return total


def mean_and_std(sums: np.ndarray, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel mean and population standard deviation in [0, 1] of `pixels` pixels a channel.

    `sums` is what :func:`channel_sums` gives; the arithmetic up to the last division is exact.
    A channel of one value only has the standard deviation 1, so that normalising it gives zeros.
    """
    means, stds = [], []
    for first, second in zip(*(row.tolist() for row in sums), strict=True):
        means.append(first / pixels / 255)
        variance = pixels * second - first * first  # times pixels^2; whole numbers, no rounding
        stds.append(math.sqrt(variance) / pixels / 255 if variance > 0 else 1.0)
    return tuple(means), tuple(stds)


def balanced_subset(
    labels: np.ndarray, num_classes: int, count: int | None, seed: int, key: str
) -> np.ndarray:
    """The indices, ascending, of `count` examples a class; all where `count` is None.

    Class c keeps the examples that the first numbers of the generator seeded with (seed, c) rank
    lowest, so that neither other classes nor `count` change who comes first.  Raises UserError
    naming the class and the config key where there are too few.
    """
    if count is None:
        return np.arange(len(labels))
    kept = []
    for label in range(num_classes):
        of_class = np.flatnonzero(labels == label)
        if len(of_class) < count:
            raise UserError(
                f"{key}: asks for {count} images a class, but class {label} has {len(of_class)}; "
                f"lower {key} to at most {np.bincount(labels, minlength=num_classes).min()}"
            )
        ranks = np.argsort(
            np.random.default_rng([seed, label]).random(len(of_class)), kind="stable"
        )
        kept.append(of_class[ranks[:count]])
    return np.sort(np.concatenate(kept))


def data_hash(array_hashes: dict[str, str], mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """One hash over all that training sees: the four arrays, mean and standard deviation."""
    lines = [f"{name} {array_hashes[name]}" for name in sorted(array_hashes)]
    lines += [
        f"{name} {[value.hex() for value in v]}" for name, v in (("mean", mean), ("std", std))
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# --------------------------------------------------------------------------- reading


def _source(raw_folder: Path, name: str) -> dict[str, Any]:
    path = raw_folder / "source.json"
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); download {name} first"
        ) from None
    except (ValueError, RecursionError):
        source = None
    if not (
        isinstance(source, dict)
        and source.get("dataset") == name
        and isinstance(source.get("kind"), str)
        and isinstance(source.get("folder"), str | None)
        and (source["kind"] != "npz" or _names_a_file(source))
    ):
        raise UserError(f"{path}: is not {name}'s source.json; download {name} again")
    return source


def _names_a_file(source: dict[str, Any]) -> bool:
    match source.get("files"):
        case [{"name": str()}, *_]:
            return True
    return False


def _read(entry: DatasetEntry, raw_folder: Path, source: dict[str, Any]) -> Arrays | ImageIndex:
    folder = Path(source["folder"]) if source.get("folder") else raw_folder
    match source["kind"]:
        case "idx":
            return read_mnist(folder)
        case "svhn":
            return read_svhn(folder)
        case "cifar10" | "cifar100":
            return read_cifar(folder / entry.files[0].name, 100 if "100" in source["kind"] else 10)
        case "stl10":
            return read_stl10(folder / entry.files[0].name)
        case "npz":
            return read_npz(folder / source["files"][0]["name"])
        case "ilsvrc":
            return index_ilsvrc(folder)
        case "image_folder":
            return index_image_folder(folder)
        case kind:
            raise UserError(f"{raw_folder / 'source.json'}: unknown kind {kind!r}; download again")


def _num_classes(entry: DatasetEntry, train: np.ndarray, test: np.ndarray, where: Path) -> int:
    """The number of classes, after checking that every class is in train, and no other in test."""
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
    for split, labels in (("train", train), ("test", test)):
        empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
        if len(empty):
            raise UserError(f"{where}: class {empty[0]} has no {split} images")
    return num_classes


def _check_square(shape: tuple[int, ...], where: object) -> None:
    if shape[-1] != shape[-2]:
        raise UserError(
            f"{where}: images of {shape[-1]} x {shape[-2]} pixels; only square ones can be used "
            "(the image_size_px of a folder of images crops them)"
        )


# --------------------------------------------------------------------------- arrays in memory


def _store(path: Path, array: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            np.save(handle, np.ascontiguousarray(array), allow_pickle=False)

    write_atomically(path, write)


def _withdraw_card(output: Path) -> None:
    """Take away the card before the first array that it describes is replaced."""
    with written(output / CARD_FILE):
        (output / CARD_FILE).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Chosen:
    """Which published examples are kept, with their labels."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class _Prepared:
    """Where train_images.npy and test_images.npy lie, and what to normalise them with."""

    folder: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    statistics_over: str


def _choose(
    train_labels: np.ndarray, test_labels: np.ndarray, num_classes: int, recipe: DataRecipe
) -> _Chosen:
    train = balanced_subset(
        train_labels,
        num_classes,
        recipe.examples_per_class,
        recipe.subset_seed,
        "data.examples_per_class",
    )
    test = balanced_subset(
        test_labels,
        num_classes,
        recipe.test_examples_per_class,
        recipe.subset_seed,
        "data.test_examples_per_class",
    )
    return _Chosen(train, train_labels[train], test, test_labels[test])


def _prepare_arrays(arrays: Arrays, chosen: _Chosen, output: Path, recipe: DataRecipe) -> _Prepared:
    pooled = average_pooled(arrays.train_images, recipe.average_pooling)
    pixels = pooled.shape[0] * pooled.shape[2] * pooled.shape[3]
    mean, std = mean_and_std(channel_sums(pooled), pixels)
    _withdraw_card(output)
    _store(output / "train_images.npy", padded(pooled[chosen.train], recipe.padding_pixels))
    test = average_pooled(arrays.test_images[chosen.test], recipe.average_pooling)
    _store(output / "test_images.npy", padded(test, recipe.padding_pixels))
    return _Prepared(output, mean, std, "published train images")


# --------------------------------------------------------------------------- image files, streamed


@dataclass(frozen=True)
class _Task:
    """One chunk: images to decode and where in a file of the output their rows begin."""

    refs: list[ImageRef]
    resize_px: int | None
    crop_px: int | None
    average_pooling: int
    padding_pixels: int
    shape: tuple[int, int, int]
    path: str
    offset: int


def _decode(ref: ImageRef, resize_px: int | None, crop_px: int | None, pooling: int) -> np.ndarray:
    return average_pooled(decode_image(ref, resize_px, crop_px), pooling)


def _run_task(task: _Task) -> None:
    """Decode a chunk and write it to its place; runs in a worker process."""
    rows = []
    for ref in task.refs:
        image = padded(
            _decode(ref, task.resize_px, task.crop_px, task.average_pooling), task.padding_pixels
        )
        if image.shape != task.shape:
            raise UserError(
                f"{ref}: is {image.shape[2]} x {image.shape[1]} pixels once prepared, others are "
                f"{task.shape[2]} x {task.shape[1]}; give the dataset's image_size_px"
            )
        rows.append(image)
    data = memoryview(np.stack(rows).tobytes())
    handle = os.open(task.path, os.O_WRONLY)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(handle, data[written:], task.offset + written)
        os.fsync(handle)  # on disk before the chunk counts as done
    finally:
        os.close(handle)


def _partial(output: Path) -> Path:
    """Where image files are decoded to until all are."""
    return output.with_name(output.name + ".partial")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The start of a .npy file of uint8 in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _tasks(
    refs: list[ImageRef], path: Path, shape: tuple[int, int, int], start: int, **decoding: Any
) -> list[_Task]:
    row_bytes = math.prod(shape)
    return [
        _Task(
            refs=refs[first : first + CHUNK_IMAGES],
            shape=shape,
            path=str(path),
            offset=start + first * row_bytes,
            **decoding,
        )
        for first in range(0, len(refs), CHUNK_IMAGES)
    ]


def _die_with_parent() -> None:
    """End this worker when the process that started it is gone, even by kill -9."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_all(tasks: list[tuple[int, _Task]], workers: int, done: Callable[[int], None]) -> None:
    """Run every task, `workers` at once, telling `done` the number of each that has ended."""
    if workers == 1:
        for number, task in tasks:
            _run_task(task)
            done(number)
        return
    # Spawned, not forked: the caller may hold threads (torch, BLAS) that a fork would break.
    context = multiprocessing.get_context("spawn")
    running: dict[Future[None], int] = {}
    waiting: Iterator[tuple[int, _Task]] = iter(tasks)
    with ProcessPoolExecutor(workers, context, initializer=_die_with_parent) as pool:
        try:
            while True:
                while len(running) < 2 * workers and (item := next(waiting, None)):
                    running[pool.submit(_run_task, item[1])] = item[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    future.result()
                    done(number)
        except BrokenProcessPool:
            raise UserError(
                "a process that decodes images was killed, most often for want of memory; start "
                "again with fewer workers, finished work is kept"
            ) from None
        finally:
            for future in running:
                future.cancel()


def _prepare_files(
    index: ImageIndex,
    chosen: _Chosen,
    output: Path,
    recipe: DataRecipe,
    resize_px: int | None,
    crop_px: int | None,
    workers: int,
    progress: Progress | None,
) -> _Prepared:
    """Decode the chosen images into `<output>.partial`, going on where a killed job stopped.

    The file `done` there has one byte a chunk, set once the chunk is on disk; `state.json` says of
    what, so that another recipe or other images start afresh.
    """
    partial = _partial(output)
    splits = {
        "train": [index.train[i] for i in chosen.train],
        "test": [index.test[i] for i in chosen.test],
    }
    first = _decode(splits["train"][0], resize_px, crop_px, recipe.average_pooling)
    _check_square(first.shape, splits["train"][0])
    pad = recipe.padding_pixels
    shape = padded(first, pad).shape
    decoding = {
        "resize_px": resize_px,
        "crop_px": crop_px,
        "average_pooling": recipe.average_pooling,
        "padding_pixels": pad,
    }
    fingerprint = hashlib.sha256(repr((CARD_VERSION, CHUNK_IMAGES, shape, decoding)).encode())
    for refs in splits.values():
        for ref in refs:
            size = os.stat(ref.path).st_size if ref.size is None else ref.size
            fingerprint.update(f"{ref.path}\0{ref.offset}\0{size}\n".encode())
        fingerprint.update(b"\0")

    partial.mkdir(parents=True, exist_ok=True)
    paths = {split: partial / f"{split}_images.npy" for split in splits}
    headers = {split: _npy_header((len(refs), *shape)) for split, refs in splits.items()}
    sizes = {
        split: len(headers[split]) + len(refs) * math.prod(shape) for split, refs in splits.items()
    }
    tasks = [
        task
        for split, refs in splits.items()
        for task in _tasks(refs, paths[split], shape, len(headers[split]), **decoding)
    ]
    state_path, done_path = partial / "state.json", partial / "done"
    state = json.dumps({"fingerprint": fingerprint.hexdigest(), "chunks": len(tasks)}) + "\n"
    whole = (
        state_path.is_file()
        and state_path.read_text(encoding="utf-8") == state
        and done_path.is_file()
        and done_path.stat().st_size == len(tasks)
        and all(path.is_file() and path.stat().st_size == sizes[s] for s, path in paths.items())
    )
    if not whole:
        state_path.unlink(missing_ok=True)
        free = shutil.disk_usage(partial).free
        if sum(sizes.values()) > free + sum(p.stat().st_size for p in paths.values() if p.exists()):
            raise UserError(
                f"{partial}: the prepared images need {sum(sizes.values())} bytes and the disk has "
                f"{free} left; make room, or lower data.examples_per_class"
            )
        done_path.write_bytes(bytes(len(tasks)))
        for split, path in paths.items():
            with open(path, "wb") as handle:
                handle.write(headers[split])
                handle.truncate(sizes[split])
        write_text_atomically(state_path, state)

    finished = bytearray(done_path.read_bytes())
    total = sum(len(refs) for refs in splits.values())
    counted = sum(len(task.refs) for task, flag in zip(tasks, finished, strict=True) if flag)
    with open(done_path, "rb+", buffering=0) as marks:

        def done(number: int) -> None:
            nonlocal counted
            marks.seek(number)
            marks.write(b"\1")
            counted += len(tasks[number].refs)
            if progress:
                progress("decoding images", counted, total)

        left = [(number, task) for number, task in enumerate(tasks) if not finished[number]]
        _run_all(left, workers, done)

    prepared = np.load(paths["train"], mmap_mode="r", allow_pickle=False)
    inner = prepared[:, :, pad : shape[1] - pad, pad : shape[2] - pad]
    pixels = inner.shape[0] * inner.shape[2] * inner.shape[3]
    mean, std = mean_and_std(channel_sums(inner), pixels)
    return _Prepared(partial, mean, std, "kept train images")


# --------------------------------------------------------------------------- the way in


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
    not depend on how many.  Killed while decoding, it goes on where it stopped: the work so far
    lies in `<output_folder>.partial`.  Memory stays bounded for image files whatever their number.

    Returns what card.json holds.  Raises UserError where raw files are missing or damaged, a
    class has too few images for `recipe.examples_per_class`, or images differ in size.
    """
    entry = dataset_entry({name: custom} if custom else {}, name)
    raw_folder, output = Path(raw_folder), Path(output_folder)
    source = _source(raw_folder, name)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from None
    with contextlib.ExitStack() as held:
        if source["kind"] in ("ilsvrc", "image_folder"):
            held.enter_context(one_at_a_time(_partial(output) / ".lock"))
        return _prepare(entry, raw_folder, source, output, recipe, workers, progress)


def _prepare(
    entry: DatasetEntry,
    raw_folder: Path,
    source: dict[str, Any],
    output: Path,
    recipe: DataRecipe,
    workers: int,
    progress: Progress | None,
) -> dict[str, Any]:
    name = entry.name
    read = _read(entry, raw_folder, source)
    where = Path(source["folder"]) if source.get("folder") else raw_folder
    if source["kind"] == "npz":
        where /= source["files"][0]["name"]
    num_classes = _num_classes(entry, read.train_labels, read.test_labels, where)
    chosen = _choose(read.train_labels, read.test_labels, num_classes, recipe)
    if isinstance(read, Arrays):
        published_size: int | None = read.train_images.shape[2]
        width = read.train_images.shape[3]
        if (entry.channels, entry.image_size_px) != (None, None) and (
            read.train_images.shape[1:] != (entry.channels, entry.image_size_px, width)
            or read.test_images.shape[1:] != read.train_images.shape[1:]
        ):
            raise UserError(
                f"{where}: holds images of {read.train_images.shape[1:]}, not those of {name}"
            )
        _check_square(read.train_images.shape, where)
        prepared = _prepare_arrays(read, chosen, output, recipe)
    else:
        size = entry.image_size_px
        resize = IMAGENET_RESIZE_PX if name == "imagenet" else size
        published_size = size
        try:
            prepared = _prepare_files(read, chosen, output, recipe, resize, size, workers, progress)
        except OSError as error:
            raise UserError(
                f"{output}: the images cannot be prepared: {error.strerror or error}"
            ) from None
        _withdraw_card(output)
    _store(output / "train_labels.npy", chosen.train_labels)
    _store(output / "test_labels.npy", chosen.test_labels)

    hashes = {}
    for number, file in enumerate(ARRAY_FILES):
        hashes[file] = sha256_of((prepared.folder if "images" in file else output) / file)
        if progress:
            progress("checksums", number + 1, len(ARRAY_FILES))
    if prepared.folder != output:  # only now, so that a job killed before goes on from there
        for file in ("train_images.npy", "test_images.npy"):
            os.replace(prepared.folder / file, output / file)
        shutil.rmtree(prepared.folder, ignore_errors=True)
    train = np.load(output / "train_images.npy", mmap_mode="r", allow_pickle=False)
    mean, std = prepared.mean, prepared.std

    def counts(labels: np.ndarray) -> list[int]:
        return np.bincount(labels, minlength=num_classes).tolist()

    def digest(indices: np.ndarray) -> str:
        return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()

    card = {
        "version": CARD_VERSION,
        "name": name,
        "label": entry.label,
        "num_classes": num_classes,
        "class_names": list(read.class_names or entry.class_names or map(str, range(num_classes))),
        "channels": train.shape[1],
        "image_size_px": train.shape[2],
        "published_image_size_px": published_size,
        "recipe": recipe.model_dump(mode="json"),
        "counts": {
            "train": {"published": counts(read.train_labels), "kept": counts(chosen.train_labels)},
            "test": {"published": counts(read.test_labels), "kept": counts(chosen.test_labels)},
        },
        "mean": list(mean),
        "std": list(std),
        "mean_and_std_over": prepared.statistics_over,
        "subset_seed": recipe.subset_seed,
        "subset_sha256": {"train": digest(chosen.train), "test": digest(chosen.test)},
        "arrays_sha256": hashes,
        "data_hash": data_hash(hashes, mean, std),
        "source": source,
    }
    write_text_atomically(output / CARD_FILE, json.dumps(card, indent=2) + "\n")
    return card


__all__ = [
    "ARRAY_FILES", "CARD_FILE", "average_pooled", "balanced_subset", "channel_sums", "data_hash",
    "mean_and_std", "padded", "prepare_dataset",
]  # fmt: skip
