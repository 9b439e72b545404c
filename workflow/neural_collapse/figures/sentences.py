"""Sentences that several captions share; no drawing library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from ..results import paper
from ..results.layout import Layout, number_of_seeds, origins_of, rows_of, terminal_phase_epochs
from ..results.tables import OWN, REFERENCE, run_recipe


def joined(*sentences: str) -> str:
    """The sentences that are not empty, as one text."""
    return " ".join(filter(None, sentences))


def in_a_list(items: Sequence[str]) -> str:
    """The items with commas and an "and"."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def smallest_to_largest(counts: Sequence[int]) -> str:
    """3, or 2 to 3."""
    return " to ".join(map(str, sorted({min(counts), max(counts)})))


def origin_sentence(runs: pd.DataFrame) -> str:
    """Whose runs are shown, unless all are own ones."""
    present = origins_of(runs)
    if present == (OWN,):
        return ""
    if present == (REFERENCE,):
        return "All runs are reference runs, shipped with the project in results/reference."
    return (
        "Solid lines and filled triangles: own runs; dashed, paler lines and hollow triangles: "
        "reference runs, shipped with the project in results/reference."
    )


def seeds_sentence(frame: pd.DataFrame, layout: Layout) -> str:
    """How many trainings a curve stands for, and what its band is."""
    counts = number_of_seeds(frame, layout)
    if not counts:
        return "Nothing was run yet."
    if max(counts) == 1:
        return "Every curve is a single training (one seed), so there is no band."
    return (
        f"Curves are means over {smallest_to_largest(counts)} seeds; bands or bars reach from the "
        "smallest to the largest value."
    )


def points_sentence(counts: Iterable[float]) -> str:
    """How many trainings a point stands for, and what its bar is; empty if there are no points."""
    known = [int(count) for count in counts if count > 0]
    if not known:
        return ""
    if max(known) == 1:
        return "Every point is a single training."
    return (
        f"Points are means over {smallest_to_largest(known)} trainings; bars reach from the "
        "smallest to the largest value."
    )


def terminal_phase_sentence(runs: pd.DataFrame, layout: Layout, marked: bool = True) -> str:
    """What the mark of the terminal phase means, and which cells have none; marked: whether the
    figure says so in their panels."""
    cells = {cell: rows_of(runs, *cell) for cell in layout.cells()}
    accuracies = {a for cell in cells.values() for a in cell["terminal_phase_accuracy"]}
    if not accuracies:
        return ""
    accuracy = " or ".join(f"{100 * a:.4g} %" for a in sorted(accuracies, reverse=True))
    text = (
        "Triangle and dotted line: start of the terminal phase of training (TPT), the first epoch "
        f"with a train accuracy of at least {accuracy}"
    )
    reached = {cell: len(terminal_phase_epochs(runs, *cell)) for cell in cells}
    if max(reached.values()) > 1:
        text += ", mean over the seeds (grey: first to last of them)"
    never = [layout.title(*cell) for cell, n in reached.items() if len(cells[cell]) and not n]
    if never:
        text += f"; not reached in {in_a_list(never)}" + " (no TPT)" * marked
    missed = [layout.title(*cell) for cell, n in reached.items() if len(cells[cell]) > n > 0]
    if missed:
        text += f"; not reached by every training of {in_a_list(missed)}"
    return text + "."


def attacked_sentence(runs: pd.DataFrame, layout: Layout) -> str:
    """How many test images are attacked; empty if no recipe says so."""
    shown = [run_recipe(r) for cell in layout.cells() for _, r in rows_of(runs, *cell).iterrows()]
    counts = [recipe["robustness"]["images"] for recipe in shown if "robustness" in recipe]
    return f"Attacked images: {smallest_to_largest(counts)} (paper: 100)." if counts else ""


def size_sentence(runs: pd.DataFrame, layout: Layout) -> str:
    """What is smaller or larger than in the paper: images and networks; empty if nothing is."""
    present = origins_of(runs)
    sentences = []
    for origin in present:
        columns = ["network", "train_examples", "num_classes"]
        rows = [
            run
            for cell in layout.cells()
            for run in rows_of(runs, *cell, origin).drop_duplicates(columns).to_dict("records")
        ]
        parts = _sizes(rows, layout)
        whose = f"{origin.capitalize()} runs not" if len(present) > 1 else "Not"
        if parts:
            sentences.append(f"{whose} of the paper's size: {'; '.join(parts)}.")
    return joined(*sentences)


def note(runs: pd.DataFrame, layout: Layout) -> str:
    """What stands under a figure: that all runs are reference runs, and what is smaller."""
    shipped = origins_of(runs) == (REFERENCE,)
    return joined("Reference runs." if shipped else "", size_sentence(runs, layout))


_STEMS = {"imagenet": "ImageNet's stem", "small": "the stem for small images"}


def _sizes(runs: list[dict[str, Any]], layout: Layout) -> list[str]:
    images: dict[str, dict[str, None]] = {}
    networks: dict[str, dict[str, list[str]]] = {name: {} for name in layout.architectures}
    for run in runs:
        title, network, recipe = layout.datasets[run["dataset"]], run["network"], run_recipe(run)
        protocol = paper.PROTOCOL.get((run["dataset"], run["architecture"]))
        # A published network is called by its name alone, a user-defined one as its user likes.
        same = " (" not in network
        if protocol is not None:
            stem = recipe.get("network", {}).get("stem")
            if stem is not None and stem != protocol.recipe["network"].get("stem"):
                network += f" with {_STEMS[stem]}"
            same = network == protocol.network
            texts = []
            if run["train_examples"] != protocol.train_examples:
                texts.append(f"{run['train_examples'] / run['num_classes']:,.0f} images a class")
            side = protocol.side_px(recipe.get("data", {}))
            if side != protocol.image_size_px:
                texts.append(f"{side} px")
            if texts:
                images.setdefault(", ".join(texts), {})[title] = None
        if not same:
            networks[run["architecture"]].setdefault(network, []).append(title)
    parts = [f"{', '.join(titles)} {text}" for text, titles in images.items()]
    counts = Counter(run["architecture"] for run in runs)
    for architecture, found in networks.items():
        for network, titles in found.items():
            everywhere = len(titles) == counts[architecture]
            parts.append(network if everywhere else f"{network} ({', '.join(titles)})")
    return list(dict.fromkeys(parts))
