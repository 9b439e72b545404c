"""Separation fuzziness over the layers, before, during and after training; a column a depth."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..results.layout import Layout
from ..results.separation import LayerCurves, layer_curves
from . import style
from .grid import blank_panel
from .specs import DEFAULT_LOOK, Look

_BEFORE = {"color": style.FAINT, "marker": "o", "markerfacecolor": "white", "markersize": 2.6}
_DURING = {"color": style.ORANGE, "marker": "s", "markerfacecolor": "white", "markersize": 2.6}
_AFTER = {"color": style.BLUE, "marker": "o", "markersize": 2.8, "linestyle": "none"}
_TIMES = (("before", _BEFORE), ("during", _DURING), ("after", _AFTER))
_LINE = {"color": style.INK, "linewidth": 0.9, "zorder": 4}


def separation(
    measurements: pd.DataFrame,
    runs: pd.DataFrame,
    layout: Layout | None = None,
    look: Look = DEFAULT_LOOK,
) -> Figure:
    """The figure from the tables `measurements` and `runs`.

    A column for each number of layers, a row for what else differs. Points are geometric means
    over the seeds, bars reach from the smallest to the largest; the line is the least-squares one
    through log D after training.
    """
    panels = layer_curves(measurements, runs, layout or Layout.of(runs))
    depths = sorted({len(panel.layers) for panel in panels})
    titles = list(dict.fromkeys(panel.title for panel in panels))
    with style.style():
        width = style.figure_width(len(depths), look.width)
        height = style.panel_height(max(len(depths), 1), width)
        figure = style.new_figure(width, 0.62 + max(len(titles), 1) * height)
        if not panels:
            figure.text(0.5, 0.5, "no layers were measured", ha="center", style="italic")
            return figure
        axes = figure.subplots(len(titles), len(depths), squeeze=False, sharex="col")
        for ax in axes.flat:
            ax.set_visible(False)
        for panel in panels:
            ax = axes[titles.index(panel.title), depths.index(len(panel.layers))]
            ax.set_visible(True)
            _draw_panel(ax, panel)
        for column, depth in enumerate(depths):
            shown = [ax for ax in axes[:, column] if ax.get_visible()]
            shown[0].set_title(f"{depth} layers")
            shown[-1].tick_params(labelbottom=True)
        for row, title in enumerate(titles):
            first = next(ax for ax in axes[row] if ax.get_visible())
            first.set_ylabel(title.replace(", ", "\n"), fontweight="bold")
        figure.supylabel("Separation fuzziness D", fontsize=7)
        handles = [Line2D([], [], linewidth=0.6, label=f"{n} training", **k) for n, k in _TIMES]
        handles.append(Line2D([], [], label="line after training", **_LINE))
        figure.legend(handles=handles, loc="outside upper center", ncols=2 if width < 4 else 4)
        style.label_below(figure, "Layer l (0: the images)")
    return figure


def _draw_panel(ax: Axes, panel: LayerCurves) -> None:
    layers = np.arange(len(panel.layers))
    drawn = []
    for (name, look), epoch in zip(_TIMES, panel.epochs, strict=True):
        values = panel.fuzziness[epoch]
        values = np.where(values > 0, values, np.nan)
        known = np.isfinite(values).any(axis=0)
        if not known.any():
            continue
        middle = np.exp(np.nanmean(np.log(values[:, known]), axis=0))
        low, high = np.nanmin(values[:, known], axis=0), np.nanmax(values[:, known], axis=0)
        ax.plot(layers[known], middle, linewidth=0.6, gid=name, zorder=3, **look)
        ax.vlines(layers[known], low, high, color=look["color"], linewidth=0.5, zorder=2)
        drawn += [low, high]
    if not drawn:
        blank_panel(ax, "not defined")
        return
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    smallest, largest = min(map(np.min, drawn)), max(map(np.max, drawn))
    room = max(largest / smallest, 10.0)
    ax.set_ylim(smallest / room**0.28, largest * room**0.08)
    style.mark_decades(ax.yaxis)
    after = panel.fuzziness[panel.epochs[-1]]
    low_r, high_r = panel.linearity
    if np.isfinite([panel.rate, low_r, high_r]).all():
        logs = np.log(after).mean(axis=0)
        ax.plot(layers, np.exp(np.polyval(np.polyfit(layers, logs, 1), layers)), gid="law", **_LINE)
        text = f"ρ = {panel.rate:.2f}, r = {_range(low_r, high_r)}"
    else:
        text = "no line: D is not defined\nin every layer"
    ax.text(0.03, 0.03, text, transform=ax.transAxes, fontsize=5.5, va="bottom")


def _range(low: float, high: float) -> str:
    texts = list(dict.fromkeys(f"{value:.3f}".replace("-", "−") for value in (low, high)))
    return " to ".join(texts)
