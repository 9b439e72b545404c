"""Encoded images: folders, ILSVRC-2012's archives, and what decoding makes of each mode."""

from __future__ import annotations

import io

import numpy as np
import pytest
from dataset_files import WNIDS, jpeg, make_ilsvrc, write_files
from PIL import Image

from neural_collapse.data.image_files import (
    ImageRef,
    decode_image,
    index_ilsvrc,
    index_image_folder,
)
from neural_collapse.io.errors import UserError


def encoded(array: np.ndarray, format: str, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, format)
    return buffer.getvalue()


def decoded(data: bytes, folder) -> np.ndarray:
    path = write_files(folder, {"x.img": data}) / "x.img"
    return decode_image(ImageRef(str(path)), None, None)


# --------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    ("width", "height"), [(300, 260), (260, 300), (500, 333), (256, 256), (120, 90), (301, 257)]
)
def test_resize_and_crop_same_as_torchvision(width, height, tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    path = write_files(tmp_path, {"x.jpg": jpeg(1, width, height)}) / "x.jpg"
    image = Image.open(path).convert("RGB")
    theirs = transforms.CenterCrop(224)(transforms.Resize(256)(image))
    ours = decode_image(ImageRef(str(path)), 256, 224)
    assert ours.shape == (3, 224, 224) and ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, np.asarray(theirs).transpose(2, 0, 1))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_decode_16_bit_grey_is_scaled_to_8(format, tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    found = decoded(encoded(values, format), tmp_path)
    expected = np.round(values / 257)
    for channel in found:
        np.testing.assert_array_equal(channel, expected)


@pytest.mark.parametrize("array", [np.ones((4, 4), np.float32), np.ones((4, 4), np.int32)])
def test_decode_32_bit_is_refused_by_mode(array, tmp_path):
    mode = {"f": "F", "i": "I"}[array.dtype.kind]
    with pytest.raises(UserError, match=rf"x\.img: its pixels have mode {mode} .*8 or 16 bits"):
        decoded(encoded(array, "TIFF"), tmp_path)


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        *(("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("P", "GIF")),
        *(("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("LAB", "TIFF"), ("RGBA", "WEBP"), ("L", "BMP")),
    ],
)
def test_decode_8_bit_mode_becomes_rgb(mode, format, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format)
    found = decoded(buffer.getvalue(), tmp_path)
    assert found.shape == (3, 6, 6) and len(np.unique(found)) > 1


def test_decode_alpha_is_dropped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 4), dtype=np.uint8)
    found = decoded(encoded(pixels, "PNG"), tmp_path)
    np.testing.assert_array_equal(found, pixels[:, :, :3].transpose(2, 0, 1))


@pytest.mark.parametrize(
    "data", [b"", b"no image", jpeg(1)[:200], b"%!PS-Adobe-3.0 EPSF-3.0\n"], ids=range(4)
)
def test_decode_corrupt_image_is_named(data, tmp_path):
    with pytest.raises(UserError) as caught:
        decoded(data, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "x.img") in message and "replace or remove it" in message
    assert "download" not in message and "BytesIO" not in message


# --------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images in each split."""
    files = {
        f"{split}/{name}/{i}.jpg": jpeg(i)
        for split in ("train", "test")
        for name in ("cat", "dog")
        for i in range(3)
    }
    return write_files(tmp_path / "photos", files)


def test_folder_classes_are_numbered_in_alphabetical_order(folder):
    index = index_image_folder(folder)
    assert index.class_names == ("cat", "dog") and len(index.train) == 6
    assert index.train_labels.tolist() == index.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert index.left_out == {}


@pytest.mark.parametrize("name", ["sub/9.jpg", "sub/deeper/9.png", "9.jfif", "9.JPEG", "9", "9.x"])
def test_folder_image_is_read_wherever_it_lies_and_whatever_its_name(folder, name):
    write_files(folder / "train" / "cat", {name: jpeg(9)})
    index = index_image_folder(folder)
    assert len(index.train) == 7 and index.left_out == {}
    assert index.train_labels.tolist() == [0] * 4 + [1] * 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("train/.ipynb_checkpoints/0.jpg", "hidden"),
        ("train/@eaDir/0.jpg", "hidden"),
        ("train/cat/.thumbnails/0.jpg", "hidden"),
        ("test/.DS_Store", "hidden"),
        ("train/cat/notes.txt", "not an image"),
        ("train/0.jpg", "outside the class folders"),
    ],
)
def test_folder_other_file_is_left_out_and_counted(folder, name, reason):
    write_files(folder, {name: jpeg(0) if name.endswith("jpg") else b"<svg/>"})
    index = index_image_folder(folder)
    assert len(index.train) == len(index.test) == 6 and index.class_names == ("cat", "dog")
    assert index.left_out.keys() == {reason} and index.left_out[reason].startswith("1 (")


@pytest.mark.parametrize("name", ["9.jpg", "9"])
def test_folder_dangling_link_is_named(folder, name):
    link = folder / "train" / "cat" / name
    link.symlink_to(folder / "gone")
    with pytest.raises(UserError, match=f"{link}: does not exist, or is a link"):
        for ref in index_image_folder(folder).train:
            ref.size_bytes()


def test_folder_link_to_a_folder_above_is_refused(folder):
    (folder / "train" / "cat" / "loop").symlink_to(folder / "train" / "cat")
    with pytest.raises(UserError, match="loop: is a link to a folder that it lies in"):
        index_image_folder(folder)


def test_folder_without_a_split_or_class_is_named(folder):
    (folder / "train" / "emu").mkdir()
    with pytest.raises(UserError, match="emu: holds no image files"):
        index_image_folder(folder)
    (folder / "train" / "emu").rename(folder / "test" / "emu")
    with pytest.raises(UserError, match="'emu' is in test/ but not in train/"):
        index_image_folder(folder)
    with pytest.raises(UserError, match="no folder train/"):
        index_image_folder(folder / "train")


@pytest.mark.parametrize("remains", [True, False])
def test_folder_class_without_test_images_is_kept(folder, remains):
    for path in (folder / "test" / "cat").iterdir():
        path.unlink()
    if not remains:
        (folder / "test" / "cat").rmdir()
    index = index_image_folder(folder)
    assert index.class_names == ("cat", "dog") and index.test_labels.tolist() == [1, 1, 1]


# --------------------------------------------------------------------------- ILSVRC-2012


def test_ilsvrc_archives_are_indexed(tmp_path):
    made = make_ilsvrc(per_class=4, val=9)
    folder = write_files(tmp_path, made.files)
    index = index_ilsvrc(folder)
    assert index.class_names == tuple(WNIDS)
    assert index.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [ref.name for ref in index.train[:2]] == [f"{WNIDS[0]}_0.JPEG", f"{WNIDS[0]}_1.JPEG"]
    assert index.train[5].read() == jpeg(101, 47, 35, "L")
    assert index.test_labels.tolist() == made.test[1].tolist()
    assert [ref.name[-8:-5] for ref in index.test] == [f"{i + 1:03d}" for i in range(9)]
