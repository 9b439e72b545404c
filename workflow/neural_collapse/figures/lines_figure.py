"""Figures of studies that show statistics over epochs: losses, etf, outliers, transfer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..collapse.registry import REGISTRY
from ..results.layout import Layout
from ..results.studies import MSE_PARTS, NC1, NC2, NC3, NC4, SCORES, measured_other, seed_means
from . import style
from .grid import blank_panel, mark_terminal_phase

_LOSSES = (
    *((statistic, "train") for statistic in (NC1, NC2, NC3, NC4)),
    ("expected_calibration_error", "test"),
)
_ETF = ((NC1, "train"), (NC3, "train"), ("error", "train"), ("error", "test"))
_PART_NAMES = ("within classes", "class means", "perpendicular")
_PART_COLOURS = (style.INK, style.GREY, style.RED)


def _look(number: int, **more: Any) -> dict[str, Any]:
    """How one line of several looks."""
    marker = "osD^vP*X"[number % 8]
    return {"color": style.COLOURS[number % 10], "marker": marker, "markersize": 2.3, **more}


def panel_title(statistic: str, split: str) -> str:
    """The title of a panel."""
    label = REGISTRY[statistic].label
    label = label[0].upper() + label[1:]
    return label if split == "train" else f"{label}, {split}"


def _draw(ax: Axes, curve: pd.DataFrame, look: dict[str, Any], gid: str) -> None:
    """The mean over the seeds, and a band from the smallest to the largest."""
    ax.plot(curve.index, curve["mean"], linewidth=0.8, gid=gid, **look)
    ax.fill_between(curve.index, curve["low"], curve["high"], color=look["color"], alpha=0.15, lw=0)


def _draw_logarithmic(
    ax: Axes, measurements: pd.DataFrame, lines: Iterable[tuple[dict[str, Any], str, str, str, str]]
) -> None:
    """Lines of (look, dataset, architecture, statistic, split) over epochs."""
    for look, dataset, architecture, statistic, split in lines:
        curve = seed_means(measurements, dataset, architecture, statistic, split)
        curve = curve[curve["mean"] > 0]
        if curve.empty:
            continue
        _draw(ax, curve, look, f"{architecture} {statistic}")
    if not ax.lines:
        blank_panel(ax, "not measured")
        return
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, high / 10), high)
    style.mark_decades(ax.yaxis)


def _draw_networks(ax, measurements, layout, dataset, statistic, split, **more: Any) -> None:
    """A line for each network."""
    lines = [
        (_look(number, **more), dataset, name, statistic, split)
        for number, name in enumerate(layout.architectures)
    ]
    _draw_logarithmic(ax, measurements, lines)


def _finish(figure: Figure, axes: np.ndarray, layout: Layout, columns: int) -> None:
    handles = [
        Line2D([], [], label=label, **_look(number))
        for number, label in enumerate(layout.architectures.values())
    ]
    style.legend_above(figure, handles, columns)
    style.label_below(axes, "Epoch")


@style.styled
def etf(measurements, runs, layout, look) -> Figure:
    """The figure of the fixed classifier from `measurements` and `runs`: a row per dataset."""
    datasets = layout.datasets or {"": ""}
    figure, axes = style.new_panels(len(datasets), 4, 1.5, 0.8, sharex="all")
    for row, (dataset, label) in enumerate(datasets.items()):
        axes[row, 0].set_ylabel(label, fontweight="bold")
        for ax, shown in zip(axes[row], _ETF, strict=True):
            if row == 0:
                ax.set_title(panel_title(*shown))
            every = {"marker": "none"} if shown[0] == "error" else {}  # of every epoch
            _draw_networks(ax, measurements, layout, dataset, *shown, **every)
    _finish(figure, axes, layout, 4)
    return figure


@style.styled
def losses(measurements, runs, layout, look) -> Figure:
    """The figure of losses from `measurements` and `runs`, two rows of panels per dataset."""
    datasets = layout.datasets or {"": ""}
    figure, axes = style.new_panels(2 * len(datasets), 3, 1.6, 0.8, sharex="all")
    for panels, (dataset, label) in zip(axes.reshape(-1, 6), datasets.items(), strict=True):
        prefix = f"{label}, " if len(datasets) > 1 else ""
        for ax, shown in zip(panels[:5], _LOSSES, strict=True):
            ax.set_title(prefix + panel_title(*shown))
            _draw_networks(ax, measurements, layout, dataset, *shown)
        panels[5].set_title(f"{prefix}Parts of the MSE")
        _draw_parts(panels[5], measurements, dataset, layout)
    _finish(figure, axes, layout, 6)
    return figure


def _draw_parts(ax: Axes, measurements: pd.DataFrame, dataset: str, layout: Layout) -> None:
    """The parts of the MSE of the first network of which they were measured."""
    measured = [
        name
        for name in layout.architectures
        if len(seed_means(measurements, dataset, name, MSE_PARTS[0], "train"))
    ]
    looks = [_look(number, color=colour) for number, colour in enumerate(_PART_COLOURS)]
    lines = [
        (look, dataset, measured[0], part, "train")
        for look, part in zip(looks if measured else [], MSE_PARTS, strict=False)
    ]
    _draw_logarithmic(ax, measurements, lines)
    if lines:
        named = zip(_PART_NAMES, looks, strict=True)
        handles = [Line2D([], [], label=name, **look) for name, look in named]
        ax.legend(handles=handles, loc="best", fontsize=6)


# --------------------------------------------------------------------------- another dataset


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
    return _draw_other(_OUTLIERS, "{} against {}", measurements, runs, layout, look)


@style.styled
def transfer(measurements, runs, layout, look) -> Figure:
    """The figure of transfer from the tables `measurements` and `runs`."""
    return _draw_other(_TRANSFER, "{} to {}", measurements, runs, layout, look)


def _draw_other(rows: tuple[_Row, ...], title: str, measurements, runs, layout, look) -> Figure:
    """A column for each cell that measures another dataset."""
    cells = measured_other(runs, layout)
    columns = max(len(cells), 1)
    figure, axes = style.new_panels(len(rows), columns, 1.4, 0.4, sharex="col", sharey="row")
    for ax in axes.flatten() if not cells else ():
        blank_panel(ax, "not measured")
    for column, (cell, titles) in enumerate(cells.items()):
        axes[0, column].set_title(title.format(*titles))
        for ax, row in zip(axes[:, column], rows, strict=True):
            for number, (statistic, split, _) in enumerate(row.lines):
                curve = seed_means(measurements, *cell, statistic, split)
                _draw(ax, curve, _look(number), f"{cell[0]} {statistic} {split}")
            if row.log:
                ax.set_yscale("log")
                style.mark_decades(ax.yaxis)
            mark_terminal_phase(ax, runs, *cell)
            if look.epoch_axis == "log":
                ax.set_xscale("symlog", linthresh=1)
    for ax, row in zip(axes[:, -1] if cells else (), rows, strict=False):
        handles = [Line2D([], [], label=n, **_look(i)) for i, (*_, n) in enumerate(row.lines)]
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for ax, row in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(row.axis)
    style.label_below(axes, "Epoch")
    return figure
