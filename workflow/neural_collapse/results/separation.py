"""Separation fuzziness by layer, from the tables."""

from __future__ import annotations

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
SPLIT = "train"


@dataclass(frozen=True)
class LayerCurves:
    """One cell's fuzziness over its layers."""

    title: str
    """What it shares with other depths: optimiser, and what its network lacks."""
    label: str
    """How its architecture is titled."""
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
        """Before, during (a third of the measured epochs on) and after training."""
        measured = sorted(self.fuzziness)
        return measured[0], measured[round((len(measured) - 1) / 3)], measured[-1]


def layer_curves(
    measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout
) -> list[LayerCurves]:
    """Every cell whose recipe names three layers or more, in the layout's order.

    Of a cell that has own runs and reference runs, the own ones.
    """
    found = []
    for dataset, architecture in layout.cells():
        for origin in origins_of(runs):
            own = rows_of(runs, dataset, architecture, origin)
            layers = () if own.empty else measured_layers(run_recipe(own.iloc[0]))
            rows = rows_of(measurements, dataset, architecture, origin)
            rows = rows[(rows["split"] == SPLIT) & (rows["statistic"].str.startswith("separation"))]
            if len(layers) >= LEAST_LAYERS and len(rows):
                title = _title(own.iloc[0], dict(layout.datasets)[dataset], layout)
                label = layout.title(dataset, architecture)
                found.append(_curves(title, label, layers, rows))
                break
    return found


def measured_layers(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """The layers that a run's recipe names."""
    return tuple(recipe.get("measurement", {}).get("layers", ()))


def _title(run: pd.Series, dataset: str, layout: Layout) -> str:
    recipe = run_recipe(run)
    network, parts = recipe.get("network", {}), [OPTIMISERS[optimiser_of(recipe)]]
    if network.get("family") != "mlp":
        parts.append(run["network"])
    if not network.get("batch_norm", True):
        parts.append("no batch norm")
    if network.get("activation", "relu") == "identity":
        parts.append("linear")
    return ", ".join([*([dataset] if len(layout.datasets) > 1 else []), *parts])


def _curves(title: str, label: str, layers: tuple[str, ...], rows: pd.DataFrame) -> LayerCurves:
    names = [f"{FUZZINESS}@{layer}" for layer in layers]
    table = rows.pivot(index=["epoch", "seed"], columns="statistic", values="value")
    table = table.reindex(columns=[*names, RATE, LINEARITY])
    by_epoch = {int(epoch): part for epoch, part in table.groupby(level="epoch")}
    last = by_epoch[max(by_epoch)]
    linearity = last[LINEARITY].to_numpy(float)
    ends = (float(linearity.min()), float(linearity.max()))  # nan where any seed's is
    fuzziness = {epoch: part[names].to_numpy(float) for epoch, part in by_epoch.items()}
    return LayerCurves(
        title, label, layers, fuzziness, float(last[RATE].to_numpy(float).mean()), ends
    )
