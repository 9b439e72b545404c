"""Each format's reader."""

from __future__ import annotations

import io

import numpy as np
import pytest
from dataset_files import (
    images_and_labels,
    make_cifar,
    make_stl10,
    make_svhn,
    members_of,
    write_files,
)

from neural_collapse.data import archives, parsers, sources
from neural_collapse.io.errors import UserError


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "STL10", "SVHN"])
def test_reader_same_as_torchvision(name, tmp_path, monkeypatch):
    """An independent reader; its checksums are switched off, since the files are small ones."""
    torchvision = pytest.importorskip("torchvision")
    reader = getattr(torchvision.datasets, name)
    if name == "SVHN":
        write_files(tmp_path, make_svhn().files)
        arrays = parsers.read_svhn(tmp_path)
    else:
        made = make_stl10() if name == "STL10" else make_cifar(name == "CIFAR100", python=True)
        ((file, data),) = made.files.items()
        archive = write_files(tmp_path, {file: data} | members_of(data)) / file
        if name == "STL10":
            arrays = parsers.read_stl10(archive, sources.STL10[0])
        else:
            file = getattr(sources, f"{name}_PYTHON")
            arrays = parsers.read_cifar(archive, file, 100 if name == "CIFAR100" else 10)
    monkeypatch.setattr(reader, "_check_integrity", lambda self: True)
    module = "cifar" if "CIFAR" in name else name.lower()
    monkeypatch.setattr(
        f"torchvision.datasets.{module}.check_integrity", lambda *a, **k: True, raising=False
    )
    for split in ("train", "test"):
        chosen = {"train": split == "train"} if "CIFAR" in name else {"split": split}
        theirs = reader(str(tmp_path), **chosen)
        images = theirs.data.transpose(0, 3, 1, 2) if "CIFAR" in name else theirs.data
        labels = theirs.targets if "CIFAR" in name else theirs.labels
        np.testing.assert_array_equal(getattr(arrays, f"{split}_images"), images)
        np.testing.assert_array_equal(getattr(arrays, f"{split}_labels"), labels)


def test_packing_a_folder_twice_gives_the_same_bytes(tmp_path):
    members = members_of(*make_cifar(fine=True, python=False).files.values())
    folder = write_files(tmp_path, members) / "cifar-100-binary"
    for target in (tmp_path / "a", tmp_path / "b"):
        archives.pack(folder, sources.CIFAR100[0], target)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert members_of((tmp_path / "a").read_bytes()) == members


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
        ({"train_labels": np.zeros(5, np.int64)}, r"int64 of shape \(5,\), not .* the 12 images"),
        ({"train_labels": np.zeros(12)}, "float64 .* one integer"),
        ({"train_labels": np.array([None] * 12)}, "Object arrays"),
        ({"test_images": np.zeros((6, 9, 9), np.uint8)}, "differ"),
        ({"test_images": None}, "contains no array 'test_images'"),
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
        archive.writestr("train_labels.npy", b"")
    with pytest.raises(UserError, match=r"mine\.npz: is corrupt or not a \.npz file"):
        parsers.read_npz(tmp_path / "mine.npz")


def test_npz_that_is_a_npy_file_is_named(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"mine\.npy: is corrupt or not a \.npz file"):
        parsers.read_npz(tmp_path / "mine.npy")
