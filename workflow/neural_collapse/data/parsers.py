"""One reader a file format.  Bytes in, uint8 images and int64 labels out; nothing is executed.

Every reader checks what a header claims against the bytes that are there before it allocates, and
turns whatever is wrong with a file into a :class:`~neural_collapse.io.errors.UserError` that names
it.  Images are (N, channels, height, width), labels start at 0.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import io
import math
import os
import pickle
import pickletools
import posixpath
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..io.errors import UserError

BLOCK_BYTES = 1 << 20
MAX_DECODED_BYTES = 4 << 30
"""No single array of a published file is larger; a header that claims more is refused."""


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


@contextlib.contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turn any failure to read `path` as a `kind` into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; download the dataset again") from None
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file can make a decoder fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path}: is damaged or not {kind} ({reason}); delete it and download again"
        ) from None


# --------------------------------------------------------------------------- idx


def _read_exactly(handle: BinaryIO, count: int) -> bytes:
    """Up to `count` bytes, in blocks: memory grows with what is there, not what is claimed."""
    blocks, missing = [], count
    while missing and (block := handle.read(min(missing, BLOCK_BYTES))):
        blocks.append(block)
        missing -= len(block)
    return b"".join(blocks)


def parse_idx(handle: BinaryIO, where: str | Path) -> np.ndarray:
    """The uint8 array of an idx stream, in its own shape; raises UserError.

    The format: two zero bytes, the type (8 = unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit number, then the bytes, last dimension fastest.
    """
    header = _read_exactly(handle, 4)
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] != 8 or not 1 <= header[3] <= 4:
        raise UserError(
            f"{where}: is not an idx file of unsigned bytes (it starts with {header.hex() or '-'}, "
            "not 000008 and the number of dimensions)"
        )
    sizes = _read_exactly(handle, 4 * header[3])
    if len(sizes) < 4 * header[3]:
        raise UserError(f"{where}: ends inside its header")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    expected = math.prod(shape)
    if expected > MAX_DECODED_BYTES:
        raise UserError(f"{where}: its header claims {shape}, {expected} bytes, which is absurd")
    data = _read_exactly(handle, expected)
    surplus = handle.read(1)
    if len(data) != expected or surplus:
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
        if images.ndim != 3:
            raise UserError(f"{images_path}: holds {images.ndim} dimensions, not 3")
        if labels.ndim != 1:
            raise UserError(f"{labels_path}: holds {labels.ndim} dimensions, not 1")
        if len(images) != len(labels):
            raise UserError(
                f"{labels_path}: holds {len(labels)} labels for the {len(images)} images of "
                f"{images_path.name}"
            )
        return images[:, None], labels.astype(np.int64)

    return Arrays(*split("train"), *split("t10k"))


# --------------------------------------------------------------------------- tar


def check_member(member: tarfile.TarInfo, where: str | Path) -> None:
    """Refuse a member that a well-meant archive does not have; raises UserError.

    Nothing is ever unpacked to disk; that a path climbs out or a member is a link still says
    that the archive is not the published one.
    """
    name = member.name.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0]:
        raise UserError(f"{where}: its member {member.name!r} leaves the folder; refused")
    if member.islnk() or member.issym():
        raise UserError(f"{where}: its member {member.name!r} is a link; refused")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise UserError(f"{where}: its member {member.name!r} is not a plain file; refused")


def read_members(
    path: str | Path, names: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, bytes]:
    """The bytes of members of a .tar.gz, by base name, read as a stream without unpacking it.

    Stops at the last one that is wanted.  Raises UserError where one of `names` is missing, stands
    twice, or any member up to there is unsafe.
    """
    required, wanted = set(names), {*names, *optional}
    found: dict[str, bytes] = {}
    with reading(path, "a .tar.gz archive"), tarfile.open(path, "r|gz") as archive:
        for member in archive:
            check_member(member, path)
            name = posixpath.basename(member.name)
            if not member.isreg() or name not in wanted:
                continue
            if name in found:
                raise UserError(f"{path}: its member {name} stands twice; refused")
            if member.size > MAX_DECODED_BYTES:
                raise UserError(f"{path}: its member {name} claims {member.size} bytes; refused")
            handle = archive.extractfile(member)
            data = _read_exactly(handle, member.size) if handle else b""
            if len(data) != member.size:
                raise UserError(f"{path}: ends inside its member {name}")
            found[name] = data
            if wanted <= found.keys():
                break
    missing = sorted(required - found.keys())
    if missing:
        raise UserError(f"{path}: holds no {missing[0]}; it is not the published archive")
    return found


def member_checksums(path: str | Path, algorithms: dict[str, str]) -> dict[str, str]:
    """Hexadecimal checksums of members of a .tar.gz, by base name; raises UserError.

    Streams, so that archives of any size need no memory.
    """
    found: dict[str, str] = {}
    with reading(path, "a .tar.gz archive"), tarfile.open(path, "r|gz") as archive:
        for member in archive:
            check_member(member, path)
            name = posixpath.basename(member.name)
            if not member.isreg() or name not in algorithms:
                continue
            if name in found:
                raise UserError(f"{path}: its member {name} stands twice; refused")
            digest = hashlib.new(algorithms[name], usedforsecurity=False)
            handle = archive.extractfile(member)
            while handle and (block := handle.read(BLOCK_BYTES)):
                digest.update(block)
            found[name] = digest.hexdigest()
    return found


def gzip_checksum(path: str | Path, algorithm: str) -> str:
    """Hexadecimal checksum of what a .gz file holds; raises UserError."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with reading(path, "a gzip file"), gzip.open(path, "rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# --------------------------------------------------------------------------- CIFAR


class _ByteType:
    """Stands in for numpy.dtype while a batch is read; only unsigned bytes come through."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        if name not in ("u1", b"u1", "uint8", b"uint8"):
            raise pickle.UnpicklingError(f"an array of {name!r}, not of unsigned bytes")

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and alignment mean nothing for single bytes


class _ByteArray:
    """Stands in for numpy.ndarray: keeps shape and bytes, and checks that they agree."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, column_major, data = state
        if not isinstance(kind, _ByteType):
            raise pickle.UnpicklingError("an array without its type")
        if isinstance(data, str):
            data = data.encode("latin1")
        if not isinstance(data, bytes) or not isinstance(shape, tuple) or len(shape) > 4:
            raise pickle.UnpicklingError("an array that is not plain bytes")
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"an array of shape {shape}")
        if math.prod(shape) != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(data)} bytes")
        order = "F" if column_major else "C"
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order=order)


def _reconstruct(*_: Any) -> _ByteArray:
    return _ByteArray()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands in for _codecs.encode, with which Python 3 writes bytes for old readers."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return codecs.encode(text, "latin1")


# Names that occur in CIFAR's batches -> what is used in their place. No real numpy or codecs
# function is ever handed to the unpickler, so that a crafted state reaches only the checks above.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ByteArray,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _encode,
}

_OPCODES = frozenset(
    """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE SHORT_BINUNICODE
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM
    SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE
    BUILD""".split()  # noqa: SIM905
)


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, refused") from None


def parse_restricted_pickle(data: bytes, where: str | Path) -> dict[str, Any]:
    """The dictionary of a CIFAR batch; raises UserError on anything that such a file never holds.

    The instructions are read through first without being run: only those that build plain values
    are let pass, and no memo index beyond the file's own length (it would allocate).
    """
    with reading(where, "a CIFAR batch"):
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                raise pickle.UnpicklingError(f"it holds the instruction {opcode.name}, refused")
            if opcode.name.endswith("PUT") and not 0 <= int(argument) <= len(data):
                raise pickle.UnpicklingError("it holds an absurd memo index, refused")
        value = _RestrictedUnpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError("it does not hold a dictionary")
        return {
            key.decode("ascii") if isinstance(key, bytes) else key: (
                item.array if isinstance(item, _ByteArray) else item
            )
            for key, item in value.items()
        }


def parse_cifar_batch(
    data: bytes, label_key: str, num_classes: int, where: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of one pickled batch; raises UserError."""
    batch = parse_restricted_pickle(data, where)
    images, labels = batch.get("data"), batch.get(label_key)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
        raise UserError(f"{where}: its 'data' is not an array of N x 3072 bytes")
    if (
        not isinstance(labels, list)
        or len(labels) != len(images)
        or not all(type(label) is int and 0 <= label < num_classes for label in labels)
    ):
        raise UserError(
            f"{where}: its {label_key!r} is not a list of {len(images)} numbers from 0 to "
            f"{num_classes - 1}"
        )
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def read_cifar(path: str | Path, num_classes: int) -> Arrays:
    """CIFAR10 (10 classes) or CIFAR100 (100, the fine labels) out of its python .tar.gz."""
    path = Path(path)
    if num_classes == 100:
        train, test, meta, labels, names = (
            ["train"],
            "test",
            "meta",
            "fine_labels",
            "fine_label_names",
        )
    else:
        train = [f"data_batch_{i}" for i in range(1, 6)]
        test, meta, labels, names = "test_batch", "batches.meta", "labels", "label_names"
    members = read_members(path, [*train, test, meta])

    def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
        return parse_cifar_batch(members.pop(name), labels, num_classes, f"{path} ({name})")

    parts = [batch(name) for name in train]
    test_images, test_labels = batch(test)
    listed = parse_restricted_pickle(members[meta], f"{path} ({meta})").get(names)
    if not isinstance(listed, list) or len(listed) != num_classes:
        raise UserError(f"{path} ({meta}): its {names!r} is not a list of {num_classes} names")
    return Arrays(
        np.concatenate([images for images, _ in parts]),
        np.concatenate([part for _, part in parts]),
        test_images,
        test_labels,
        tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in listed),
    )


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
        labels = labels.astype(np.int64)
        labels[labels == 10] = 0
        return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels


def read_svhn(folder: str | Path) -> Arrays:
    """SVHN's cropped digits from the two .mat files in `folder`."""
    folder = Path(folder)
    return Arrays(
        *read_svhn_split(folder / "train_32x32.mat"), *read_svhn_split(folder / "test_32x32.mat")
    )


# --------------------------------------------------------------------------- npz


def _npz_array(archive: zipfile.ZipFile, name: str, path: str | Path) -> np.ndarray:
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise UserError(f"{path}: holds no array {name!r}") from None
    with archive.open(entry) as handle:
        version = np.lib.format.read_magic(handle)
        if version not in ((1, 0), (2, 0)):
            raise UserError(f"{path}: its {name} is in the npy version {version}, unknown")
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, column_major, kind = header(handle)
        if kind.hasobject:
            raise UserError(f"{path}: its {name} holds Python objects; refused")
        expected = math.prod(shape) * kind.itemsize
        if expected != entry.file_size - handle.tell():
            raise UserError(f"{path}: its {name} claims {expected} bytes and has another number")
        data = _read_exactly(handle, expected)
        if len(data) != expected:
            raise UserError(f"{path}: ends inside its {name}")
        return np.frombuffer(data, kind).reshape(shape, order="F" if column_major else "C")


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
    with reading(path, "a .npz file"), zipfile.ZipFile(path) as archive:

        def split(name: str) -> tuple[np.ndarray, np.ndarray]:
            images = _channels_first(
                _npz_array(archive, f"{name}_images", path), f"{name}_images", path
            )
            labels = _npz_array(archive, f"{name}_labels", path)
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


# --------------------------------------------------------------------------- image files


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one encoded image lies: a whole file (`size` None), or a part of a tar file."""

    path: str
    offset: int = 0
    size: int | None = None
    name: str = ""

    def read(self) -> bytes:
        """Its bytes; raises UserError where the file has become shorter."""
        with reading(self, "an image"), open(self.path, "rb") as handle:
            handle.seek(self.offset)
            data = handle.read() if self.size is None else handle.read(self.size)
            if self.size is not None and len(data) != self.size:
                raise UserError(f"{self}: the file ends inside it")
            return data

    def __str__(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path


@dataclass(frozen=True)
class ImageIndex:
    """Encoded images of a dataset, nothing decoded yet; labels (N,) int64."""

    train: list[ImageRef]
    train_labels: np.ndarray
    test: list[ImageRef]
    test_labels: np.ndarray
    class_names: tuple[str, ...]


# Only these decoders are offered a file, whatever its first bytes say.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".ppm",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
}


def decode_image(ref: ImageRef, resize_px: int | None, crop_px: int | None) -> np.ndarray:
    """One image as RGB uint8 (3, height, width); raises UserError naming it.

    The shorter side is resized to `resize_px` (bilinear, antialiased; the longer side rounded
    down) and the centre square of `crop_px` cut out, as torchvision's Resize and CenterCrop do
    with PIL images.
    """
    from PIL import Image

    data = ref.read()
    with reading(ref, "an image"):
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
            image = opened.convert("RGB")
        if resize_px is not None:
            width, height = image.size
            short, long = sorted((width, height))
            longer = int(resize_px * long / short)
            if short != resize_px:
                size = (resize_px, longer) if width <= height else (longer, resize_px)
                image = image.resize(size, Image.Resampling.BILINEAR)
        if crop_px is not None:
            width, height = image.size
            left, top = round((width - crop_px) / 2), round((height - crop_px) / 2)
            image = image.crop((left, top, left + crop_px, top + crop_px))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _class_folder(folder: Path) -> dict[str, list[ImageRef]]:
    with reading(folder, "a folder of class folders"):
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        return {
            name: [
                ImageRef(str(folder / name / file))
                for file in sorted(os.listdir(folder / name))
                if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
            ]
            for name in classes
        }


def index_image_folder(folder: str | Path) -> ImageIndex:
    """The images of train/<class>/ and test/<class>/ (or val/<class>/) in `folder`.

    Classes are numbered in the alphabetical order of their folders.  Raises UserError where a
    split is missing, a class is empty, or the splits differ in their classes.
    """
    folder = Path(folder)
    test_name = "test" if (folder / "test").is_dir() else "val"
    for name in ("train", test_name):
        if not (folder / name).is_dir():
            raise UserError(f"{folder}: holds no folder train/, or neither test/ nor val/")
    train, test = _class_folder(folder / "train"), _class_folder(folder / test_name)
    if train.keys() != test.keys():
        odd = min(train.keys() ^ test.keys())
        raise UserError(f"{folder}: the class {odd!r} is in one of train/ and {test_name}/ only")
    for split, classes in (("train", train), (test_name, test)):
        for name, refs in classes.items():
            if not refs:
                raise UserError(f"{folder / split / name}: holds no image files")
    return _index(train, test, tuple(train))


def _index(
    train: dict[str, list[ImageRef]], test: dict[str, list[ImageRef]], names: tuple[str, ...]
) -> ImageIndex:
    def labels(classes: dict[str, list[ImageRef]]) -> np.ndarray:
        return np.repeat(np.arange(len(classes)), [len(refs) for refs in classes.values()])

    def flat(classes: dict[str, list[ImageRef]]) -> list[ImageRef]:
        return [ref for refs in classes.values() for ref in refs]

    return ImageIndex(
        flat(train),
        labels(train).astype(np.int64),
        flat(test),
        labels(test).astype(np.int64),
        names,
    )


def _index_tar(path: Path, offset: int = 0, size: int | None = None) -> list[ImageRef]:
    """The plain files of an uncompressed tar, or of one that lies inside another."""
    with open(path, "rb") as handle:
        handle.seek(offset)
        refs = []
        # fileobj's position is where the archive starts; offsets count from the file's start.
        with tarfile.open(fileobj=handle, mode="r:") as archive:
            for member in archive:
                check_member(member, path)
                if member.isreg():
                    if size is not None and member.offset_data + member.size > offset + size:
                        raise UserError(f"{path}: ends inside its member {member.name}")
                    refs.append(ImageRef(str(path), member.offset_data, member.size, member.name))
                archive.members = []  # keeps memory bounded: a member's header is not needed again
        return refs


def _validation_wnids(folder: Path) -> list[str]:
    """The class of each validation image, in the images' order."""
    mapping = folder / "imagenet_2012_validation_synset_labels.txt"
    if mapping.is_file():
        with reading(mapping, "a text file"):
            return mapping.read_text(encoding="ascii").split()
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    if not path.is_file():
        raise UserError(f"{path}: is missing; it says which class a validation image belongs to")
    members = read_members(path, ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
    import scipy.io

    with reading(path, "the ILSVRC-2012 development kit"):
        synsets = scipy.io.loadmat(io.BytesIO(members["meta.mat"]), squeeze_me=True)["synsets"]
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in np.atleast_1d(synsets)}
        truth = members["ILSVRC2012_validation_ground_truth.txt"].decode("ascii").split()
        return [wnids[int(number)] for number in truth]


def index_ilsvrc(folder: str | Path) -> ImageIndex:
    """ILSVRC-2012's images in its tar files, classes in alphabetical order of their WordNet ids.

    Reads ILSVRC2012_img_train.tar (a tar of one tar a class), ILSVRC2012_img_val.tar, and the
    validation labels from ILSVRC2012_devkit_t12.tar.gz or, where it exists,
    imagenet_2012_validation_synset_labels.txt (one WordNet id a line).  Only headers are read.
    """
    folder = Path(folder)
    train_path, val_path = folder / "ILSVRC2012_img_train.tar", folder / "ILSVRC2012_img_val.tar"
    with reading(train_path, "ILSVRC-2012's training archive"):
        train = {}
        for outer in sorted(_index_tar(train_path), key=lambda ref: ref.name):
            wnid = posixpath.basename(outer.name).removesuffix(".tar")
            refs = _index_tar(train_path, outer.offset, outer.size)
            if not refs:
                raise UserError(f"{train_path}: its class {wnid} holds no images")
            train[wnid] = sorted(refs, key=lambda ref: ref.name)
    with reading(val_path, "ILSVRC-2012's validation archive"):
        images = sorted(_index_tar(val_path), key=lambda ref: ref.name)
    wnids = _validation_wnids(folder)
    if len(wnids) != len(images):
        raise UserError(f"{val_path}: holds {len(images)} images for {len(wnids)} labels")
    unknown = sorted(set(wnids) - train.keys())
    if unknown:
        raise UserError(f"{val_path}: its class {unknown[0]} is not in {train_path.name}")
    number = {wnid: label for label, wnid in enumerate(train)}
    index = _index(train, {}, tuple(train))
    return ImageIndex(
        index.train,
        index.train_labels,
        images,
        np.array([number[wnid] for wnid in wnids], np.int64),
        tuple(train),
    )


__all__ = [
    "Arrays", "ImageIndex", "ImageRef", "check_member", "decode_image", "gzip_checksum",
    "index_ilsvrc", "index_image_folder", "member_checksums", "parse_cifar_batch", "parse_idx",
    "parse_restricted_pickle", "parse_stl10", "read_cifar", "read_idx", "read_members",
    "read_mnist", "read_npz", "read_stl10", "read_svhn", "read_svhn_split", "reading",
]  # fmt: skip
