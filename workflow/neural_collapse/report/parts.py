"""The tables of the report, for its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..io.text import duration_text
from ..results import claims, table1
from ..results.table1 import DASH
from ..results.tables import OWN

SIGNS = {"holds": ("✓", "yes"), "does not": ("✗", "no"), "cannot say": ("?", "open")}
"""Sign and style of each verdict."""


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, and what it is sorted by where that is a number."""

    text: str
    sort: str = ""
    css: str = ""


@dataclass(frozen=True)
class PageTable:
    """A sortable table of the page."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def cell(value: Any, digits: int = 4) -> Cell:
    """A value as a cell: a dash where there is none."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return Cell(DASH)
    if isinstance(value, (bool, np.bool_)):
        return Cell("yes" if value else "no")
    if isinstance(value, (int, np.integer)):
        return Cell(f"{value:,}", str(value), "number")
    if isinstance(value, float):
        return Cell(f"{value:.{digits}g}".replace("-", "−"), repr(float(value)), "number")
    return Cell(str(value))


def device(run: Mapping[str, Any]) -> str:
    """Where a run was trained: its GPU, otherwise its processor; or empty."""
    machine = run.get("machine", {})
    return str(machine.get("gpu") or machine.get("processor") or "")


@dataclass(frozen=True)
class Verdict:
    """One square of the matrix of verdicts."""

    sign: str
    css: str
    detail: str
    """Cell, phenomenon, verdict, numbers and criterion, as a sentence."""


def verdicts(table: pd.DataFrame) -> list[tuple[str, list[Verdict]]]:
    """A row a cell, titled, and a verdict for each phenomenon in their order."""
    rows = []
    for _, part in table.groupby(["origin", "dataset", "architecture"], sort=False):
        by_name = {row.phenomenon: row for row in part.itertuples()}
        first = next(part.itertuples())
        title = f"{first.dataset_label} × {first.architecture_label}{table1.origin_note(first)}"
        squares = []
        for phenomenon in claims.PHENOMENA:
            row = by_name[phenomenon.name]
            sign, css = SIGNS[row.holds]
            detail = (
                f"{title}, {row.phenomenon}: {row.holds}. {row.reason}. Criterion: {row.criterion}."
            )
            squares.append(Verdict(sign, css, detail))
        rows.append((title, squares))
    return rows


def claims_table(table: pd.DataFrame) -> PageTable:
    """Every claim with its numbers."""
    rows = []
    for row, text in zip(table.itertuples(), claims.display_rows(table), strict=True):
        values = (row.at_epoch_0, row.at_start, row.at_end, row.change, row.noise)
        sign, css = SIGNS[row.holds]
        numbers = [
            Cell(shown, "" if np.isnan(value) else repr(value), "number")
            for shown, value in zip(text[4:9], values, strict=True)
        ]
        cells = [*map(Cell, text[:3]), Cell(f"{sign} {row.holds}", css=css), *numbers]
        rows.append([*cells, *map(Cell, text[9:])])
    return PageTable("Every claim in every cell", claims.CLAIM_HEADINGS, rows)


def table_1(table: pd.DataFrame) -> PageTable:
    """Table 1 with its deviations."""
    rows = []
    for text in table1.display_rows(table):
        numbers = [
            Cell(shown, "" if shown == DASH else shown.replace("−", "-").lstrip("+"), "number")
            for shown in text[2:8]
        ]
        rows.append([*map(Cell, text[:2]), *numbers, *map(Cell, text[8:])])
    return PageTable("Table 1. Test accuracy (%)", table1.HEADINGS, rows)


def runs_table(runs: pd.DataFrame, provenance: Sequence[Mapping[str, Any]]) -> PageTable:
    """Every training: how it was trained, on what, and for how long."""
    facts = {
        (run.get("origin", OWN), run.get("dataset"), run.get("architecture"), run.get("seed")): run
        for run in provenance
    }
    rows = []
    for run in runs.itertuples():
        own = facts.get((run.origin, run.dataset, run.architecture, run.seed), {})
        start, seconds = run.terminal_phase_epoch, own.get("seconds")
        time = {} if seconds is None else {"text": duration_text(seconds), "sort": repr(seconds)}
        columns = {
            "Dataset": cell(run.dataset_label),
            "Row": cell(run.architecture_label),
            "Network": cell(run.network),
            "Whose": cell(run.origin),
            "Seed": cell(run.seed),
            "Learning rate": cell(run.learning_rate, 5),
            "Found by": cell(run.learning_rate_origin),
            "Epochs": cell(run.epochs),
            "Start of TPT": Cell("not reached") if pd.isna(start) else cell(int(start)),
            "Train images": cell(run.train_examples),
            "Test images": cell(run.test_examples),
            "Classes": cell(run.num_classes),
            "Time": Cell(**{"text": DASH, "css": "number", **time}),
            "Device": cell(device(own) or None),
            "Diverged": cell(run.diverged),
        }
        rows.append(list(columns.values()))
    return PageTable("Every training", list(columns) if rows else ["Dataset"], rows)


def flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    """(dotted.key, text) of every leaf of a nested mapping; lists of plain values in one line."""
    if isinstance(value, Mapping) and value:
        items = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list)) for v in value):
        items = enumerate(value)
    elif isinstance(value, (list, tuple)):
        return [(name, ", ".join(map(str, value)))]
    else:
        return [(name, DASH if value is None else str(value))]
    return [leaf for key, item in items for leaf in flatten(item, f"{name}.{key}".lstrip("."))]


MAX_COLUMNS = 14


def split_provenance(
    provenance: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[str, str]], PageTable | None]:
    """What all runs share, and a table of what differs between them."""
    flat = [dict(flatten(run)) for run in provenance]
    keys = list(dict.fromkeys(key for run in flat for key in run))
    shared = [k for k in keys if len({run.get(k) for run in flat}) == 1]
    # The table stays readable; the rest is in the JSON beneath it.
    varying = [
        k for k in keys if k not in shared and max(len(run.get(k, "")) for run in flat) <= 60
    ][:MAX_COLUMNS]
    table = None
    if varying:
        rows = [[_guess(run.get(key, DASH)) for key in varying] for run in flat]
        table = PageTable("What differs between the runs", varying, rows)
    return [(key, flat[0][key]) for key in shared], table


def _guess(text: str) -> Cell:
    try:
        number = float(text)
    except ValueError:
        return Cell(text)
    return Cell(text, repr(number)) if np.isfinite(number) else Cell(text)
