"""Style and saving of all figures.

Fonts are embedded, and the same tables give the same bytes: no dates, no random identifiers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.backend_bases import get_registered_canvas_class
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from ..io.files import atomic_path
from ..results.layout import Layout
from .specs import DEFAULT_LOOK, Look

ONE_COLUMN_IN = 3.42
"""Width of one column of a PNAS page, 87 mm."""
TWO_COLUMNS_IN = 7.0
"""Width of the type area of a PNAS page, 178 mm."""

TALLEST_IN = 8.3
"""Height of the rows of panels that a PNAS page has room for, with legend and note."""
ROOM_IN = 0.62
"""Height of the legend and labels of a grid."""

PALETTE = "colorblind"
COLOURS = sns.color_palette(PALETTE).as_hex()
BLUE, ORANGE, GREEN, RED = COLOURS[:4]
INK = "#222222"
GREY = "#6B6B6B"
FAINT = "#BBBBBB"

# Blue and orange stay apart for every kind of colour blindness; in black and white the filled
# dark circles and the hollow light squares do.
MEANS = {"color": BLUE, "marker": "o", "markersize": 2.3, "linewidth": 0.8, "zorder": 3.2}
CLASSIFIERS = {
    "color": ORANGE,
    "marker": "s",
    "markersize": 2.3,
    "linewidth": 0.8,
    "markerfacecolor": "white",
    "markeredgewidth": 0.6,
    "zorder": 3.1,
}
LOOKS = {
    "means": MEANS,
    "classifiers": CLASSIFIERS,
    "train": {**MEANS, "marker": ""},
    "test": {**CLASSIFIERS, "marker": "", "linestyle": (0, (2.5, 1))},
}
"""Looks of lines, by the names in specs.py."""
TERMINAL_PHASE = {"color": INK, "marker": "^", "markersize": 4.4, "linestyle": "none"}
# Beside own runs: thinner, paler and dashed, so that they differ without colours too.
REFERENCE = {"linestyle": (0, (2.5, 1.2)), "linewidth": 0.6, "markersize": 1.3, "alpha": 0.6}
REFERENCE_TERMINAL_PHASE = {**TERMINAL_PHASE, "markerfacecolor": "white", "markeredgewidth": 0.5}

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 6.5,
    "axes.titlesize": 7,
    "axes.titleweight": "bold",
    "axes.titlepad": 4,
    "axes.labelsize": 7,
    "axes.linewidth": 0.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelpad": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.minor.size": 1.1,
    "ytick.minor.size": 1.1,
    "xtick.minor.width": 0.35,
    "ytick.minor.width": 0.35,
    "xtick.major.pad": 2.5,
    "ytick.major.pad": 1.5,
    "lines.markeredgewidth": 0.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.4,
    "savefig.facecolor": "white",
    "savefig.dpi": 300,
    "figure.dpi": 100,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "neural-collapse",
    "text.usetex": False,
    "path.simplify": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_locale": False,
}


@contextmanager
def style() -> Iterator[None]:
    """seaborn's "ticks" with this project's changes, independent of the user's matplotlibrc."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        sns.set_theme("paper", "ticks", PALETTE, color_codes=False, rc=_RC)
        yield


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A figure's function `draw(table, runs, layout, look)`, to be called without the last two.

    It draws in this project's style. By default the layout is that of the runs.
    """

    def function(
        table: pd.DataFrame,
        runs: pd.DataFrame,
        layout: Layout | None = None,
        look: Look = DEFAULT_LOOK,
    ) -> Figure:
        with style():
            return draw(table, runs, layout or Layout.of(runs), look)

    function.__name__, function.__qualname__ = draw.__name__, draw.__qualname__
    function.__doc__, function.__module__ = draw.__doc__, draw.__module__
    return function


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure of that size; it belongs to no window and no pyplot state."""
    return Figure(figsize=(width_in, height_in), layout="constrained")


def empty_figure(text: str) -> Figure:
    """A figure that only says why it is empty."""
    figure = new_figure(ONE_COLUMN_IN, 1.2)
    figure.text(0.5, 0.5, text, ha="center", style="italic")
    return figure


def origin_handles(origins: Sequence[str]) -> list[Line2D]:
    """Legend entries for own and reference runs, where there are both."""
    if len(origins) == 1:
        return []
    look = {"color": GREY, "linewidth": MEANS["linewidth"]}
    return [
        Line2D([], [], label="own runs", **look),
        Line2D([], [], label="reference runs", **{**look, **REFERENCE}),
    ]


NOTE_SIZE = 6
"""Points; the smallest text that PNAS prints."""


def note_lines(figure: Figure, text: str) -> str:
    """A note of :data:`NOTE_SIZE` in lines that are as wide as the figure."""
    return textwrap.fill(text, int(20 * figure.get_figwidth()))


def note_below(figure: Figure, note: str) -> None:
    """A small note under the panels, unless it is empty."""
    if not note:
        return
    # The layout makes room for a legend, but not for other text.
    figure.legend(
        handles=[Line2D([], [], linestyle="none", label=note_lines(figure, note))],
        fontsize=NOTE_SIZE,
        labelcolor=GREY,
        handlelength=0,
        handletextpad=0,
        borderpad=0.4,
        loc="outside lower center",
    )


def darker(colour: str) -> str:
    """The colour for small text, which needs more contrast than a line."""
    return to_hex([0.7 * part for part in to_rgb(colour)])


def figure_width(columns: int, width: str = "auto") -> float:
    """Inches of a `column` or a `page`; `auto`: a column for up to three panels."""
    if width == "auto":
        width = "column" if columns <= 3 else "page"
    return ONE_COLUMN_IN if width == "column" else TWO_COLUMNS_IN


def panel_height(columns: int, width_in: float) -> float:
    """Inches of a row of panels: three quarters of a panel's width, neither flat nor tall."""
    return min(max(0.82 * (width_in - 0.5) / columns, 0.97), 2.1)


def new_panels(
    rows: int,
    columns: int,
    tallest_in: float,
    room_in: float,
    width_in: float = TWO_COLUMNS_IN,
    **shared: str,
) -> tuple[Figure, np.ndarray]:
    """A figure of panels that are of at most the given height, with room for legends and labels."""
    height = min(panel_height(columns, width_in), tallest_in)
    figure = new_figure(width_in, room_in + rows * height)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def label_below(axes: np.ndarray, label: str) -> None:
    """The same horizontal label for every panel of the last row."""
    for ax in axes[-1]:
        ax.set_xlabel(label)


def new_grid(layout: Layout, width: str) -> tuple[Figure, np.ndarray]:
    """A figure with a titled column for each dataset and a row for each architecture.

    Call :func:`label_rows` after drawing.
    """
    rows, columns = len(layout.architectures), len(layout.datasets)
    inches = figure_width(columns, width)
    figure = new_figure(inches, ROOM_IN + min(rows * panel_height(columns, inches), TALLEST_IN))
    # Row titles and tick labels fill the height between panels already.
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.03, wspace=0.01, hspace=0.02)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax, label in zip(axes[0], layout.datasets.values(), strict=True):
        ax.set_title(_wrapped(label, inches / columns))
    return figure, axes


def label_rows(axes: np.ndarray, layout: Layout) -> None:
    """Title each row of a grid, after drawing, in lines that are as long as a panel is high."""
    height_in = (axes[0, 0].figure.get_figheight() - ROOM_IN) / len(axes)
    for ax, label in zip(axes[:, 0], layout.architectures.values(), strict=True):
        ax.set_ylabel(_wrapped(label, height_in), fontweight="bold", labelpad=3)


def _wrapped(title: str, length_in: float) -> str:
    """A title in lines of about that length, broken between words."""
    return textwrap.fill(title, max(1, int(12 * length_in)), break_long_words=False)


def legend_above(figure: Figure, handles: list[Line2D], columns: int | None = None) -> None:
    """A legend, if it has entries: by default in one line, on one column of text three a line."""
    if columns is None:
        columns = len(handles) if figure.get_figwidth() > ONE_COLUMN_IN else 3
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def save(figure: Figure, paths: Sequence[str | Path]) -> None:
    """Write the figure into files, whose endings are the formats, each replaced atomically."""
    with style():
        # Laid out once for all formats, at the resolution of the picture; `savefig` would draw
        # the figure twice for each format.
        figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
        if figure.axes:
            figure.get_layout_engine().execute(figure)
            _centre_on_panels(figure)
        figure.set_layout_engine("none")
        for path in map(Path, paths):
            format = path.suffix[1:]
            canvas = get_registered_canvas_class(format)(figure)
            figure.set_dpi(matplotlib.rcParams["savefig.dpi"])  # svg and pdf set their own
            with atomic_path(path) as temporary:
                getattr(canvas, f"print_{format}")(temporary, metadata=_METADATA[format])


def _centre_on_panels(figure: Figure) -> None:
    """Centre the vertical label, which the layout centres on panels, legend and note together."""
    panels = [ax.get_position() for ax in figure.axes]
    middle = (min(panel.y0 for panel in panels) + max(panel.y1 for panel in panels)) / 2
    for text in figure.texts:
        if text.get_text() == figure.get_supylabel():
            text.set_y(middle)


_METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""No dates and versions, so that the same tables give the same bytes."""


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def short_number(value: float, digits: int = 2) -> str:
    """A number short enough for a tick or a corner: 0.25, 120, 3.1·10⁻⁵."""
    if value != value:
        return "nan"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
        return text.replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    if mantissa in ("1", "-1"):
        return mantissa.replace("1", "").replace("-", "−") + power
    return f"{mantissa}·{power}".replace("-", "−")


def power_of_ten(value: float) -> str:
    """10⁻³ for 0.001; for values that are powers of ten."""
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPT)


def mark_decades(axis: Axis, every: int = 1) -> None:
    """At most 5 powers of ten as labels of a logarithmic axis; small ticks between them.

    Where there are fewer than two, 1, 2 and 5 of each are labels.
    """
    low, high = sorted(axis.get_view_interval())
    decades = np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    if len(decades) < 2:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(tick_formatter())
        return mark_between(axis)
    # From the top, where the labels of panels above each other differ least.
    step = max(every, math.ceil(len(decades) / 5))
    axis.set_major_locator(FixedLocator(10.0 ** decades[::-1][::step]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    mark_between(axis, range(2, 10) if step == 1 else [1])


def mark_between(axis: Axis, multiples: Sequence[float] = range(2, 10)) -> None:
    """Small ticks without labels at these multiples of every power of ten."""
    axis.set_minor_locator(LogLocator(subs=multiples, numticks=100))
    axis.set_minor_formatter(NullFormatter())


def tick_formatter() -> FuncFormatter:
    """Tick labels as short numbers, without an offset above the axis."""
    return FuncFormatter(lambda value, _: short_number(float(f"{value:.10g}"), digits=3))
