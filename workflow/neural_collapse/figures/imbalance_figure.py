"""The minority's classifiers and test accuracy against the ratio; a line per recipe."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..results.studies import MINORITY_ACCURACY, MINORITY_COSINE, by_ratio
from . import style
from .grid import blank_panel
from .lines_figure import panel_title

_SHOWN = ((MINORITY_COSINE, "train"), (MINORITY_ACCURACY, "test"))
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.RED)


@style.styled
def imbalance(measurements, runs, layout, look) -> Figure:
    """The figure from the tables `measurements` and `runs`: a row per dataset."""
    found = by_ratio(measurements, runs, layout)
    names = dict.fromkeys(line for _, line, _ in found)
    looks = {
        (line, oversampled): _look(_COLOURS[i % len(_COLOURS)], oversampled)
        for i, line in enumerate(names)
        for oversampled in (False, True)
    }
    datasets = layout.datasets or (("", ""),)
    figure, axes = style.new_panels(len(datasets), 2, style.figure_width(2, look.width), 1.9, 0.9)
    for row, (dataset, label) in enumerate(datasets):
        axes[row, 0].set_ylabel(label, fontweight="bold")
        own = {key[1:]: table for key, table in found.items() if key[0] == dataset}
        for ax, (statistic, split) in zip(axes[row], _SHOWN, strict=True):
            if row == 0:
                ax.set_title(panel_title(statistic, split))
            _draw(ax, {key: table[statistic] for key, table in own.items()}, looks)
    used = [key for key in looks if any(key == of[1:] for of in found)]
    handles = [Line2D([], [], label=_label(*key), **looks[key]) for key in used]
    style.legend_above(figure, handles, columns=2)
    style.label_below(figure, "Ratio of majority to minority images")
    return figure


def _look(colour: str, oversampled: bool) -> dict:
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


def _draw(ax: Axes, tables: dict, looks: dict) -> None:
    drawn = False
    for key, table in tables.items():
        table = table.dropna()
        if table.empty:
            continue
        drawn = True
        ax.plot(table.index, table["mean"], gid=_label(*key), **looks[key])
        error = [table["mean"] - table["min"], table["max"] - table["mean"]]
        colour = looks[key]["color"]
        ax.errorbar(table.index, table["mean"], error, fmt="none", ecolor=colour, elinewidth=0.7)
    if not drawn:
        blank_panel(ax, "not measured")
        return
    ax.set_xscale("log")
    style.mark_decades(ax.xaxis)
