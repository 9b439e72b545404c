"""Every figure by name, and drawing one from a folder of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ..io.errors import UserError
from ..results.layout import Layout
from ..results.tables import read_table
from . import grid, motion, overview_figure, picture, style, sweep_figure


@dataclass(frozen=True)
class FigureEntry:
    """A figure: how it is titled, drawn and captioned, and what it needs."""

    name: str
    """Its name in paths and on the command line."""
    title: str
    function: Callable[..., Figure]
    """`function(table, runs, layout=..., [epoch_axis=...])` draws it."""
    table: str
    """The table that it draws; it gets `runs` as well."""
    statistics: tuple[tuple[str, str], ...]
    """(statistic, split) pairs that it shows."""
    caption: Callable[..., str]
    """`caption(table, runs, layout=...)` says what is shown, how many seeds, what the band is."""
    has_epoch_axis: bool = True

    @property
    def label(self) -> str:
        """How it is called in a text: Figure 6, Sweep."""
        head, _, number = self.name.partition("_")
        return f"{head.capitalize()} {number}".strip()


def _grid_entry(number: int) -> FigureEntry:
    spec = grid.SPECS[number]
    return FigureEntry(
        f"figure_{number}",
        spec.title,
        getattr(grid, f"figure_{number}"),
        "measurements",
        tuple((series.statistic, series.split) for series in spec.series),
        lambda frame, runs, layout=None: grid.grid_caption(spec, frame, runs, layout),
    )


FIGURES: dict[str, FigureEntry] = {
    entry.name: entry
    for entry in (
        FigureEntry(
            "figure_1",
            picture.TITLE,
            picture.figure_1,
            "activations",
            (),
            picture.picture_caption,
            has_epoch_axis=False,
        ),
        *map(_grid_entry, range(2, 9)),
        FigureEntry(
            "sweep",
            sweep_figure.TITLE,
            sweep_figure.sweep,
            "sweep",
            (("error", "test"),),
            sweep_figure.sweep_caption,
            has_epoch_axis=False,
        ),
        FigureEntry(
            "overview",
            overview_figure.TITLE,
            overview_figure.overview,
            "measurements",
            tuple(
                (s.statistic, s.split) for _, series, *_ in overview_figure.PANELS for s in series
            ),
            overview_figure.overview_caption,
        ),
    )
}


MOVING = {"gif": motion.write_animation, "html": motion.write_page}
"""What draws Figure 1 in formats that move."""


def figure_entry(name: str) -> FigureEntry:
    """The figure called `name`; raises UserError naming the known ones."""
    if name not in FIGURES:
        raise UserError(f"unknown figure {name!r}; known: {', '.join(FIGURES)}")
    return FIGURES[name]


def load(
    name: str,
    tables_folder: str | Path,
    datasets: Sequence[str] | None = None,
    architectures: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> tuple[FigureEntry, pd.DataFrame, pd.DataFrame, Layout]:
    """The figure's entry, its table, the runs and the layout, from `<tables_folder>/*.parquet`."""
    entry = figure_entry(name)
    folder = Path(tables_folder)
    runs = read_table(folder / "runs.parquet", "runs")
    frame = read_table(folder / f"{entry.table}.parquet", entry.table)
    return entry, frame, runs, Layout.of(runs, datasets, architectures, labels)


def draw(
    name: str,
    tables_folder: str | Path,
    output_base: str | Path,
    formats: Sequence[str] = style.FORMATS,
    epoch_axis: grid.EpochAxis = "linear",
    datasets: Sequence[str] | None = None,
    architectures: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> list[Path]:
    """Draw the figure `name` and write `<output_base>.<format>`; the written paths.

    Args:
        name: a key of FIGURES.
        tables_folder: holds runs.parquet and the figure's own table.
        output_base: path of the files without their suffix.
        formats: of png, svg, pdf; of Figure 1 also gif, an animation, and html, a page in which
            it can be turned.
        epoch_axis: "linear" or "log" epochs, where the figure has them.
        datasets: columns in order; left out, those of the runs in the paper's order.
        architectures: rows in order; left out, those of the runs in the paper's order.
        labels: titles of datasets and architectures by name, for cells that were not run.

    Raises:
        UserError: an unknown figure or format, or a table that is missing or damaged.
    """
    entry, frame, runs, layout = load(name, tables_folder, datasets, architectures, labels)
    options = {"epoch_axis": epoch_axis} if entry.has_epoch_axis else {}
    moving = [format for format in formats if name == "figure_1" and format in MOVING]
    still = [format for format in formats if format not in moving]
    paths = []
    if still:
        figure = entry.function(frame, runs, layout=layout, **options)
        paths += style.save(figure, output_base, still)
    for format in moving:
        paths.append(Path(f"{output_base}.{format}"))
        MOVING[format](frame, runs, paths[-1], layout)
    return paths


def caption(
    name: str,
    tables_folder: str | Path,
    datasets: Sequence[str] | None = None,
    architectures: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> str:
    """The caption of the figure `name` for these tables."""
    entry, frame, runs, layout = load(name, tables_folder, datasets, architectures, labels)
    return entry.caption(frame, runs, layout=layout)
