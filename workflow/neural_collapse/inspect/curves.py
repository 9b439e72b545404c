"""Curves of one training as small plots of text, for a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from ..collapse.registry import PAPER_FIGURES, of_figure
from ..experiment.recipe import read_recipe
from ..io.errors import UserError
from ..results.tables import OWN, REFERENCE, RUN_KEY, read_table, terminal_phase_epoch

MARKS = "ox"
BOTH = "*"


def _panel(figure: int, split: str = "train") -> tuple[str, tuple[tuple[str, str, str], ...], bool]:
    lines = tuple((entry.name, split, entry.of) for entry in of_figure(figure))
    return PAPER_FIGURES[figure].label, lines, figure == 6


# title, (statistic, split, name) of up to two lines, logarithmic
PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...], bool], ...] = (
    ("loss", (("loss", "train", "train"), ("loss", "test", "test")), True),
    ("error", (("error", "train", "train"), ("error", "test", "test")), False),
    *map(_panel, (6, 2, 3, 4, 5)),
    _panel(7, "test"),
    _panel(8, "test"),
)


def text_plot(
    title: str,
    series: Sequence[tuple[str, np.ndarray, np.ndarray]],
    *,
    width: int = 60,
    height: int = 8,
    log_y: bool = False,
    mark: float | None = None,
) -> list[str]:
    """Lines of text that show up to two series (name, x, y) on one pair of axes.

    mark: an x that is marked with a column of dots, such as the start of the terminal phase.
    """
    left = 9
    columns = max(width - left, 10)
    kept = []
    for name, x, y in series:
        fine = np.isfinite(y) & ((y > 0) if log_y else True)
        kept.append((name, np.asarray(x, float)[fine], np.asarray(y, float)[fine]))
    values = np.concatenate([y for _, _, y in kept])
    if not len(values):
        return [f"{title}: not measured"]
    axis = np.log10 if log_y else np.asarray
    low, high = float(values.min()), float(values.max())
    if not log_y:
        low = min(low, 0.0)
    bottom, top = axis(low), axis(high)
    last = max(float(x.max()) for _, x, _ in kept if len(x))
    grid = [[" "] * columns for _ in range(height)]

    def place(x: float) -> int:
        return round(x / max(last, 1.0) * (columns - 1))

    if mark is not None and mark <= last:
        for row in grid:
            row[place(mark)] = ":"
    for (_, x, y), sign in zip(kept, MARKS, strict=False):
        other = set(MARKS) - {sign}
        for at, value in zip(x, axis(y), strict=True):
            share = (value - bottom) / (top - bottom) if top > bottom else 0.5
            row, column = height - 1 - round(share * (height - 1)), place(at)
            grid[row][column] = BOTH if grid[row][column] in other else sign
    names = [f"{sign} {name}" for (name, *_), sign in zip(kept, MARKS, strict=False) if name]
    heading = f"{title}{' (log)' if log_y else ''}{'   ' if names else ''}{'  '.join(names)}"
    labels = {0: f"{high:.3g}", height - 1: f"{low:.3g}"}
    lines = [heading]
    lines += [f"{labels.get(i, ''):>{left - 2}} |{''.join(row)}" for i, row in enumerate(grid)]
    rule = f"{'':>{left - 1}}+{'-' * columns}"
    ends = f"{'0':>{left + 1}}{f'epoch {last:g}':>{columns - 1}}"
    return [line.rstrip() for line in (*lines, rule, ends)]


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


def unfinished_curves(path: Path) -> Iterator[Curves]:
    """Learning curves so far, from the resume states of trainings that are not finished.

    path: an experiment's folder, a run's, or the file that a curve of the sweep is to become.
    """
    from ..experiment.stages.train import history_frame
    from .jobs import experiment_jobs, facts_so_far

    experiment = next((p for p in (path, *path.parents[:4]) if (p / ".state").is_dir()), None)
    for job in experiment_jobs(experiment, None) if experiment else ():
        shown = {"train_model": (experiment, job.output.parent), "train_candidate": (job.output,)}
        if job.output.exists() or path not in shown.get(job.rule, ()):
            continue
        facts = facts_so_far(job)
        if facts is None:
            continue
        records, diverged = facts
        history = SimpleNamespace(
            learning_rate=np.nan if job.learning_rate is None else job.learning_rate,
            records=[SimpleNamespace(**record) for record in records],
            diverged=diverged,
        )
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


def find_curves(path: Path) -> dict[tuple, Curves]:
    """Every training below `path`, by its key; the newest of what is known of each.

    path: a run's folder, a folder of tables, an experiment's folder, or one learning curve.
    """
    found = [Curves(read_table(path, "history"))] if path.is_file() else []
    for folder in (path, path / "tables"):
        if (folder / "measurements.parquet").is_file():
            found += _of_tables(folder)
    for folder in (path, *sorted(path.glob("*/*/seed-*"))):
        if (folder / "history.parquet").is_file():
            found.append(_of_run(folder))
    found += unfinished_curves(path)
    return {curves.key: curves for curves in found if len(curves.frame)}


def choose_curves(
    path: Path, dataset: str | None, architecture: str | None, seed: int | None
) -> Curves:
    """The one training that is asked for; raises UserError naming those there are."""
    found = find_curves(path)
    if not found:
        raise UserError(
            f"{path}: holds no training that is finished or has ended an epoch; give a run's "
            "folder such as results/quickstart/digits/resnet/seed-0, or see "
            "`neural-collapse status`"
        )
    wanted = (dataset, architecture, seed)
    chosen = [
        curves
        for curves in found.values()
        if all(want in (None, has) for want, has in zip(wanted, curves.key, strict=True))
    ]
    if len(chosen) != 1:
        runs = ["{} x {}, seed {}".format(*curves.key) for curves in found.values()]
        listed = "; ".join(runs[:12]) + ("; ..." if len(runs) > 12 else "")
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
    frame = curves.frame
    width = width or shutil.get_terminal_size((80, 24)).columns
    columns = 2 if width >= 100 else 1
    each = min((width - 3 * (columns - 1)) // columns, 78)
    plots = []
    for title, lines, log_y in PANELS:
        series = []
        for statistic, split, name in lines:
            rows = frame[(frame["statistic"] == statistic) & (frame["split"] == split)]
            rows = rows.sort_values("epoch")
            series.append((name, rows["epoch"].to_numpy(), rows["value"].to_numpy()))
        if any(len(x) for _, x, _ in series):
            plots.append(text_plot(title, series, width=each, log_y=log_y, mark=curves.start))
    text = ["{} x {}, seed {}".format(*curves.key) + curves.note]
    if curves.start is not None:
        text[0] += f"; the dots mark the start of the terminal phase, epoch {curves.start:g}"
    for i in range(0, len(plots), columns):
        beside = plots[i : i + columns]
        text.append("")
        for row in range(max(map(len, beside))):
            parts = [plot[row] if row < len(plot) else "" for plot in beside]
            text.append("   ".join(part.ljust(each) for part in parts).rstrip())
    return "\n".join(text)
