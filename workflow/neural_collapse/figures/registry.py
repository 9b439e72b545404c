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
from typing import TYPE_CHECKING

import pandas as pd

from ..io.errors import UserError
from ..io.files import write_text_atomically
from ..results.layout import Layout
from ..results.separation import FUZZINESS, LINEARITY, RATE
from ..results.tables import read_table
from . import MOVING, specs, study_captions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STILL = ("png", "svg", "pdf")
FORMATS = (*STILL, "rst")
"""Of every figure; rst is its caption as text."""


@dataclass(frozen=True)
class FigureEntry:
    """A figure: how it is titled, drawn and captioned, and what it needs."""

    name: str
    """Its name in paths and on the command line."""
    title: str
    module: str
    """Its function, of the same name, stands there."""
    table: str
    """The table that it draws; it gets `runs` as well."""
    statistics: tuple[tuple[str, str], ...]
    """(statistic, split) pairs that it shows."""
    caption: Callable[..., str]
    """`caption(table, runs, layout, look)` says what is shown, how many seeds, what the band is."""

    @property
    def function(self) -> Callable[..., Figure]:
        """`function(table, runs, layout=..., look=...)` draws it."""
        return getattr(import_module(f".{self.module}", __package__), self.name)

    @property
    def label(self) -> str:
        """How it is called in a text: Figure 6, Sweep."""
        return self.name.replace("_", " ").capitalize()


def _grid_entry(spec: specs.GridFigure) -> FigureEntry:
    return FigureEntry(
        f"figure_{spec.number}",
        spec.paper.title,
        "grid",
        "measurements",
        tuple((series.statistic, series.split) for series in spec.series),
        partial(specs.grid_caption, spec),
    )


_SHOWN = tuple((s.statistic, s.split) for _, series, *_ in specs.PANELS for s in series)
_ENTRIES = (
    FigureEntry(
        *("figure_1", specs.FIGURE_1_TITLE, "picture", "activations", ()),
        specs.picture_caption,
    ),
    *map(_grid_entry, specs.SPECS.values()),
    FigureEntry(
        *("sweep", specs.SWEEP_TITLE, "sweep_figure", "sweep", (("error", "test"),)),
        specs.sweep_caption,
    ),
    FigureEntry(
        *("overview", specs.OVERVIEW_TITLE, "overview_figure", "measurements", _SHOWN),
        specs.overview_caption,
    ),
    FigureEntry(
        *("separation", specs.SEPARATION_TITLE, "separation_figure", "measurements"),
        tuple((s, "train") for s in (FUZZINESS, RATE, LINEARITY)),
        specs.separation_caption,
    ),
    FigureEntry(
        *("optimisers", study_captions.OPTIMISERS_TITLE, "optimisers_figure", "measurements"),
        study_captions.OPTIMISERS_SHOWN,
        study_captions.optimisers_caption,
    ),
    FigureEntry(
        *("losses", study_captions.LOSSES_TITLE, "losses_figure", "measurements"),
        study_captions.LOSSES_SHOWN,
        study_captions.losses_caption,
    ),
    FigureEntry(
        *("imbalance", study_captions.IMBALANCE_TITLE, "imbalance_figure", "measurements"),
        study_captions.IMBALANCE_SHOWN,
        study_captions.imbalance_caption,
    ),
    FigureEntry(
        *("etf", study_captions.ETF_TITLE, "etf_figure", "measurements"),
        study_captions.ETF_SHOWN,
        study_captions.etf_caption,
    ),
    FigureEntry(
        *("outliers", study_captions.OUTLIERS_TITLE, "other_figure", "measurements"),
        study_captions.OUTLIERS_SHOWN,
        study_captions.outliers_caption,
    ),
    FigureEntry(
        *("transfer", study_captions.TRANSFER_TITLE, "other_figure", "measurements"),
        study_captions.TRANSFER_SHOWN,
        study_captions.transfer_caption,
    ),
)
FIGURES: dict[str, FigureEntry] = {entry.name: entry for entry in _ENTRIES}


def figure_entry(name: str) -> FigureEntry:
    """The figure called `name`, or of that number; raises UserError naming the known ones."""
    found = FIGURES.get(f"figure_{name}", FIGURES.get(name))
    if found is None:
        raise UserError(f"unknown figure {name!r}; known: {', '.join(FIGURES)}")
    return found


@lru_cache(maxsize=8)
def _read_once(path: Path, name: str, modified_ns: int) -> pd.DataFrame:
    return read_table(path, name)


def _table(folder: str | Path, name: str) -> pd.DataFrame:
    """A table of the folder, read once as long as its file stays; nobody may change it."""
    path = Path(folder) / f"{name}.parquet"
    return _read_once(path, name, path.stat().st_mtime_ns if path.is_file() else 0)


def _formats(name: str) -> tuple[str, ...]:
    return (*FORMATS, *MOVING) if name == "figure_1" else FORMATS


def plot(
    tables_folder: str | Path,
    files: Mapping[str, Sequence[str | Path]],
    look: specs.Look = specs.DEFAULT_LOOK,
    datasets: Sequence[str] | None = None,
    architectures: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    processes: int = 1,
) -> None:
    """Draw figures, each into its files.

    Args:
        tables_folder: holds runs.parquet and the figures' own tables.
        files: by a figure's name, or number, the files to write; the ending of each is its format:
            png, svg, pdf; rst, the caption as text; of Figure 1 also gif, an animation, and html,
            a page in which it can be turned.
        look: axes and width.
        datasets: columns in order; left out, those of the runs in the paper's order.
        architectures: rows in order; left out, those of the runs in the paper's order.
        labels: titles of datasets and architectures by name, for cells that were not run.
        processes: that share the figures.

    Raises:
        UserError: an unknown figure or format, or a table that is missing or corrupt.
    """
    paths = {figure_entry(name): list(map(Path, given)) for name, given in files.items()}
    for entry, given in paths.items():
        unknown = [path for path in given if path.suffix[1:] not in _formats(entry.name)]
        if unknown:
            raise UserError(
                f"{unknown[0]}: figure format {unknown[0].suffix[1:]!r} is unknown; "
                f"of {entry.label} known: {', '.join(_formats(entry.name))}"
            )
    for name in ("runs", *(entry.table for entry in paths)):
        _table(tables_folder, name)
    options = (look, datasets, architectures, labels)
    # A fork has the libraries and tables that were loaded before it; elsewhere it is not safe.
    if processes == 1 or len(paths) == 1 or sys.platform != "linux":
        for entry, given in paths.items():
            _draw(entry.name, given, tables_folder, *options)
        return
    for module in ("motion", *(entry.module for entry in paths)):
        import_module(f".{module}", __package__)
    # The largest come first, so that none is drawn alone at the end.
    order = sorted(paths, key=lambda entry: entry.name not in ("figure_1", "overview"))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(processes, len(order)), mp_context=context) as pool:
        jobs = [pool.submit(_draw, e.name, paths[e], tables_folder, *options) for e in order]
        for job in jobs:
            job.result()


def _draw(name, paths, tables_folder, look, datasets, architectures, labels) -> None:
    """Draw one figure into files whose endings are known formats."""
    entry = FIGURES[name]
    runs = _table(tables_folder, "runs")
    shown = _table(tables_folder, entry.table), runs
    layout = Layout.of(runs, datasets, architectures, labels)
    still = [path for path in paths if path.suffix[1:] in STILL]
    if still:
        from . import style

        style.save(entry.function(*shown, layout=layout, look=look), still)
    for path in paths:
        if path.suffix == ".rst":
            write_text_atomically(path, _caption_text(entry, entry.caption(*shown, layout, look)))
        elif path not in still:
            from . import motion

            motion.WRITERS[path.suffix[1:]](*shown, path, layout)


def _caption_text(entry: FigureEntry, caption: str) -> str:
    """The caption as reStructuredText, which Snakemake's report reads as a template as well."""
    text = re.sub(r"([\\|*`]|_\b)", r"\\\1", caption)
    text = f"**{entry.label}. {entry.title}.** {text}"
    return f"{{% raw %}}{text}{{% endraw %}}\n" if "{" in text else f"{text}\n"


def caption(
    name: str,
    tables_folder: str | Path,
    datasets: Sequence[str] | None = None,
    architectures: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    look: specs.Look = specs.DEFAULT_LOOK,
) -> str:
    """The caption of the figure `name` for these tables."""
    entry, runs = figure_entry(name), _table(tables_folder, "runs")
    layout = Layout.of(runs, datasets, architectures, labels)
    return entry.caption(_table(tables_folder, entry.table), runs, layout, look)
