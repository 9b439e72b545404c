"""The long jobs of an experiment and their outputs, locks and resume states."""

from __future__ import annotations

import json
import math
import os
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..experiment.config import Config, resolve_recipe
from ..experiment.paths import Paths, candidate_job, cell_job, run_job
from ..experiment.recipe import READ_ELSEWHERE, Recipe, read_recipe
from ..io import versions
from ..io.errors import UserError
from ..io.text import counted, shown

STAGES = {
    "train_candidate": "sweep",
    "train_model": "training",
    "extract_features": "features",
    "compute_statistics": "statistics",
    "measure_robustness": "robustness",
}
"""Rules of long jobs, and what each is called in texts."""


@dataclass(frozen=True)
class Job:
    """A job of the workflow and where it leaves its traces."""

    rule: str
    recipe: Recipe
    """By which it is to be made."""
    name: str
    """The learning rate or seed-<n>, as its log is called."""
    output: Path
    log: Path
    benchmark: Path
    state: Path | None
    """Where its resume states lie; None for short jobs."""
    runs: tuple[Path, ...]
    """The run.json of every training that this job is, follows, or chose the learning rate of."""
    seed: int | None = None
    """Of the run; None for a training of the sweep."""
    learning_rate: float | None = None
    """Of a training of the sweep; None for a run."""

    @property
    def cell(self) -> tuple[str, str]:
        """(dataset, architecture)."""
        return self.recipe.dataset, self.recipe.architecture

    def __str__(self) -> str:
        return f"{' x '.join(self.cell)}, {STAGES[self.rule]} {self.name}"


def jobs_of(folder: Path, recipe: Recipe, seeds: Iterable[int]) -> list[Job]:
    """Every long job of one cell, in the order in which they run."""
    paths, cell = Paths(str(folder)), (recipe.dataset, recipe.architecture)
    facts = {seed: Path(paths.run("run.json", *cell, seed)) for seed in seeds}

    def job(rule: str, name: str, output: str, state: str | None, **fields: Any) -> Job:
        label = f"{cell_job(*cell)}-{name}"
        log, benchmark = Path(paths.log(rule, label)), Path(paths.benchmark(rule, label))
        state_root = None if state is None else Path(state)
        return Job(rule, recipe, name, Path(output), log, benchmark, state_root, **fields)

    jobs = []
    for name, rate in recipe.sweep.named().items() if recipe.sweep.learning_rate is None else ():
        curve, state = paths.candidate(name, *cell), paths.state(candidate_job(name, *cell))
        runs = tuple(facts.values())
        jobs.append(job("train_candidate", name, curve, state, runs=runs, learning_rate=rate))
    for seed, path in facts.items():
        run = run_job(*cell, seed)
        for rule, output, state in [
            ("train_model", "run.json", paths.state(run)),
            ("extract_features", "features", paths.state(run, "features")),
            ("compute_statistics", "statistics.parquet", None),
            ("measure_robustness", "robustness.parquet", paths.state(run, "robustness")),
        ]:
            output = paths.run(output, *cell, seed)
            jobs.append(job(rule, f"seed-{seed}", output, state, runs=(path,), seed=seed))
    return jobs


def experiment_jobs(folder: Path, config: Config | None) -> list[Job]:
    """Every long job of an experiment: of its config, or of the recipes found in its folder."""
    if config is not None:
        return [
            job
            for cell in config.cells()
            for job in jobs_of(folder, resolve_recipe(config, *cell), config.seeds)
        ]
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder of results; give results/<experiment>, or a "
            "config with --config"
        )
    recipes = [read_recipe(path) for path in sorted(folder.glob("*/*/recipe.json"))]
    if not recipes:
        raise UserError(f"{folder}: contains no recipe, so no job has started")
    seeds = sorted(
        {
            int(found[1])
            for path in [*folder.glob("*/*/seed-*"), *folder.glob("logs/train_model/*.log")]
            if (found := re.search(r"seed-(\d+)(?:\.log)?$", path.name))
        }
    )
    return [job for recipe in recipes for job in jobs_of(folder, recipe, seeds or [0])]


def without_record(folder: Path, config: Config, recorded: Callable[[str], bool]) -> str:
    """A sentence about results of which Snakemake has no record; empty where there are none.

    Of a renamed, moved or copied folder it has none, so a changed config or one more seed may run
    nothing, and old figures look like new ones.

    recorded: whether Snakemake has a record of an output.
    """
    finished = [job for job in experiment_jobs(folder, config) if job.output.exists()]
    lost = [job for job in finished if not recorded(str(job.output))]
    if not lost:
        return ""
    found = [(job, changed) for job in lost if (changed := changed_since(job))]
    what = f"{found[0][0]} is of another recipe ({found[0][1]})" if found else ""
    touch = "" if found else ", or, where nothing changed, run once with --touch --forceall"
    return (
        f"{folder}: Snakemake has no record of how {counted(len(lost), 'result')} were made (was "
        "the folder moved or renamed, or .snakemake deleted?), so a changed config may run nothing "
        f"again{what and '; ' + what}: delete what is to be made again{touch}"
    )


def written_at(path: Path) -> float:
    """When a state was written, in seconds; -inf for one that has been deleted since."""
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf


def changed_since(job: Job) -> str:
    """What the recipe says otherwise than when a finished job was done; empty where it agrees.

    A training says by which recipe it was made. What was measured of an outdated one is outdated
    as well, and so is the part of the sweep that is older than it.
    """
    for path in job.runs:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            of_sweep = job.rule == "train_candidate"
            if of_sweep and job.output.stat().st_mtime > path.stat().st_mtime:
                continue
            changed = _difference(run, job.recipe, of_sweep)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not there yet, or not one of this project's
        if changed:
            return changed
    return ""


def _difference(run: dict[str, Any], recipe: Recipe, of_sweep: bool) -> str:
    """The first thing that decides a training and is not in its run.json as it is now.

    These are the params of the rules train_model and, where `of_sweep`, train_candidate. A key that
    run.json does not hold says nothing.
    """
    version = run.get("training_version", versions.TRAINING)
    if version != versions.TRAINING:
        return f"trained by version {version} of the training, which is {versions.TRAINING} now"
    made = run["recipe"]
    for part in ("network", "data", "training"):
        model = getattr(recipe, part)
        elsewhere = READ_ELSEWHERE.get(part, set())
        wanted = model.model_dump(mode="json", exclude=elsewhere)
        later = sorted(model.LATER - elsewhere)
        default = dict.fromkeys(later, "the default")
        for key, now in (default | wanted).items():
            before = made.get(part, {}).get(key, default.get(key, now))
            if before != now:
                return f"{part}.{key} was {shown(before)}, is {shown(now)}"
    if not of_sweep and "learning_rate_origin" in run:
        before = run["learning_rate"] if run["learning_rate_origin"] == "pinned" else None
        now = recipe.sweep.learning_rate
        if before != now:
            return f"sweep.learning_rate was {shown(before)}, is {shown(now)}"
        if now is None and run["learning_rate"] not in recipe.sweep.learning_rates:
            return f"learning_rate was {shown(run['learning_rate'])}, which the sweep lacks now"
    if not of_sweep and "kept_epochs" in run:
        before, now = set(run["kept_epochs"]), set(recipe.measured_epochs)
        if before != now:
            other = min(before ^ now)
            asks = "asks" if other in now else "no longer asks"
            return f"measurement.epochs {asks} for epoch {other}"
    return ""


def lock_user(lock: Path, idle_seconds: float, patience_seconds: float) -> str | None:
    """The host of the process that uses what a lock guards; None where none does.

    A process on another machine cannot be asked: it is taken for alive while what it writes is idle
    for less than `patience_seconds`.
    """
    try:
        found = re.match(r"process (\d+) on (.+)", lock.read_text(encoding="utf-8").strip())
    except OSError:
        return None
    if found is None:
        return None
    host = found[2]
    if host == socket.gethostname():
        alive = _lives(int(found[1]))
    else:
        alive = idle_seconds < patience_seconds
    return host if alive else None


def _lives(process: int) -> bool:
    """Whether a process of this machine is still there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
