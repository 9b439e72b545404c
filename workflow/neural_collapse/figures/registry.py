"""The registry of figures, and drawing of figures from a folder of tables.

Drawing libraries are imported only to draw; captions do not need them.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..io.errors import UserError
from ..io.files import write_text_atomically
from ..results.layout import Layout
from ..results.tables import read_table
from . import MOVING, captions, specs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STILL = ("png", "svg", "pdf")
FORMATS = (*STILL, "rst")
"""Formats of every figure; rst is its caption as text."""


@dataclass(frozen=True)
class FigureEntry:
    """A figure: its title, function, caption and table."""

    name: str
    """Its name in paths and on the command line."""
    module: str
    """The module of its function, which has the same name."""
    caption: Callable[..., str]
    """`caption(table, runs, layout, look)` says what is shown, how many seeds, what the band is."""
    title: str
    table: str = "measurements"
    """The table that it draws; it gets `runs` as well."""

    @property
    def function(self) -> Callable[..., Figure]:
        """`function(table, runs, layout=..., look=...)` draws it."""
        return getattr(import_module(f".{self.module}", __package__), self.name)

    @property
    def label(self) -> str:
        """Its name in a text: Figure 6, Sweep."""
        return "ETF" if self.name == "etf" else self.name.replace("_", " ").capitalize()


_ENTRIES = (
    FigureEntry(
        *("figure_1", "picture", captions.figure_1),
        "Neural collapse of three classes, in the space that their means span",
        "activations",
    ),
    *(
        FigureEntry(f"figure_{n}", "grid", partial(captions.grid, spec), spec.paper.title)
        for n, spec in specs.SPECS.items()
    ),
    FigureEntry("sweep", "sweep_figure", captions.sweep, "Error over learning rate", "sweep"),
    FigureEntry("overview", "overview_figure", captions.overview, "Every training at a glance"),
    FigureEntry(
        *("separation", "separation_figure", captions.separation),
        "Law of data separation: fuzziness falls geometrically from layer to layer",
    ),
    FigureEntry(
        *("optimisers", "recipes_figure", captions.optimisers),
        "NC0 and NC3 against weight decay",
    ),
    FigureEntry(
        *("losses", "lines_figure", captions.losses),
        "Neural collapse, calibration, and the parts of the MSE",
    ),
    FigureEntry(
        *("imbalance", "recipes_figure", captions.imbalance),
        "The minority's classifiers and accuracy",
    ),
    FigureEntry("etf", "lines_figure", captions.etf, "A fixed ETF classifier, and random labels"),
    FigureEntry(
        *("outliers", "lines_figure", captions.outliers),
        "How well another dataset is detected while the network collapses",
    ),
    FigureEntry(
        *("transfer", "lines_figure", captions.transfer),
        "Collapse of train and test set, and what the frozen features transfer",
    ),
)
FIGURES: dict[str, FigureEntry] = {entry.name: entry for entry in _ENTRIES}


def figure_entry(name: str) -> FigureEntry:
    """The figure of this name or number; raises UserError with the known ones."""
    found = FIGURES.get(f"figure_{name}", FIGURES.get(name))
    if found is None:
        raise UserError(f"unknown figure {name!r}; known: {', '.join(FIGURES)}")
    return found


@lru_cache(maxsize=8)
def _read_once(path: Path, name: str, modified_ns: int) -> pd.DataFrame:
    return read_table(path, name)


def _table(folder: str | Path, name: str) -> pd.DataFrame:
    """A table of the folder, cached until its file changes; callers must not change it."""
    path = Path(folder) / f"{name}.parquet"
    return _read_once(path, name, path.stat().st_mtime_ns if path.is_file() else 0)


def plot(
    tables_folder: str | Path,
    files: Mapping[str, Sequence[str | Path]],
    look: specs.Look = specs.DEFAULT_LOOK,
    processes: int = 1,
    **layout: Any,
) -> None:
    """Draw figures into files.

    Args:
        tables_folder: contains runs.parquet and the tables of the figures.
        files: the files to write by name or number of a figure. The suffix is the format: png,
            svg, pdf or rst (the caption as text); for Figure 1 also gif (an animation) and html
            (an interactive page).
        look: axes and width.
        processes: number of processes that draw.
        layout: datasets, architectures and labels, as for :meth:`Layout.of`.

    Raises:
        UserError: an unknown figure or format, or a table that is missing or corrupt.
    """
    paths = {figure_entry(name): list(map(Path, given)) for name, given in files.items()}
    for entry, given in paths.items():
        known = (*FORMATS, *MOVING) if entry.name == "figure_1" else FORMATS
        for path in given:
            if path.suffix[1:] not in known:
                raise UserError(
                    f"{path}: figure format {path.suffix[1:]!r} is unknown; "
                    f"of {entry.label} known: {', '.join(known)}"
                )
    for name in ("runs", *(entry.table for entry in paths)):
        _table(tables_folder, name)
    # A fork has the libraries and tables that were loaded before it; elsewhere it is not safe.
    if processes == 1 or len(paths) == 1 or sys.platform != "linux":
        for entry, given in paths.items():
            _draw(entry.name, given, tables_folder, look, layout)
        return
    for module in ("motion", *(entry.module for entry in paths)):
        import_module(f".{module}", __package__)
    # The largest come first, so that none is drawn alone at the end.
    order = sorted(paths, key=lambda entry: entry.name not in ("figure_1", "overview"))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(processes, len(order)), mp_context=context) as pool:
        jobs = [pool.submit(_draw, e.name, paths[e], tables_folder, look, layout) for e in order]
        for job in jobs:
            job.result()


def _draw(
    name: str, paths: Sequence[Path], folder: str | Path, look: specs.Look, layout: Mapping
) -> None:
    """Draw one figure into files whose endings are known formats."""
    entry, runs = FIGURES[name], _table(folder, "runs")
    shown = _table(folder, entry.table), runs, Layout.of(runs, **layout)
    still = [path for path in paths if path.suffix[1:] in STILL]
    if still:
        from . import style

        style.save(entry.function(*shown, look), still)
    for path in paths:
        if path.suffix == ".rst":
            write_text_atomically(path, _caption_text(entry, entry.caption(*shown, look)))
        elif path not in still:
            from . import motion

            motion.WRITERS[path.suffix[1:]](*shown, path)


def _caption_text(entry: FigureEntry, caption: str) -> str:
    """The caption as reStructuredText, which Snakemake's report reads as a template as well."""
    text = re.sub(r"([\\|*`]|_\b)", r"\\\1", caption)
    text = f"**{entry.label}. {entry.title}.** {text}"
    return f"{{% raw %}}{text}{{% endraw %}}\n" if "{" in text else f"{text}\n"


def caption(
    name: str, tables_folder: str | Path, look: specs.Look = specs.DEFAULT_LOOK, **layout: Any
) -> str:
    """The caption of the figure `name` for these tables; layout: as for :meth:`Layout.of`."""
    entry, runs = figure_entry(name), _table(tables_folder, "runs")
    shown = _table(tables_folder, entry.table), runs, Layout.of(runs, **layout)
    return entry.caption(*shown, look)
