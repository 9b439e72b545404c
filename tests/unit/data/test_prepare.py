"""From raw files to prepared arrays and back: every dataset, and what can go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_files import jpeg, make_cifar, members_of, tar_bytes, write_files
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neural_collapse.data import decoding
from neural_collapse.data.download import download_dataset
from neural_collapse.data.image_files import ImageRef, decode_image
from neural_collapse.data.pixels import average_pooled, mean_and_std, resized
from neural_collapse.data.prepare import balanced_subset, prepare_dataset
from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.data.recipe import DataRecipe
from neural_collapse.data.registry import (
    DATASETS,
    CustomDataset,
    folder_suffix,
)
from neural_collapse.io.errors import UserError
from neural_collapse.results.paper import DATASETS as PAPER_DATASETS

IN_MEMORY = [
    *("mnist", "fashion_mnist", "svhn", "stl10"),
    *("cifar10", "cifar10 in python", "cifar100", "cifar100 in python"),
]


def hashes(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture
def raw(publish, tmp_path):
    """Download a small dataset from a mirror folder; gives (what was made, raw folder)."""

    def raw(name: str):
        name, *python = name.split(" in ")
        made = publish(name)
        files = make_cifar(fine=name == "cifar100", python=True).files if python else made.files
        given = write_files(tmp_path / "given" / name, files)
        folder = tmp_path / "raw" / name
        download_dataset(name, folder, mirror=str(given.parent), imagenet_folder=str(given))
        return made, folder

    return raw


# --------------------------------------------------------------------------- every dataset


@pytest.mark.parametrize("name", IN_MEMORY)
def test_prepare_each_dataset_gives_its_images_padded(name, raw, tmp_path):
    made, folder = raw(name)
    name = name.split(" in ")[0]
    recipe = DataRecipe(padding_pixels=2)
    card = prepare_dataset(name, folder, tmp_path / "out", recipe)
    data = PreparedDataset.open(tmp_path / "out")
    entry = DATASETS[name]
    assert data.label == entry.label and data.num_classes == entry.num_classes
    assert data.class_names == (made.class_names or entry.class_names)
    assert data.image_size_px == entry.image_size_px + 4
    assert data.card == card == json.loads((tmp_path / "out" / "card.json").read_text())
    for split, (images, labels) in (("train", made.train), ("test", made.test)):
        found = getattr(data, f"{split}_images")
        assert isinstance(found, np.memmap) and found.flags.c_contiguous
        np.testing.assert_array_equal(found[:, :, 2:-2, 2:-2], images)
        assert found.sum(dtype=np.int64) == images.sum(dtype=np.int64)  # zeros around
        np.testing.assert_array_equal(getattr(data, f"{split}_labels"), labels)
    values = made.train[0] / 255
    np.testing.assert_allclose(data.mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, values.std(axis=(0, 2, 3)), rtol=1e-12)


def test_card_contains_counts_checksums_and_source(raw, tmp_path):
    made, folder = raw("mnist")
    recipe = DataRecipe(examples_per_class=5, subset_seed=3)
    card = prepare_dataset("mnist", folder, tmp_path / "out", recipe)
    assert card["counts"]["train"] == {"published": [7] * 10, "kept": [5] * 10}
    assert card["counts"]["test"] == {"published": [3] * 10, "kept": [3] * 10}
    assert card["subset_seed"] == 3 and card["recipe"]["examples_per_class"] == 5
    assert card["source"] == json.loads((folder / "source.json").read_text())
    found = hashes(tmp_path / "out")
    assert card["arrays_sha256"] == {k: v for k, v in found.items() if k.endswith(".npy")}
    data = PreparedDataset.open(tmp_path / "out")
    # mean and std are of all 70 published images, not of the 50 kept
    np.testing.assert_allclose(data.mean, [made.train[0].mean() / 255], rtol=1e-12)


@pytest.mark.parametrize("name", ["mnist", "svhn", "cifar10"])
def test_prepare_raw_file_changed_since_its_download_is_named(name, raw, tmp_path):
    made, folder = raw(name)
    path = folder / next(iter(made.files))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    # Snakemake downloads again where source.json is missing, and then only the wrong file.
    remedy = "; delete source.json beside it and run again"
    with pytest.raises(UserError, match=f"{path}: is .*{remedy}"):
        prepare_dataset(name, folder, tmp_path / "out", DataRecipe())
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: does not exist.*{remedy}"):
        prepare_dataset(name, folder, tmp_path / "out", DataRecipe())
    assert not (tmp_path / "out" / "card.json").exists()


class Malicious:
    """Its pickle makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def test_prepare_malicious_pickle_is_not_run(raw, tmp_path):
    _, folder = raw("cifar10 in python")
    (archive,) = folder.glob("*.tar.gz")
    members = members_of(archive.read_bytes())
    pickle.loads(pickle.dumps(Malicious(tmp_path / "made")))
    members["cifar-10-batches-py/data_batch_3"] = pickle.dumps(Malicious(tmp_path / "proof"))
    archive.write_bytes(tar_bytes(members, "w:gz"))
    with pytest.raises(UserError, match="member data_batch_3 should have md5"):
        prepare_dataset("cifar10", folder, tmp_path / "out", DataRecipe())
    assert (tmp_path / "made").exists() and not (tmp_path / "proof").exists()


def test_prepare_same_recipe_gives_the_same_bytes(raw, tmp_path):
    _, folder = raw("cifar10")
    recipe = DataRecipe(examples_per_class=4)
    cards = [prepare_dataset("cifar10", folder, tmp_path / f"{i}", recipe) for i in range(2)]
    assert hashes(tmp_path / "0") == hashes(tmp_path / "1")
    other = prepare_dataset(
        "cifar10", folder, tmp_path / "2", DataRecipe(examples_per_class=4, subset_seed=1)
    )
    assert cards[0]["data_hash"] == cards[1]["data_hash"] != other["data_hash"]
    assert cards[0]["subset_sha256"]["train"] != other["subset_sha256"]["train"]


# --------------------------------------------------------------------------- image files


def test_prepare_imagenet_reads_its_archives(raw, tmp_path):
    made, folder = raw("imagenet")
    recipe = DataRecipe(examples_per_class=4, average_pooling=4)
    seen = []
    card = prepare_dataset(
        "imagenet", folder, tmp_path / "out", recipe, progress=lambda *a: seen.append(a)
    )
    data = PreparedDataset.open(tmp_path / "out")
    assert data.train_images.shape == (12, 3, 56, 56) and data.test_images.shape == (9, 3, 56, 56)
    assert data.class_names == made.class_names
    np.testing.assert_array_equal(data.test_labels, made.test[1])
    assert card["mean_and_std_over"] == "kept train images"
    values = data.train_images / 255
    np.testing.assert_allclose(data.mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, values.std(axis=(0, 2, 3)), rtol=1e-12)
    # The first validation image, read another way.
    path = write_files(tmp_path, {"first.jpg": jpeg(1000)}) / "first.jpg"
    expected = average_pooled(decode_image(ImageRef(str(path)), 256, 224), 4)
    np.testing.assert_array_equal(data.test_images[0], expected)
    assert ("decoding images", 21, 21) in seen
    assert not (tmp_path / "out.partial").exists()


@pytest.fixture
def folder_of_images(tmp_path):
    files = {
        f"{split}/{name}/{i}.jpg": jpeg(i + 50 * k, 40 + i, 30)
        for split, count in (("train", 7), ("test", 3))
        for k, name in enumerate(["cat", "dog"])
        for i in range(count)
    }
    return write_files(tmp_path / "mine", files)


@pytest.fixture
def prepare_mine(folder_of_images, tmp_path):
    """`prepare_mine(output, ...)` prepares the folder, as 16 px images unless told otherwise."""

    def prepare(output: str, recipe: DataRecipe | None = None, image_size_px=16, **more):
        custom = CustomDataset(
            label="Mine", path=str(folder_of_images), image_size_px=image_size_px
        )
        download_dataset("mine", tmp_path / "raw", custom=custom)
        places = (tmp_path / "raw", tmp_path / output)
        return prepare_dataset("mine", *places, recipe or DataRecipe(), custom=custom, **more)

    return prepare


def test_prepare_number_of_workers_changes_no_bit(prepare_mine, monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "CHUNK_IMAGES", 3)
    for workers in (1, 2):
        prepare_mine(f"{workers}", DataRecipe(padding_pixels=1), workers=workers)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")
    data = PreparedDataset.open(tmp_path / "1")
    assert data.train_images.shape == (14, 3, 18, 18) and data.class_names == ("cat", "dog")
    inner = data.train_images[:, :, 1:-1, 1:-1] / 255
    np.testing.assert_allclose(data.mean, inner.mean(axis=(0, 2, 3)), rtol=1e-12)


class Killed(BaseException):
    """In the place of kill -9."""


def test_prepare_killed_while_decoding_resumes(prepare_mine, monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "CHUNK_IMAGES", 2)
    decode, decoded, dies_after = decoding._decode_chunk, [], 99

    def counts(*chunk):
        if len(decoded) == dies_after:
            raise Killed
        decoded.append(chunk)
        decode(*chunk)

    def prepare(output: str, recipe: DataRecipe) -> int:
        decoded.clear()
        prepare_mine(output, recipe)
        return len(decoded)

    monkeypatch.setattr(decoding, "_decode_chunk", counts)
    # Those killed with another recipe decoded as many images into arrays of the same shape.
    five, six = (DataRecipe(examples_per_class=6, subset_seed=seed) for seed in (5, 6))
    padded = DataRecipe(image_size_px=14, padding_pixels=1)
    for name, before, recipe, chunks, resumed in (
        ("same", DataRecipe(), DataRecipe(), 7 + 3, 3),
        ("subset", five, six, 6 + 3, 0),
        ("padded", DataRecipe(), padded, 7 + 3, 0),
    ):
        dies_after = 99
        assert prepare(name, recipe) == chunks
        dies_after = 3
        with pytest.raises(Killed):
            prepare(f"{name} killed", before)
        assert not (tmp_path / f"{name} killed" / "card.json").exists()
        dies_after = 99
        assert prepare(f"{name} killed", recipe) == chunks - resumed
        assert hashes(tmp_path / f"{name} killed") == hashes(tmp_path / name)


def test_prepare_killed_between_two_arrays_starts_afresh(prepare_mine, monkeypatch, tmp_path):
    replace = os.replace

    def dies_at_the_second(source, target):
        if os.fspath(target) == str(tmp_path / "out" / "test_images.npy"):
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", dies_at_the_second)
        prepare_mine("out")
    prepare_mine("out")
    assert len(PreparedDataset.open(tmp_path / "out").test_images) == 6
    assert not (tmp_path / "out.partial").exists()


def test_prepare_folder_of_few_classes_is_not_imagenet(folder_of_images, tmp_path):
    download_dataset("imagenet", tmp_path / "raw", imagenet_folder=str(folder_of_images))
    with pytest.raises(UserError, match=r"holds 14 train images of 2 classes, .* has 1000 classes"):
        prepare_dataset("imagenet", tmp_path / "raw", tmp_path / "out", DataRecipe())
    assert not (tmp_path / "out" / "card.json").exists()


def test_prepare_counts_stale_arrays_as_free_space(prepare_mine, monkeypatch, tmp_path):
    usage, images, partial = shutil.disk_usage, 20 * 3 * 16 * 16, tmp_path / "out.partial"

    def nearly_full(folder):
        stale = sum(path.stat().st_size for path in partial.glob("*_images.npy"))
        return usage(folder)._replace(free=images - stale)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    partial.mkdir()
    (partial / "train_images.npy").write_bytes(b"of another recipe")
    prepare_mine("out")
    assert len(PreparedDataset.open(tmp_path / "out").train_images) == 14
    with pytest.raises(UserError, match=rf"need {20 * 3 * 18**2} bytes and the disk has {images}"):
        prepare_mine("more", DataRecipe(padding_pixels=1))


def test_prepare_images_of_two_sizes_name_image_size_px(prepare_mine):
    with pytest.raises(UserError, match="image_size_px"):
        prepare_mine("out", image_size_px=None)


def test_prepare_images_that_are_not_square_are_not_squashed(folder_of_images, prepare_mine):
    for path in folder_of_images.rglob("*.*"):
        Image.new("RGB", (24, 12)).save(path)
    with pytest.raises(UserError, match="24 x 12 pixels; only square ones"):
        prepare_mine("out", DataRecipe(image_size_px=6), image_size_px=None)


def test_prepare_image_files_are_made_smaller_like_arrays(prepare_mine, tmp_path):
    for name, size in (("whole", None), ("small", 4)):
        prepare_mine(name, DataRecipe(image_size_px=size))
    whole, small = (np.load(tmp_path / n / "train_images.npy") for n in ("whole", "small"))
    assert whole.shape[2:] == (16, 16)
    np.testing.assert_array_equal(small, resized(whole, 4))


def test_prepare_corrupt_image_is_named_in_every_thread(folder_of_images, prepare_mine):
    (folder_of_images / "test" / "dog" / "1.jpg").write_bytes(b"rubbish")
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"dog/1\.jpg"):
            prepare_mine("out", workers=workers)


def test_prepare_two_processes_at_once_both_succeed(folder_of_images, tmp_path):
    """Two processes at once in one place: the second waits, and both end well."""
    custom = CustomDataset(label="Mine", path=str(folder_of_images), image_size_px=16)
    download_dataset("mine", tmp_path / "raw", custom=custom)
    program = (
        "import sys\n"
        "from neural_collapse.data.recipe import DataRecipe\n"
        "from neural_collapse.data.prepare import prepare_dataset\n"
        "from neural_collapse.data.registry import CustomDataset\n"
        "custom = CustomDataset(label='Mine', path=sys.argv[1], image_size_px=16)\n"
        "prepare_dataset('mine', sys.argv[2], sys.argv[3], DataRecipe(), custom=custom)\n"
    )
    paths = [str(folder_of_images), str(tmp_path / "raw"), str(tmp_path / "out")]
    both = [subprocess.Popen([sys.executable, "-c", program, *paths]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(PreparedDataset.open(tmp_path / "out").train_images) == 14
    assert not (tmp_path / "out.partial").exists()


# --------------------------------------------------------------------------- user-defined .npz


def prepare_labels(folder, train: list[int], test: list[int], **keys):
    """A user-defined dataset with these labels, prepared."""
    arrays = {}
    for split, labels in (("train", train), ("test", test)):
        arrays[f"{split}_images"] = np.zeros((len(labels), 6, 6), np.uint8)
        arrays[f"{split}_labels"] = np.array(labels, np.int64)
    np.savez(folder / "mine.npz", **arrays)
    custom = CustomDataset(label="Mine", path=str(folder / "mine.npz"))
    download_dataset("mine", folder / "raw", custom=custom)
    prepare_dataset("mine", folder / "raw", folder / "out", DataRecipe(**keys), custom=custom)
    return PreparedDataset.open(folder / "out")


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        ([0, 2, 0, 2], [0, 2], r"its train labels are \[0, 2\]; they must be .* 0, 1, 2, "),
        ([0, 1, 0, 1], [0, 2], "class 2 of its test images has no train images"),
        ([0, 0, 1, -1], [0], r"its train labels are \[-1, 0, 1\]"),
        ([0, 0, 0, 0], [0], r"its train labels are \[0\]; they must be two or more"),
        ([0, 1, 0, 1], [], "holds no test images"),
    ],
)
def test_prepare_wrong_labels_are_refused(train, test, reason, tmp_path):
    with pytest.raises(UserError, match=f"mine.npz: {reason}"):
        prepare_labels(tmp_path, train, test)


def test_prepare_class_without_test_images_is_kept_with_a_warning(tmp_path, capsys):
    data = prepare_labels(tmp_path, [0, 1, 2, 3] * 2, [1, 1, 3])
    assert "mine.npz: there are no test images of class 0, 2" in capsys.readouterr().err
    assert data.num_classes == 4 and data.class_names == ("0", "1", "2", "3")
    assert data.label == "Mine" and data.test_labels.tolist() == [1, 1, 3]
    assert data.card["counts"]["test"]["kept"] == [0, 2, 0, 1]


def test_card_describes_a_changed_file_as_it_was_prepared(tmp_path):
    old = prepare_labels(tmp_path, [0, 1], [0, 1]).card["source"]
    custom = CustomDataset(label="Mine", path=str(tmp_path / "mine.npz"))
    with np.load(custom.path) as arrays:
        changed = dict(arrays) | {"test_labels": np.array([1, 0])}
    np.savez(custom.path, **changed)
    new = prepare_dataset("mine", tmp_path / "raw", tmp_path / "out", DataRecipe(), custom=custom)
    found = hashlib.sha256(Path(custom.path).read_bytes()).hexdigest()
    assert new["source"]["files"][0]["sha256"] == found != old["files"][0]["sha256"]
    assert new["source"].keys() == old.keys() and new["source"]["dataset"] == "mine"


def test_custom_npz_with_image_size_px_is_refused():
    with pytest.raises(ValueError, match="folder of images"):
        CustomDataset(label="Mine", path="x.npz", image_size_px=3)


# --------------------------------------------------------------------------- what goes wrong


def test_prepare_class_with_too_few_images_is_named(tmp_path):
    train, test = [0] * 40 + [1] * 60 + [2] * 4, [0, 1, 2]
    keys = {"imbalance": {"ratio": 10, "minority_classes": [2]}}
    with pytest.raises(UserError) as caught:
        prepare_labels(tmp_path, train, test, examples_per_class=50, **keys)
    assert str(caught.value) == (
        "data.examples_per_class: asks for 50 images of class 0, which has 40; lower it"
    )
    with pytest.raises(
        UserError, match=r"test_examples_per_class: .* \(the smallest class has 1\)"
    ):
        prepare_labels(tmp_path, train, test, test_examples_per_class=8)
    data = prepare_labels(tmp_path, train, test, examples_per_class=40, **keys)
    assert data.card["counts"]["train"]["kept"] == [40, 40, 4]


def test_pooling_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"data\.average_pooling: 4 does not divide"):
        average_pooled(np.zeros((1, 1, 6, 6), np.uint8), 4)


def test_prepare_without_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="download mnist first"):
        prepare_dataset("mnist", tmp_path, tmp_path / "out", DataRecipe())
    (tmp_path / "source.json").write_text('{"dataset": "svhn"}')
    with pytest.raises(UserError, match=r"not mnist's source\.json"):
        prepare_dataset("mnist", tmp_path, tmp_path / "out", DataRecipe())


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": None},
        {"folder": 3},
        {"files": []},
        {"files": [{}]},
        {"files": [{"name": 3}]},
        {"files": [{"name": "other.gz"}]},
        {"kind": "svhn"},
        {"dataset": "svhn"},
    ],
)
def test_prepare_wrong_source_is_one_sentence(raw, tmp_path, wrong):
    _, folder = raw("mnist")
    path = folder / "source.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(UserError, match=r"not mnist's source\.json .*; download mnist first"):
        prepare_dataset("mnist", folder, tmp_path / "out", DataRecipe())


def change_labels(change):
    def corrupt(folder):
        labels = np.load(folder / "train_labels.npy").copy()
        np.save(folder / "train_labels.npy", change(labels))

    return corrupt


def change_card(**values):
    def corrupt(folder):
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps(card | values))

    return corrupt


def cut_images(folder):
    data = (folder / "train_images.npy").read_bytes()
    (folder / "train_images.npy").write_bytes(data[:-100])


@pytest.mark.parametrize(
    ("corrupt", "file"),
    [
        (cut_images, "train_images.npy"),
        (lambda f: (f / "test_images.npy").unlink(), "test_images.npy"),
        (lambda f: (f / "card.json").unlink(), "card.json"),
        (lambda f: (f / "card.json").write_text('{"name": "mine"}'), "card.json.*label"),
        (change_card(std=[0.0]), "card.json.*std"),
        (change_card(std=[float("nan")]), "card.json.*std"),
        (change_card(mean=[float("inf")]), "card.json.*mean"),
        (change_card(mean=[0.5, 0.5]), "card.json.*mean has 2 values, not 1"),
        (change_card(std=[]), "card.json.*std has 0 values, not 1"),
        (change_card(class_names=["a"]), "card.json.*class_names has 1 values, not 2"),
        (lambda f: np.save(f / "test_images.npy", np.zeros((2, 1, 6, 6))), "test_images.npy"),
        (change_labels(lambda x: x * 2), "train_labels.npy.*counts"),
        (change_labels(lambda x: x[:-1]), "train_labels.npy"),
        (change_labels(lambda x: x.astype(np.int32)), "train_labels.npy.*int32"),
    ],
)
def test_open_corrupt_file_is_named(tmp_path, corrupt, file):
    data = prepare_labels(tmp_path, [0, 1, 0], [0, 1])
    with pytest.raises(ValueError, match="read-only"):
        data.train_images[0] = 0
    corrupt(tmp_path / "out")
    with pytest.raises(UserError, match=f"{file}.*; delete its folder, run Snakemake"):
        PreparedDataset.open(tmp_path / "out")


# --------------------------------------------------------------------------- pure steps


def test_pooling_half_is_rounded_up():
    image = np.array([[0, 1, 255, 255], [0, 1, 255, 254]], np.uint8)
    np.testing.assert_array_equal(average_pooled(image, 2), [[1, 255]])  # 0.5 and 254.75
    assert average_pooled(image, 1) is image


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 4))
def test_subset_any_seed_is_balanced_ordered_and_nested(seed, count, surplus):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(3), 5 + surplus))
    kept = balanced_subset(labels, 3, count, seed, "key")
    assert (np.diff(kept) > 0).all()
    assert np.bincount(labels[kept]).tolist() == [count] * 3
    assert set(kept) <= set(balanced_subset(labels, 3, 5, seed, "key"))


def test_subset_of_seed_7_is_pinned():
    """These indices must never change: a card's seed stands for them."""
    labels = np.arange(40) % 4
    kept = balanced_subset(labels, 4, 3, 7, "key")
    assert kept.tolist() == PINNED


PINNED = [5, 9, 11, 12, 13, 16, 18, 19, 24, 26, 31, 34]


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_mean_and_std_any_images_are_exact(seed, channels):
    from fractions import Fraction

    images = np.random.default_rng(seed).integers(0, 256, (5, channels, 4, 4), dtype=np.uint8)
    mean, std = mean_and_std(images)
    for c in range(channels):
        values = [Fraction(int(v), 255) for v in images[:, c].reshape(-1)]
        exact = sum(values) / len(values)
        variance = sum((v - exact) ** 2 for v in values) / len(values)
        assert mean[c] == pytest.approx(float(exact), rel=1e-15)
        assert std[c] ** 2 == pytest.approx(float(variance), rel=1e-14)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_mean_and_std_constant_channel_has_std_one(value):
    images = np.full((300, 1, 4, 4), value, np.uint8)
    mean, std = mean_and_std(images)
    assert mean == [pytest.approx(value / 255)] and std == [1.0]


# --------------------------------------------------------------------------- the registry


def test_registry_paper_datasets_come_first_in_its_order():
    papers = "mnist fashion_mnist svhn cifar10 cifar100 stl10 imagenet".split()  # noqa: SIM905
    assert list(DATASETS)[:7] == list(PAPER_DATASETS) == papers
    assert DATASETS["mnist"].download_bytes == 11594722
    assert DATASETS["imagenet"].download_bytes == DATASETS["digits"].download_bytes == 0


def test_registry_every_built_in_dataset_has_enough_images_of_its_smallest_class():
    for entry in DATASETS.values():
        assert 0 < entry.train_per_class * entry.num_classes <= entry.train_examples
        assert 0 < entry.test_per_class * entry.num_classes <= entry.test_examples


def test_folder_suffix_differs_with_the_entry_but_not_with_its_label(monkeypatch, tmp_path):
    def suffix(path: str, resources: str = "resources", **more) -> str:
        entry = {"label": "Mine", "path": path} | more
        return folder_suffix(CustomDataset(**entry), resources)

    assert folder_suffix(None, "resources") == ""
    assert suffix("a") == suffix("./a") == suffix("a", label="Other") == suffix("a", "./resources")
    different = {suffix("a"), suffix("b"), suffix("/a"), suffix("a", image_size_px=8)}
    assert len(different) == 4 and all(len(s) == 9 and s[0] == "-" for s in different)
    before = suffix("a"), suffix("a", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # a project that was moved; another one with the same resources
    assert suffix("a") == before[0] and suffix("a", str(tmp_path)) != before[1]


def test_registry_import_loads_no_numpy():
    program = (
        "import sys, neural_collapse.data.registry\n"
        "print([m for m in ('numpy', 'torch', 'httpx', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", PAPER_DATASETS)
def test_registry_every_file_has_checksum_and_size(name):
    files = DATASETS[name].files
    for file in (*files, *(other for one in files for other in one.alternatives)):
        assert file.size_bytes and (file.checksum or file.content)
        assert len({url for url in file.urls}) == len(file.urls)
        assert all(url.startswith(("http://", "https://")) for url in file.urls)
        assert all(url.endswith("/" + file.name) for url in file.urls)
        for checksum in filter(None, [file.checksum, *file.content.values()]):
            algorithm, digest = checksum.split(" ")
            assert len(digest) == {"md5": 32, "sha256": 64}[algorithm]
            int(digest, 16)


# --------------------------------------------------------------------------- the real files


def test_real_mnist_has_the_pinned_hash(real_data, tmp_path):
    download_dataset("mnist", tmp_path / "raw", mirror=str(real_data))
    recipe = DataRecipe(examples_per_class=5000, padding_pixels=2)
    card = prepare_dataset("mnist", tmp_path / "raw", tmp_path / "out", recipe)
    published = card["counts"]["train"]["published"]
    assert published == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert card["counts"]["train"]["kept"] == [5000] * 10
    assert sum(card["counts"]["test"]["kept"]) == 10000
    data = PreparedDataset.open(tmp_path / "out")
    assert data.train_images.shape == (50000, 1, 32, 32)
    # Seed 0 stands for these very images: this hash must not change.
    assert data.data_hash == "751e17fb9330b57b4e89bdd8e94e125c8beae646f2b8f63347bbd231df9eeb27"
    # The numbers of the authors' notebook.
    assert round(data.mean[0], 4) == 0.1307 and round(data.std[0], 4) == 0.3081


# --------------------------------------------------------------------------- smaller images


def test_smaller_images_are_those_of_torchvision(raw, tmp_path):
    from torchvision.transforms import Resize

    made, folder = raw("fashion_mnist")
    card = prepare_dataset("fashion_mnist", folder, tmp_path / "out", DataRecipe(image_size_px=10))
    data = PreparedDataset.open(tmp_path / "out")
    resize = Resize((10, 10))
    for split, (images, _) in (("train", made.train), ("test", made.test)):
        expected = [np.asarray(resize(Image.fromarray(image[0]))) for image in images]
        np.testing.assert_array_equal(getattr(data, f"{split}_images")[:, 0], expected)
    assert card["image_size_px"] == 10 and card["published_image_size_px"] == 28
    np.testing.assert_allclose(data.mean, np.mean(data.train_images) / 255, rtol=1e-12)


def test_images_are_not_made_larger(raw, tmp_path):
    _, folder = raw("mnist")
    recipe = DataRecipe(image_size_px=29)
    with pytest.raises(UserError, match=r"data\.image_size_px: is 29, but images have 28 x 28"):
        prepare_dataset("mnist", folder, tmp_path / "out", recipe)
    assert not (tmp_path / "out" / "card.json").exists()
