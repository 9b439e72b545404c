"""Prepared datasets, opened as memory maps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..io.files import reading
from .prepare import CARD_FILE

AGAIN = "delete its folder, run Snakemake's target data with your config, then run again"
"""In two runs: Snakemake then sees that the card is the same, and trains nothing again."""


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """One prepared dataset.

    `train_images`, `test_images`: read-only memory maps, uint8 (N, channels, size, size);
    `train_labels`, `test_labels`: int64 (N,), from 0. The input of networks is
    (image / 255 - mean) / std.
    """

    name: str
    label: str
    num_classes: int
    class_names: tuple[str, ...]
    channels: int
    image_size_px: int
    mean: tuple[float, ...]
    """Of each channel, in [0, 1]."""
    std: tuple[float, ...]
    """Of each channel, in [0, 1]; never 0."""
    data_hash: str
    """Hash of the arrays, the mean and the standard deviation."""
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    card: dict[str, Any]
    """All of card.json."""

    @classmethod
    def open(cls, folder: str | Path) -> PreparedDataset:
        """Open the output of :func:`.prepare.prepare_dataset`.

        Types, shapes and class counts are checked against the card; checksums are not, because
        that would read all images.

        Raises:
            UserError: a file is missing or corrupt, or differs from the card.
        """
        path = Path(folder) / CARD_FILE
        with reading(path, "a data card", AGAIN):
            card = json.loads(path.read_text(encoding="utf-8"))
            values = {key: card[key] for key in ("name", "label", "data_hash", "num_classes")}
            values |= {key: tuple(card[key]) for key in ("class_names", "mean", "std")}
            values |= {key: card[key] for key in ("channels", "image_size_px")}
            shape = (card["channels"], card["image_size_px"], card["image_size_px"])
            kept = {split: card["counts"][split]["kept"] for split in ("train", "test")}
            channels, classes = card["channels"], card["num_classes"]
            for key, n in [("mean", channels), ("std", channels), ("class_names", classes)]:
                if len(values[key]) != n:
                    raise ValueError(f"{key} has {len(values[key])} values, not {n}")
            mean, std = np.array([values["mean"], values["std"]], dtype=float)
            if not np.isfinite([mean, std]).all() or not (std > 0).all():
                raise ValueError("mean or std is not finite, or a std is not positive")
        for split, counts in kept.items():
            labels_path = Path(folder) / f"{split}_labels.npy"
            labels = _open_array(labels_path, np.int64, (sum(counts),))
            with reading(labels_path, "the card's labels", AGAIN):
                if np.bincount(labels, minlength=len(counts)).tolist() != counts:
                    raise ValueError("its counts per class differ from the card's")
            images_path = Path(folder) / f"{split}_images.npy"
            values[f"{split}_images"] = _open_array(images_path, np.uint8, (len(labels), *shape))
            values[f"{split}_labels"] = labels
        return cls(card=card, **values)


def _open_array(path: Path, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    with reading(path, "a prepared array", AGAIN):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != kind or array.shape != shape:
            raise ValueError(f"it holds {array.dtype} {array.shape}, not {np.dtype(kind)} {shape}")
    return array
