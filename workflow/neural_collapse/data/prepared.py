"""The prepared arrays, opened without copying them into memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import BadZipFile

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from ..io.errors import UserError
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
        card, known = _read_card(folder / CARD_FILE)
        size = known.image_size_px
        arrays = {}
        for split in ("train", "test"):
            labels_path = folder / f"{split}_labels.npy"
            labels = _open_array(labels_path, np.int64, None)
            shape = (len(labels), known.channels, size, size)
            arrays[f"{split}_images"] = _open_array(folder / f"{split}_images.npy", np.uint8, shape)
            arrays[f"{split}_labels"] = labels
            _check_labels(labels_path, labels, known.counts[split].kept, known.num_classes)
        empty = [c for c, count in enumerate(known.counts["train"].kept) if count == 0]
        if empty:
            raise UserError(f"{folder}: class {empty[0]} has no train images; prepare it again")
        return cls(**known.model_dump(exclude={"counts"}), card=card, **arrays)


class _Counts(BaseModel):
    kept: list[int]


class _Card(BaseModel):
    """What is read of card.json."""

    name: str
    label: str
    num_classes: int
    class_names: tuple[str, ...]
    channels: int
    image_size_px: int
    mean: tuple[FiniteFloat, ...]
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    data_hash: str
    counts: dict[Literal["train", "test"], _Counts]


def _read_card(path: Path) -> tuple[dict[str, Any], _Card]:
    """card.json as it is, and its checked values."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        known = _Card.model_validate(card)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); prepare the dataset first"
        ) from None
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, e["loc"])) for e in error.errors()) or "all"
        raise UserError(
            f"{path}: is not a data card (missing or wrong: {keys}); prepare the dataset again"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is not a data card; prepare the dataset again") from None
    lengths = {"mean": known.channels, "std": known.channels, "class_names": known.num_classes}
    for key, length in lengths.items():
        if len(getattr(known, key)) != length:
            raise UserError(f"{path}: {key} has not {length} values; prepare the dataset again")
    return card, known


def _open_array(path: Path, kind: type, shape: tuple[int, ...] | None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); prepare the dataset again"
        ) from None
    except (ValueError, EOFError, OverflowError, BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: is cut off or not a .npy file ({reason}); prepare the dataset again"
        ) from None
    if not isinstance(array, np.ndarray) or array.dtype != kind or not array.flags.c_contiguous:
        found = getattr(array, "dtype", "no single array")
        raise UserError(
            f"{path}: holds {found}, not {np.dtype(kind)} in C order; prepare the dataset again"
        )
    if array.ndim != 1 if shape is None else array.shape != shape:
        raise UserError(
            f"{path}: has the shape {array.shape}, not {shape or '(N,)'}; prepare the dataset again"
        )
    return array


def _check_labels(path: Path, labels: np.ndarray, expected: Any, num_classes: int) -> None:
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{path}: its labels do not lie in 0 to {num_classes - 1}; prepare the dataset again"
        )
    counts = np.bincount(labels, minlength=num_classes)
    if counts.tolist() != expected:
        raise UserError(
            f"{path}: its counts a class differ from the card's; prepare the dataset again"
        )
