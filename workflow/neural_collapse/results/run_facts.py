"""The facts of trainings, run.json, and of sets of reference results.

A set is a folder, results/reference/<name>/, with the tables of real runs that are shipped with the
project: the four tables that figures read, the facts of every run (runs.json) and the data cards
(cards.json). Runs of a set are never overwritten. runs.json is written last and lists the runs of
the set; rows of other runs in its tables are from an interrupted export and are ignored. The origin
of rows is `reference`, which distinguishes them from own runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ..io.errors import UserError
from ..io.files import read_json
from . import TABLES
from .tables import REFERENCE, RUN_KEY, SCHEMAS, read_table

ADDED_TO_RUNS = (
    "origin",
    "architecture_label",
    "terminal_phase_accuracy",
    "terminal_phase_epoch",
    "recipe",
)
"""Columns of the table `runs` that are not in run.json: collect-tables adds them."""

DECIDES_TRAINING = {"dataset", "architecture", "network", "data", "training"}
"""The parts of a recipe that run.json keeps; others may change after the training."""


def read_run(path: str | Path) -> dict[str, Any]:
    """The content of a run.json; raises UserError if a key that tables need is missing or wrong."""
    run = read_json(path, "a run.json")
    types = {"string": str, "int64": int, "float64": (int, float), "bool": bool}
    for column in SCHEMAS["runs"].columns:
        if column.name in ADDED_TO_RUNS:
            continue
        value = run.get(column.name)
        is_bool = isinstance(value, bool)  # which is an int as well
        if not isinstance(value, types[column.type]) or is_bool != (column.type == "bool"):
            raise UserError(
                f"{path}: {column.name!r} is missing or not {column.type}; delete it and run again"
            )
    return run


def recipe_of(run: dict[str, Any]) -> dict[str, Any]:
    """The parts of a recipe that decided a training, as it was done: a CPU and a GPU older than
    compute capability 8.0 compute TF32's steps in float32. Empty if its run.json has none."""
    recipe = run.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    recipe = {part: values for part, values in recipe.items() if part in DECIDES_TRAINING}
    machine = run.get("machine", {})
    has_tf32 = machine.get("device") != "cpu" and float(machine.get("compute_capability", 8)) >= 8
    if not has_tf32 and recipe.get("training", {}).get("precision") == "tf32":
        recipe["training"] = recipe["training"] | {"precision": "float32"}
    return recipe


def read_tables(folder: Path) -> dict[str, Any]:
    """The tables of a set of reference results by name, of the runs that its runs.json lists."""
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
