"""Content of the paper's figures, from tables; nothing is drawn here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ..collapse.registry import PAPER_FIGURES, PaperFigure, of_figure
from ..results.layout import Layout, origins_of, rows_of
from ..results.tables import OWN, REFERENCE
from .sentences import size_sentence

EpochAxis = Literal["linear", "log"]


@dataclass(frozen=True)
class Look:
    """Style of the figures: a part of the config's `figures`."""

    epoch_axis: EpochAxis = "linear"
    """Epochs linear, or logarithmic with epoch 0 to the left of 1."""
    width: Literal["auto", "column", "page"] = "auto"
    """Width of a column or of a page; auto is a column for up to three panels in a row."""
    shared_y_axis: Literal["auto", "figure", "row", "none"] = "auto"
    """Which panels of Figures 2 to 8 have one vertical scale; auto is the figure's own choice."""

    def options(self) -> list[str]:
        """The options of `neural-collapse plot` that differ from the defaults."""
        return [
            part
            for name, value in vars(self).items()
            if value != getattr(Look, name)
            for part in (f"--{name.replace('_', '-')}", value)
        ]


DEFAULT_LOOK = Look()


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    statistic: str
    split: str
    label: str
    look: str
    """A key of style.LOOKS: means, classifiers, train or test."""


@dataclass(frozen=True)
class GridFigure:
    """What one of Figures 2 to 8 shows."""

    number: int
    explanation: str
    """What is drawn, for the caption."""
    split: str = "train"
    log_y: bool = False
    share_y: bool = True
    """One vertical scale for all panels; not if datasets differ by orders of magnitude."""
    rises: bool = False
    """Whether curves end at the top, so that notes are at the bottom."""
    scale: float = 1.0
    """Factor between table and axis, 100 for a percentage."""

    @property
    def paper(self) -> PaperFigure:
        """Its titles."""
        return PAPER_FIGURES[self.number]

    @property
    def series(self) -> tuple[Series, ...]:
        """Its lines."""
        return tuple(
            Series(entry.name, self.split, entry.of or entry.label, _LOOKS[entry.of])
            for entry in of_figure(self.number)
        )

    def shared(self, look: Look) -> str:
        """Which panels have one vertical scale: figure, row or none."""
        own = "figure" if self.share_y else "none"
        return own if look.shared_y_axis == "auto" else look.shared_y_axis


_LOOKS = {"class means": "means", "classifiers": "classifiers", "": "means"}

SPECS: dict[int, GridFigure] = {
    spec.number: spec
    for spec in (
        GridFigure(
            2,
            "Standard deviation over classes (ddof 0) divided by the mean of the norms of the "
            "centred class means μ_c − μ_G and of the classifiers w_c; train set",
        ),
        GridFigure(
            3,
            "Standard deviation over pairs of classes (ddof 0) of the cosine between centred class "
            "means and between classifiers; train set",
        ),
        GridFigure(
            4,
            "Mean over pairs of classes of |cos + 1/(C − 1)| between centred class means and "
            "between classifiers; zero for a simplex ETF; train set",
        ),
        GridFigure(
            5,
            "Squared Frobenius distance of the classifiers W from the centred class means M, each "
            "divided by its Frobenius norm; train set",
        ),
        GridFigure(
            6,
            "Within-class covariance of the features relative to the between-class covariance, "
            "Tr(Σ_W Σ_B⁺) / C, on a logarithmic axis; train set",
            log_y=True,
        ),
        GridFigure(
            7,
            "Percentage of test examples for which the network and the nearest class centre (means "
            "of the train features) disagree",
            split="test",
            share_y=False,
            scale=100.0,
        ),
        GridFigure(
            8,
            "Mean over the attacked test images, without those whose decision DeepFool could not "
            "change, of the norm of its perturbation divided by the norm of the image; higher is "
            "more robust",
            split="test",
            share_y=False,
            rises=True,
        ),
    )
}


EPOCH_0_RATIO = 1.5
"""How much larger than every later value one before training may be, to be within the panel."""


def highest(points: np.ndarray) -> float:
    """The largest value that a linear axis shows of `points` (N, 2): epochs and values.

    Values before training that are much larger would press those of two or more later epochs flat.
    """
    top, later = points[:, 1].max(), points[points[:, 0] > 0]
    if len(np.unique(later[:, 0])) < 2:
        return float(top)
    high = later[:, 1].max()
    return float(high if top > EPOCH_0_RATIO * high > 0 else top)


# --------------------------------------------------------------------------- Figure 1


@dataclass(frozen=True)
class Picture:
    """One training whose features Figure 1 shows."""

    title: str
    seed: int
    rows: pd.DataFrame
    """Its rows of the table `activations`."""
    size: str
    """Sentence on data or networks that are not of the paper's size; or empty."""

    @property
    def epochs(self) -> list[int]:
        """The epochs whose features were kept."""
        return sorted(map(int, self.rows["epoch"].unique()))

    @property
    def classes(self) -> list[int]:
        """The three classes."""
        return sorted(map(int, self.rows["class_index"].unique()))


def choose_picture(activations: pd.DataFrame, runs: pd.DataFrame, layout: Layout) -> Picture | None:
    """What Figure 1 shows: the first cell that has points; own runs before reference runs."""
    for origin in origins_of(activations):
        for cell in layout.cells():
            rows = rows_of(activations, *cell, origin)
            if rows.empty:
                continue
            seed, run = int(rows["seed"].min()), rows_of(runs, *cell, origin)
            title = layout.title(*cell) + " (reference run)" * (origin == REFERENCE)
            size = size_sentence(run[run["seed"] == seed], layout)
            return Picture(title, seed, rows[rows["seed"] == seed], size)
    return None


# --------------------------------------------------------------------------- the sweep


def selecting_error(sweep: pd.DataFrame) -> str:
    """What the errors of a table `sweep` are, by which its recipes select: test error, held-out
    error (of train images that the sweep does not train on), or both."""
    splits = set(sweep["split"])
    words = [word for word in ("test", "held-out") if word.replace("-", "_") in splits]
    return f"{' or '.join(words or ['test'])} error"


def swept(errors: pd.DataFrame, layout: Layout) -> Layout:
    """The datasets and architectures of `layout` that have `errors`, from :func:`final_errors`."""
    cells = [cell for cell in layout.cells() if len(rows_of(errors, *cell))]
    return Layout(
        {name: title for name, title in layout.datasets.items() if name in {d for d, _ in cells}},
        {n: title for n, title in layout.architectures.items() if n in {a for _, a in cells}},
    )


def swept_runs(errors: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs whose cell and origin have `errors`, from :func:`final_errors`."""
    key = ["origin", "dataset", "architecture"]
    of = runs if "origin" in runs else runs.assign(origin=OWN)
    drawn = pd.MultiIndex.from_frame(errors[key])
    return runs[pd.MultiIndex.from_frame(of[key]).isin(drawn)]


def final_errors(sweep: pd.DataFrame) -> pd.DataFrame:
    """A row per candidate: its cell, learning_rate, the error by which one is selected in % at the
    end, diverged, selected.

    A candidate that diverged has an error of 100 %.
    """
    rows = sweep[(sweep["statistic"] == "error") & (sweep["split"] != "train")]
    rows = rows if "origin" in rows else rows.assign(origin=OWN)
    key = ["origin", "dataset", "architecture", "seed", "learning_rate"]
    last = rows.sort_values("epoch", kind="stable").groupby(key, as_index=False).last()
    error = last["value"].where(~last["diverged"].astype(bool), 1.0)
    return last.assign(error_percent=100 * error)[[*key, "error_percent", "diverged", "selected"]]
