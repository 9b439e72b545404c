"""Datasets of encoded images: positions of the images, and decoding."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..io.errors import UserError
from ..io.files import reading
from .archives import AGAIN, read_members

if TYPE_CHECKING:
    from PIL.Image import Image

REMEDY = "replace or remove it"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one encoded image lies: a whole file (`size` None), or a part of a tar file."""

    path: str
    offset: int = 0
    size: int | None = None
    name: str = ""

    def read(self) -> bytes:
        """Its bytes; raises UserError where the file is gone."""
        with reading(self, "an image", REMEDY), open(self.path, "rb") as handle:
            handle.seek(self.offset)
            return handle.read(-1 if self.size is None else self.size)

    def size_bytes(self) -> int:
        """Bytes of the encoded image; raises UserError where the file is gone."""
        if self.size is not None:
            return self.size
        with reading(self, "an image", REMEDY):
            return os.stat(self.path).st_size

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
    left_out: dict[str, str] = field(default_factory=dict)
    """By reason: how many files of a folder were not read, and the first of them."""


# --------------------------------------------------------------------------- decoding

# Only these decoders are offered a file, whatever its first bytes say.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .ppm .pgm .pbm .pnm .tif .tiff .webp".split()  # noqa: SIM905
)


def _rgb(image: Image, ref: ImageRef) -> Image:
    """An image as 8-bit RGB: grey three times, without its alpha, 16 bits scaled to 8."""
    from PIL import Image as pillow

    # Pillow's own conversion would clip 16 bits at 255.
    # It calls 16-bit grey I;16, but I where it comes from a PPM (or, before 10.3, a PNG) file.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = pillow.fromarray(grey.astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(
            f"{ref}: its pixels have mode {image.mode} (32-bit integers or floating point), whose "
            "range is not known; save it with 8 or 16 bits a channel"
        )
    return image.convert("RGB")


def decode_image(ref: ImageRef, resize_px: int | None, crop_px: int | None) -> np.ndarray:
    """One image as RGB uint8 (3, height, width); raises UserError naming it.

    The shorter side is resized to `resize_px` (bilinear, antialiased; the longer side rounded
    down) and the centre square of `crop_px` cut out, as torchvision's Resize and CenterCrop do
    with PIL images.
    """
    from PIL import Image, UnidentifiedImageError

    data = ref.read()
    with reading(ref, "an image", REMEDY):
        try:
            opened = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        except UnidentifiedImageError:
            formats = ", ".join(IMAGE_FORMATS)
            raise UserError(f"{ref}: is not an image ({formats}); {REMEDY}") from None
        with opened:
            image = _rgb(opened, ref)
        if resize_px is not None and resize_px != min(image.size):
            short = min(image.size)
            size = [int(resize_px * side / short) for side in image.size]
            image = image.resize(size, Image.Resampling.BILINEAR)
        if crop_px is not None:
            width, height = image.size
            left, top = round((width - crop_px) / 2), round((height - crop_px) / 2)
            image = image.crop((left, top, left + crop_px, top + crop_px))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


# --------------------------------------------------------------------------- image folders


LeftOut = list[tuple[str, Path]]
"""Files that are not read, each with the reason."""


def _is_image(path: Path) -> bool:
    """By its suffix, so that a corrupt one is named when it is read; otherwise by its content."""
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    with reading(path, "an image", REMEDY):
        try:
            Image.open(path, formats=IMAGE_FORMATS).close()
        except (UnidentifiedImageError, ValueError, SyntaxError):
            return False
        return True


def _visible(folder: str | Path, left_out: LeftOut) -> Iterator[os.DirEntry]:
    """The entries of a folder by name, without what systems and editors put beside images: dot
    files, thumbnails, resource forks."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name in ("@eaDir", "__MACOSX"):
            left_out.append(("hidden", Path(entry.path)))
        else:
            yield entry


def _images_below(folder: str, left_out: LeftOut, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The image files of a class folder and of its sub-folders."""
    here = os.path.realpath(folder)
    if here in above:
        raise UserError(f"{folder}: is a link to a folder that it lies in; {REMEDY}")
    for entry in _visible(folder, left_out):
        if entry.is_dir():
            yield from _images_below(entry.path, left_out, (*above, here))
        elif _is_image(Path(entry.path)):
            yield entry.path
        else:
            left_out.append(("not an image", Path(entry.path)))


def _split(folder: Path, left_out: LeftOut) -> dict[str, list[ImageRef]]:
    """The images of train/ or test/ by class."""
    classes: dict[str, list[ImageRef]] = {}
    flat = False
    with reading(folder, "a folder of class folders", REMEDY):
        for entry in _visible(folder, left_out):
            if entry.is_dir():
                found = sorted(_images_below(entry.path, left_out))
                classes[entry.name] = [ImageRef(path) for path in found]
            else:
                flat = flat or _is_image(Path(entry.path))
                left_out.append(("outside the class folders", Path(entry.path)))
    if flat and not classes:
        raise UserError(
            f"{folder}: is flat, that is, holds images but no class folders (as Kaggle's ImageNet "
            "does); move its images into one folder per class"
        )
    return classes


def index_image_folder(folder: str | Path) -> ImageIndex:
    """The images of train/<class>/ and test/<class>/ (or val/<class>/) in `folder`.

    Classes are numbered in the alphabetical order of their folders. Sub-folders of a class are
    read; hidden files and files that are not images are counted in `left_out`. A class without
    test images is kept.

    Raises:
        UserError: a split is missing, a class has no train images, or a class is only in the test
            split.
    """
    folder = Path(folder)
    left_out: LeftOut = []
    test_name = "test" if (folder / "test").is_dir() else "val"
    if not (folder / "train").is_dir() or not (folder / test_name).is_dir():
        raise UserError(f"{folder}: holds no folder train/, or neither test/ nor val/")
    train, test = _split(folder / "train", left_out), _split(folder / test_name, left_out)
    if unknown := sorted(test.keys() - train.keys()):
        raise UserError(f"{folder}: the class {unknown[0]!r} is in {test_name}/ but not in train/")
    for name, refs in train.items():
        if not refs:
            raise UserError(f"{folder / 'train' / name}: holds no image files")
    test = {name: test.get(name, []) for name in train}
    first, counts = dict(reversed(left_out)), Counter(reason for reason, _ in left_out)
    said = {reason: f"{count} ({first[reason]})" for reason, count in counts.items()}
    return ImageIndex(*_flat(train), *_flat(test), tuple(train), said)


def _flat(classes: dict[str, list[ImageRef]]) -> tuple[list[ImageRef], np.ndarray]:
    """The images of all classes in order, and their labels."""
    refs = [ref for refs in classes.values() for ref in refs]
    labels = np.repeat(np.arange(len(classes)), [len(refs) for refs in classes.values()])
    return refs, labels.astype(np.int64)


# --------------------------------------------------------------------------- ILSVRC-2012


def _index_tar(path: Path, offset: int = 0) -> list[ImageRef]:
    """The plain files of an uncompressed tar, or of one that lies inside another."""
    with open(path, "rb") as handle:
        handle.seek(offset)
        refs = []
        # fileobj's position is where the archive starts; offsets count from the file's start.
        with tarfile.open(fileobj=handle, mode="r:") as archive:
            for member in archive:
                if member.isreg():
                    refs.append(ImageRef(str(path), member.offset_data, member.size, member.name))
                archive.members = []  # keeps memory bounded: a member's header is not needed again
        return sorted(refs, key=lambda ref: ref.name)


def _validation_wnids(devkit: Path) -> list[str]:
    """The class of each validation image, in the images' order."""
    import scipy.io

    members = read_members(devkit, ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
    with reading(devkit, "the ILSVRC-2012 development kit", AGAIN):
        synsets = scipy.io.loadmat(io.BytesIO(members["meta.mat"]), squeeze_me=True)["synsets"]
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in np.atleast_1d(synsets)}
        truth = members["ILSVRC2012_validation_ground_truth.txt"].decode("ascii").split()
        return [wnids[int(number)] for number in truth]


def index_ilsvrc(folder: Path) -> ImageIndex:
    """The images of ILSVRC-2012 in its verified tar files; only headers are read.

    ILSVRC2012_img_train.tar contains one tar file per class; ILSVRC2012_devkit_t12.tar.gz contains
    the labels of the images in ILSVRC2012_img_val.tar. Classes are in alphabetical order of their
    WordNet ids.
    """
    train_path, val_path = folder / "ILSVRC2012_img_train.tar", folder / "ILSVRC2012_img_val.tar"
    train: dict[str, list[ImageRef]] = {}
    with reading(train_path, "ILSVRC-2012's training archive", AGAIN):
        for outer in _index_tar(train_path):
            wnid = posixpath.basename(outer.name).removesuffix(".tar")
            train[wnid] = _index_tar(train_path, outer.offset)
    with reading(val_path, "ILSVRC-2012's validation archive", AGAIN):
        images = _index_tar(val_path)
    number = {wnid: label for label, wnid in enumerate(train)}
    wnids = _validation_wnids(folder / "ILSVRC2012_devkit_t12.tar.gz")
    test_labels = np.array([number[wnid] for wnid in wnids], np.int64)
    return ImageIndex(*_flat(train), images, test_labels, tuple(train))
