"""Each format's reader: true files, damaged files, malicious files, and any bytes at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import pickle
import tarfile

import numpy as np
import pytest
from dataset_files import (
    MAKERS,
    WNIDS,
    idx_bytes,
    images_and_labels,
    jpeg,
    make_cifar10,
    make_ilsvrc,
    malicious_pickle,
    python2_batch,
    tar_bytes,
    write_files,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from neural_collapse.data import parsers
from neural_collapse.io.errors import UserError

READERS = {
    "mnist": lambda folder, made: parsers.read_mnist(folder),
    "svhn": lambda folder, made: parsers.read_svhn(folder),
    "cifar10": lambda folder, made: parsers.read_cifar(folder / next(iter(made.files)), 10),
    "cifar100": lambda folder, made: parsers.read_cifar(folder / next(iter(made.files)), 100),
    "stl10": lambda folder, made: parsers.read_stl10(folder / next(iter(made.files))),
}


@pytest.mark.parametrize("name", READERS)
def test_true_files_are_read(name, tmp_path):
    made = MAKERS[name]()
    arrays = READERS[name](write_files(tmp_path, made.files), made)
    for split, (images, labels) in (("train", made.train), ("test", made.test)):
        found = getattr(arrays, f"{split}_images")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, images)
        assert getattr(arrays, f"{split}_labels").dtype == np.int64
        np.testing.assert_array_equal(getattr(arrays, f"{split}_labels"), labels)
    assert arrays.class_names == made.class_names


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", ["cut", "empty", "rubbish", "missing"])
def test_damaged_files_are_named(name, damage, tmp_path):
    made = MAKERS[name]()
    folder = write_files(tmp_path, made.files)
    for file, data in made.files.items():
        path = folder / file
        if damage == "missing":
            path.unlink()
        else:
            changed = {"cut": data[: len(data) // 2], "empty": b"", "rubbish": b"\x07" * 999}
            path.write_bytes(changed[damage])
        with pytest.raises(UserError) as caught:
            READERS[name](folder, made)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_torchvision_reads_the_same(name, tmp_path, monkeypatch):
    """An independent reader; its checksums are switched off, since the files are small ones."""
    torchvision = pytest.importorskip("torchvision")
    made = MAKERS[name]()
    (file,) = made.files
    path = write_files(tmp_path, made.files) / file
    with tarfile.open(path) as archive:
        # Python 3.11.4 brought filters, and warnings where none is chosen.
        chosen = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **chosen)
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10"}[name]
    reader = getattr(torchvision.datasets, kind)
    monkeypatch.setattr(reader, "_check_integrity", lambda self: True)
    module = {"stl10": "stl10"}.get(name, "cifar")
    monkeypatch.setattr(
        f"torchvision.datasets.{module}.check_integrity", lambda *a, **k: True, raising=True
    )
    arrays = READERS[name](tmp_path, made)
    for split in ("train", "test"):
        chosen = {"split": split} if name == "stl10" else {"train": split == "train"}
        theirs = reader(str(tmp_path), **chosen)
        images = theirs.data if name == "stl10" else theirs.data.transpose(0, 3, 1, 2)
        labels = theirs.labels if name == "stl10" else theirs.targets
        np.testing.assert_array_equal(getattr(arrays, f"{split}_images"), images)
        np.testing.assert_array_equal(getattr(arrays, f"{split}_labels"), labels)


def test_torchvision_reads_the_same_svhn(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    made = MAKERS["svhn"]()
    write_files(tmp_path, made.files)
    reader = torchvision.datasets.SVHN
    monkeypatch.setattr(reader, "_check_integrity", lambda self: True)
    monkeypatch.setattr(
        "torchvision.datasets.svhn.check_integrity", lambda *a, **k: True, raising=False
    )
    arrays = parsers.read_svhn(tmp_path)
    for split in ("train", "test"):
        theirs = reader(str(tmp_path), split=split)
        np.testing.assert_array_equal(getattr(arrays, f"{split}_images"), theirs.data)
        np.testing.assert_array_equal(getattr(arrays, f"{split}_labels"), theirs.labels)


# --------------------------------------------------------------------------- idx


def test_idx_without_gzip(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(parsers.read_idx(tmp_path / "plain"), array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0b\x01\0\0\0\x01ab",  # 16-bit numbers
        b"\0\0\x08\x01\0\0\0",
        b"\0\0\x08\x01\0\0\0\x05abcd",  # one short
        b"\0\0\x08\x01\0\0\0\x03abcd",  # one too many
        b"\0\0\x08\x03" + b"\xff" * 12,  # absurd
        b"\0\0\x08\x02\0\0\xff\xff\0\0\xff\xffab",  # 4 GB claimed, 2 bytes there
    ],
)
def test_idx_headers_are_checked(data):
    with pytest.raises(UserError, match=r"here\.idx"):
        parsers.parse_idx(io.BytesIO(data), "here.idx")


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda b: b"\0\0\x08" + b))
def test_any_bytes_as_idx(data):
    try:
        array = parsers.parse_idx(io.BytesIO(data), "fuzz")
    except UserError:
        return
    assert idx_bytes(array) == data


def test_mnist_labels_and_images_must_agree_in_number(tmp_path):
    made = MAKERS["mnist"]()
    few = gzip.compress(idx_bytes(np.zeros(3, np.uint8)))
    write_files(tmp_path, {**made.files, "train-labels-idx1-ubyte.gz": few})
    with pytest.raises(UserError, match="3 labels for the 70 images"):
        parsers.read_mnist(tmp_path)


# --------------------------------------------------------------------------- CIFAR


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    proof = tmp_path / "proof"
    data = malicious_pickle(f"touch {proof}")
    pickle.loads(malicious_pickle("true"))  # it would run, given to pickle itself
    with pytest.raises(UserError, match=r"posix\.system, refused|nt\.system, refused"):
        parsers.parse_restricted_pickle(data, "evil")
    members = {"cifar-10-batches-py/data_batch_1": data}
    for number in range(2, 6):
        members[f"cifar-10-batches-py/data_batch_{number}"] = data
    members |= {"x/test_batch": data, "x/batches.meta": data}
    path = write_files(tmp_path, {"c.tar.gz": tar_bytes(members, "w:gz")}) / "c.tar.gz"
    with pytest.raises(UserError, match=r"c\.tar\.gz"):
        parsers.read_cifar(path, 10)
    assert not proof.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c_codecs\ndecode\n.",
        b"\x80\x02ccopyreg\n__newobj__\n.",
        b"\x80\x02(ibuiltins\neval\n.",  # INST
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"\x80\x02r\xff\xff\xff\x7f}.",  # a memo index that would allocate gigabytes
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BINBYTES8
        b"\x80\x05\x96\xff\xff\xff\xff\x7f\x00\x00\x00.",  # BYTEARRAY8
        b"P1\n.",  # a persistent id
        b"\x82\x01.",  # an extension code
        b"}",
        b"",
        b"N.",
        b"K\x01.",
    ],
)
def test_pickles_that_no_batch_holds_are_refused(data):
    with pytest.raises(UserError, match=r"batch\.bin"):
        parsers.parse_restricted_pickle(data, "batch.bin")


def test_pickles_of_todays_python_and_numpy_are_read():
    images = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    for protocol in (2, 3, 4):
        data = pickle.dumps({"data": images, "labels": [1, 2]}, protocol=protocol)
        found, labels = parsers.parse_cifar_batch(data, "labels", 10, "here")
        np.testing.assert_array_equal(found, images.reshape(2, 3, 32, 32))
        assert labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    "batch",
    [
        {"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]},
        {"data": np.zeros((2, 100), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, -1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, "1"]},
        {"data": np.zeros((2, 3072), np.uint8)},
        {"data": [0] * 3072, "labels": [0]},
        {"labels": [0]},
    ],
)
def test_batches_of_another_shape_are_refused(batch):
    with pytest.raises(UserError, match="here"):
        parsers.parse_cifar_batch(pickle.dumps(batch, protocol=2), "labels", 10, "here")


BATCH = python2_batch(images_and_labels(2, (3072,), 10)[0], {"labels": [3, 4]})


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(0, 260) | st.integers(6300, len(BATCH) - 1), st.integers(0, 255)),
        max_size=4,
    ),
    st.integers(0, len(BATCH)),
)
@example([], len(BATCH))
def test_any_damage_to_a_cifar_batch(changes, length):
    data = bytearray(BATCH)
    for place, value in changes:
        data[place] = value
    try:
        images, labels = parsers.parse_cifar_batch(bytes(data[:length]), "labels", 10, "fuzz")
    except UserError:
        return
    assert images.shape == (len(labels), 3, 32, 32) and set(labels) <= set(range(10))


@given(st.binary(max_size=200).map(lambda data: b"\x80\x02" + data + b"."))
def test_any_bytes_as_a_pickle(data):
    with contextlib.suppress(UserError):
        parsers.parse_restricted_pickle(data, "fuzz")


# --------------------------------------------------------------------------- STL10


@given(st.integers(0, 2), st.integers(-1, 1), st.binary(max_size=3))
def test_any_bytes_as_stl10(count, surplus, labels):
    images = bytes(max(0, count * 3 * 96 * 96 + surplus))
    try:
        found, numbers = parsers.parse_stl10(images, labels, "fuzz")
    except UserError:
        return
    assert found.shape == (count, 3, 96, 96) and len(numbers) == count == len(labels)
    assert numbers.min() >= 0 and numbers.max() <= 9


def test_stl10_is_stored_column_by_column():
    image = np.zeros((3, 96, 96), np.uint8)
    image[0, 5, 7] = 1  # row 5, column 7
    data = bytearray(3 * 96 * 96)
    data[7 * 96 + 5] = 1
    found, labels = parsers.parse_stl10(bytes(data), b"\x0a", "here")
    np.testing.assert_array_equal(found[0], image)
    assert labels.tolist() == [9]


# --------------------------------------------------------------------------- tar


def archive_with(member: tarfile.TarInfo, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def unsafe_members() -> list[tarfile.TarInfo]:
    members = [
        tarfile.TarInfo(name)
        for name in ("../data_batch_1", "/etc/x", "a/../../b", "..\\x", "C:/x", "a/..")
    ]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.type, member.linkname = kind, "/etc/passwd"
        members.append(member)
    return members


@pytest.mark.parametrize("member", unsafe_members(), ids=lambda m: f"{m.name}-{m.type.decode()}")
def test_unsafe_members_are_refused(member, tmp_path):
    path = write_files(tmp_path / "in", {"x.tar.gz": archive_with(member)}) / "x.tar.gz"
    for read in (
        lambda: parsers.read_members(path, ["data_batch_1"]),
        lambda: parsers.member_checksums(path, {"data_batch_1": "md5"}),
    ):
        with pytest.raises(UserError, match=r"x\.tar\.gz.*refused"):
            read()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "in", path]


def test_a_member_that_stands_twice_is_refused(tmp_path):
    data = tar_bytes({"a/meta": b"1", "b/meta": b"2", "c/other": b"3"}, "w:gz")
    path = write_files(tmp_path, {"x.tar.gz": data}) / "x.tar.gz"
    with pytest.raises(UserError, match="twice"):
        parsers.read_members(path, ["meta", "other"])
    with pytest.raises(UserError, match="twice"):
        parsers.member_checksums(path, {"meta": "md5"})


def test_a_missing_member_is_named(tmp_path):
    made = make_cifar10()
    (file,) = made.files
    members = {}
    with tarfile.open(fileobj=io.BytesIO(made.files[file])) as archive:
        for member in archive:
            members[member.name] = archive.extractfile(member).read()
    del members["cifar-10-batches-py/data_batch_3"]
    path = write_files(tmp_path, {file: tar_bytes(members, "w:gz")}) / file
    with pytest.raises(UserError, match="holds no data_batch_3"):
        parsers.read_cifar(path, 10)


# --------------------------------------------------------------------------- npz


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


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
def test_npz_in_each_layout(shape, axes, tmp_path):
    arrays = npz_arrays(shape)
    path = write_files(tmp_path, {"mine.npz": npz(**arrays)}) / "mine.npz"
    found = parsers.read_npz(path)
    images = arrays["train_images"]
    expected = images[:, None] if axes is None else images.transpose(axes)
    np.testing.assert_array_equal(found.train_images, expected)
    np.testing.assert_array_equal(found.train_labels, arrays["train_labels"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train_images": np.zeros((12, 8, 8))}, "not uint8"),
        ({"train_images": np.zeros((12, 8, 8, 4), np.uint8)}, "1 or 3 channels"),
        ({"train_images": np.zeros((12, 3, 3, 3), np.uint8)}, "1 or 3 channels"),
        ({"train_labels": np.zeros(5, np.int64)}, "5 labels for 12 images"),
        ({"train_labels": np.zeros(12)}, "integer"),
        ({"train_labels": np.array([None] * 12)}, "objects"),
        ({"test_images": np.zeros((6, 9, 9), np.uint8)}, "differ"),
        ({"test_images": None}, "holds no array 'test_images'"),
    ],
)
def test_npz_that_will_not_do(change, reason, tmp_path):
    arrays = {k: v for k, v in (npz_arrays((8, 8)) | change).items() if v is not None}
    path = write_files(tmp_path, {"mine.npz": npz(**arrays)}) / "mine.npz"
    with pytest.raises(UserError, match=f"mine.npz.*{reason}"):
        parsers.read_npz(path)


def test_npz_header_that_claims_more_than_there_is(tmp_path):
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)}
    )
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", header.getvalue() + b"abc")
    with pytest.raises(UserError, match="claims 1000000000000000 bytes"):
        parsers.read_npz(path)


# --------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("width", "height"), [(300, 260), (260, 300), (500, 333), (256, 256), (120, 90), (301, 257)]
)
def test_resize_and_crop_are_torchvisions(width, height, tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    from PIL import Image

    path = write_files(tmp_path, {"x.jpg": jpeg(1, width, height)}) / "x.jpg"
    image = Image.open(path).convert("RGB")
    theirs = transforms.CenterCrop(224)(transforms.Resize(256)(image))
    ours = parsers.decode_image(parsers.ImageRef(str(path)), 256, 224)
    assert ours.shape == (3, 224, 224) and ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, np.asarray(theirs).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_colour_model_becomes_rgb(mode, tmp_path):
    path = write_files(tmp_path, {"x.jpg": jpeg(1, mode=mode)}) / "x.jpg"
    assert parsers.decode_image(parsers.ImageRef(str(path)), None, None).shape == (3, 30, 40)


@pytest.mark.parametrize("data", [b"", b"no image", jpeg(1)[:200], b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_named(data, tmp_path):
    path = write_files(tmp_path, {"x.jpg": data}) / "x.jpg"
    with pytest.raises(UserError, match=r"x\.jpg"):
        parsers.decode_image(parsers.ImageRef(str(path)), None, None)


def test_ilsvrc_archives_are_indexed(tmp_path):
    made = make_ilsvrc(per_class=4, val=9)
    folder = write_files(tmp_path, made.files)
    index = parsers.index_ilsvrc(folder)
    assert index.class_names == tuple(WNIDS)
    assert index.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [ref.name for ref in index.train[:2]] == [f"{WNIDS[0]}_0.JPEG", f"{WNIDS[0]}_1.JPEG"]
    assert index.train[5].read() == jpeg(101, 47, 35, "L")
    assert index.test_labels.tolist() == made.test[1].tolist()
    assert [ref.name[-8:-5] for ref in index.test] == [f"{i + 1:03d}" for i in range(9)]

    labels = "".join(f"{WNIDS[label]}\n" for label in made.test[1])
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz: is missing"):
        parsers.index_ilsvrc(folder)
    (folder / "imagenet_2012_validation_synset_labels.txt").write_text(labels)
    assert parsers.index_ilsvrc(folder).test_labels.tolist() == made.test[1].tolist()
    (folder / "imagenet_2012_validation_synset_labels.txt").write_text(labels[10:])
    with pytest.raises(UserError, match="9 images for 8 labels"):
        parsers.index_ilsvrc(folder)


def test_an_archive_inside_the_archive_cannot_reach_out_of_it(tmp_path):
    made = make_ilsvrc()
    outer = {f"{WNIDS[0]}.tar": tar_bytes({"../x.JPEG": b"x"})}
    write_files(tmp_path, {**made.files, "ILSVRC2012_img_train.tar": tar_bytes(outer)})
    with pytest.raises(UserError, match="leaves the folder"):
        parsers.index_ilsvrc(tmp_path)
    inner = tar_bytes({"a.JPEG": b"x" * 3000})
    outer = {f"{WNIDS[0]}.tar": inner[:1024]}  # cut: its member goes on past its end
    write_files(tmp_path, {"ILSVRC2012_img_train.tar": tar_bytes(outer)})
    with pytest.raises(UserError, match="ends inside its member"):
        parsers.index_ilsvrc(tmp_path)


def test_image_folder(tmp_path):
    files = {
        f"{split}/{name}/{i}.jpg": jpeg(i)
        for split in ("train", "test")
        for name in ("cat", "dog")
        for i in range(3)
    }
    folder = write_files(tmp_path, {**files, "train/cat/notes.txt": b"x"})
    index = parsers.index_image_folder(folder)
    assert index.class_names == ("cat", "dog") and len(index.train) == 6
    assert index.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    (folder / "train" / "emu").mkdir()
    with pytest.raises(UserError, match="'emu'"):
        parsers.index_image_folder(folder)
    (folder / "test" / "emu").mkdir()
    with pytest.raises(UserError, match="emu: holds no image files"):
        parsers.index_image_folder(folder)
    with pytest.raises(UserError, match="no folder train/"):
        parsers.index_image_folder(folder / "train")


def test_the_bound_lets_every_published_array_pass():
    assert math.prod((60000, 28, 28)) < parsers.MAX_DECODED_BYTES
    assert parsers.MAX_DECODED_BYTES > 100000 * 3 * 96 * 96  # STL10's unlabelled images
