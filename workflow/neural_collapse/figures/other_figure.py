"""Figures of outliers and transfer: statistics on another dataset over epochs.

Columns are dataset x architecture with another dataset; rows are statistics.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..results.studies import NC1, measured_other, seed_means
from ..results.trends import SCORES
from . import style
from .grid import blank_panel, mark_terminal_phase

_MARKERS = "osD^"


class _Row(NamedTuple):
    """A row of panels: axis label, lines of (statistic, split, label), scale."""

    axis: str
    lines: tuple[tuple[str, str, str], ...]
    log: bool = False


_OUTLIERS = (
    _Row("AUROC", tuple((f"outlier_auroc_{s}", "test", label) for s, label in SCORES.items())),
    _Row("FPR at 95 %", tuple((f"outlier_fpr95_{s}", "test", n) for s, n in SCORES.items())),
    _Row(
        "NC5",
        (
            ("nc5_outlier_orthogonality", "test", "about the mean"),
            ("nc5_outlier_orthogonality_uncentred", "test", "about 0"),
        ),
    ),
)
_TRANSFER = (
    _Row("NC1", ((NC1, "train", "train"), (NC1, "test", "test")), log=True),
    _Row(
        "Accuracy",
        (
            ("network_accuracy", "test", "own test set"),
            ("transfer_probe_accuracy", "test", "other, linear probe"),
            ("transfer_ncc_accuracy", "test", "other, nearest centre"),
        ),
    ),
)


@style.styled
def outliers(measurements, runs, layout, look) -> Figure:
    """The figure of outliers from the tables `measurements` and `runs`."""
    return _draw(_OUTLIERS, "{} against {}", measurements, runs, layout, look)


@style.styled
def transfer(measurements, runs, layout, look) -> Figure:
    """The figure of transfer from the tables `measurements` and `runs`."""
    return _draw(_TRANSFER, "{} to {}", measurements, runs, layout, look)


def _draw(rows: tuple[_Row, ...], title: str, measurements, runs, layout, look) -> Figure:
    cells = measured_other(runs, layout)
    columns = max(len(cells), 1)
    # Room for the rows' legends, beside the last column.
    width = style.TWO_COLUMNS_IN if look.width == "auto" else style.figure_width(3, look.width)
    height = min(style.panel_height(columns, width), 1.4)
    figure = style.new_figure(width, 0.4 + len(rows) * height)
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex="col", sharey="row")
    for ax in axes.flatten() if not cells else ():
        blank_panel(ax, "not measured")
    for column, (cell, (own, other)) in enumerate(cells.items()):
        axes[0, column].set_title(title.format(own, other))
        for ax, row in zip(axes[:, column], rows, strict=True):
            handles = _draw_panel(ax, row, measurements, runs, cell)
            if column == len(cells) - 1:
                ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
            if look.epoch_axis == "log":
                ax.set_xscale("symlog", linthresh=1)
    for ax, row in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(row.axis)
    style.label_below(figure, "Epoch")
    return figure


def _draw_panel(
    ax: Axes, row: _Row, measurements: pd.DataFrame, runs: pd.DataFrame, cell: tuple[str, str]
) -> list[Line2D]:
    """Means over the seeds, bands from the least to the largest, and the start of the TPT; the
    legend's lines."""
    handles = []
    for number, (statistic, split, label) in enumerate(row.lines):
        drawn = {"color": style.COLOURS[number], "marker": _MARKERS[number], "markersize": 2.3}
        curve = seed_means(measurements, *cell, statistic, split)
        ax.plot(
            curve.index, curve["mean"], linewidth=0.8, gid=f"{cell[0]} {statistic} {split}", **drawn
        )
        ax.fill_between(
            curve.index, curve["low"], curve["high"], color=drawn["color"], alpha=0.15, lw=0
        )
        handles.append(Line2D([], [], label=label, **drawn))
    if row.log:
        ax.set_yscale("log")
        style.mark_decades(ax.yaxis)
    mark_terminal_phase(ax, runs, *cell)
    return handles
