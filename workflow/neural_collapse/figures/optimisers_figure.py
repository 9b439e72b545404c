"""NC0 and NC3 at the last epoch against weight decay; a line per optimiser."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..collapse.registry import REGISTRY
from ..results.studies import NC0, NC0_PREDICTED, NC3, OPTIMISERS, by_weight_decay
from . import style
from .grid import blank_panel

_COLOURS = {"sgd": style.BLUE, "sgdw": style.BLUE, "adam": style.ORANGE, "adamw": style.ORANGE}
_PREDICTED = {
    "color": style.INK,
    "marker": "x",
    "markersize": 3.5,
    "markeredgewidth": 0.7,
    "linestyle": "none",
    "zorder": 4,
}
_ROWS = tuple((name, REGISTRY[name].short_label) for name in (NC0, NC3))


def _look(optimiser: str) -> dict:
    """Coupled decay: filled and solid; decoupled: hollow and dashed."""
    colour, decoupled = _COLOURS[optimiser], optimiser.endswith("w")
    return {
        "color": colour,
        "marker": "o" if optimiser.startswith("sgd") else "s",
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
    figure, axes = style.new_panels(2, columns, width, 1.7, 0.75, sharex="col")
    for column, (dataset, label) in enumerate(layout.datasets):
        axes[0, column].set_title(label)
        own = {name: table for (of, name), table in found.items() if of == dataset}
        for ax, (statistic, title) in zip(axes[:, column], _ROWS, strict=True):
            _draw(ax, own, statistic)
            if column == 0:
                ax.set_ylabel(title, fontweight="bold")
    names = list(dict.fromkeys(name for _, name in found))
    handles = [Line2D([], [], label=OPTIMISERS[name], **_look(name)) for name in names]
    if any(table[NC0_PREDICTED].notna().any() for table in found.values()):
        handles.append(Line2D([], [], label="predicted", **_PREDICTED))
    style.legend_above(figure, handles, columns=5)
    style.label_below(figure, "Weight decay")
    return figure


def _draw(ax: Axes, tables: dict[str, pd.DataFrame], statistic: str) -> None:
    drawn = []
    for name, table in tables.items():
        known = table[(table[statistic] > 0) & (table.index > 0)]
        if known.empty:
            continue
        drawn.append(known[statistic].to_numpy())
        ax.plot(known.index, known[statistic], gid=name, **_look(name))
        if statistic == NC0:
            predicted = known[NC0_PREDICTED].dropna()
            ax.plot(predicted.index, predicted, gid=f"{name} predicted", **_PREDICTED)
    if not drawn:
        blank_panel(ax, "not measured")
        return
    ax.set(xscale="log", yscale="log")
    values = np.concatenate(drawn)
    ax.set_ylim(values.min() / 2, values.max() * 2)
    style.mark_decades(ax.yaxis)
    style.mark_decades(ax.xaxis)
