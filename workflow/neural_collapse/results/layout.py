"""Layout of a grid of panels: columns, rows, means over seeds, and the start of the TPT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import paper
from .tables import ORIGINS, OWN, REFERENCE, run_recipe

NOT_RUN = "not run"
NOT_MEASURED = "not measured"
DIVERGED = "diverged"


@dataclass(frozen=True)
class Layout:
    """Columns and rows of the grid, each a name and how it is titled."""

    datasets: tuple[tuple[str, str], ...]
    architectures: tuple[tuple[str, str], ...]

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
            runs: a runs table, which gives titles and, where no order is given, the cells.
            datasets: the columns in order; left out, those of `runs` in the paper's order.
            architectures: the rows in order; left out, those of `runs` in the paper's order.
            labels: titles by name, for cells that `runs` does not hold; they win over its own.
        """
        labels = labels or {}

        def titled(kind: str, names: Sequence[str] | None, known: tuple[str, ...]):
            if names is None:
                names = paper.paper_order(sorted(set(runs[kind])), known)
            own = dict(zip(runs[kind], runs[f"{kind}_label"], strict=True))
            return tuple((name, labels.get(name, own.get(name, name))) for name in names)

        return cls(
            titled("dataset", datasets, paper.DATASETS),
            titled("architecture", architectures, paper.ARCHITECTURES),
        )

    def cells(self) -> list[tuple[str, str]]:
        """(dataset, architecture) of every panel, dataset by dataset."""
        return [(d, a) for d, _ in self.datasets for a, _ in self.architectures]

    def title(self, dataset: str, architecture: str) -> str:
        """How a cell is called in a sentence."""
        return f"{dict(self.datasets)[dataset]} × {dict(self.architectures)[architecture]}"


def rows_of(
    frame: pd.DataFrame, dataset: str, architecture: str, origin: str | None = None
) -> pd.DataFrame:
    """The rows of one cell, of all origins where none is given."""
    chosen = (frame["dataset"] == dataset) & (frame["architecture"] == architecture)
    return of_origin(frame[chosen], origin)


def of_origin(frame: pd.DataFrame, origin: str | None) -> pd.DataFrame:
    """The rows of one origin; a frame without that column holds own runs."""
    if origin is None or "origin" not in frame:
        return frame
    return frame[frame["origin"] == origin]


def origins_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Origins that the table holds, own first: own, reference, or both."""
    present = set(frame["origin"].unique()) if "origin" in frame and len(frame) else {OWN}
    return tuple(origin for origin in ORIGINS if origin in present)


def finite_values(rows: pd.DataFrame, statistic: str, split: str) -> pd.DataFrame:
    """One statistic's rows with a finite value: epoch, seed, value."""
    chosen = (rows["statistic"] == statistic) & (rows["split"] == split)
    chosen &= np.isfinite(rows["value"])
    return rows.loc[chosen, ["epoch", "seed", "value"]]


@dataclass(frozen=True)
class TerminalPhase:
    """When the terminal phase of training started in the runs of one cell."""

    mean: float
    """Mean over the seeds that reached it; nan where none did."""
    first: float
    last: float
    reached: int
    runs: int


def terminal_phase(
    runs: pd.DataFrame, dataset: str, architecture: str, origin: str | None = None
) -> TerminalPhase:
    """The start of the terminal phase of one cell over its seeds."""
    cell = rows_of(runs, dataset, architecture, origin)
    epochs = cell["terminal_phase_epoch"].dropna().to_numpy(dtype=np.float64)
    if len(epochs) == 0:
        return TerminalPhase(np.nan, np.nan, np.nan, 0, len(cell))
    return TerminalPhase(
        float(epochs.mean()), float(epochs.min()), float(epochs.max()), len(epochs), len(cell)
    )


def empty_reason(runs: pd.DataFrame, dataset: str, architecture: str) -> str:
    """The word in a panel that has nothing to show."""
    cell = rows_of(runs, dataset, architecture)
    if len(cell) == 0:
        return NOT_RUN
    return DIVERGED if cell["diverged"].all() else NOT_MEASURED


def seed_counts(frame: pd.DataFrame, layout: Layout) -> list[int]:
    """Number of seeds of each cell and origin that has any, in the layout's order."""
    counts = [
        rows_of(frame, *cell, origin)["seed"].nunique()
        for cell in layout.cells()
        for origin in origins_of(frame)
    ]
    return [count for count in counts if count]


def origin_sentence(runs: pd.DataFrame) -> str:
    """Whose runs are shown, where they are not all own."""
    present = origins_of(runs)
    if present == (OWN,):
        return ""
    if present == (REFERENCE,):
        return "All runs are reference runs, shipped with the project in results/reference."
    return (
        "Solid lines and filled triangles: own runs; dashed, paler lines and hollow triangles: "
        "reference runs, shipped with the project in results/reference."
    )


def size_sentence(runs: pd.DataFrame, layout: Layout) -> str:
    """What is smaller or larger than in the paper: images and networks; empty where nothing is."""
    present = origins_of(runs)
    sentences = []
    for origin in present:
        rows = [
            run
            for cell in layout.cells()
            for _, run in rows_of(runs, *cell, origin).drop_duplicates(_SIZED).iterrows()
        ]
        parts = [*_sized_images(rows, layout), *_sized_networks(rows, layout)]
        whose = f"{origin.capitalize()} runs not" if len(present) > 1 else "Not"
        if parts:
            sentences.append(f"{whose} of the paper's size: {'; '.join(parts)}.")
    return joined(*sentences)


_SIZED = ["network", "train_examples", "num_classes"]


def _sized_images(runs: list[pd.Series], layout: Layout) -> list[str]:
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        protocol = paper.PROTOCOL.get((run["dataset"], run["architecture"]))
        if protocol is None:
            continue
        texts = []
        if run["train_examples"] != protocol.train_examples:
            texts.append(f"{run['train_examples'] / run['num_classes']:,.0f} images a class")
        data = run_recipe(run).get("data", {})
        side = protocol.side_px(data)
        if side != protocol.image_size_px:
            texts.append(f"{side} px")
        if texts:
            title = dict(layout.datasets)[run["dataset"]]
            found.setdefault(", ".join(texts), {})[title] = None
    return [f"{', '.join(titles)} {text}" for text, titles in found.items()]


def _sized_networks(runs: list[pd.Series], layout: Layout) -> list[str]:
    parts = []
    for architecture, _ in layout.architectures:
        own = [run for run in runs if run["architecture"] == architecture]
        found: dict[str, list[str]] = {}
        for run in own:
            protocol = paper.PROTOCOL.get((run["dataset"], architecture))
            # A published network is called by its name alone, a user-defined one as its user likes.
            published = " (" not in run["network"]
            if not (published if protocol is None else run["network"] == protocol.network):
                found.setdefault(run["network"], []).append(dict(layout.datasets)[run["dataset"]])
        for network, titles in found.items():
            everywhere = len(titles) == len(own)
            parts.append(network if everywhere else f"{network} ({', '.join(titles)})")
    return parts


def several_seeds(frame: pd.DataFrame, layout: Layout) -> bool:
    """Whether any cell has more than one seed, so that bands are drawn."""
    return max(seed_counts(frame, layout), default=0) > 1


def seeds_sentence(frame: pd.DataFrame, layout: Layout) -> str:
    """How many trainings a curve stands for, and what its band is."""
    counts = seed_counts(frame, layout)
    if not counts:
        return "Nothing was run yet."
    low, high = min(counts), max(counts)
    if high == 1:
        return "Every curve is a single training (one seed), so there is no band."
    number = f"{high}" if low == high else f"{low} to {high}"
    return (
        f"Curves are the mean of {number} seeds; the band reaches from the smallest to the largest "
        "of them."
    )


def joined(*sentences: str) -> str:
    """The sentences that say something, as one text."""
    return " ".join(filter(None, sentences))


def percent(share: float) -> str:
    """A share as a percentage without superfluous zeros: 99.9 %."""
    return f"{100 * share:.4g} %"


def terminal_phase_sentence(runs: pd.DataFrame, layout: Layout) -> str:
    """What the mark of the terminal phase means, and which cells have none."""
    present = pd.concat([rows_of(runs, *cell) for cell in layout.cells()])
    if len(present) == 0:
        return ""
    thresholds = sorted(set(present["terminal_phase_accuracy"]), reverse=True)
    accuracy = " or ".join(percent(threshold) for threshold in thresholds)
    text = (
        "Triangle and dotted line: start of the terminal phase of training (TPT), the first epoch "
        f"with a train accuracy of at least {accuracy}"
    )
    cells = layout.cells()
    phases = {cell: terminal_phase(runs, *cell) for cell in cells}
    if any(phase.reached > 1 for phase in phases.values()):
        text += ", mean over the seeds (grey: first to last of them)"
    missed = [layout.title(*cell) for cell in cells if phases[cell].runs > phases[cell].reached]
    if missed:
        text += f"; not reached by every training of {_list(missed)} (no TPT)"
    return text + "."


def missing_sentence(runs: pd.DataFrame, layout: Layout) -> str:
    """Which cells were not run, or nothing."""
    missing = [layout.title(*cell) for cell in layout.cells() if rows_of(runs, *cell).empty]
    return f"Not run: {_list(missing)}." if missing else ""


def _list(items: Iterable[str]) -> str:
    items = list(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
