"""Decode image files into one array, in several processes, resumable, with bounded memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..io.errors import UserError
from ..io.files import write_text_atomically
from .image_files import ImageRef, decode_image
from .pixels import average_pooled, check_square, padded, resized

FORMAT_VERSION = 1
CHUNK_IMAGES = 64


@dataclass(frozen=True)
class Decoding:
    """How an encoded image becomes (3, height, width) bytes."""

    resize_px: int | None
    crop_px: int | None
    average_pooling: int
    padding_pixels: int
    image_size_px: int | None = None

    def __call__(self, ref: ImageRef) -> np.ndarray:
        image = decode_image(ref, self.resize_px, self.crop_px)
        if self.image_size_px is not None:  # which would squash it
            check_square(image.shape, ref)
        image = average_pooled(resized(image, self.image_size_px), self.average_pooling)
        return padded(image, self.padding_pixels)


@dataclass(frozen=True)
class _Chunk:
    """Images to decode, and the row of the .npy file at `path` where the first of them goes."""

    refs: list[ImageRef]
    decoding: Decoding
    path: str
    first_row: int


def _decode_chunk(chunk: _Chunk) -> None:
    """Decode a chunk and write it to its place; runs in a worker process."""
    array = np.load(chunk.path, mmap_mode="r", allow_pickle=False)
    shape = array.shape[1:]
    rows = []
    for ref in chunk.refs:
        image = chunk.decoding(ref)
        if image.shape != shape:
            raise UserError(
                f"{ref}: is {image.shape[2]} x {image.shape[1]} pixels once prepared, others are "
                f"{shape[2]} x {shape[1]}; give the dataset's image_size_px"
            )
        rows.append(image)
    # Written, not mapped: on a full disk a mapping ends the process without a word.
    with open(chunk.path, "r+b") as file:
        file.seek(array.offset + chunk.first_row * math.prod(shape))
        file.write(np.stack(rows).tobytes())
        file.flush()
        os.fsync(file.fileno())  # on disk before the chunk counts as done


def _exit_with_parent() -> None:
    """End this worker when the process that started it is gone, even by kill -9."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_all(chunks: dict[int, _Chunk], workers: int, done: Callable[[int], None]) -> None:
    """Decode every chunk, `workers` at once, calling `done` with the number of each."""
    if workers == 1:
        for number, chunk in chunks.items():
            _decode_chunk(chunk)
            done(number)
        return
    # Spawned, not forked: the caller may hold threads (torch, BLAS) that a fork would break.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_exit_with_parent) as pool:
        numbers = {pool.submit(_decode_chunk, chunk): n for n, chunk in chunks.items()}
        try:
            for future in as_completed(numbers):
                future.result()
                done(numbers[future])
        except BrokenProcessPool:
            raise UserError(
                "a process that decodes images was killed, most often for lack of memory; start "
                "again with fewer workers, finished work is kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _setting(decoding: Decoding) -> tuple:
    """What decides the bytes; as before there was a size, where none is given."""
    values = dataclasses.astuple(decoding)
    return values if decoding.image_size_px is not None else values[:-1]


def _fingerprint(splits: dict[str, list[ImageRef]], decoding: Decoding) -> str:
    """Of what a folder holds the decoded images."""
    setting = (FORMAT_VERSION, CHUNK_IMAGES, _setting(decoding))
    digest = hashlib.sha256(repr(setting).encode())
    for refs in splits.values():
        for ref in refs:
            digest.update(os.fsencode(f"{ref.path}\0{ref.offset}\0{ref.size_bytes()}\n"))
        digest.update(b"\0")
    return digest.hexdigest()


def _start(folder: Path, shapes: dict[str, tuple[int, ...]], state: str, chunks: int) -> None:
    """Make `folder` hold empty arrays, with no chunk done."""
    shutil.rmtree(folder / "arrays", ignore_errors=True)
    (folder / "arrays").mkdir(parents=True)
    needed, free = sum(map(math.prod, shapes.values())), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: the prepared images need {needed} bytes and the disk has {free} left; "
            "make room, or lower data.examples_per_class"
        )
    for split, shape in shapes.items():
        path = folder / "arrays" / f"{split}_images.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    (folder / "arrays" / "done").write_bytes(bytes(chunks))
    write_text_atomically(folder / "arrays" / "state.json", state)


def decode_images(
    splits: dict[str, list[ImageRef]],
    decoding: Decoding,
    folder: Path,
    workers: int,
    progress: Callable[[str, int, int], None],
) -> Path:
    """Decode images into <split>_images.npy, uint8 (N, 3, height, width); returns their folder.

    Goes on with what a killed call left in `folder`: the file `done` has one byte a chunk, set
    once the chunk is on disk, and `state.json` says of what, so that another recipe or other
    images start afresh. Raises UserError naming an image that cannot be decoded or has another
    size than the first.
    """
    first = decoding(splits["train"][0])
    check_square(first.shape, splits["train"][0])
    shapes = {split: (len(refs), *first.shape) for split, refs in splits.items()}
    arrays = folder / "arrays"
    chunks = [
        _Chunk(refs[row : row + CHUNK_IMAGES], decoding, str(arrays / f"{split}_images.npy"), row)
        for split, refs in splits.items()
        for row in range(0, len(refs), CHUNK_IMAGES)
    ]
    state_file, done_file = arrays / "state.json", arrays / "done"
    state = json.dumps({"fingerprint": _fingerprint(splits, decoding)}) + "\n"
    # A job that was killed at its very end has moved arrays away already.
    made = [state_file, done_file, *(arrays / f"{split}_images.npy" for split in splits)]
    if not all(map(Path.is_file, made)) or state_file.read_text(encoding="utf-8") != state:
        _start(folder, shapes, state, len(chunks))
    finished = done_file.read_bytes()
    counted = sum(len(chunk.refs) for chunk, flag in zip(chunks, finished, strict=True) if flag)
    total = sum(map(len, splits.values()))
    with open(done_file, "rb+", buffering=0) as marks:

        def done(number: int) -> None:
            nonlocal counted
            marks.seek(number)
            marks.write(b"\1")
            counted += len(chunks[number].refs)
            progress("decoding images", counted, total)

        left = {n: chunk for n, chunk in enumerate(chunks) if not finished[n]}
        _run_all(left, workers, done)
    return arrays
