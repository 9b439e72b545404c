"""The learning curve of one training.

This module must stay light (no torch): ``show`` reads the curves of unfinished trainings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from ..experiment.recipe import Recipe


@dataclass(frozen=True)
class EpochRecord:
    """Losses (mean of the recipe's loss) and errors (fraction, 0..1) over both whole splits after
    an epoch, in eval mode; epoch 0 is the network before training."""

    epoch: int
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float


@dataclass
class History:
    """The learning curve of one training."""

    learning_rate: float
    records: list[EpochRecord] = field(default_factory=list)
    diverged: bool = False
    resumed_after: int = 0
    """The epoch after which this process resumed the training; 0 if it started it."""

    @classmethod
    def of_state(cls, facts: Any, learning_rate: float, epoch: int = 0) -> History | None:
        """The curve in the facts of a resume state; None if they contain none."""
        try:
            records, diverged = facts
            records = [EpochRecord(**record) for record in records]
        except (TypeError, ValueError):
            return None
        return cls(learning_rate, records, diverged, epoch) if records else None

    def facts(self) -> list:
        """The curve as JSON values, for a resume state."""
        return [[vars(record) for record in self.records], self.diverged]

    def add(self, record: EpochRecord) -> None:
        """Add a record; a train loss that is not finite sets `diverged`, and errors to 1."""
        self.diverged = not math.isfinite(record.train_loss)
        if self.diverged:
            record = EpochRecord(record.epoch, record.train_loss, 1.0, record.test_loss, 1.0)
        self.records.append(record)


def history_frame(recipe: Recipe, history: History, seed: int | None = None) -> pd.DataFrame:
    """The learning curve as a table.

    seed: seed of the run; None for the sweep, in which the split "test" is named after the split
    that selects the rate.
    """
    frame = pd.DataFrame(
        {
            "dataset": recipe.dataset,
            "architecture": recipe.architecture,
            "seed": recipe.sweep.seed if seed is None else seed,
            "learning_rate": history.learning_rate,
            "epoch": record.epoch,
            "split": split,
            "statistic": statistic,
            "value": getattr(record, f"{split}_{statistic}"),
            "diverged": history.diverged,
        }
        for record in history.records
        for split in ("train", "test")
        for statistic in ("loss", "error")
    )
    if seed is None:
        return frame.replace({"split": {"test": recipe.sweep.selection.removesuffix("_error")}})
    return frame
