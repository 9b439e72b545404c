"""Separation fuzziness by layer, from the tables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..collapse.separation import LEAST_LAYERS
from .layout import Layout, origins_of, rows_of
from .studies import OPTIMISERS, optimiser_of
from .tables import run_recipe

FUZZINESS, RATE, LINEARITY = "separation_fuzziness", "separation_rate", "separation_linearity"


@dataclass(frozen=True)
class LayerCurves:
    """One cell's fuzziness over its layers."""

    title: str
    """Title of a row of panels: optimiser, and what its network lacks."""
    label: str
    """Title of its cell."""
    layers: tuple[str, ...]
    """Their names, in order."""
    fuzziness: Mapping[int, np.ndarray]
    """By epoch, D of each seed and layer, (seeds, layers); nan where it is not defined."""
    rate: float
    """rho at the last epoch, mean over seeds."""
    linearity: tuple[float, float]
    """r at the last epoch, smallest and largest of the seeds; nan where not defined."""

    @property
    def epochs(self) -> tuple[int, int, int]:
        """Epochs before, during (after a third of the measured epochs) and after training."""
        measured = sorted(self.fuzziness)
        return measured[0], measured[round((len(measured) - 1) / 3)], measured[-1]


def layer_curves(
    measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout
) -> list[LayerCurves]:
    """Every cell whose recipe names three or more layers, in the layout's order; from its own runs
    if they measured layers, otherwise from its reference runs."""
    found, done = [], set()
    for cell, origin in itertools.product(layout.cells(), origins_of(runs)):
        own = rows_of(runs, *cell, origin)
        recipe = {} if own.empty else run_recipe(own.iloc[0])
        layers = tuple(recipe.get("measurement", {}).get("layers", ()))
        rows = rows_of(measurements, *cell, origin)
        rows = rows[(rows["split"] == "train") & rows["statistic"].str.startswith("separation")]
        if cell in done or len(layers) < LEAST_LAYERS or rows.empty:
            continue
        done.add(cell)
        names = [f"{FUZZINESS}@{layer}" for layer in layers]
        table = rows.pivot(index=["epoch", "seed"], columns="statistic", values="value")
        table = table.reindex(columns=[*names, RATE, LINEARITY])
        by_epoch = {int(epoch): part for epoch, part in table.groupby(level="epoch")}
        last = by_epoch[max(by_epoch)]
        linearity = last[LINEARITY].to_numpy(float)  # nan if any seed's is
        dataset = layout.datasets[cell[0]]
        found.append(
            LayerCurves(
                (f"{dataset}, " if len(layout.datasets) > 1 else "") + _title(own.iloc[0], recipe),
                layout.title(*cell),
                layers,
                {epoch: part[names].to_numpy(float) for epoch, part in by_epoch.items()},
                float(last[RATE].to_numpy(float).mean()),
                (float(linearity.min()), float(linearity.max())),
            )
        )
    return found


def _title(run: pd.Series, recipe: Mapping[str, Any]) -> str:
    network, parts = recipe.get("network", {}), [OPTIMISERS[optimiser_of(recipe)]]
    if network.get("family") != "mlp":
        parts.append(run["network"])
    if not network.get("batch_norm", True):
        parts.append("no batch norm")
    if network.get("activation", "relu") == "identity":
        parts.append("linear")
    return ", ".join(parts)
