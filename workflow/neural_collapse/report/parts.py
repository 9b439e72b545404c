"""The tables of the report, for its template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from ..io.text import duration_text
from ..results import claims, table1
from ..results.table1 import DASH
from ..results.tables import OWN

SIGNS = {"holds": ("✓", "yes"), "does not": ("✗", "no"), "cannot say": ("?", "open")}
"""Sign and style of each verdict."""


def subscripts(text: str) -> Markup:
    """A caption as HTML, in which the letters after Σ_, μ_, w_, D_ and SS_ are subscripts."""
    return Markup(re.sub(r"\b(Σ|μ|w|D|SS)_(\w)\b", r"\1<sub>\2</sub>", str(escape(text))))


def command(text: str) -> Markup:
    """A command as HTML, in which no option is split at the end of a line."""
    return Markup(re.sub(r"(?<= )--[\w-]+", r"<span>\g<0></span>", str(escape(text))))


class Cell(NamedTuple):
    """A table's cell: its text, and the number by which it is sorted, if it is one."""

    text: str
    sort: str = ""
    css: str = ""


class PageTable(NamedTuple):
    """A sortable table of the page."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def _number(text: str, value: float | None = None) -> Cell:
    """A number that was made a text, sorted by its value, or by the text if it is not given."""
    sort = text.replace("−", "-").lstrip("+") if value is None else repr(float(value))
    return Cell(text, "" if text == DASH else sort, "number")


def cell(value: Any, digits: int = 4) -> Cell:
    """A value as a cell; a dash if it is missing."""
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


class Verdict(NamedTuple):
    """The symbol and text of one verdict."""

    sign: str
    css: str
    detail: str
    """Cell, phenomenon, verdict, numbers and criterion, as a sentence."""


def _title(row: Any) -> str:
    """The cell of a row of the claims table."""
    return f"{row.dataset_label} × {row.architecture_label}{table1.origin_note(row)}"


def _verdict(row: Any) -> Verdict:
    numbers = f"{row.holds}. {row.reason}. Criterion: {row.criterion}."
    return Verdict(*SIGNS[row.holds], f"{_title(row)}, {row.phenomenon}: {numbers}")


def verdicts(table: pd.DataFrame) -> list[tuple[str, list[Verdict]]]:
    """Title and verdicts, in the order of the phenomena, of each cell."""
    rows = []
    for _, part in table.groupby(["origin", "dataset", "architecture"], sort=False):
        by_name = {row.phenomenon: row for row in part.itertuples()}
        found = [by_name[phenomenon.name] for phenomenon in claims.PHENOMENA]
        rows.append((_title(found[0]), [_verdict(row) for row in found]))
    return rows


def study_verdicts(table: pd.DataFrame) -> list[tuple[str, list[Verdict]]]:
    """Each claim of a study, and its verdicts in the cells to which it applies."""
    of_paper = [phenomenon.name for phenomenon in claims.PHENOMENA]
    studied = table[~table["phenomenon"].isin(of_paper)]
    return [
        (name, [_verdict(row) for row in part.itertuples()])
        for name, part in studied.groupby("phenomenon", sort=False)
    ]


def claims_table(table: pd.DataFrame) -> PageTable:
    """Every claim with its numbers."""
    rows = []
    numbers = table[["at_epoch_0", "at_start", "at_end", "change", "noise"]].to_numpy(float)
    for text, values in zip(claims.display_rows(table), numbers, strict=True):
        sign, css = SIGNS[text[3]]
        verdict = Cell(f"{sign} {text[3]}", css=css)
        rows.append(
            [*map(Cell, text[:3]), verdict, *map(_number, text[4:9], values), *map(Cell, text[9:])]
        )
    return PageTable("Every claim in every cell", claims.CLAIM_HEADINGS, rows)


def table_1(table: pd.DataFrame) -> PageTable:
    """Table 1 with its deviations."""
    rows = [
        [*map(Cell, text[:2]), *map(_number, text[2:8]), *map(Cell, text[8:])]
        for text in table1.display_rows(table)
    ]
    return PageTable("Table 1. Test accuracy (%)", table1.HEADINGS, rows)


def runs_table(runs: pd.DataFrame, provenance: Sequence[Mapping[str, Any]]) -> PageTable:
    """Every training: its recipe, device and duration."""
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
    return [leaf for key, item in items for leaf in flatten(item, f"{name}.{key}".strip("."))]


MAX_COLUMNS = 14


def split_provenance(
    provenance: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[str, str]], PageTable | None]:
    """The provenance that all runs share, and a table of the differences."""
    flat = [dict(flatten(run)) for run in provenance]
    keys = list(dict.fromkeys(key for run in flat for key in run))
    shared = [(k, flat[0][k]) for k in keys if len({run.get(k) for run in flat}) == 1]
    differing = [key for key in keys if key not in dict(shared)]
    # The table stays readable; the rest is in the JSON beneath it.
    short = [key for key in differing if max(len(run.get(key, "")) for run in flat) <= 60]
    headings = short[:MAX_COLUMNS]
    rows = [[_guess(run.get(key, DASH)) for key in headings] for run in flat]
    return shared, PageTable("What differs between the runs", headings, rows) if headings else None


def _guess(text: str) -> Cell:
    try:
        number = float(text)
    except ValueError:
        return Cell(text)
    return Cell(text, repr(number)) if np.isfinite(number) else Cell(text)
