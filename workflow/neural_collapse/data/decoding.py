"""Decode image files into one array, in several threads, resumable, with bounded memory."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..io.errors import UserError
from .image_files import ImageRef, decode_image
from .pixels import average_pooled, check_square, padded, resized

CHUNK_IMAGES = 64


@dataclass(frozen=True)
class Decoding:
    """How an encoded image becomes (3, height, width) bytes."""

    resize_px: int | None
    crop_px: int | None
    average_pooling: int
    padding_pixels: int
    image_size_px: int | None

    def __call__(self, ref: ImageRef) -> np.ndarray:
        image = decode_image(ref, self.resize_px, self.crop_px)
        if self.image_size_px is not None:  # which would squash it
            check_square(image.shape, ref)
        image = average_pooled(resized(image, self.image_size_px), self.average_pooling)
        return padded(image, self.padding_pixels)


def _decode_chunk(decoding: Decoding, path: Path, first_row: int, refs: list[ImageRef]) -> None:
    """Decode images and write them to the .npy file at `path`, from row `first_row` on."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = array.shape[1:]
    rows = []
    for ref in refs:
        image = decoding(ref)
        if image.shape != shape:
            raise UserError(
                f"{ref}: is {image.shape[2]} x {image.shape[1]} pixels once prepared, others are "
                f"{shape[2]} x {shape[1]}; give the dataset's image_size_px"
            )
        rows.append(image)
    # Written, not mapped: on a full disk a mapping ends the process without a word.
    with open(path, "r+b") as file:
        file.seek(array.offset + first_row * math.prod(shape))
        file.write(np.stack(rows).tobytes())
        file.flush()
        os.fsync(file.fileno())  # on disk before the chunk counts as done


def _fingerprint(splits: dict[str, list[ImageRef]], decoding: Decoding) -> bytes:
    """A hash of the images and of how they are decoded."""
    digest = hashlib.sha256(repr((CHUNK_IMAGES, dataclasses.astuple(decoding))).encode())
    for refs in splits.values():
        for ref in refs:
            digest.update(os.fsencode(f"{ref.path}\0{ref.offset}\0{ref.size_bytes()}\n"))
        digest.update(b"\0")
    return digest.digest()


def _make_arrays(shapes: dict[Path, tuple[int, ...]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in shapes:  # of an earlier call, which would count as used
        path.unlink(missing_ok=True)
    needed, free = sum(map(math.prod, shapes.values())), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: the prepared images need {needed} bytes and the disk has {free} left; "
            "make room, or lower data.examples_per_class"
        )
    for path, shape in shapes.items():
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def decode_images(
    splits: dict[str, list[ImageRef]],
    decoding: Decoding,
    folder: Path,
    workers: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Decode images into `folder`/<split>_images.npy, uint8 (N, 3, height, width).

    A killed call is resumed: the file `done` in `folder` contains a fingerprint of the images and
    of the decoding, then one byte per chunk, which is 1 if the chunk is on disk.

    Raises:
        UserError: an image cannot be decoded or differs in size from the first, or the disk is too
            small.
    """
    first = decoding(splits["train"][0])
    check_square(first.shape, splits["train"][0])
    paths = {split: folder / f"{split}_images.npy" for split in splits}
    chunks = [
        (paths[split], row, refs[row : row + CHUNK_IMAGES])
        for split, refs in splits.items()
        for row in range(0, len(refs), CHUNK_IMAGES)
    ]
    fingerprint, done_file = _fingerprint(splits, decoding), folder / "done"
    done = done_file.read_bytes() if done_file.is_file() else b""
    resumes = done.startswith(fingerprint) and len(done) == len(fingerprint) + len(chunks)
    # A job that was killed at its very end has moved arrays away already.
    if not resumes or not all(path.is_file() for path in paths.values()):
        done_file.unlink(missing_ok=True)
        _make_arrays({paths[s]: (len(refs), *first.shape) for s, refs in splits.items()}, folder)
        done = fingerprint + bytes(len(chunks))
        done_file.write_bytes(done)
    left = [n for n in range(len(chunks)) if not done[len(fingerprint) + n]]
    total = sum(map(len, splits.values()))
    decoded = total - sum(len(chunks[n][2]) for n in left)
    # Threads suffice: Pillow releases the GIL while it decodes and resizes.
    with open(done_file, "rb+", buffering=0) as marks, ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda n: _decode_chunk(decoding, *chunks[n]), left)
        for n, _ in zip(left, results, strict=True):
            marks.seek(len(fingerprint) + n)
            marks.write(b"\1")
            decoded += len(chunks[n][2])
            progress("decoding images", decoded, total)
