"""Curves of one training as small plots of text, for a terminal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

from ..collapse.registry import PAPER_FIGURES, of_figure
from ..experiment.recipe import read_recipe
from ..figures.specs import highest
from ..io.errors import UserError
from ..results.tables import OWN, REFERENCE, RUN_KEY, read_table, terminal_phase_epoch
from ..training.history import History, history_frame
from .jobs import Job, experiment_jobs, written_at

MARKS = "ox"
BOTH = "*"


def _panel(figure: int, split: str = "train"):
    lines = [((entry.name, split), entry.of) for entry in of_figure(figure)]
    return PAPER_FIGURES[figure].label, lines, figure == 6


# title, ((statistic, split), name) of up to two lines, logarithmic
PANELS = (
    ("loss", [(("loss", split), split) for split in ("train", "test")], True),
    ("error", [(("error", split), split) for split in ("train", "test")], False),
    *map(_panel, (6, 2, 3, 4, 5)),
    _panel(7, "test"),
    _panel(8, "test"),
)


def text_plot(
    title: str,
    series: dict[str, pd.Series],
    *,
    width: int = 60,
    height: int = 8,
    log_y: bool = False,
    mark: float | None = None,
) -> list[str]:
    """Lines of text that show up to two series of values by epoch on one pair of axes.

    A linear axis leaves out values of epoch 0 where they would press the others flat.

    mark: an epoch that is marked with a column of dots, such as the start of the terminal phase.
    """
    left, columns = 9, max(width - 9, 10)
    kept = [y[np.isfinite(y) & ((y > 0) if log_y else True)] for y in series.values()]
    values = pd.concat(kept)
    if values.empty:
        return [f"{title}: not measured"]
    if not log_y and highest(np.column_stack([values.index, values])) < values.max():
        title += ", epoch 0 not shown"
        kept = [y[y.index > 0] for y in kept]
        values = pd.concat(kept)
    low, high, last = values.min(), values.max(), values.index.max()
    if not log_y:
        low = min(low, 0)
    axis = np.log10 if log_y else np.asarray
    span = axis(high) - axis(low)
    grid = np.full((height, columns), " ")

    def column(epochs):
        return np.rint(epochs / max(last, 1) * (columns - 1)).astype(int)

    if mark is not None and mark <= last:
        grid[:, column(np.asarray(mark))] = ":"
    for y, sign in zip(kept, MARKS, strict=False):
        share = (axis(y) - axis(low)) / span if span > 0 else np.full(len(y), 0.5)
        places = height - 1 - np.rint(share * (height - 1)).astype(int), column(y.index)
        grid[places] = np.where(np.isin(grid[places], list(MARKS)), BOTH, sign)
    names = [f"{sign} {name}" for name, sign in zip(series, MARKS, strict=False) if name]
    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"]
    lines = [
        f"{title}{' (log)' if log_y else ''}   {'  '.join(names)}",
        *(f"{label:>{left - 2}} |{''.join(row)}" for label, row in zip(labels, grid, strict=True)),
        f"{'':>{left - 1}}+{'-' * columns}",
        f"{'0':>{left + 1}}{f'epoch {last:g}':>{columns - 1}}",
    ]
    return [line.rstrip() for line in lines]


@dataclass(frozen=True)
class Curves:
    """What is known of one training."""

    frame: pd.DataFrame
    """Rows of epoch, split, statistic and value, and the training's key."""
    start: float | None = None
    """The start of its terminal phase, where it is known."""
    note: str = ""
    """What is to be said of it behind its name."""

    @property
    def key(self) -> tuple:
        """(dataset, architecture, seed)."""
        return tuple(self.frame.iloc[0][RUN_KEY])

    def __str__(self) -> str:
        return "{} x {}, seed {}".format(*self.key)


def _curve_so_far(job: Job) -> History | None:
    """The learning curve in a job's newest state that can be read, if any."""
    from safetensors import SafetensorError, safe_open

    states = job.state.glob("*/state-*.safetensors") if job.state else ()
    for path in sorted(states, key=written_at, reverse=True):
        try:
            with safe_open(path, "numpy") as file:
                facts = json.loads(file.metadata()["facts"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            continue
        rate = np.nan if job.learning_rate is None else job.learning_rate
        if (history := History.of_state(facts, rate)) is not None:
            return history
    return None


def _unfinished(path: Path) -> Iterator[Curves]:
    """Learning curves so far, from the resume states of trainings that are not finished.

    path: an experiment's folder, a run's, or the file that a curve of the sweep is to become.
    """
    experiment = next((p for p in (path, *path.parents[:4]) if (p / ".state").is_dir()), None)
    for job in experiment_jobs(experiment, None) if experiment else ():
        shown = {"train_model": (experiment, job.output.parent), "train_candidate": (job.output,)}
        wanted = path in shown.get(job.rule, ()) and not job.output.exists()
        history = _curve_so_far(job) if wanted else None
        if history is None:
            continue
        frame = history_frame(job.recipe, history, job.seed)
        start = terminal_phase_epoch(frame, job.recipe.measurement.terminal_phase_accuracy)
        last = job.recipe.training.epochs
        yield Curves(frame, start, f" (not finished: epoch {frame['epoch'].max()} of {last})")


def _of_tables(folder: Path) -> Iterator[Curves]:
    """The trainings in a folder of tables; own runs after reference runs."""
    frame = read_table(folder / "measurements.parquet", "measurements")
    runs = read_table(folder / "runs.parquet", "runs").set_index(["origin", *RUN_KEY])
    starts = runs["terminal_phase_epoch"].dropna()
    for origin, note in [(REFERENCE, " (reference run)"), (OWN, "")]:
        for key, rows in frame[frame["origin"] == origin].groupby(RUN_KEY, sort=False):
            yield Curves(rows, starts.get((origin, *key)), note)


def _of_run(folder: Path) -> Curves:
    """The training in a run's folder, with what was measured of it so far."""
    history = read_table(folder / "history.parquet", "history")
    files = (folder / f"{name}.parquet" for name in ("statistics", "robustness"))
    measured = [read_table(file, "measurements") for file in files if file.is_file()]
    start, recipe = None, folder.parent / "recipe.json"
    if recipe.is_file():
        accuracy = read_recipe(recipe).measurement.terminal_phase_accuracy
        start = terminal_phase_epoch(history, accuracy)
    return Curves(pd.concat([history, *measured], ignore_index=True), start)


def _all_curves(path: Path) -> Iterator[Curves]:
    """What is known of every training below `path`, the newest last."""
    if path.is_file():
        yield Curves(read_table(path, "history"))
    for folder in (path, path / "tables"):
        if (folder / "measurements.parquet").is_file():
            yield from _of_tables(folder)
    for folder in (path, *sorted(path.glob("*/*/seed-*"))):
        if (folder / "history.parquet").is_file():
            yield _of_run(folder)
    yield from _unfinished(path)


def choose_curves(
    path: Path, dataset: str | None, architecture: str | None, seed: int | None
) -> Curves:
    """The one training that is asked for; raises UserError naming those there are.

    path: a run's folder, a folder of tables, an experiment's folder, or one learning curve.
    """
    known = {curves.key: curves for curves in _all_curves(path) if len(curves.frame)}
    found = list(known.values())
    if not found:
        raise UserError(
            f"{path}: contains no training with a finished epoch; give a run's "
            "folder such as results/quickstart/digits/resnet/seed-0, or see "
            "`neural-collapse status`"
        )
    wanted = (dataset, architecture, seed)
    chosen = [
        curves
        for curves in found
        if all(want in (None, has) for want, has in zip(wanted, curves.key, strict=True))
    ]
    if len(chosen) != 1:
        listed = "; ".join(map(str, found[:12])) + ("; ..." if len(found) > 12 else "")
        raise UserError(
            f"{path}: choose one training with --dataset, --architecture and --seed; "
            f"there: {listed}"
        )
    return chosen[0]


def show(
    path: Path,
    dataset: str | None = None,
    architecture: str | None = None,
    seed: int | None = None,
    width: int | None = None,
) -> str:
    """Every curve of one training as text, in two columns if `width` allows."""
    curves = choose_curves(path, dataset, architecture, seed)
    width = width or shutil.get_terminal_size((80, 24)).columns
    columns = 2 if width >= 100 else 1
    each = min((width - 3 * (columns - 1)) // columns, 78)
    measured = curves.frame.pivot(index="epoch", columns=["statistic", "split"], values="value")
    plots = []
    for title, lines, log_y in PANELS:
        series = {name: measured[key] for key, name in lines if key in measured}
        if series:
            plots.append(text_plot(title, series, width=each, log_y=log_y, mark=curves.start))
    text = [f"{curves}{curves.note}"]
    if curves.start is not None:
        text[0] += f"; the dots mark the start of the terminal phase, epoch {curves.start:g}"
    for i in range(0, len(plots), columns):
        rows = zip_longest(*plots[i : i + columns], fillvalue="")
        text += ["", *("   ".join(part.ljust(each) for part in row).rstrip() for row in rows)]
    return "\n".join(text)
