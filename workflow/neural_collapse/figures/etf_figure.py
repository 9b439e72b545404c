"""Collapse and errors over epochs with a learned and a fixed classifier; a line a network."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import style
from .losses_figure import draw_lines, line_looks, panel_title
from .study_captions import ETF_SHOWN


@style.styled
def etf(measurements, runs, layout, look) -> Figure:
    """The figure from the tables `measurements` and `runs`: a row a dataset."""
    looks = line_looks(layout)
    datasets = layout.datasets or (("", ""),)
    width = style.TWO_COLUMNS_IN if look.width == "auto" else style.figure_width(4, look.width)
    height = min(style.panel_height(4, width), 1.5)
    figure = style.new_figure(width, 0.8 + len(datasets) * height)
    axes = figure.subplots(len(datasets), len(ETF_SHOWN), squeeze=False)
    for row, (dataset, label) in enumerate(datasets):
        axes[row, 0].set_ylabel(label, fontweight="bold")
        for ax, shown in zip(axes[row], ETF_SHOWN, strict=True):
            if row == 0:
                ax.set_title(panel_title(*shown))
            every = {"marker": "none"} if shown[0] == "error" else {}  # of every epoch
            lines = [(own | every, (dataset, name), *shown) for name, own in looks.items()]
            draw_lines(ax, measurements, lines)
    handles = [Line2D([], [], label=label, **looks[n]) for n, label in layout.architectures]
    style.legend_above(figure, handles, columns=4)
    style.label_below(figure, "Epoch")
    return figure
