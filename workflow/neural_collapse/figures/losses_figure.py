"""NC1 to NC4 and calibration over epochs, a line a loss, and the parts of the MSE."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..collapse.registry import REGISTRY
from ..results.layout import Layout
from ..results.studies import MSE_PARTS, seed_means
from . import style
from .grid import blank_panel
from .study_captions import LOSSES_SHOWN

_MARKERS = "osD^vP*X"
_PART_COLOURS = (style.INK, style.GREY, style.RED)
_PARTS = dict(zip(MSE_PARTS, ("within classes", "class means", "perpendicular"), strict=True))


@style.styled
def losses(measurements, runs, layout, look) -> Figure:
    """The figure from the tables `measurements` and `runs`, two rows of panels a dataset."""
    looks = line_looks(layout)
    datasets = layout.datasets or (("", ""),)
    width = style.TWO_COLUMNS_IN if look.width == "auto" else style.figure_width(3, look.width)
    rows = 2 * len(datasets)
    height = min(style.panel_height(3, width), 1.6)
    figure = style.new_figure(width, 0.8 + rows * height)
    axes = figure.subplots(rows, 3, squeeze=False)
    for number, (dataset, label) in enumerate(datasets):
        panels = axes[2 * number : 2 * number + 2].flatten()
        prefix = f"{label}, " if len(datasets) > 1 else ""
        for ax, shown in zip(panels[:5], LOSSES_SHOWN, strict=False):
            ax.set_title(prefix + panel_title(*shown))
            lines = [(look, (dataset, name), *shown) for name, look in looks.items()]
            draw_lines(ax, measurements, lines)
        panels[5].set_title(f"{prefix}Parts of the MSE")
        _draw_parts(panels[5], measurements, dataset, list(looks))
    handles = [Line2D([], [], label=label, **looks[n]) for n, label in layout.architectures]
    style.legend_above(figure, handles, columns=6)
    style.label_below(figure, "Epoch")
    return figure


def line_looks(layout: Layout) -> dict[str, dict]:
    """How each network's line looks."""
    return {
        name: {"color": style.COLOURS[i % 10], "marker": _MARKERS[i % 8], "markersize": 2.3}
        for i, (name, _) in enumerate(layout.architectures)
    }


def panel_title(statistic: str, split: str) -> str:
    """What a panel shows."""
    label = REGISTRY[statistic].label
    label = label[0].upper() + label[1:]
    return label if split == "train" else f"{label}, {split}"


def draw_lines(ax: Axes, measurements: pd.DataFrame, lines: list[tuple]) -> bool:
    """Lines of (look, cell, statistic, split) over epochs; whether there is one."""
    drawn = False
    for look, cell, statistic, split in lines:
        curve = seed_means(measurements, *cell, statistic, split)
        curve = curve[curve["mean"] > 0]
        if curve.empty:
            continue
        drawn = True
        ax.plot(curve.index, curve["mean"], linewidth=0.8, gid=f"{cell[1]} {statistic}", **look)
        # A smallest value of zero lies below every logarithmic axis.
        low = curve["low"].where(curve["low"] > 0, curve["mean"].min() / 10)
        ax.fill_between(curve.index, low, curve["high"], color=look["color"], alpha=0.15, lw=0)
    if not drawn:
        blank_panel(ax, "not measured")
        return False
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, high / 10), high)
    style.mark_decades(ax.yaxis)
    return True


def _draw_parts(ax: Axes, measurements: pd.DataFrame, dataset: str, names: list[str]) -> None:
    for name in names:
        lines = [
            ({"color": colour, "marker": marker, "markersize": 2.3}, part)
            for colour, marker, part in zip(_PART_COLOURS, _MARKERS, _PARTS, strict=False)
        ]
        if seed_means(measurements, dataset, name, MSE_PARTS[0], "train").empty:
            continue
        draw_lines(
            ax, measurements, [(look, (dataset, name), part, "train") for look, part in lines]
        )
        handles = [Line2D([], [], label=_PARTS[part], **look) for look, part in lines]
        ax.legend(handles=handles, loc="best", fontsize=5.5)
        return
    blank_panel(ax, "not measured")
