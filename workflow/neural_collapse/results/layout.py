"""Layout of a grid of panels, and the rows of tables that belong to a panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..io.errors import UserError
from ..io.text import did_you_mean
from . import paper
from .tables import ORIGINS, OWN, where


@dataclass(frozen=True)
class Layout:
    """Columns and rows of the grid in order: their titles by name."""

    datasets: Mapping[str, str]
    architectures: Mapping[str, str]

    @classmethod
    def of(
        cls,
        runs: pd.DataFrame,
        datasets: Sequence[str] | None = None,
        architectures: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Layout:
        """The layout of `runs`.

        Args:
            runs: a runs table, which contains the titles and, if no order is given, the cells.
            datasets: the columns in order. Default: those of `runs`, in the paper's order.
            architectures: the rows in order. Default: those of `runs`, in the paper's order.
            labels: titles by name, also for cells without runs; they replace those of `runs`.

        Raises:
            UserError: a name that neither `runs` nor `labels` has.
        """
        labels = labels or {}

        def titled(kind: str, names: Sequence[str] | None, known: tuple[str, ...]):
            if names is None:
                names = paper.paper_order(sorted(set(runs[kind])), known)
            own = dict(zip(runs[kind], runs[f"{kind}_label"], strict=True))
            titles = own | dict(labels)
            unknown = [name for name in names if name not in titles]
            if unknown:
                hint = did_you_mean(unknown[0], own, "the tables have")
                raise UserError(f"unknown {kind} {unknown[0]!r}; {hint}")
            return {name: titles[name] for name in names}

        return cls(
            titled("dataset", datasets, paper.DATASETS),
            titled("architecture", architectures, paper.ARCHITECTURES),
        )

    def cells(self) -> list[tuple[str, str]]:
        """(dataset, architecture) of every panel, dataset by dataset."""
        return [(d, a) for d in self.datasets for a in self.architectures]

    def title(self, dataset: str, architecture: str) -> str:
        """The name of a cell in a sentence."""
        return f"{self.datasets[dataset]} × {self.architectures[architecture]}"


def rows_of(
    frame: pd.DataFrame, dataset: str, architecture: str, origin: str | None = None
) -> pd.DataFrame:
    """The rows of one cell; of all origins if none is given."""
    return of_origin(where(frame, dataset=dataset, architecture=architecture), origin)


def of_origin(frame: pd.DataFrame, origin: str | None) -> pd.DataFrame:
    """The rows of one origin; a frame without that column holds own runs."""
    if origin is None or "origin" not in frame:
        return frame
    return where(frame, origin=origin)


def origins_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Origins in the table, own first: own, reference, or both."""
    present = set(frame["origin"].unique()) if "origin" in frame and len(frame) else {OWN}
    return tuple(origin for origin in ORIGINS if origin in present)


def finite_values(rows: pd.DataFrame, statistic: str, split: str) -> pd.DataFrame:
    """One statistic's rows with a finite value: epoch, seed, value."""
    rows = where(rows, statistic=statistic, split=split)
    return rows.loc[np.isfinite(rows["value"]), ["epoch", "seed", "value"]]


def terminal_phase_epochs(
    runs: pd.DataFrame, dataset: str, architecture: str, origin: str | None = None
) -> np.ndarray:
    """The start of the terminal phase in each run of one cell that reached it."""
    cell = rows_of(runs, dataset, architecture, origin)
    return cell["terminal_phase_epoch"].dropna().to_numpy(dtype=np.float64)


def number_of_seeds(frame: pd.DataFrame, layout: Layout) -> list[int]:
    """The number of seeds of each cell and origin that has any, in the layout's order."""
    counts = [
        rows_of(frame, *cell, origin)["seed"].nunique()
        for cell in layout.cells()
        for origin in origins_of(frame)
    ]
    return [count for count in counts if count]


def empty_reason(runs: pd.DataFrame, dataset: str, architecture: str) -> str:
    """The text in an empty panel."""
    cell = rows_of(runs, dataset, architecture)
    if cell.empty:
        return "not run"
    return "diverged" if cell["diverged"].all() else "not measured"
