"""Content and caption of each figure, from tables; nothing is drawn here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from ..collapse.registry import PAPER_FIGURES, PaperFigure, of_figure
from ..results.layout import (
    Layout,
    joined,
    missing_sentence,
    origin_sentence,
    origins_of,
    rows_of,
    seeds_sentence,
    size_sentence,
    terminal_phase_sentence,
)
from ..results.separation import layer_curves
from ..results.tables import OWN, REFERENCE

EpochAxis = Literal["linear", "log"]


@dataclass(frozen=True)
class Look:
    """How figures look, as the config's `figures` has it."""

    epoch_axis: EpochAxis = "linear"
    """Epochs linear, or logarithmic with epoch 0 to the left of 1."""
    width: Literal["auto", "column", "page"] = "auto"
    """Width of a column or of a page; auto is a column for up to three panels in a row."""
    shared_y_axis: Literal["auto", "figure", "row", "none"] = "auto"
    """Which panels of Figures 2 to 8 have one vertical scale; auto is the figure's own choice."""

    def options(self) -> list[str]:
        """As options of `neural-collapse plot`, where they are not the defaults."""
        values = {name: value for name, value in vars(self).items() if value != getattr(Look, name)}
        return [part for name, value in values.items() for part in (_option(name), value)]


DEFAULT_LOOK = Look()


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
    """One vertical scale for all panels; left apart where datasets differ by orders."""
    rises: bool = False
    """Whether curves end at the top, so that notes stand at the bottom."""
    scale: float = 1.0
    """Factor between table and axis, 100 for a percentage."""

    @property
    def paper(self) -> PaperFigure:
        """How it is titled."""
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
            "Mean over the attacked test images of the norm of DeepFool's smallest perturbation "
            "that changes the decision, divided by the norm of the image; higher is more robust",
            split="test",
            share_y=False,
            rises=True,
        ),
    )
}


def grid_caption(
    spec: GridFigure,
    measurements: pd.DataFrame,
    runs: pd.DataFrame,
    layout: Layout,
    look: Look = DEFAULT_LOOK,
) -> str:
    """What the figure shows, how many seeds, and what its band is."""
    marks = " (blue circles: class means, orange squares: classifiers)"
    sentences = [
        f"{spec.explanation}{marks if len(spec.series) > 1 else ''}.",
        "Columns are datasets, rows are networks; every measured epoch is a marker, epoch 0 is the "
        "network before training.",
        terminal_phase_sentence(runs, layout),
        size_sentence(runs, layout),
        origin_sentence(runs),
        seeds_sentence(measurements, layout),
        missing_sentence(runs, layout),
    ]
    shared = spec.shared(look)
    if shared != "figure":
        whose = {"row": "row of panels", "none": "panel"}[shared]
        sentences.insert(2, f"Every {whose} has its own vertical scale.")
    return joined(*sentences)


# --------------------------------------------------------------------------- Figure 1


FIGURE_1_TITLE = "Neural collapse of three classes, in the space that their means span"


@dataclass(frozen=True)
class Picture:
    """One training whose features Figure 1 shows."""

    dataset: str
    architecture: str
    seed: int
    origin: str
    title: str
    rows: pd.DataFrame
    """Its rows of the table `activations`."""
    size: str
    """What of its data and network is not of the paper's size, as a sentence; or empty."""

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
        for dataset, architecture in layout.cells():
            rows = rows_of(activations, dataset, architecture, origin)
            if len(rows):
                seed = int(rows["seed"].min())
                title = layout.title(dataset, architecture)
                if origin == REFERENCE:
                    title += " (reference run)"
                rows = rows[rows["seed"] == seed]
                run = rows_of(runs, dataset, architecture, origin)
                size = size_sentence(run[run["seed"] == seed], layout)
                return Picture(dataset, architecture, seed, origin, title, rows, size)
    return None


def picture_caption(activations: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What Figure 1 shows and how it was projected."""
    chosen = choose_picture(activations, runs, layout)
    if chosen is None:
        return "No features were kept for this figure."
    rows = chosen.rows
    classes = ", ".join(map(str, chosen.classes))
    count = int((rows[rows["epoch"] == rows["epoch"].max()]["kind"] == "feature").sum())
    return (
        f"{chosen.title}, classes {classes}, one training (seed {chosen.seed}). "
        f"Small spheres: {count} train features; blue balls and sticks: class means; red: "
        "classifiers; green spheres: vertices of the simplex ETF, rotated onto the class means. "
        "Shades distinguish the classes. All are centred and projected on the span of the three "
        "class means; means and classifiers are divided by their average norm. All epochs have the "
        "same viewpoint, scale and ETF. "
        f"{chosen.size}".rstrip()
    )


# --------------------------------------------------------------------------- the sweep


SWEEP_TITLE = "Test error over learning rate"


def final_errors(sweep: pd.DataFrame) -> pd.DataFrame:
    """A row a candidate: its cell, learning_rate, test error in % at the end, diverged, selected.

    A candidate that diverged has an error of 100 %.
    """
    rows = sweep[(sweep["statistic"] == "error") & (sweep["split"] != "train")]
    rows = rows if "origin" in rows else rows.assign(origin=OWN)
    key = ["origin", "dataset", "architecture", "seed", "learning_rate"]
    last = rows.sort_values("epoch", kind="stable").groupby(key, as_index=False).last()
    error = last["value"].where(~last["diverged"].astype(bool), 1.0)
    return last.assign(error_percent=100 * error)[[*key, "error_percent", "diverged", "selected"]]


def sweep_caption(sweep: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What the sweep figure shows."""
    errors = final_errors(sweep)
    present = [
        rows_of(errors, *cell, origin) for cell in layout.cells() for origin in origins_of(errors)
    ]
    counts = [len(part) for part in present if len(part)]
    if not counts:
        return "There was no sweep: all learning rates are fixed."
    number = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    diverged = sum(int(part["diverged"].sum()) for part in present)
    text = (
        f"Test error at the last epoch of {number} learning rates a network, one training each; "
        "both axes are logarithmic. The star marks the selected one, the lowest test error at the "
        "last epoch, as in the paper."
    )
    if diverged:
        many = "trainings" if diverged > 1 else "training"
        text += f" Crosses: {diverged} {many} that diverged, counted as 100 % error."
    sentences = [text, size_sentence(runs, layout), origin_sentence(errors)]
    return joined(*sentences)


# --------------------------------------------------------------------------- the overview


OVERVIEW_TITLE = "Overview of every training"


def _overview_panel(number: int) -> tuple[str, tuple[Series, ...], bool, float]:
    spec = SPECS[number]
    paired = len(spec.series) > 1
    title = f"{spec.paper.collapse}\n{spec.paper.name}" if paired else spec.paper.collapse
    unit = " (%)" if spec.scale == 100 else ""
    return (title or spec.paper.name) + unit, spec.series, spec.log_y, spec.scale


# title, series, logarithmic or not, factor between table and panel
PANELS: tuple[tuple[str, tuple[Series, ...], bool, float], ...] = (
    *map(_overview_panel, (6, 2, 3, 4, 5, 7)),
    (
        "error (%)",
        (Series("error", "train", "train", "train"), Series("error", "test", "test", "test")),
        False,
        100.0,
    ),
    _overview_panel(8),
)


def overview_caption(measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What the overview shows."""
    return (
        "A row for each dataset and network that was run. NC1 on a logarithmic axis, everything "
        "else linear from zero, each panel on its own scale; mismatch and error in %; the number "
        "in the corner is the value at the last epoch. NC1 to NC3 on the train set, NC4's mismatch "
        "and robustness on the test set. Blue: class means, train error and single curves; orange: "
        "classifiers, test error. "
        f"{terminal_phase_sentence(runs, layout)} {seeds_sentence(measurements, layout)} "
        f"{size_sentence(runs, layout)}".rstrip()
    ) + (
        " Rows titled (reference): runs shipped in results/reference."
        if REFERENCE in origins_of(runs)
        else ""
    )


# --------------------------------------------------------------------------- studies


SEPARATION_TITLE = "Law of data separation: fuzziness falls geometrically from layer to layer"


def separation_caption(measurements, runs, layout: Layout, *_) -> str:
    """What the figure of the law of data separation shows."""
    panels = layer_curves(measurements, runs, layout)
    if not panels:
        return "No run measured three layers or more (measurement.layers): there is no line."
    _, during, after = panels[0].epochs
    seeds = max(len(panel.fuzziness[after]) for panel in panels)
    several = (
        f" Points are geometric means of {seeds} seeds, where D is defined for each; bars reach "
        "from the smallest to the largest; r of the line gives the seeds' smallest and largest, ρ "
        "their mean."
        if seeds > 1
        else ""
    )
    sentences = [
        "Separation fuzziness D = Tr(SS_w SS_b⁺) of each layer's output on the train set, on a "
        "logarithmic axis; layer 0 is the images, the last one the features. Columns are the "
        "number of layers, images counted and classifier not. Grey circles: before training; "
        f"orange squares: after {during} epochs; blue: after {after}; black: the least-squares "
        "line log D = a + l log ρ after training, with Pearson's correlation r of l and log D."
        + several,
        "He and Su, PNAS 120 (36), 2023.",
        origin_sentence(runs),
    ]
    return joined(*sentences)
