"""Each format's reader: correct files, corrupt files and malicious files."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
from dataset_files import (
    MAKERS,
    images_and_labels,
    make_cifar,
    members_of,
    small,
    tar_bytes,
    write_files,
)

from neural_collapse.data import archives, parsers, sources
from neural_collapse.io.errors import UserError

PUBLISHED = {
    "cifar10": sources.CIFAR10[0],
    "cifar100": sources.CIFAR100[0],
    "cifar10_python": sources.CIFAR10_PYTHON,
    "cifar100_python": sources.CIFAR100_PYTHON,
}
MADE = MAKERS | {
    "cifar10_python": lambda: make_cifar(fine=False, python=True),
    "cifar100_python": lambda: make_cifar(fine=True, python=True),
}
IN_MEMORY = [name for name in MADE if name not in ("fashion_mnist", "imagenet")]


def read(name, folder, made):
    """What the reader of a dataset makes of small files in a folder."""
    if name == "mnist":
        return parsers.read_mnist(folder)
    if name == "svhn":
        return parsers.read_svhn(folder)
    ((file, data),) = made.files.items()
    if name == "stl10":
        return parsers.read_stl10(folder / file, small(sources.STL10[0], data))
    published = small(PUBLISHED[name], data)
    return parsers.read_cifar(folder / file, published, 100 if "100" in name else 10)


@pytest.mark.parametrize("name", IN_MEMORY)
def test_reader_correct_files_give_their_arrays(name, tmp_path):
    made = MADE[name]()
    arrays = read(name, write_files(tmp_path, made.files), made)
    for split, (images, labels) in (("train", made.train), ("test", made.test)):
        found = getattr(arrays, f"{split}_images")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, images)
        assert getattr(arrays, f"{split}_labels").dtype == np.int64
        np.testing.assert_array_equal(getattr(arrays, f"{split}_labels"), labels)
    assert arrays.class_names == made.class_names


@pytest.mark.parametrize("name", IN_MEMORY)
@pytest.mark.parametrize("damage", ["cut", "empty", "rubbish", "missing"])
def test_reader_corrupt_file_is_named(name, damage, tmp_path):
    made = MADE[name]()
    folder = write_files(tmp_path, made.files)
    for file, data in made.files.items():
        path = folder / file
        if damage == "missing":
            path.unlink()
        else:
            changed = {"cut": data[: len(data) // 2], "empty": b"", "rubbish": b"\x07" * 999}
            path.write_bytes(changed[damage])
        with pytest.raises(UserError) as caught:
            read(name, folder, made)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["cifar10_python", "cifar100_python", "stl10", "svhn"])
def test_reader_same_as_torchvision(name, tmp_path, monkeypatch):
    """An independent reader; its checksums are switched off, since the files are small ones."""
    torchvision = pytest.importorskip("torchvision")
    made = MADE[name]()
    write_files(tmp_path, made.files)
    if name != "svhn":
        write_files(tmp_path, members_of(*made.files.values()))
    kinds = {"cifar10_python": "CIFAR10", "cifar100_python": "CIFAR100"}
    reader = getattr(torchvision.datasets, kinds.get(name, name.upper()))
    monkeypatch.setattr(reader, "_check_integrity", lambda self: True)
    module = "cifar" if "cifar" in name else name
    monkeypatch.setattr(
        f"torchvision.datasets.{module}.check_integrity", lambda *a, **k: True, raising=False
    )
    arrays = read(name, tmp_path, made)
    for split in ("train", "test"):
        chosen = {"train": split == "train"} if "cifar" in name else {"split": split}
        theirs = reader(str(tmp_path), **chosen)
        images = theirs.data.transpose(0, 3, 1, 2) if "cifar" in name else theirs.data
        labels = theirs.targets if "cifar" in name else theirs.labels
        np.testing.assert_array_equal(getattr(arrays, f"{split}_images"), images)
        np.testing.assert_array_equal(getattr(arrays, f"{split}_labels"), labels)


# --------------------------------------------------------------------------- CIFAR


class Malicious:
    """Its pickle calls os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_cifar_python_malicious_batch_is_not_run(tmp_path):
    proof = tmp_path / "proof"
    made = make_cifar(fine=False, python=True)
    ((name, data),) = made.files.items()
    published = small(sources.CIFAR10_PYTHON, data)
    members = members_of(data)
    evil = pickle.dumps({"data": Malicious(f"touch {proof}")}, protocol=2)
    pickle.loads(pickle.dumps(Malicious("true")))  # would run, given to pickle itself
    members["cifar-10-batches-py/data_batch_3"] = evil
    path = write_files(tmp_path, {name: tar_bytes(members, "w:gz")}) / name
    with pytest.raises(UserError, match=r"data_batch_3\): is not the published file: expected md5"):
        parsers.read_cifar(path, published, 10)
    assert not proof.exists()


def test_stl10_planes_are_read_column_by_column(tmp_path):
    image = np.zeros((3, 96, 96), np.uint8)
    image[0, 5, 7] = 1  # row 5, column 7
    data = bytearray(3 * 96 * 96)
    data[7 * 96 + 5] = 1
    members = {
        f"{s}_{k}.bin": v for s in ("train", "test") for k, v in (("X", data), ("y", b"\x0a"))
    }
    path = write_files(tmp_path, {"x.tar.gz": tar_bytes(members, "w:gz")}) / "x.tar.gz"
    arrays = parsers.read_stl10(path, sources.STL10[0])
    np.testing.assert_array_equal(arrays.test_images[0], image)
    assert arrays.test_labels.tolist() == [9]


# --------------------------------------------------------------------------- archives


def test_archive_missing_member_is_named(tmp_path):
    made = make_cifar(fine=False, python=False)
    ((file, data),) = made.files.items()
    members = members_of(data)
    del members["cifar-10-batches-bin/data_batch_3.bin"]
    path = write_files(tmp_path, {file: tar_bytes(members, "w:gz")}) / file
    with pytest.raises(UserError, match=r"holds no data_batch_3\.bin"):
        parsers.read_cifar(path, sources.CIFAR10[0], 10)


def test_packing_a_folder_twice_gives_the_same_bytes(tmp_path):
    members = members_of(*make_cifar(fine=True, python=False).files.values())
    folder = write_files(tmp_path, members) / "cifar-100-binary"
    for target in (tmp_path / "a", tmp_path / "b"):
        archives.pack(folder, sources.CIFAR100[0], target)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert members_of((tmp_path / "a").read_bytes()) == members


# --------------------------------------------------------------------------- npz


def npz_arrays(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    images, labels = images_and_labels(12, shape, 3)
    return {
        "train_images": images,
        "train_labels": labels.astype(np.int32),
        "test_images": images[:6],
        "test_labels": labels[:6],
    }


@pytest.mark.parametrize(
    ("shape", "axes"), [((8, 8), None), ((8, 8, 3), (0, 3, 1, 2)), ((1, 8, 8), (0, 1, 2, 3))]
)
def test_npz_each_layout_is_read_channels_first(shape, axes, tmp_path):
    arrays = npz_arrays(shape)
    np.savez_compressed(tmp_path / "mine.npz", **arrays)
    found = parsers.read_npz(tmp_path / "mine.npz")
    images = arrays["train_images"]
    expected = images[:, None] if axes is None else images.transpose(axes)
    np.testing.assert_array_equal(found.train_images, expected)
    np.testing.assert_array_equal(found.train_labels, arrays["train_labels"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train_images": np.zeros((12, 8, 8))}, "float64, not uint8"),
        ({"train_images": np.zeros((12, 8, 8, 4), np.uint8)}, "1 or 3 channels"),
        ({"train_images": np.zeros((12, 3, 3, 3), np.uint8)}, "1 or 3 channels"),
        ({"train_labels": np.zeros(5, np.int64)}, "5 labels for 12 images"),
        ({"train_labels": np.zeros(12)}, "integer"),
        ({"train_labels": np.array([None] * 12)}, "Object arrays"),
        ({"test_images": np.zeros((6, 9, 9), np.uint8)}, "differ"),
        ({"test_images": None}, "holds no array 'test_images'"),
    ],
)
def test_npz_wrong_array_is_named(change, reason, tmp_path):
    arrays = {k: v for k, v in (npz_arrays((8, 8)) | change).items() if v is not None}
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(UserError, match=f"mine.npz.*{reason}"):
        parsers.read_npz(tmp_path / "mine.npz")


def test_npz_header_claims_more_than_memory_is_refused(tmp_path):
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)}
    )
    with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
        archive.writestr("train_images.npy", header.getvalue() + b"abc")
    with pytest.raises(UserError, match=r"mine\.npz: is corrupt or not a \.npz file"):
        parsers.read_npz(tmp_path / "mine.npz")


def test_npz_that_is_a_npy_file_is_named(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"mine\.npy: is corrupt or not a \.npz file"):
        parsers.read_npz(tmp_path / "mine.npy")
