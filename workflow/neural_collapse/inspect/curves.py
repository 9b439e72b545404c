"""Curves of one training as small plots of text, for a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from ..io.errors import UserError
from ..results.tables import OWN, RUN_KEY, read_table, terminal_phase_epoch

MARKS = "ox"
BOTH = "*"

# title, (statistic, split, name) of up to two lines, logarithmic
PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...], bool], ...] = (
    ("loss", (("loss", "train", "train"), ("loss", "test", "test")), True),
    ("error", (("error", "train", "train"), ("error", "test", "test")), False),
    ("NC1 within-class variability", (("nc1_within_class_variability", "train", ""),), True),
    (
        "NC2 equinorm",
        (
            ("nc2_equinorm_means", "train", "class means"),
            ("nc2_equinorm_classifier", "train", "classifiers"),
        ),
        False,
    ),
    (
        "NC2 equiangularity",
        (
            ("nc2_equiangularity_means", "train", "class means"),
            ("nc2_equiangularity_classifier", "train", "classifiers"),
        ),
        False,
    ),
    (
        "NC2 maximal angle",
        (
            ("nc2_maximal_angle_means", "train", "class means"),
            ("nc2_maximal_angle_classifier", "train", "classifiers"),
        ),
        False,
    ),
    ("NC3 self-duality", (("nc3_self_duality", "train", ""),), False),
    ("NC4 mismatch, test set", (("nc4_ncc_mismatch", "test", ""),), False),
    ("robustness", (("robustness", "test", ""),), False),
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


def unfinished_curves(path: Path) -> list[pd.DataFrame]:
    """Learning curves so far, from the resume states of trainings that are not finished.

    Each has two columns more than a finished one: `epochs`, how many there are to be, and
    `terminal_phase_accuracy`.
    path: an experiment's folder, a run's, or the file that a curve of the sweep is to become.
    """
    from ..experiment.stages import candidate_frame, history_frame
    from .jobs import experiment_jobs, facts_so_far

    experiment = next((p for p in (path, *path.parents[:4]) if (p / ".state").is_dir()), None)
    curves = []
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
        if job.seed is None:
            frame = candidate_frame(job.recipe, history)
        else:
            frame = history_frame(job.recipe, job.seed, history)
        curves.append(
            frame.assign(
                epochs=job.recipe.training.epochs,
                terminal_phase_accuracy=job.recipe.measurement.terminal_phase_accuracy,
            )
        )
    return curves


def load_measurements(
    path: Path, dataset: str | None, architecture: str | None, seed: int | None
) -> tuple[pd.DataFrame, float | None]:
    """One training's measurements, and the start of its terminal phase where it is known.

    path: a run's folder, a folder of tables, an experiment's folder, or one learning curve. What
    is not finished is as :func:`unfinished_curves` has it.
    """
    if path.is_file():
        frame = read_table(path, "history")
        return _one_run(frame, path, dataset, architecture, seed), None
    unfinished = unfinished_curves(path)
    for folder in (path, path / "tables"):
        if (folder / "measurements.parquet").is_file():
            frame = read_table(folder / "measurements.parquet", "measurements")
            for curve in unfinished:  # what is trained anew replaces its last results
                own = frame["origin"] == OWN
                own &= (frame[RUN_KEY] == curve[RUN_KEY].iloc[0]).all(axis=1)
                frame = pd.concat([frame[~own], curve.assign(origin=OWN)], ignore_index=True)
            frame = _one_run(frame, path, dataset, architecture, seed)
            if _is_unfinished(frame):
                return frame, _start_so_far(frame)
            runs = read_table(folder / "runs.parquet", "runs")
            runs = runs.merge(frame[["origin", *RUN_KEY]].drop_duplicates())
            start = runs["terminal_phase_epoch"].dropna()
            return frame, float(start.iloc[0]) if len(start) else None
    histories = [path / "history.parquet"] if (path / "history.parquet").is_file() else []
    histories = histories or sorted(path.glob("*/*/seed-*/history.parquet"))
    finished = {file.parent: read_table(file, "history") for file in histories}
    keys = {_key(curve) for curve in finished.values()}
    unfinished = [curve for curve in unfinished if _key(curve) not in keys]
    if not (finished or unfinished):
        raise UserError(
            f"{path}: holds no training that is finished or has ended an epoch; give a run's "
            "folder such as results/quickstart/digits/resnet/seed-0, or see "
            "`neural-collapse status`"
        )
    frame = pd.concat([*finished.values(), *unfinished], ignore_index=True)
    frame = _one_run(frame, path, dataset, architecture, seed)
    folder = next((f for f, curve in finished.items() if _key(curve) == _key(frame)), None)
    if folder is None:
        return frame, _start_so_far(frame)
    for name in ("statistics", "robustness"):
        file = folder / f"{name}.parquet"
        if file.is_file():
            frame = pd.concat([frame, read_table(file, "measurements")], ignore_index=True)
    start, recipe = None, folder.parent / "recipe.json"
    if recipe.is_file():
        from ..experiment.recipe import read_recipe

        accuracy = read_recipe(recipe).measurement.terminal_phase_accuracy
        start = terminal_phase_epoch(frame, accuracy)
    return frame, start


def _is_unfinished(frame: pd.DataFrame) -> bool:
    return "epochs" in frame and bool(frame["epochs"].notna().all())


def _start_so_far(frame: pd.DataFrame) -> int | None:
    """The start of the terminal phase in an unfinished training, where it was reached."""
    return terminal_phase_epoch(frame, frame["terminal_phase_accuracy"])


def _key(frame: pd.DataFrame) -> tuple:
    return tuple(frame.iloc[0][RUN_KEY])


def _one_run(frame: pd.DataFrame, path: Path, dataset, architecture, seed) -> pd.DataFrame:
    """The rows of the one training that is asked for; raises UserError naming those there are."""
    wanted = {"dataset": dataset, "architecture": architecture, "seed": seed}
    key = [*RUN_KEY, *(["origin"] if "origin" in frame else [])]
    there = frame[key].drop_duplicates()
    chosen = there
    for name, value in wanted.items():
        if value is not None:
            chosen = chosen[chosen[name] == value]
    if len(chosen) > 1 and "origin" in chosen:  # one's own comes first
        chosen = chosen[chosen["origin"] == chosen["origin"].min()]
    if len(chosen) != 1:
        runs = [
            f"{row.dataset} x {row.architecture}, seed {row.seed}" for row in there.itertuples()
        ]
        runs = list(dict.fromkeys(runs))
        listed = "; ".join(runs[:12]) + ("; ..." if len(runs) > 12 else "")
        raise UserError(
            f"{path}: choose one training with --dataset, --architecture and --seed; "
            f"there: {listed or 'none'}"
        )
    return frame.merge(chosen)


def show(
    path: Path,
    dataset: str | None = None,
    architecture: str | None = None,
    seed: int | None = None,
    width: int | None = None,
) -> str:
    """Every curve of one training as text, two beside each other where `width` allows."""
    frame, start = load_measurements(path, dataset, architecture, seed)
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
            plots.append(text_plot(title, series, width=each, log_y=log_y, mark=start))
    run = frame.iloc[0]
    head = f"{run['dataset']} x {run['architecture']}, seed {run['seed']}"
    if "origin" in frame and (frame["origin"] == "reference").all():
        head += " (reference run)"
    if _is_unfinished(frame):
        head += f" (not finished: epoch {frame['epoch'].max()} of {run['epochs']:g})"
    if start is not None:
        head += f"; the dots mark the start of the terminal phase, epoch {start:g}"
    text = [head]
    for i in range(0, len(plots), columns):
        beside = plots[i : i + columns]
        text.append("")
        for row in range(max(map(len, beside))):
            parts = [plot[row] if row < len(plot) else "" for plot in beside]
            text.append("   ".join(part.ljust(each) for part in parts).rstrip())
    return "\n".join(text)
