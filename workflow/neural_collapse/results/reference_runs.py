"""Reference results: the tables of real runs that are shipped with the project.

A set is a folder, results/reference/<name>/, with the four tables that figures read, the facts of
every run (runs.json) and the data cards (cards.json). Runs of a set are never overwritten.
runs.json is written last and lists the runs of the set; rows of other runs in its tables are from
an interrupted export and are ignored. The origin of rows is `reference`, which distinguishes them
from own runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ..io.files import read_json
from . import TABLES
from .tables import REFERENCE, RUN_KEY, read_table


def read_tables(folder: Path) -> dict[str, Any]:
    """The tables of a set of reference results by name, of the runs that its runs.json lists.

    An export that is under way, or was interrupted, has written rows of others.
    """
    listed = read_json(folder / "runs.json", "a list of runs", list)
    tables = {}
    for name in TABLES:
        table = read_table(folder / "tables" / f"{name}.parquet", name)
        # A sweep's seed is its own; every seed of the cell has its winner.
        key = RUN_KEY[:2] if name == "sweep" else RUN_KEY
        known = [tuple(run.get(column) for column in key) for run in listed]
        rows = pd.MultiIndex.from_frame(table[key])
        tables[name] = table[rows.isin(known)].reset_index(drop=True)
    return tables


def read_runs(folder: str | Path) -> list[dict[str, Any]]:
    """The run.json of each run of a set, with its origin."""
    runs = read_json(Path(folder) / "runs.json", "a list of runs", list)
    return [run | {"origin": REFERENCE} for run in runs]


def read_cards(folder: str | Path) -> list[dict[str, Any]]:
    """The data cards of a set."""
    return read_json(Path(folder) / "cards.json", "a list of data cards", list)
