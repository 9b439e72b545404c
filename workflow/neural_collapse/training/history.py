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
    """Losses (the mean of the recipe's loss) and errors (share, 0..1) over the whole sets after an
    epoch, in eval mode; epoch 0 is the network before training."""

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
    """The epoch after which this process took up the training; 0 where it began it."""

    @classmethod
    def of_state(cls, facts: Any, learning_rate: float, epoch: int = 0) -> History | None:
        """The curve in the facts of a resume state; None where they hold none."""
        try:
            records, diverged = facts
            records = [EpochRecord(**record) for record in records]
        except (TypeError, ValueError):
            return None
        return cls(learning_rate, records, diverged, epoch) if records else None

    def facts(self) -> list:
        """The curve for a resume state, as JSON can hold it."""
        return [[vars(record) for record in self.records], self.diverged]

    def add(self, record: EpochRecord) -> None:
        """One more record; a loss that is not finite ends the curve, with all decisions wrong."""
        self.diverged = not math.isfinite(record.train_loss)
        if self.diverged:
            record = EpochRecord(record.epoch, record.train_loss, 1.0, record.test_loss, 1.0)
        self.records.append(record)


def history_frame(recipe: Recipe, history: History, seed: int | None = None) -> pd.DataFrame:
    """The learning curve `history` as a table.

    seed: of the run; None for the sweep, whose test set bears the name of the split that selects.
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
