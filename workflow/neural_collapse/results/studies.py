"""Values across cells for figures and claims of studies beyond the paper."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..io.versions import CHANGES_NO_RESULT
from .layout import Layout, finite_values, of_origin, origins_of, rows_of
from .tables import RUN_KEY, run_recipe, where

OPTIMISERS = {"sgd": "SGD", "sgdw": "SGDW", "adam": "Adam", "adamw": "AdamW"}
"""Titles of the optimisers of recipes."""
NC0, NC0_PREDICTED, NC0_ERROR = "nc0_sum_of_rows", "nc0_predicted", "nc0_prediction_error"
NC3 = "nc3_self_duality"
NC1 = "nc1_within_class_variability"
NC2 = "nc2_equiangularity_means"
NC4 = "nc4_ncc_mismatch"
MINORITY_COSINE, MINORITY_ACCURACY = "minority_classifier_cosine", "minority_accuracy"
SCORES = {"max_softmax": "maximum softmax", "energy": "energy", "neco": "NECO", "nci": "NCI"}
"""Outlier scores: their names in the registry, and their titles."""
MSE_PARTS = ("mse_nc1", "mse_nc23", "mse_perpendicular")


def optimiser_of(recipe: Mapping[str, Any]) -> str:
    """The name of a recipe's optimiser; the JSON of a runs table leaves out the default, sgd."""
    return recipe.get("training", {}).get("optimizer", {}).get("name", "sgd")


def last_values(measurements: pd.DataFrame, statistic: str, split: str = "train") -> pd.DataFrame:
    """A statistic at the last epoch of each run: dataset, architecture, seed, value."""
    found = where(measurements, statistic=statistic, split=split)
    last = found.groupby(RUN_KEY)["epoch"].transform("max")
    return found.loc[found["epoch"] == last, [*RUN_KEY, "value"]]


def _last_by_recipe(
    measurements: pd.DataFrame,
    runs: pd.DataFrame,
    layout: Layout,
    described: Callable[[Mapping[str, Any]], dict[str, Any] | None],
    statistics: Sequence[tuple[str, str]],
) -> pd.DataFrame:
    """Statistics, (name, split), at the last epoch beside what `described` says of each recipe.

    A row per run of the first origin; those of which it says None are left out.
    """
    origin, cells, rows = origins_of(runs)[0], set(layout.cells()), []
    for run in of_origin(runs, origin).to_dict("records"):
        recipe = described(run_recipe(run))
        if recipe is not None and (run["dataset"], run["architecture"]) in cells:
            rows.append({name: run[name] for name in RUN_KEY} | recipe)
    table = pd.DataFrame(rows)
    for statistic, split in statistics if rows else ():
        values = last_values(of_origin(measurements, origin), statistic, split)
        table = table.merge(values.rename(columns={"value": statistic}), on=RUN_KEY, how="left")
    return table


def by_weight_decay(
    measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout
) -> dict[tuple[str, str], pd.DataFrame]:
    """NC0, its prediction and NC3 at the last epoch by (dataset, optimiser's name).

    A table is indexed by weight decay, rising; its columns are (statistic, mean | min | max |
    count) over seeds and over cells that share a decay; nan where one was not measured.
    """

    def described(recipe: Mapping[str, Any]) -> dict[str, Any]:
        decay = recipe.get("training", {}).get("weight_decay", np.nan)
        return {"optimiser": optimiser_of(recipe), "weight_decay": decay}

    shown = [NC0, NC0_PREDICTED, NC3]
    table = _last_by_recipe(
        measurements, runs, layout, described, [(statistic, "train") for statistic in shown]
    )
    if table.empty:
        return {}
    table["optimiser"] = pd.Categorical(table["optimiser"], list(OPTIMISERS))
    return {
        key: part.groupby("weight_decay")[shown].agg(["mean", "min", "max", "count"])
        for key, part in table.groupby(["dataset", "optimiser"], observed=True)
    }


def shared_values(recipe: Mapping[str, Any], varies: Collection[str]) -> dict[str, Any]:
    """The values that decide a training, without those of the keys that vary and without the
    learning rate, by dotted key; recipe: as in the JSON of a runs table."""
    free = tuple(f"{key}." for key in (*varies, *(f"training.{k}" for k in CHANGES_NO_RESULT)))
    parts = {part: recipe.get(part, {}) for part in ("network", "data", "training")}
    return {k: value for k, value in _leaves(parts).items() if not f"{k}.".startswith(free)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their name, training.optimizer.name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        found |= _leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def by_ratio(
    measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout
) -> dict[tuple[str, str, bool], pd.DataFrame]:
    """The minority's cosine (train) and accuracy (test) at the last epoch by (dataset, line,
    whether oversampled), of cells whose recipe has an imbalance.

    A line is of recipes that differ in the ratio alone. It is called by its weight decay, and by
    what else differs among the lines. A table is indexed by ratio, rising; its columns are
    (statistic, mean | min | max | count) over seeds.
    """
    varies = {"data.imbalance.ratio", "training.weight_decay", "training.oversample"}

    def described(recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        imbalance = recipe.get("data", {}).get("imbalance")
        if imbalance is None:
            return None
        training, rest = recipe["training"], shared_values(recipe, varies)
        return {
            "ratio": imbalance["ratio"],
            "oversample": training.get("oversample", False),
            "weight_decay": training["weight_decay"],
            "rest": frozenset(
                f"{key.split('.')[-1]} {value}".replace("_", " ") for key, value in rest.items()
            ),
        }

    shown = {MINORITY_COSINE: "train", MINORITY_ACCURACY: "test"}
    table = _last_by_recipe(measurements, runs, layout, described, list(shown.items()))
    if table.empty:
        return {}
    common = frozenset.intersection(*table["rest"])
    table["line"] = [
        ", ".join([f"decay {decay:g}", *sorted(rest - common)])
        for decay, rest in zip(table["weight_decay"], table["rest"], strict=True)
    ]
    return {
        (dataset, line, oversampled): part.groupby("ratio")[list(shown)].agg(
            ["mean", "min", "max", "count"]
        )
        for (dataset, _, line, oversampled), part in table.groupby(
            ["dataset", "weight_decay", "line", "oversample"]
        )
    }


def rows_of_first_origin(frame: pd.DataFrame, dataset: str, architecture: str) -> pd.DataFrame:
    """The rows of a cell's own runs, otherwise of its reference runs."""
    rows = rows_of(frame, dataset, architecture)
    return of_origin(rows, origins_of(rows)[0])


def seed_means(
    measurements: pd.DataFrame, dataset: str, architecture: str, statistic: str, split: str
) -> pd.DataFrame:
    """`mean`, `low` and `high` over the seeds by epoch, of one cell's first origin."""
    rows = rows_of_first_origin(measurements, dataset, architecture)
    rows = finite_values(rows, statistic, split)
    found = rows.groupby("epoch")["value"].agg(["mean", "min", "max"])
    return found.rename(columns={"min": "low", "max": "high"})


def correlation_with_collapse(
    measurements: pd.DataFrame, cell: tuple[str, str], statistic: str
) -> tuple[float, float]:
    """Pearson's correlation of -log NC1 of the train set and a statistic of the test set over the
    measured epochs after epoch 0, of a cell's first origin: the smallest and the largest of its
    seeds; nan where none has three epochs with both."""
    rows = rows_of_first_origin(measurements, *cell)
    rows = rows[rows["epoch"] > 0]
    found = []
    for _, run in rows.groupby("seed"):
        nc1, other = (
            where(run, statistic=name, split=of).set_index("epoch")["value"]
            for name, of in ((NC1, "train"), (statistic, "test"))
        )
        both = pd.DataFrame({"collapse": -np.log(nc1.where(nc1 > 0)), "other": other}).dropna()
        if len(both) > 2 and (both.std() > 0).all():
            found.append(float(both.corr().iloc[0, 1]))
    return (min(found), max(found)) if found else (np.nan, np.nan)


def measured_other(runs: pd.DataFrame, layout: Layout) -> dict[tuple[str, str], tuple[str, str]]:
    """By cell that measures another dataset, in the layout's order: both titles."""
    found = {}
    for cell in layout.cells():
        rows = rows_of(runs, *cell)
        recipe = run_recipe(rows.iloc[0]) if len(rows) else {}
        other = recipe.get("measurement", {}).get("other_dataset")
        if other is not None:
            several = len(layout.architectures) > 1
            own = layout.title(*cell) if several else layout.datasets[cell[0]]
            found[cell] = own, layout.datasets.get(other, other)
    return found
