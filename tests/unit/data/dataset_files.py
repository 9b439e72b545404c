"""Small files in each dataset's true format."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neural_collapse.data.sources import SourceFile

# --------------------------------------------------------------------------- the true formats


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def tar_bytes(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def python2_string(data: bytes) -> bytes:
    """A byte string as Python 2 pickled it: SHORT_BINSTRING or BINSTRING."""
    if len(data) < 256:
        return b"U" + bytes([len(data)]) + data
    return b"T" + len(data).to_bytes(4, "little") + data


def python2_batch(images: np.ndarray, labels: dict[str, list[int]]) -> bytes:
    """A CIFAR batch as the published ones are: protocol 2, written by Python 2 and old numpy."""
    out = b"\x80\x02}q\x01(" + python2_string(b"data") + b"q\x02"
    out += b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
    out += python2_string(b"b") + b"q\x06\x87q\x07Rq\x08(K\x01"
    out += b"".join(b"J" + n.to_bytes(4, "little") for n in images.shape) + b"\x86q\x09"
    out += b"cnumpy\ndtype\nq\x0a" + python2_string(b"u1") + b"q\x0bK\x00K\x01\x87q\x0cRq\x0d("
    out += b"K\x03" + python2_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb"
    out += b"\x89" + python2_string(images.tobytes()) + b"q\x0ftq\x10b"
    for key, values in labels.items():
        out += python2_string(key.encode()) + b"](" + b"".join(b"K" + bytes([v]) for v in values)
        out += b"e"
    return out + b"u."


def python2_names(key: str, names: list[str]) -> bytes:
    listed = b"".join(python2_string(name.encode()) for name in names)
    return b"\x80\x02}(" + python2_string(key.encode()) + b"](" + listed + b"eu."


def images_and_labels(
    count: int, shape: tuple[int, ...], num_classes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = np.arange(count) % num_classes
    rng.shuffle(labels)
    return images, labels


@dataclass
class Made:
    """Files of a small dataset and what they hold."""

    files: dict[str, bytes]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    class_names: tuple[str, ...] | None = None


def make_mnist(size: int = 28) -> Made:
    train = images_and_labels(70, (size, size), 10)
    test = images_and_labels(30, (size, size), 10, 1)
    files = {}
    for prefix, (images, labels) in (("train", train), ("t10k", test)):
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx_bytes(images), mtime=0)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(
            idx_bytes(labels.astype(np.uint8)), mtime=0
        )
    return Made(files, (train[0][:, None], train[1]), (test[0][:, None], test[1]))


def make_svhn() -> Made:
    import scipy.io

    files, splits = {}, []
    for seed, name in enumerate(["train_32x32.mat", "test_32x32.mat"]):
        images, labels = images_and_labels(40, (3, 32, 32), 10, seed)
        stored = {
            "X": images.transpose(2, 3, 1, 0),
            "y": np.where(labels == 0, 10, labels).reshape(-1, 1).astype(np.uint8),
        }
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, stored, do_compression=True)
        files[name] = buffer.getvalue()
        splits.append((images, labels))
    return Made(files, *splits)


def make_cifar(fine: bool, python: bool) -> Made:
    """CIFAR100 (`fine`) or CIFAR10 in either version; both hold the same images."""
    parts, members = [], {}
    count, classes = (200, 100) if fine else (20, 10)
    files = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    names = [f"thing{i}" for i in range(classes)]
    ends = ("100-binary", "100-python") if fine else ("10-batches-bin", "10-batches-py")
    folder = f"cifar-{ends[python]}"
    for seed, name in enumerate(files):
        images, labels = images_and_labels(count, (3, 32, 32), classes, seed)
        parts.append((images, labels))
        coarse = labels // 5
        if python:
            keys = {"coarse_labels": coarse.tolist()} if fine else {}
            keys |= {"fine_labels" if fine else "labels": labels.tolist()}
            members[f"{folder}/{name}"] = python2_batch(images.reshape(count, -1), keys)
        else:
            columns = [*([coarse] if fine else []), labels, images.reshape(count, -1)]
            members[f"{folder}/{name}.bin"] = np.column_stack(columns).astype(np.uint8).tobytes()
    meta, key = ("meta", "fine_label_names") if fine else ("batches.meta", "label_names")
    text = "fine_label_names.txt" if fine else "batches.meta.txt"
    if python:
        members[f"{folder}/{meta}"] = python2_names(key, names)
    else:
        members[f"{folder}/{text}"] = "".join(f"{name}\n" for name in names).encode()
    train = tuple(np.concatenate(part) for part in zip(*parts[:-1], strict=True))
    name = f"cifar-{classes}-{'python' if python else 'binary'}.tar.gz"
    return Made({name: tar_bytes(members, "w:gz")}, train, parts[-1], tuple(names))


def make_stl10() -> Made:
    names = "airplane bird car cat deer dog horse monkey ship truck".split()  # noqa: SIM905
    members = {"stl10_binary/class_names.txt": "\n".join(names).encode()}
    splits = []
    for seed, name in enumerate(["train", "test"]):
        images, labels = images_and_labels(20, (3, 96, 96), 10, seed)
        members[f"stl10_binary/{name}_X.bin"] = images.transpose(0, 1, 3, 2).tobytes()
        members[f"stl10_binary/{name}_y.bin"] = (labels + 1).astype(np.uint8).tobytes()
        splits.append((images, labels))
    return Made({"stl10_binary.tar.gz": tar_bytes(members, "w:gz")}, *splits, tuple(names))


def jpeg(seed: int, width: int = 40, height: int = 30, mode: str = "RGB") -> bytes:
    from PIL import Image

    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


WNIDS = ["n01440764", "n01443537", "n01484850"]


def make_ilsvrc(per_class: int = 6, val: int = 9) -> Made:
    """Three classes; the development kit numbers them in another order than the alphabet's."""
    import scipy.io

    outer = {}
    for c, wnid in reversed(list(enumerate(WNIDS))):
        members = {
            f"{wnid}_{i}.JPEG": jpeg(100 * c + i, 40 + 7 * i, 30 + 5 * c, "L" if i == 1 else "RGB")
            for i in range(per_class)
        }
        outer[f"{wnid}.tar"] = tar_bytes(members)
    numbers = {3: 0, 1: 1, 2: 2}  # ILSVRC2012_ID -> class in alphabetical order
    labels = [i % 3 for i in range(val)]
    by_class = {c: number for number, c in numbers.items()}
    validation = {
        f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(1000 + i, mode="CMYK" if i == 2 else "RGB")
        for i in range(val)
    }
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array([(n, WNIDS[c], "a, b", 0) for n, c in numbers.items()], dtype=kinds)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{by_class[label]}\n" for label in labels).encode()
    files = {
        "ILSVRC2012_img_train.tar": tar_bytes(outer),
        "ILSVRC2012_img_val.tar": tar_bytes(validation),
        "ILSVRC2012_devkit_t12.tar.gz": tar_bytes(
            {
                "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
                "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth,
            },
            "w:gz",
        ),
    }
    nothing = np.zeros(0)
    return Made(files, (nothing, nothing), (nothing, np.array(labels)), tuple(WNIDS))


MAKERS: dict[str, Callable[[], Made]] = {
    "mnist": make_mnist,
    "fashion_mnist": make_mnist,
    "svhn": make_svhn,
    "cifar10": lambda: make_cifar(fine=False, python=False),
    "cifar100": lambda: make_cifar(fine=True, python=False),
    "stl10": make_stl10,
    "imagenet": make_ilsvrc,
}


def small(file: SourceFile, data: bytes, bases: tuple[str, ...] = ()) -> SourceFile:
    """A published file's description, with the size and checksums of a small one."""
    content = {}
    if "" in file.content:
        content[""] = f"sha256 {hashlib.sha256(gzip.decompress(data)).hexdigest()}"
    elif file.content:
        members = {os.path.basename(name): inner for name, inner in members_of(data).items()}
        content = {name: f"md5 {hashlib.md5(members[name]).hexdigest()}" for name in file.content}
    return dataclasses.replace(
        file,
        urls=tuple(base + file.name for base in bases),
        size_bytes=len(data),
        checksum=file.checksum and f"md5 {hashlib.md5(data).hexdigest()}",
        content=content,
        alternatives=(),
    )


def members_of(data: bytes) -> dict[str, bytes]:
    """The members of a .tar.gz by their whole names."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@dataclass
class Behaviour:
    """How one request is answered."""

    status: int = 200
    ends_after: int | None = None
    """Sends only so many bytes of the body, then closes the connection."""
    stalls: bool = False
    """Keeps the connection open instead, until the test ends."""
    headers: dict[str, str] = field(default_factory=dict)
    declares_length: bool = True
    """Without it, the connection's end is the body's."""


@dataclass
class Server:
    """Serves `files`; `script` gives a path's next answers, after which it behaves."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    script: dict[str, list[Behaviour]] = field(default_factory=dict)
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range) of every request."""
    closing: threading.Event = field(default_factory=threading.Event)

    def put(self, folder: str, files: dict[str, bytes]) -> None:
        self.files |= {f"{folder}/{name}": data for name, data in files.items()}

    def ranges_asked(self, path: str) -> list[str | None]:
        return [asked for requested, asked in self.requests if requested == path]
