"""Values across cells for figures and claims of studies beyond the paper."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..io.versions import CHANGES_NO_RESULT
from .layout import Layout, of_origin, origins_of, rows_of
from .tables import RUN_KEY, recipe_values

OPTIMISERS = {"sgd": "SGD", "sgdw": "SGDW", "adam": "Adam", "adamw": "AdamW"}
"""How the optimisers of recipes are called."""
NC0, NC0_PREDICTED, NC0_ERROR = "nc0_sum_of_rows", "nc0_predicted", "nc0_prediction_error"
NC3 = "nc3_self_duality"
NC1 = "nc1_within_class_variability"
NC2 = "nc2_equiangularity_means"
NC4 = "nc4_ncc_mismatch"
MINORITY_COSINE, MINORITY_ACCURACY = "minority_classifier_cosine", "minority_accuracy"
MSE_PARTS = ("mse_nc1", "mse_nc23", "mse_perpendicular")


def optimiser_of(recipe: Mapping[str, Any]) -> str:
    """The name of a recipe's optimiser, as a runs table's JSON holds it: a default is left out."""
    return recipe.get("training", {}).get("optimizer", {}).get("name", "sgd")


def last_values(measurements: pd.DataFrame, statistic: str, split: str = "train") -> pd.DataFrame:
    """A statistic at the last epoch of each run: dataset, architecture, seed, value."""
    chosen = (measurements["statistic"] == statistic) & (measurements["split"] == split)
    found = measurements[chosen]
    last = found.groupby(RUN_KEY)["epoch"].transform("max")
    return found.loc[found["epoch"] == last, [*RUN_KEY, "value"]]


def by_weight_decay(
    measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout
) -> dict[tuple[str, str], pd.DataFrame]:
    """NC0, its prediction and NC3 at the last epoch by (dataset, optimiser's name).

    A table is indexed by weight decay, rising; its columns are the statistics, means over seeds and
    over cells that share a decay; nan where one was not measured.
    """
    origin = origins_of(runs)[0] if len(runs) else None
    runs, measurements = of_origin(runs, origin), of_origin(measurements, origin)
    keys = []
    for run in runs.to_dict("records"):
        recipe = json.loads(run["recipe"])
        decay = recipe_values(recipe).get("training.weight_decay", np.nan)
        key = {name: run[name] for name in RUN_KEY}
        keys.append({**key, "optimiser": optimiser_of(recipe), "weight_decay": decay})
    if not keys:
        return {}
    table = pd.DataFrame(keys)
    for statistic in (NC0, NC0_PREDICTED, NC3):
        values = last_values(measurements, statistic).rename(columns={"value": statistic})
        table = table.merge(values, on=RUN_KEY, how="left")
    cells = set(layout.cells())
    shown = [cell in cells for cell in zip(table["dataset"], table["architecture"], strict=True)]
    columns = ["weight_decay", NC0, NC0_PREDICTED, NC3]
    found = {
        (dataset, optimiser): part[columns].groupby("weight_decay").mean()
        for (dataset, optimiser), part in table[shown].groupby(["dataset", "optimiser"])
    }
    order = list(OPTIMISERS)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))


def shared_values(recipe: Mapping[str, Any], varies: Collection[str]) -> dict[str, Any]:
    """What decides a training but for the keys that vary and the learning rate, by name
    (training.optimizer.name); recipe: as a runs table's JSON holds it."""
    free = {*varies, *(f"training.{key}" for key in CHANGES_NO_RESULT)}
    parts = {part: recipe.get(part, {}) for part in ("network", "data", "training")}
    return {
        name: value
        for name, value in _leaves(parts).items()
        if not any(f"{name}.".startswith(f"{key}.") for key in free)
    }


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
    origin = origins_of(runs)[0] if len(runs) else None
    runs, measurements = of_origin(runs, origin), of_origin(measurements, origin)
    cells, keys, rest = set(layout.cells()), [], []
    varies = {"data.imbalance.ratio", "training.weight_decay", "training.oversample"}
    for run in runs.to_dict("records"):
        recipe = json.loads(run["recipe"])
        imbalance = recipe.get("data", {}).get("imbalance")
        if imbalance is None or (run["dataset"], run["architecture"]) not in cells:
            continue
        training = recipe["training"]
        own = {"ratio": imbalance["ratio"], "oversample": training.get("oversample", False)}
        key = {name: run[name] for name in RUN_KEY}
        keys.append({**key, **own, "weight_decay": training["weight_decay"]})
        rest.append({k: str(v) for k, v in shared_values(recipe, varies).items()})
    if not keys:
        return {}
    table = pd.DataFrame(keys)
    table["line"] = [
        ", ".join([f"decay {decay:g}", *own])
        for decay, own in zip(table["weight_decay"], _own_values(rest), strict=True)
    ]
    for statistic, split in ((MINORITY_COSINE, "train"), (MINORITY_ACCURACY, "test")):
        values = last_values(measurements, statistic, split).rename(columns={"value": statistic})
        table = table.merge(values, on=RUN_KEY, how="left")
    shown = [MINORITY_COSINE, MINORITY_ACCURACY]
    return {
        (dataset, line, bool(oversampled)): part.groupby("ratio")[shown].agg(
            ["mean", "min", "max", "count"]
        )
        for (dataset, _, line, oversampled), part in table.groupby(
            ["dataset", "weight_decay", "line", "oversample"]
        )
    }


def _own_values(recipes: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """The values of each recipe that not all of them have, in words."""
    common = set.intersection(*(set(recipe.items()) for recipe in recipes))
    return [
        [
            f"{key.split('.')[-1]} {value}".replace("_", " ")
            for key, value in recipe.items()
            if (key, value) not in common
        ]
        for recipe in recipes
    ]


def seed_means(
    measurements: pd.DataFrame, dataset: str, architecture: str, statistic: str, split: str
) -> pd.DataFrame:
    """Of one cell's first origin by epoch: `mean`, `low` and `high` over its seeds."""
    rows = rows_of(measurements, dataset, architecture)
    rows = of_origin(rows, origins_of(rows)[0]) if len(rows) else rows
    rows = rows[(rows["statistic"] == statistic) & (rows["split"] == split)]
    rows = rows[np.isfinite(rows["value"])]
    found = rows.groupby("epoch")["value"].agg(["mean", "min", "max"])
    return found.rename(columns={"min": "low", "max": "high"})


def correlation_with_collapse(
    measurements: pd.DataFrame, cell: tuple[str, str], statistic: str
) -> tuple[float, float]:
    """Pearson's correlation of -log NC1 of the train set and a statistic of the test set over the
    measured epochs after epoch 0, of a cell's first origin: the smallest and the largest of its
    seeds; nan where none has three epochs with both."""
    rows = rows_of(measurements, *cell)
    rows = of_origin(rows, origins_of(rows)[0]) if len(rows) else rows
    rows = rows[rows["epoch"] > 0]
    found = []
    for _, run in rows.groupby("seed"):
        nc1, other = (
            run[(run["statistic"] == name) & (run["split"] == of)].set_index("epoch")["value"]
            for name, of in ((NC1, "train"), (statistic, "test"))
        )
        both = pd.DataFrame({"collapse": -np.log(nc1.where(nc1 > 0)), "other": other}).dropna()
        if len(both) > 2 and (both.std() > 0).all():
            found.append(float(both.corr().iloc[0, 1]))
    return (min(found), max(found)) if found else (np.nan, np.nan)


def measured_other(runs: pd.DataFrame, layout: Layout) -> dict[tuple[str, str], tuple[str, str]]:
    """By cell that measures another dataset, in the layout's order: its title, and that one's."""
    titles, found = dict(layout.datasets), {}
    for cell in layout.cells():
        rows = rows_of(runs, *cell)
        recipe = json.loads(rows.iloc[0]["recipe"]) if len(rows) else {}
        other = recipe.get("measurement", {}).get("other_dataset")
        if other is not None:
            several = len(layout.architectures) > 1
            own = layout.title(*cell) if several else titles[cell[0]]
            found[cell] = own, titles.get(other, other)
    return found
