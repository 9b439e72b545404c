"""The learning-rate sweep: error at the last epoch over learning rate, a panel per cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from ..results.layout import origins_of, rows_of
from . import style
from .grid import blank_panel
from .sentences import note
from .specs import final_errors, selecting_error, swept, swept_runs

_TRIED = {**style.MEANS, "markersize": 3}
_SELECTED = {
    "color": style.ORANGE,
    "marker": "*",
    "markersize": 8,
    "markeredgecolor": style.INK,
    "markeredgewidth": 0.5,
    "linestyle": "none",
    "zorder": 5,
}
_DIVERGED = {
    "color": style.RED,
    "marker": "x",
    "markersize": 4,
    "markeredgewidth": 0.9,
    "linestyle": "none",
}
_TICKS_PERCENT = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


@style.styled
def sweep(sweep, runs, layout, look) -> Figure:
    """The sweep figure from the tables `sweep` and `runs`.

    Rows and columns without a sweep are left out.
    """
    errors = final_errors(sweep)
    layout = swept(errors, layout)
    if not layout.datasets:
        return style.empty_figure("no learning rate was swept")
    figure, axes = style.new_grid(layout, look.width)
    narrow = figure.get_figwidth() / len(layout.datasets) < 1.1
    rates = errors["learning_rate"]
    limits = rates.min() / 1.8, rates.max() * 1.8
    for column, dataset in enumerate(layout.datasets):
        for row, architecture in enumerate(layout.architectures):
            ax = axes[row, column]
            candidates = rows_of(errors, dataset, architecture)
            if candidates.empty:
                blank_panel(ax, _reason(runs, dataset, architecture))
                continue
            _draw_panel(ax, candidates, origins_of(errors))
            _rate_axis(ax, limits, narrow)
        for ax in axes[:-1, column]:
            ax.tick_params(labelbottom=False)
        if not axes[-1, column].lines:
            _rate_axis(axes[-1, column], limits, narrow)
            axes[-1, column].tick_params(labelbottom=True)
        axes[-1, column].set_xlabel("Learning rate")
    style.label_rows(axes, layout)
    what = selecting_error(sweep).capitalize()
    figure.supylabel(f"{what} at the last epoch (%)", fontsize=7)
    handles = [
        Line2D([], [], label="tried", **_TRIED),
        Line2D([], [], label="selected", **_SELECTED),
    ]
    if errors["diverged"].any():
        handles.append(Line2D([], [], label="diverged", **_DIVERGED))
    handles += style.origin_handles(origins_of(errors))
    style.legend_above(figure, handles)
    style.note_below(figure, note(swept_runs(errors, runs), layout))
    return figure


def _reason(runs: pd.DataFrame, dataset: str, architecture: str) -> str:
    cell = rows_of(runs, dataset, architecture)
    if cell.empty:
        return "not run"
    if (cell["learning_rate_origin"] == "pinned").all():
        return f"pinned at\n{cell['learning_rate'].iloc[0]:.5g}"
    return "not swept"


def _rate_axis(ax: Axes, limits: tuple[float, float], narrow: bool) -> None:
    ax.set_xscale("log")
    ax.set_xlim(*limits)
    low, high = np.log10(limits)
    if np.floor(high) - np.ceil(low) >= 1:
        style.mark_decades(ax.xaxis, 2 if narrow else 1)
        return
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high - low > 1.2 else (1, 2, 5)))
    style.mark_between(ax.xaxis)
    ax.xaxis.set_major_formatter(style.tick_formatter())


def _draw_panel(ax: Axes, candidates: pd.DataFrame, origins: Sequence[str]) -> None:
    # An error of zero has no place on a logarithmic axis: it stands on the axis' lower end.
    errors = candidates["error_percent"]
    positive = errors[errors > 0]
    floor = (positive.min() / 2) if len(positive) and (errors == 0).any() else 0.0
    candidates = candidates.assign(error_percent=errors.clip(lower=floor))
    diverged = candidates["diverged"].astype(bool)
    chosen = candidates["selected"].astype(bool)
    for place, origin in enumerate(origins):
        own = candidates["origin"] == origin
        for name, rows, look in [
            ("tried", ~diverged, _TRIED),
            ("diverged", diverged, _DIVERGED),
            ("selected", chosen, _SELECTED),
        ]:
            if not (own & rows).any():
                continue
            if place:
                pale = dict(style.REFERENCE) if name == "tried" else {"alpha": 0.6}
                look = {**look, **pale, "markerfacecolor": "white"}
            points = candidates[own & rows].sort_values("learning_rate")
            ax.plot(
                points["learning_rate"],
                points["error_percent"],
                gid=f"{name}-{origin}" if place else name,
                **{"markeredgecolor": look["color"], **look},
            )
    ax.set_yscale("log")
    shown = candidates["error_percent"]
    low, high = shown.min() / 1.5, min(shown.max() * 1.5, 160)
    ax.set_ylim(low, high)
    decades = [tick for tick in _TICKS_PERCENT if low <= tick <= high and tick in (0.1, 1, 10, 100)]
    if len(decades) >= 2:
        style.mark_decades(ax.yaxis)
    else:
        ax.set_yticks([tick for tick in _TICKS_PERCENT if low <= tick <= high])
        style.mark_between(ax.yaxis)
    ax.yaxis.set_major_formatter(style.tick_formatter())
