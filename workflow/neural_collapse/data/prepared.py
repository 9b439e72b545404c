"""The prepared arrays, opened without copying them into memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..io.files import reading
from .prepare import CARD_FILE


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """One dataset as training sees it.

    `train_images`, `test_images`: read-only memory maps, uint8 (N, channels, size, size);
    `train_labels`, `test_labels`: int64 (N,), from 0.  Networks see (image / 255 - mean) / std.
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
    """Changes whenever an array, the mean or the standard deviation does."""
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    card: dict[str, Any]
    """All of card.json."""

    @classmethod
    def open(cls, folder: str | Path) -> PreparedDataset:
        """Open what :func:`.prepare.prepare_dataset` wrote; raises UserError naming the file.

        Checks shapes, types and labels against the card, not the checksums, which would read
        every byte.
        """
        folder = Path(folder)
        card, values, kept = _read_card(folder / CARD_FILE)
        classes, side = values["num_classes"], values["image_size_px"]
        for split, expected in kept.items():
            path = folder / f"{split}_labels.npy"
            labels = _open_array(path, np.int64, None)
            shape = (len(labels), values["channels"], side, side)
            values[f"{split}_labels"] = labels
            values[f"{split}_images"] = _open_array(folder / f"{split}_images.npy", np.uint8, shape)
            with reading(path, "the card's labels", AGAIN):
                if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
                    raise ValueError(f"they do not lie in 0 to {classes - 1}")
                counts = np.bincount(labels, minlength=classes)
                if counts.tolist() != expected:
                    raise ValueError("its counts a class differ from the card's")
                if split == "train" and not counts.all():
                    raise ValueError(f"class {counts.argmin()} has no train images")
        return cls(card=card, **values)


AGAIN = "prepare the dataset again"


def _read_card(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[int]]]:
    """card.json as it is, what a PreparedDataset has of it, and images a class of each split."""
    with reading(path, "a data card", AGAIN):
        card = json.loads(path.read_text(encoding="utf-8"))
        values = {key: str(card[key]) for key in ("name", "label", "data_hash")}
        values |= {key: int(card[key]) for key in ("num_classes", "channels", "image_size_px")}
        values |= {key: tuple(map(float, card[key])) for key in ("mean", "std")}
        values["class_names"] = tuple(card["class_names"])
        kept = {split: list(card["counts"][split]["kept"]) for split in ("train", "test")}
        for key, of in [("mean", "channels"), ("std", "channels"), ("class_names", "num_classes")]:
            if len(values[key]) != values[of]:
                raise ValueError(f"{key} has not {values[of]} values")
        if not np.isfinite(values["mean"]).all() or not all(0 < s < np.inf for s in values["std"]):
            raise ValueError("mean or std is not a number that normalises")
    return card, values, kept


def _open_array(path: Path, kind: type, shape: tuple[int, ...] | None) -> np.ndarray:
    with reading(path, "a prepared array", AGAIN):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != kind or not array.flags.c_contiguous:
            raise ValueError(f"it holds {array.dtype}, not {np.dtype(kind)} in C order")
        if array.ndim != 1 if shape is None else array.shape != shape:
            raise ValueError(f"its shape is {array.shape}, not {shape or '(N,)'}")
    return array
