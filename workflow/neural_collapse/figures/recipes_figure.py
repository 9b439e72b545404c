"""Figures of studies that show values at the last epoch against a number of the recipe."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..collapse.registry import REGISTRY
from ..results.studies import (
    MINORITY_ACCURACY,
    MINORITY_COSINE,
    NC0,
    NC0_PREDICTED,
    NC3,
    OPTIMISERS,
    by_ratio,
    by_weight_decay,
)
from . import style
from .grid import blank_panel
from .lines_figure import panel_title


def _draw_seeds(ax: Axes, table: pd.DataFrame, gid: str, look: dict) -> None:
    """The mean over the seeds, and bars from the smallest to the largest."""
    ax.plot(table.index, table["mean"], gid=gid, **look)
    error = [table["mean"] - table["min"], table["max"] - table["mean"]]
    bars = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.7, "zorder": 1.9}
    ax.errorbar(table.index, table["mean"], error, **bars)  # behind hollow markers


# --------------------------------------------------------------------------- weight decay

_PREDICTED = {
    "color": style.INK,
    "marker": "x",
    "markersize": 3.5,
    "markeredgewidth": 0.7,
    "linestyle": "none",
    "zorder": 4,
}
_ROWS = tuple((name, REGISTRY[name].short_label) for name in (NC0, NC3))


def _optimiser_look(optimiser: str) -> dict:
    """Coupled decay: filled and solid; decoupled: hollow and dashed."""
    sgd, decoupled = optimiser.startswith("sgd"), optimiser.endswith("w")
    colour = style.BLUE if sgd else style.ORANGE
    return {
        "color": colour,
        "marker": "o" if sgd else "s",
        "markersize": 3.2,
        "linewidth": 0.9,
        "markeredgecolor": colour,
        "markerfacecolor": "white" if decoupled else colour,
        "linestyle": (0, (3, 1.5)) if decoupled else "solid",
    }


@style.styled
def optimisers(measurements, runs, layout, look) -> Figure:
    """The figure from the tables `measurements` and `runs`: a column per dataset, NC0 above NC3."""
    found = by_weight_decay(measurements, runs, layout)
    columns = max(len(layout.datasets), 1)
    width = style.figure_width(columns, look.width)
    figure, axes = style.new_panels(2, columns, 1.7, 0.75, width, sharex="col")
    for column, (dataset, label) in enumerate(layout.datasets.items()):
        axes[0, column].set_title(label)
        own = {name: table for (of, name), table in found.items() if of == dataset}
        for ax, (statistic, title) in zip(axes[:, column], _ROWS, strict=True):
            _draw_optimisers(ax, own, statistic)
            if column == 0:
                ax.set_ylabel(title, fontweight="bold")
    names = list(dict.fromkeys(name for _, name in found))
    handles = [Line2D([], [], label=OPTIMISERS[name], **_optimiser_look(name)) for name in names]
    if any(table[NC0_PREDICTED]["mean"].notna().any() for table in found.values()):
        handles.append(Line2D([], [], label="predicted", **_PREDICTED))
    style.legend_above(figure, handles, columns=5)
    style.label_below(axes, "Weight decay")
    return figure


def _draw_optimisers(ax: Axes, tables: dict[str, pd.DataFrame], statistic: str) -> None:
    drawn = []
    for name, table in tables.items():
        known = table[(table[statistic]["min"] > 0) & (table.index > 0)]
        if known.empty:
            continue
        drawn.append(known[statistic][["min", "max"]].to_numpy())
        _draw_seeds(ax, known[statistic], name, _optimiser_look(name))
        if statistic == NC0:
            predicted = known[NC0_PREDICTED]["mean"].dropna()
            ax.plot(predicted.index, predicted, gid=f"{name} predicted", **_PREDICTED)
    if not drawn:
        blank_panel(ax, "not measured")
        return
    ax.set(xscale="log", yscale="log")
    values = np.concatenate(drawn, axis=None)
    ax.set_ylim(values.min() / 2, values.max() * 2)
    style.mark_decades(ax.yaxis)
    style.mark_decades(ax.xaxis)


# --------------------------------------------------------------------------- imbalance

_MINORITY = ((MINORITY_COSINE, "train"), (MINORITY_ACCURACY, "test"))
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.RED)


@style.styled
def imbalance(measurements, runs, layout, look) -> Figure:
    """The figure from the tables `measurements` and `runs`: a row per dataset."""
    found = by_ratio(measurements, runs, layout)
    names = dict.fromkeys(line for _, line, _ in found)
    looks = {
        (line, oversampled): _sampling_look(_COLOURS[i % len(_COLOURS)], oversampled)
        for i, line in enumerate(names)
        for oversampled in (False, True)
    }
    datasets = layout.datasets or {"": ""}
    figure, axes = style.new_panels(len(datasets), 2, 1.9, 0.9, style.figure_width(2, look.width))
    for row, (dataset, label) in enumerate(datasets.items()):
        axes[row, 0].set_ylabel(label, fontweight="bold")
        own = {key[1:]: table for key, table in found.items() if key[0] == dataset}
        for ax, (statistic, split) in zip(axes[row], _MINORITY, strict=True):
            if row == 0:
                ax.set_title(panel_title(statistic, split))
            _draw_imbalance(ax, {key: table[statistic] for key, table in own.items()}, looks)
    used = [key for key in looks if any(key == of[1:] for of in found)]
    handles = [Line2D([], [], label=_label(*key), **looks[key]) for key in used]
    style.legend_above(figure, handles, columns=2)
    style.label_below(axes, "Majority / minority images")
    return figure


def _sampling_look(colour: str, oversampled: bool) -> dict:
    """Oversampled: hollow squares; otherwise filled circles on a line."""
    return {
        "color": colour,
        "marker": "s" if oversampled else "o",
        "markersize": 4 if oversampled else 3,
        "markerfacecolor": "white" if oversampled else colour,
        "linestyle": "none" if oversampled else "solid",
        "linewidth": 0.9,
    }


def _label(line: str, oversampled: bool) -> str:
    return line + ", oversampled" * oversampled


def _draw_imbalance(ax: Axes, tables: dict, looks: dict) -> None:
    drawn = False
    for key, table in tables.items():
        table = table.dropna()
        if table.empty:
            continue
        drawn = True
        _draw_seeds(ax, table, _label(*key), looks[key])
    if not drawn:
        blank_panel(ax, "not measured")
        return
    ax.set_xscale("log")
    style.mark_decades(ax.xaxis)
    ax.xaxis.set_major_formatter(style.tick_formatter())
