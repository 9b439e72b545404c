"""One reader per file format: bytes in, uint8 images and int64 labels out.

Published files are verified before they are read; a failure raises a UserError that names the file.
"""

from __future__ import annotations

import gzip
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..io.errors import UserError
from ..io.files import reading
from .archives import AGAIN, read_members
from .sources import IDX_FILES, SourceFile


@dataclass(frozen=True)
class Arrays:
    """A whole dataset in memory.

    `train_images`, `test_images`: uint8 (N, channels, height, width); `train_labels`,
    `test_labels`: int64 (N,); `class_names`: one per class if the files contain them.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...] | None = None


def read_idx(path: str | Path) -> np.ndarray:
    """The array of a gzip-packed idx file of unsigned bytes.

    Two zero bytes, the type (8 = unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit number, then the bytes, last dimension fastest.
    """
    with reading(path, "an idx file", AGAIN), gzip.open(path, "rb") as handle:
        data = handle.read()
        if data[:3] != b"\0\0\x08":
            raise ValueError("its header is not that of unsigned bytes")
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def read_mnist(folder: str | Path) -> Arrays:
    """MNIST or FashionMNIST from its four idx files in `folder`."""
    train_images, train_labels, test_images, test_labels = (
        read_idx(Path(folder) / name) for name in IDX_FILES
    )
    return Arrays(
        train_images[:, None],
        train_labels.astype(np.int64),
        test_images[:, None],
        test_labels.astype(np.int64),
    )


def read_cifar(path: Path, file: SourceFile, num_classes: int) -> Arrays:
    """CIFAR10 (10 classes) or CIFAR100 (100 classes, the fine labels) from its .tar.gz `file`.

    In the binary version, an image is a record of its label (CIFAR100: coarse, then fine) and three
    planes of 32 x 32 bytes. The Python version is a pickle, which can run any code, so `path` must
    have been verified.

    Raises:
        UserError: the file is missing or corrupt.
    """
    fine = num_classes == 100
    python = "python" in file.name
    train = ["train"] if fine else [f"data_batch_{i}" for i in range(1, 6)]
    members = read_members(path, [*file.content, *file.optional])

    def unpickled(name: str) -> dict[bytes, Any]:
        return pickle.loads(members[name], encoding="bytes")

    def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
        if python:
            found = unpickled(name)
            images, labels = found[b"data"], np.array(found[b"fine_labels" if fine else b"labels"])
        else:
            label_bytes = 1 + fine
            records = np.frombuffer(members[f"{name}.bin"], np.uint8)
            records = records.reshape(-1, label_bytes + 3 * 32 * 32)
            images, labels = records[:, label_bytes:], records[:, label_bytes - 1]
        return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)

    with reading(path, "CIFAR's archive", AGAIN):
        parts = [batch(name) for name in train]
        images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        if python:
            listed = unpickled("meta" if fine else "batches.meta")
            names = [n.decode() for n in listed[b"fine_label_names" if fine else b"label_names"]]
        else:
            names = members.get(file.optional[0], b"").decode().split()
        test = batch("test" if fine else "test_batch")
        return Arrays(images, labels, *test, tuple(names) if len(names) == num_classes else None)


def read_stl10(path: Path, file: SourceFile) -> Arrays:
    """STL10's labelled images: three planes, each column by column; labels run from 1 to 10."""
    members = read_members(path, [*file.content, *file.optional])
    with reading(path, "STL10's archive", AGAIN):
        splits = []
        for split in ("train", "test"):
            stored = np.frombuffer(members[f"{split}_X.bin"], np.uint8).reshape(-1, 3, 96, 96)
            labels = np.frombuffer(members[f"{split}_y.bin"], np.uint8).astype(np.int64) - 1
            splits += [np.ascontiguousarray(stored.transpose(0, 1, 3, 2)), labels]
        names = tuple(members.get("class_names.txt", b"").decode().split())
        return Arrays(*splits, names if len(names) == 10 else None)


def read_svhn(folder: str | Path) -> Arrays:
    """SVHN's cropped digits: X is 32 x 32 x 3 x N bytes and y N x 1, the digit 0 labelled 10."""
    import scipy.io

    splits = []
    for split in ("train", "test"):
        path = Path(folder) / f"{split}_32x32.mat"
        with reading(path, "an SVHN .mat file", AGAIN):
            stored = scipy.io.loadmat(path, variable_names=["X", "y"])
            images = np.ascontiguousarray(stored["X"].transpose(3, 2, 0, 1))
            splits += [images, stored["y"].reshape(-1).astype(np.int64) % 10]
    return Arrays(*splits)


def _channels_first(images: np.ndarray, what: str) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(f"{what} is {images.dtype}, not uint8 (0 to 255)")
    if 0 not in images.shape[1:]:
        if images.ndim == 3:
            return images[:, None]
        if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
            return images
        if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise UserError(
        f"{what} is {images.shape}; give N x height x width, or with 1 or 3 channels as second or "
        "last axis"
    )


def read_npz(path: str | Path) -> Arrays:
    """A dataset from a .npz file with train_images, train_labels, test_images, test_labels.

    Images are uint8, N x H x W, N x H x W x channels or N x channels x H x W with 1 or 3
    channels; labels are integers from 0. Pickled objects are refused.

    Raises:
        UserError: the file is missing or corrupt, or its arrays have other shapes or dtypes.
    """
    arrays = []
    with (
        reading(path, "a .npz file", "save it again with numpy.savez"),
        np.lib.npyio.NpzFile(open(path, "rb"), own_fid=True, allow_pickle=False) as archive,
    ):
        for split in ("train", "test"):
            for name in (f"{split}_images", f"{split}_labels"):
                if name not in archive:
                    raise UserError(f"{path}: contains no array {name!r}")
            images = _channels_first(archive[f"{split}_images"], f"{path}: its {split}_images")
            labels = archive[f"{split}_labels"]
            if labels.dtype.kind not in "ui" or labels.shape != (len(images),):
                raise UserError(
                    f"{path}: its {split}_labels are {labels.dtype} of shape {labels.shape}, not "
                    f"one integer for each of the {len(images)} images"
                )
            arrays += [images, labels.astype(np.int64)]
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise UserError(f"{path}: its train and test images differ in shape")
    return Arrays(*arrays)
