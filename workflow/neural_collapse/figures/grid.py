"""Figures 2 to 8: a grid with a panel per cell, each a statistic over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETUP
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from ..results.layout import (
    empty_reason,
    finite_values,
    number_of_seeds,
    origins_of,
    rows_of,
    terminal_phase_epochs,
)
from . import style
from .sentences import note
from .specs import SPECS, EpochAxis, GridFigure, Series, highest

# --------------------------------------------------------------------------- the epoch axis


def set_epoch_axis(ax: Axes, last: float, epoch_axis: EpochAxis) -> None:
    """Epochs from 0 to `last`; "log" is logarithmic from epoch 1, with epoch 0 to its left."""
    last = max(float(last), 1.0)
    if epoch_axis == "log":
        ax.set_xscale("symlog", linthresh=1, linscale=0.35)
        decades = [10.0**k for k in range(int(np.floor(np.log10(last))) + 1)]
        ax.xaxis.set_major_locator(FixedLocator([0.0, *decades]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(-0.25, last * 1.25)
    else:
        wide = ax.figure.get_figwidth() / ax.get_gridspec().ncols > 1.5
        ticks = MaxNLocator(5 if wide else 3, integer=True, steps=[1, 1.5, 2, 3, 5, 10])
        ax.xaxis.set_major_locator(ticks)
        ax.set_xlim(-0.035 * last, 1.035 * last)
    ax.xaxis.set_major_formatter(style.tick_formatter())


def mark_terminal_phase(
    ax: Axes,
    runs: pd.DataFrame,
    dataset: str,
    architecture: str,
    note: Literal["top", "bottom", ""] = "top",
    **look: Any,
) -> None:
    """The start of the terminal phase: a triangle on the axis and a dotted line above it.

    Where no training reached it, a note in the right corner at `note` says so.
    """
    cell = dataset, architecture
    starts = [terminal_phase_epochs(runs, *cell, origin) for origin in origins_of(runs)]
    if note and not any(len(epochs) for epochs in starts):
        words = {"fontsize": 6, "style": "italic", "color": style.GREY, "ha": "right", "va": note}
        height = 1.0 if note == "top" else 0.06
        ax.text(0.99, height, "no TPT", transform=ax.transAxes, **words)
    # Own runs are drawn last, over the reference runs.
    for place, epochs in reversed(list(enumerate(starts))):
        if len(epochs) == 0:
            continue
        mean, first, last = epochs.mean(), epochs.min(), epochs.max()
        ax.axvline(mean, color=style.GREY, linewidth=0.6, linestyle=(0, (1, 1.6)), zorder=1.5)
        if last > first:
            ax.axvspan(first, last, color=style.FAINT, alpha=0.35, linewidth=0, zorder=1)
        mark = style.REFERENCE_TERMINAL_PHASE if place else style.TERMINAL_PHASE
        ax.plot(
            [mean],
            [0],
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            zorder=6,
            gid="terminal-phase",
            **{**mark, **look},
        )


def draw_curves(
    ax: Axes,
    measurements: pd.DataFrame,
    cell: tuple[str, str],
    series: Sequence[Series],
    scale: float = 1.0,
    log_y: bool = False,
    **look: Any,
) -> float:
    """Every series of a cell, a line for each origin; returns the last epoch, nan if there is none.

    The line is the mean over the seeds, the band reaches from the smallest to the largest.
    """
    ends = []
    for place, origin in enumerate(origins_of(measurements)):
        rows = rows_of(measurements, *cell, origin)
        for one in series:
            points = finite_values(rows, one.statistic, one.split)
            curve = scale * points.groupby("epoch")["value"].agg(["mean", "min", "max"])
            if log_y:
                # What has reached zero exactly has no place on a logarithmic axis.
                curve = curve[curve["mean"] > 0]
            if curve.empty:
                continue
            drawn = style.LOOKS[one.look] | look | (style.REFERENCE if place else {})
            drawn = {"markeredgecolor": drawn["color"], "markeredgewidth": 0.75, **drawn}
            drawn["gid"] = f"{one.statistic}-{origin}" if place else one.statistic
            ax.plot(curve.index, curve["mean"], **drawn)
            if points["seed"].nunique() > 1:
                band = {"alpha": 0.12 if place else 0.25, "linewidth": 0, "zorder": 2}
                ax.fill_between(
                    curve.index, curve["min"], curve["max"], color=drawn["color"], **band
                )
            ends.append(float(curve.index[-1]))
    return max(ends, default=np.nan)


def blank_panel(ax: Axes, word: str) -> None:
    """A panel without axes that says why it is empty."""
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(which="both", left=False, bottom=False, labelleft=False, labelbottom=False)
    ax.patch.set_facecolor("#F4F4F4")
    words = {"ha": "center", "va": "center", "style": "italic", "color": style.GREY}
    ax.text(0.5, 0.5, word, transform=ax.transAxes, **words)


def curves_of(ax: Axes) -> list[Line2D]:
    """The lines of statistics."""
    return [line for line in ax.lines if line.get_gid() not in (None, *_MARKS)]


_MARKS = ("terminal-phase", "cut")


def mark_cut_curves(ax: Axes) -> None:
    """An arrowhead at the upper end of the panel for each curve that begins above it."""
    for line in curves_of(ax):
        epoch, value = line.get_xydata()[0]
        if epoch == 0 and value > ax.get_ylim()[1]:
            mark = {"marker": CARETUP, "markersize": 3.5, "color": line.get_color(), "gid": "cut"}
            ax.plot([0], [1], transform=ax.get_xaxis_transform(), clip_on=False, **mark)


# --------------------------------------------------------------------------- the grid


def draw_grid(spec: GridFigure, measurements, runs, layout, look) -> Figure:
    """Draw one of Figures 2 to 8 from tables `measurements` and `runs`."""
    figure, axes = style.new_grid(layout, look.width)
    drawn: list[Axes] = []
    for panels, dataset in zip(axes.T, layout.datasets, strict=True):
        last = 0.0
        for ax, architecture in zip(panels, layout.architectures, strict=True):
            cell = dataset, architecture
            end = draw_curves(ax, measurements, cell, spec.series, spec.scale, spec.log_y)
            if np.isnan(end):
                blank_panel(ax, empty_reason(runs, *cell))
                continue
            mark_terminal_phase(ax, runs, *cell, "bottom" if spec.rises else "top")
            last = max(last, end)
            drawn.append(ax)
        if any(ax in drawn for ax in panels):
            for ax in panels:
                set_epoch_axis(ax, last, look.epoch_axis)
                ax.tick_params(labelbottom=ax is panels[-1])
            panels[-1].set_xlabel("Epoch")
    style.label_rows(axes, layout)
    _vertical_axes(spec, axes, drawn, spec.shared(look))
    figure.supylabel(spec.paper.axis, fontsize=7)
    _legend(figure, spec, measurements, runs, layout)
    style.note_below(figure, note(runs, layout))
    return figure


def _vertical_axes(spec: GridFigure, axes: np.ndarray, drawn: list[Axes], shared: str) -> None:
    points = {ax: points_of(ax, spec.log_y) for ax in drawn}
    for row in axes:
        for column, ax in enumerate(row):
            if ax not in drawn:
                continue
            in_row = [other for other in row if other in drawn]
            among = {"figure": drawn, "row": in_row, "none": [ax]}[shared]
            low, high = _limits(np.concatenate([points[other] for other in among]), spec.log_y)
            if spec.log_y:
                ax.set_yscale("log")
                ax.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.05)
                style.mark_decades(ax.yaxis)
            else:
                ax.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
                ax.yaxis.set_major_locator(
                    MaxNLocator(nbins=4, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10])
                )
                ax.yaxis.set_major_formatter(style.tick_formatter())
                mark_cut_curves(ax)
            if shared != "none" and any(other in drawn for other in row[:column]):
                ax.tick_params(labelleft=False)


def points_of(ax: Axes, log_y: bool) -> np.ndarray:
    """Epochs and values (N, 2) of curves and bands that the axis can show."""
    data = [np.asarray(line.get_xydata(), dtype=float) for line in curves_of(ax)]
    data += [path.vertices for band in ax.collections for path in band.get_paths()]
    points = np.concatenate(data)
    return points[np.isfinite(points[:, 1]) & ((points[:, 1] > 0) if log_y else True)]


def _limits(points: np.ndarray, log_y: bool) -> tuple[float, float]:
    """Smallest and largest value shown; a linear axis begins at zero."""
    low, high = points[:, 1].min(), points[:, 1].max()
    if log_y:
        return (low, high) if high > 1.01 * low else (low / 3, high * 3)
    low, high = min(0.0, low), highest(points)
    return (low, high) if high > low else (low, low + 1.0)


def _legend(figure, spec, measurements, runs, layout) -> None:
    handles = []
    for series in spec.series if len(spec.series) > 1 else ():
        handles.append(Line2D([], [], label=series.label, **style.LOOKS[series.look]))
    if max(number_of_seeds(measurements, layout), default=0) > 1:
        colour = style.LOOKS[spec.series[0].look]["color"]
        handles.append(Patch(color=colour, alpha=0.25, linewidth=0, label="range over seeds"))
    if any(len(terminal_phase_epochs(runs, *cell)) for cell in layout.cells()):
        handles.append(Line2D([], [], label="start of TPT", **style.TERMINAL_PHASE))
    handles += style.origin_handles(origins_of(measurements))
    style.legend_above(figure, handles)


def _figure(number: int):
    spec = SPECS[number]

    @style.styled
    def draw(measurements, runs, layout, look) -> Figure:
        return draw_grid(spec, measurements, runs, layout, look)

    draw.__name__ = draw.__qualname__ = f"figure_{number}"
    draw.__doc__ = f"Figure {number}: {spec.paper.title}. {spec.explanation}."
    return draw


figure_2, figure_3, figure_4, figure_5, figure_6, figure_7, figure_8 = map(_figure, range(2, 9))
