"""Overview on one page: one row per cell, with a small curve for each of the paper's quantities."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ..results.layout import empty_reason, finite_values, of_origin, origins_of, rows_of
from ..results.tables import REFERENCE
from . import style
from .grid import (
    blank_panel,
    curves_of,
    draw_curves,
    mark_cut_curves,
    mark_terminal_phase,
    points_of,
    set_epoch_axis,
)
from .sentences import note
from .specs import SPECS, Series, highest

NUMBER_HEIGHT = 0.24
"""Height of a number in a panel's corner, relative to the panel."""


def _overview_panel(number: int) -> tuple[str, tuple[Series, ...], bool, float]:
    spec = SPECS[number]
    paired = len(spec.series) > 1
    title = f"{spec.paper.collapse}\n{spec.paper.name}" if paired else spec.paper.collapse
    unit = " (%)" if spec.scale == 100 else ""
    return (title or spec.paper.name) + unit, spec.series, spec.log_y, spec.scale


# title, series, logarithmic or not, factor between table and panel
_PANELS: tuple[tuple[str, tuple[Series, ...], bool, float], ...] = (
    *map(_overview_panel, (6, 2, 3, 4, 5, 7)),
    (
        "error (%)",
        (Series("error", "train", "train", "train"), Series("error", "test", "test", "test")),
        False,
        100.0,
    ),
    _overview_panel(8),
)


@style.styled
def overview(measurements, runs, layout, look) -> Figure:
    """The overview from the tables `measurements` and `runs`; cells that were not run are left out.

    Each panel has its own vertical scale, from zero (NC1: logarithmic); the number in its corner
    is the mean over seeds at the last epoch, a dash if it is not defined in all of them.
    """
    among_own = len(origins_of(runs)) > 1
    cells = [
        (origin, cell)
        for origin in origins_of(runs)
        for cell in layout.cells()
        if len(rows_of(runs, *cell, origin))
    ]
    if not cells:
        return style.empty_figure("nothing was run yet")
    figure = style.new_figure(style.TWO_COLUMNS_IN, min(0.85 + 0.62 * len(cells), 9.6))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.015, wspace=0.02, hspace=0.02)
    axes = figure.subplots(len(cells), len(_PANELS), squeeze=False)
    lasts = [rows_of(measurements, *cell, origin)["epoch"].max() for origin, cell in cells]
    for row, (origin, cell) in enumerate(cells):
        data, facts = of_origin(measurements, origin), of_origin(runs, origin)
        last = lasts[row] if lasts[row] > 0 else 1
        for column, (_, *panel) in enumerate(_PANELS):
            ax = axes[row, column]
            _draw_panel(ax, data, *panel, facts, cell, last, look.epoch_axis)
            if lasts[row : row + 1] == lasts[row + 1 : row + 2]:
                ax.tick_params(labelbottom=False)
        # A long title would take room from the panels.
        title = layout.title(*cell).replace(" × ", "\n").replace(", ", "\n")
        axes[row, 0].set_ylabel(
            f"{title}\n(reference)" if among_own and origin == REFERENCE else title,
            rotation=0,
            ha="right",
            va="center",
            fontweight="bold",
            fontsize=6.5,
        )
    for column, (title, *_) in enumerate(_PANELS):
        axes[0, column].set_title(title, fontsize=6)
        axes[-1, column].set_xlabel("Epoch", fontsize=6, labelpad=2)
    handles = [
        Line2D([], [], label="class means; train error; single curves", **style.MEANS),
        Line2D([], [], label="classifiers; test error", **style.CLASSIFIERS),
        Line2D([], [], label="start of TPT", **style.TERMINAL_PHASE),
    ]
    style.legend_above(figure, handles, columns=3)
    style.note_below(figure, note(runs, layout))
    return figure


def _draw_panel(ax, data, series, log_y, scale, runs, cell, last, epoch_axis) -> None:
    look = {"markersize": 1.2, "markeredgewidth": 0.35, "linewidth": 0.6}
    if np.isnan(draw_curves(ax, data, cell, series, scale, log_y, **look)):
        blank_panel(ax, empty_reason(runs, *cell))
        return
    mark_terminal_phase(ax, runs, *cell, note="", markersize=2.8)
    lines, points = curves_of(ax), points_of(ax, log_y)
    low, high = points[:, 1].min(), points[:, 1].max() if log_y else highest(points)
    # The numbers stand in the upper right corner, except below a single curve that rises.
    rises = len(lines) == 1 and not log_y and lines[0].get_ydata()[-1] > (low + high) / 2
    if log_y:
        ax.set_yscale("log")
        ratio = max(high / low, 10.0)
        ax.set_ylim(low / ratio**0.12, high * ratio**0.12)
    else:
        low, high = min(low, 0.0), high if high > 0 else 1.0
        middle = last**0.5 if epoch_axis == "log" else 0.5 * last
        under = points[points[:, 0] > middle, 1].max(initial=low)
        free = 1.0 if rises else 0.96 - NUMBER_HEIGHT * len(lines)
        top = max(high + 0.12 * (high - low), low + (under - low) / free)
        ax.set_ylim(low - 0.1 * (high - low), top)
        mark_cut_curves(ax)
    ax.yaxis.set_major_locator(NullLocator())
    ax.yaxis.set_minor_locator(NullLocator())
    set_epoch_axis(ax, last, epoch_axis)
    ax.tick_params(axis="x", labelsize=6)
    texts, rows = [], rows_of(data, *cell)
    for one in series:
        points = finite_values(rows, one.statistic, one.split)
        if len(points):
            final = scale * points.loc[points["epoch"] == rows["epoch"].max(), "value"]
            known = len(final) == rows["seed"].nunique()
            text = style.short_number(final.mean()) if known else "–"
            texts.append((text, style.darker(style.LOOKS[one.look]["color"])))
    for place, (text, colour) in enumerate(texts):
        ax.text(
            0.98,
            0.14 if rises else 0.98 - NUMBER_HEIGHT * place,
            text,
            transform=ax.transAxes,
            ha="right",
            va="bottom" if rises else "top",
            fontsize=6,
            color=colour,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.4},
            zorder=7,
        )
