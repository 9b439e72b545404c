"""One reader a file format.  Bytes in, uint8 images and int64 labels out.

Every reader checks what a header claims against the bytes that are there before it allocates, and
turns whatever is wrong with a file into a :class:`~neural_collapse.io.errors.UserError` that names
it.  Images are (N, channels, height, width), labels start at 0.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..io.errors import UserError
from .archives import MAX_DECODED_BYTES, check_content, read_exactly, read_members, reading
from .sources import SourceFile


@dataclass(frozen=True)
class Arrays:
    """A whole dataset in memory.

    `train_images`, `test_images`: uint8 (N, channels, height, width); `train_labels`,
    `test_labels`: int64 (N,); `class_names`: one a class where the files give them.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...] | None = None


# --------------------------------------------------------------------------- idx


def parse_idx(handle: BinaryIO, where: str | Path) -> np.ndarray:
    """The uint8 array of an idx stream, in its own shape; raises UserError.

    The format: two zero bytes, the type (8 = unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit number, then the bytes, last dimension fastest.
    """
    header = read_exactly(handle, 4)
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] != 8 or not 1 <= header[3] <= 4:
        raise UserError(
            f"{where}: is not an idx file of unsigned bytes (it starts with {header.hex() or '-'}, "
            "not 000008 and the number of dimensions)"
        )
    sizes = read_exactly(handle, 4 * header[3])
    if len(sizes) < 4 * header[3]:
        raise UserError(f"{where}: ends inside its header")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    expected = math.prod(shape)
    if expected > MAX_DECODED_BYTES:
        raise UserError(f"{where}: its header claims {shape}, {expected} bytes: too many")
    data = read_exactly(handle, expected)
    if len(data) != expected or handle.read(1):
        found = f"only {len(data)}" if len(data) < expected else "more"
        raise UserError(f"{where}: its header claims {expected} bytes of data, there are {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_idx(path: str | Path) -> np.ndarray:
    """The uint8 array of an idx file, gzip-packed or not; raises UserError."""
    with reading(path, "an idx file"), open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.GzipFile(fileobj=raw) if packed else contextlib.nullcontext(raw) as handle:
            return parse_idx(handle, path)


def read_mnist(folder: str | Path) -> Arrays:
    """MNIST or FashionMNIST from its four idx files in `folder`."""
    folder = Path(folder)

    def split(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images_path = folder / f"{prefix}-images-idx3-ubyte.gz"
        labels_path = folder / f"{prefix}-labels-idx1-ubyte.gz"
        images, labels = read_idx(images_path), read_idx(labels_path)
        for path, array, dimensions in ((images_path, images, 3), (labels_path, labels, 1)):
            if array.ndim != dimensions:
                raise UserError(f"{path}: holds {array.ndim} dimensions, not {dimensions}")
        if len(images) != len(labels):
            raise UserError(
                f"{labels_path}: holds {len(labels)} labels for the {len(images)} images of "
                f"{images_path.name}"
            )
        return images[:, None], labels.astype(np.int64)

    return Arrays(*split("train"), *split("t10k"))


# --------------------------------------------------------------------------- CIFAR


def parse_cifar_records(
    data: bytes, label_bytes: int, num_classes: int, where: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of a binary CIFAR file; raises UserError.

    An image is a record of `label_bytes` labels, of which the last counts (CIFAR100: coarse, then
    fine), and three planes of 32 x 32 bytes.
    """
    size = label_bytes + 3 * 32 * 32
    if not data or len(data) % size:
        raise UserError(f"{where}: {len(data)} bytes are not a whole number of {size}-byte images")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= num_classes:
        raise UserError(f"{where}: a label is {labels.max()}, outside 0 to {num_classes - 1}")
    return np.ascontiguousarray(records[:, label_bytes:]).reshape(-1, 3, 32, 32), labels


def _published_pickle(data: bytes, expected: str, where: str) -> dict[str, Any]:
    """The dictionary of a CIFAR batch in the Python version, whose checksum must be `expected`.

    A pickle can run any code, so no other bytes than the published ones are unpickled.
    """
    check_content(data, expected, where)
    with reading(where, "a CIFAR batch"):
        batch = pickle.loads(data, encoding="bytes")
        return {key.decode("ascii"): value for key, value in batch.items()}


def read_cifar(path: str | Path, file: SourceFile, num_classes: int) -> Arrays:
    """CIFAR10 (10 classes) or CIFAR100 (100, the fine labels) out of its .tar.gz `file`.

    The binary version is read whoever packed it, the Python version only where each member has
    its checksum in `file.content`. Raises UserError.
    """
    path, fine = Path(path), num_classes == 100
    train = ["train"] if fine else [f"data_batch_{i}" for i in range(1, 6)]
    test = "test" if fine else "test_batch"
    names: list[str] | None = None
    if "python" in file.name:
        meta = "meta" if fine else "batches.meta"
        members = read_members(path, file.content)

        def unpickled(name: str) -> dict[str, Any]:
            return _published_pickle(members[name], file.content[name], f"{path} ({name})")

        def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
            found = unpickled(name)
            labels = np.array(found["fine_labels" if fine else "labels"], np.int64)
            return found["data"].reshape(-1, 3, 32, 32), labels

        names = [n.decode() for n in unpickled(meta)["fine_label_names" if fine else "label_names"]]
    else:
        members = read_members(path, [f"{name}.bin" for name in (*train, test)], file.optional)

        def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
            where = f"{path} ({name}.bin)"
            return parse_cifar_records(members[f"{name}.bin"], 1 + fine, num_classes, where)

        listed = members.get(file.optional[0], b"").decode("utf-8", "replace").split()
        names = listed if len(listed) == num_classes else None
    parts = [batch(name) for name in train]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Arrays(images, labels, *batch(test), tuple(names) if names else None)


# --------------------------------------------------------------------------- STL10


def parse_stl10(images: bytes, labels: bytes, where: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 96, 96) and labels (N,) of one split; raises UserError.

    Each image is three planes, each stored column by column; labels run from 1 to 10.
    """
    if not images or len(images) % (3 * 96 * 96):
        raise UserError(f"{where}: {len(images)} bytes are no whole number of 3 x 96 x 96 images")
    stored = np.frombuffer(images, np.uint8).reshape(-1, 3, 96, 96)
    numbers = np.frombuffer(labels, np.uint8).astype(np.int64)
    if len(numbers) != len(stored):
        raise UserError(f"{where}: {len(numbers)} labels for {len(stored)} images")
    if numbers.min() < 1 or numbers.max() > 10:
        raise UserError(f"{where}: a label is outside 1 to 10")
    return np.ascontiguousarray(stored.transpose(0, 1, 3, 2)), numbers - 1


def read_stl10(path: str | Path) -> Arrays:
    """STL10's labelled images out of its binary .tar.gz."""
    needed = ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"]
    members = read_members(path, needed, optional=["class_names.txt"])
    train = parse_stl10(members.pop("train_X.bin"), members["train_y.bin"], f"{path} (train)")
    test = parse_stl10(members.pop("test_X.bin"), members["test_y.bin"], f"{path} (test)")
    names = tuple(members.get("class_names.txt", b"").decode("utf-8", "replace").split())
    return Arrays(*train, *test, names if len(names) == 10 else None)


# --------------------------------------------------------------------------- SVHN


def read_svhn_split(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of one cropped-digits .mat file; raises UserError.

    The file stores X as 32 x 32 x 3 x N and y as N x 1, the digit 0 labelled 10.
    """
    import scipy.io

    with reading(path, "an SVHN .mat file"):
        claimed = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
        shape = claimed.get("X", ())
        if len(shape) != 4 or tuple(shape[:3]) != (32, 32, 3) or shape[3] < 1:
            raise UserError(f"{path}: its X is {tuple(shape)}, not 32 x 32 x 3 x N")
        if math.prod(shape) > MAX_DECODED_BYTES or math.prod(claimed.get("y", (0,))) != shape[3]:
            raise UserError(f"{path}: its y does not hold one label an image")
        values = scipy.io.loadmat(path, variable_names=["X", "y"])
        images, labels = np.asarray(values["X"]), np.asarray(values["y"]).reshape(-1)
        if images.dtype != np.uint8 or images.shape != tuple(shape):
            raise UserError(f"{path}: its X is not an array of bytes")
        if labels.dtype.kind not in "uif" or not np.isin(labels, np.arange(0, 11)).all():
            raise UserError(f"{path}: a label is outside 0 to 10")
        return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.astype(np.int64) % 10


def read_svhn(folder: str | Path) -> Arrays:
    """SVHN's cropped digits from the two .mat files in `folder`."""
    folder = Path(folder)
    return Arrays(
        *read_svhn_split(folder / "train_32x32.mat"), *read_svhn_split(folder / "test_32x32.mat")
    )


# --------------------------------------------------------------------------- npz


def _channels_first(images: np.ndarray, name: str, path: str | Path) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(f"{path}: its {name} is {images.dtype}, not uint8 (0 to 255)")
    if 0 in images.shape[1:]:
        raise UserError(f"{path}: its {name} is {images.shape}: images without pixels")
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first != last:
            return images if first else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise UserError(
        f"{path}: its {name} is {images.shape}; give N x height x width, or with 1 or 3 channels "
        "as second or last axis"
    )


def read_npz(path: str | Path) -> Arrays:
    """A dataset from a .npz file with train_images, train_labels, test_images, test_labels.

    Images are uint8, N x H x W, N x H x W x channels or N x channels x H x W with 1 or 3
    channels; labels are integers from 0.  Nothing pickled is read.  Raises UserError.
    """
    with (
        reading(path, "a .npz file", "save it again with numpy.savez"),
        np.lib.npyio.NpzFile(open(path, "rb"), own_fid=True, allow_pickle=False) as archive,
    ):

        def array(name: str) -> np.ndarray:
            if name not in archive:
                raise UserError(f"{path}: holds no array {name!r}")
            return archive[name]

        def split(name: str) -> tuple[np.ndarray, np.ndarray]:
            images = _channels_first(array(f"{name}_images"), f"{name}_images", path)
            labels = array(f"{name}_labels")
            if labels.ndim != 1 or labels.dtype.kind not in "ui":
                raise UserError(f"{path}: its {name}_labels is not one integer an image")
            if len(labels) != len(images):
                raise UserError(
                    f"{path}: its {name}_labels holds {len(labels)} labels for {len(images)} images"
                )
            return images, labels.astype(np.int64)

        arrays = Arrays(*split("train"), *split("test"))
    if arrays.train_images.shape[1:] != arrays.test_images.shape[1:]:
        raise UserError(f"{path}: its train and test images differ in shape")
    return arrays


__all__ = [
    "Arrays", "parse_cifar_records", "parse_idx", "parse_stl10", "read_cifar", "read_idx",
    "read_mnist", "read_npz", "read_stl10", "read_svhn", "read_svhn_split",
]  # fmt: skip
