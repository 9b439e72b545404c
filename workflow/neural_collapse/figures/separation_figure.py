"""Separation fuzziness over the layers, before, during and after training; a column per depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..results.separation import LayerCurves, layer_curves
from . import style
from .grid import blank_panel

_BEFORE = {"color": style.GREY, "marker": "o", "markerfacecolor": "white", "markersize": 2.6}
_DURING = {"color": style.ORANGE, "marker": "s", "markerfacecolor": "white", "markersize": 2.6}
_AFTER = {"color": style.BLUE, "marker": "o", "markersize": 2.8, "linestyle": "none"}
_TIMES = (("before", _BEFORE), ("during", _DURING), ("after", _AFTER))
_LINE = {"color": style.INK, "linewidth": 0.9, "zorder": 4}


@style.styled
def separation(measurements, runs, layout, look) -> Figure:
    """The figure from the tables `measurements` and `runs`.

    A column for each number of layers, a row for what else differs. Points are geometric means
    over the seeds, bars reach from the smallest to the largest; the line is the least-squares one
    through log D after training.
    """
    panels = layer_curves(measurements, runs, layout)
    if not panels:
        return style.empty_figure("no layers were measured")
    places = [(panel.title, len(panel.layers)) for panel in panels]
    if len(set(places)) < len(places):  # cells that differ in something else
        places = [(panel.label, len(panel.layers)) for panel in panels]
    drawn = dict(zip(places, panels, strict=True))
    titles, depths = list(dict.fromkeys(t for t, _ in places)), sorted({d for _, d in places})
    # Scales of their own and two numbers a panel: a column of the page has room for one.
    width = style.figure_width(len(depths), "page" if len(depths) > 1 else look.width)
    height = 0.8 * style.panel_height(len(depths), width)
    figure = style.new_figure(width, 0.62 + len(titles) * height)
    axes = figure.subplots(len(titles), len(depths), squeeze=False, sharey="row")
    for row, title in enumerate(titles):
        for column, depth in enumerate(depths):
            panel = drawn.get((title, depth))
            if panel is None:
                blank_panel(axes[row, column], "not run")
            else:
                _draw_panel(axes[row, column], panel)
        _value_axis(axes[row], [drawn[t, d] for t, d in drawn if t == title])
        axes[row, 0].set_ylabel(title.replace(", ", "\n").replace(" × ", "\n"), fontweight="bold")
    for ax, depth in zip(axes[0], depths, strict=True):
        ax.set_title(f"{depth} layers")
    style.label_below(axes, "Layer l (0: the images)")
    figure.supylabel("Separation fuzziness D", fontsize=7)
    handles = [Line2D([], [], linewidth=0.6, label=f"{n} training", **k) for n, k in _TIMES]
    handles.append(Line2D([], [], label="line after training", **_LINE))
    style.legend_above(figure, handles, columns=2 if width < 4 else 4)
    return figure


def _value_axis(row: np.ndarray, panels: Sequence[LayerCurves]) -> None:
    """One logarithmic scale for a row of panels, with room for the text below the points."""
    shown = [panel.fuzziness[epoch].ravel() for panel in panels for epoch in panel.epochs]
    values = np.concatenate(shown)
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) == 0:
        return
    room = max(values.max() / values.min(), 10.0)
    for ax in row:
        ax.set_yscale("log")
    row[0].set_ylim(values.min() / room**0.28, values.max() * room**0.08)
    shown_axes = [ax for ax in row if ax.lines]
    for ax in shown_axes:
        style.mark_decades(ax.yaxis)
        ax.tick_params(labelleft=ax is shown_axes[0])


def _draw_panel(ax: Axes, panel: LayerCurves) -> None:
    layers = np.arange(len(panel.layers))
    for (name, look), epoch in zip(_TIMES, panel.epochs, strict=True):
        values = panel.fuzziness[epoch]
        values = np.where(values > 0, values, np.nan)
        known = np.isfinite(values).all(axis=0)  # otherwise means of different seeds
        middle = np.exp(np.log(values[:, known]).mean(axis=0))
        low, high = values[:, known].min(axis=0), values[:, known].max(axis=0)
        ax.plot(layers[known], middle, linewidth=0.6, gid=name, zorder=3, **look)
        ax.vlines(layers[known], low, high, color=look["color"], linewidth=0.5, zorder=2)
    ax.set_xlim(-0.05 * layers[-1], 1.05 * layers[-1])
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    after = panel.fuzziness[panel.epochs[-1]]
    low_r, high_r = panel.linearity
    if np.isfinite([panel.rate, low_r, high_r]).all():
        logs = np.log(after).mean(axis=0)
        ax.plot(layers, np.exp(np.polyval(np.polyfit(layers, logs, 1), layers)), gid="law", **_LINE)
        text = f"ρ = {panel.rate:.2f}\nr = {_range(low_r, high_r)}"
    else:
        text = "no line: D is not\ndefined in every layer"
    ax.text(0.03, 0.03, text, transform=ax.transAxes, fontsize=6, va="bottom")


def _range(low: float, high: float) -> str:
    texts = list(dict.fromkeys(f"{value:.3f}".replace("-", "−") for value in (low, high)))
    return " to ".join(texts)
