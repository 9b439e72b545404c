"""The facts of a training: run.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..io.errors import UserError
from ..io.files import read_json

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
    from .tables import SCHEMAS

    run = read_json(path, "a run.json")
    types = {"string": str, "int64": int, "float64": (int, float), "bool": bool}
    for column in SCHEMAS["runs"].columns:
        if column.name in ADDED_TO_RUNS:
            continue
        value = run.get(column.name)
        is_bool = isinstance(value, bool)  # which is an int as well
        if not isinstance(value, types[column.type]) or is_bool != (column.type == "bool"):
            raise UserError(
                f"{path}: {column.name!r} is missing or no {column.type}; train this run again"
            )
    return run


def recipe_of(run: dict[str, Any]) -> dict[str, Any]:
    """The recipe that a run was trained with; empty if run.json has none."""
    recipe = run.get("recipe")
    return recipe if isinstance(recipe, dict) else {}
