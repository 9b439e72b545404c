"""How far an experiment is: from its results, logs, benchmarks and resume states alone.

Nothing is locked or changed, so it may be asked while jobs run, here or on a cluster.
"""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from ..experiment import versions
from ..experiment.config import READ_ELSEWHERE, Config, Recipe, read_recipe, resolve_recipe, shown
from ..io.errors import UserError
from ..io.text import aligned, counted, duration_text, size_text

State = Literal["done", "outdated", "running", "failed", "stopped", "waiting"]
STATES: tuple[State, ...] = ("done", "outdated", "running", "failed", "stopped", "waiting")
SILENT_SECONDS = 900
"""A job on another machine that has said nothing for so long is taken for stopped."""

STAGES = {
    "train_candidate": "sweep",
    "train_model": "training",
    "extract_features": "features",
    "compute_statistics": "statistics",
    "measure_robustness": "robustness",
}
_PROGRESS = re.compile(r"(?:epoch|checkpoint) +(\d+)/(\d+)\b.*")
_LEFT = re.compile(r"(?:(\d+):)?(\d+):(\d\d) left")


@dataclass(frozen=True)
class Job:
    """A job of the workflow and where it leaves its traces."""

    rule: str
    dataset: str
    architecture: str
    name: str
    """The learning rate or seed-<n>, as its log is called."""
    output: Path
    log: Path
    benchmark: Path
    recipe: Recipe
    """By which it is to be made."""
    runs: tuple[Path, ...]
    """The run.json of every training that this job is, follows, or chose the learning rate of."""
    state: Path | None = None
    """Where its resume states lie; None for short jobs."""


@dataclass(frozen=True)
class JobStatus:
    """What is known of a job."""

    job: Job
    state: State
    note: str = ""
    """The last progress of one that runs or was stopped, why one failed, or what was changed since
    one was done."""
    seconds_left: float | None = None
    seconds_whole: float | None = None
    """What the whole job takes at its pace so far."""


def jobs_of(folder: Path, recipe: Recipe, seeds: Iterable[int]) -> list[Job]:
    """Every long job of one cell, in the order in which they run."""
    cell = f"{recipe.dataset}-{recipe.architecture}"
    home = folder / recipe.dataset / recipe.architecture

    runs = {f"seed-{seed}": home / f"seed-{seed}" / "run.json" for seed in seeds}

    def job(rule: str, name: str, output: Path, state: str | None, logs: str = "") -> Job:
        log = folder / "logs" / (logs or rule) / f"{cell}-{name}"
        return Job(
            rule,
            recipe.dataset,
            recipe.architecture,
            name,
            output,
            Path(f"{log}.log"),
            Path(f"{log}.tsv"),
            recipe,
            (runs[name],) if name in runs else tuple(runs.values()),
            None if state is None else folder / ".state" / state,
        )

    jobs = []
    if recipe.sweep.learning_rate is None:
        for rate in recipe.sweep.named():
            curve = home / "sweep" / f"learning-rate-{rate}.parquet"
            jobs.append(job("train_candidate", rate, curve, f"{cell}-{rate}"))
    for name, facts in runs.items():
        run = home / name
        state = f"{cell}-{name}"
        jobs += [
            job("train_model", name, facts, state),
            job("extract_features", name, run / "features", f"{state}-features"),
            job("compute_statistics", name, run / "statistics.parquet", None),
            job("measure_robustness", name, run / "robustness.parquet", f"{state}-robustness"),
        ]
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
        raise UserError(f"{folder}: no recipe is in it, so nothing was started here yet")
    seeds = sorted(
        {
            int(found[1])
            for path in [*folder.glob("*/*/seed-*"), *folder.glob("logs/train_model/*.log")]
            if (found := re.search(r"seed-(\d+)(?:\.log)?$", path.name))
        }
    )
    return [job for recipe in recipes for job in jobs_of(folder, recipe, seeds or [0])]


def status_of(job: Job, now: float | None = None, useless: Set[Path] = frozenset()) -> JobStatus:
    """How far one job is; `useless` are folders of resume states that it will not go on from."""
    if job.output.exists():
        changed = _changed(job)
        return JobStatus(job, "outdated" if changed else "done", changed)
    now = time.time() if now is None else now
    lines = _tail(job.log)
    progress = next((found for line in reversed(lines) if (found := _PROGRESS.search(line))), None)
    note = progress[0] if progress else ""
    holder = next((holder for holder in _holders(job) if _alive(*holder, job, now)), None)
    if holder:
        where = "" if holder[1] == socket.gethostname() else f" on {holder[1]}"
        return JobStatus(job, "running", f"{note or 'starting'}{where}", *_pace(progress))
    error = _error(lines)
    if error:
        return JobStatus(job, "failed", error)
    epoch = _resumes_after(job, useless)
    if epoch is not None:
        return JobStatus(job, "stopped", f"goes on after epoch {epoch}", *_pace(progress))
    if lines and job.state is not None and job.state.exists() and useless.isdisjoint(_states(job)):
        return JobStatus(job, "stopped", note, *_pace(progress))
    return JobStatus(job, "waiting")


def _changed(job: Job) -> str:
    """What the recipe says otherwise than when a finished job was done; nothing where it agrees.

    A training says by which recipe it was made. What was measured of an outdated one is outdated
    as well, and so is the part of the sweep that is older than it.
    """
    for path in job.runs:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            if job.rule == "train_candidate" and _is_newer(job.output, path):
                continue
            changed = _difference(run, job.recipe, job.rule == "train_candidate")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not there yet, or not one of this project's
        if changed:
            return changed
    return ""


def _is_newer(path: Path, other: Path) -> bool:
    return path.stat().st_mtime > other.stat().st_mtime


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
        wanted = getattr(recipe, part).model_dump(mode="json", exclude=READ_ELSEWHERE.get(part))
        for key, now in wanted.items():
            before = made.get(part, {}).get(key, now)
            if before != now:
                return f"{part}.{key} was {shown(before)}, is {shown(now)}"
    if not of_sweep and "learning_rate_origin" in run:
        before = run["learning_rate"] if run["learning_rate_origin"] == "pinned" else None
        now = recipe.sweep.learning_rate
        if before != now:
            return f"sweep.learning_rate was {shown(before)}, is {shown(now)}"
    if not of_sweep and "kept_epochs" in run:
        before, now = set(run["kept_epochs"]), set(recipe.measured_epochs)
        if before != now:
            other = min(before ^ now)
            asks = "asks" if other in now else "no longer asks"
            return f"measurement.epochs {asks} for epoch {other}"
    return ""


def _tail(path: Path, size: int = 20_000) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - size, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]


def _error(lines: list[str]) -> str:
    """Why the last try ended, where its log says so: logs of several tries follow each other."""
    for line in reversed(lines[-3:]):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
        if re.match(r"\w[\w.]*(Error|Exception|Interrupt)\b", line):
            return line
    return ""


def _holders(job: Job) -> Iterator[tuple[int, str]]:
    """(process, host) that wrote themselves into the locks of the job's resume states; a state of
    another recipe has a lock of its own."""
    for lock in sorted(job.state.glob("*.lock")) if job.state else ():
        if holder := lock_holder(lock):
            yield holder


def lock_holder(lock: Path) -> tuple[int, str] | None:
    """(process, host) that wrote itself into a lock; None where none did."""
    try:
        found = re.match(r"process (\d+) on (.+)", lock.read_text(encoding="utf-8").strip())
    except OSError:
        return None
    return (int(found[1]), found[2]) if found else None


def _alive(process: int, host: str, job: Job, now: float) -> bool:
    if host == socket.gethostname():
        return process_lives(process)
    try:
        return now - job.log.stat().st_mtime < SILENT_SECONDS
    except OSError:
        return False


def process_lives(process: int) -> bool:
    """Whether a process of this machine is still there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _states(job: Job) -> list[Path]:
    return [path for path in job.state.glob("*") if path.is_dir()] if job.state else []


def _resumes_after(job: Job, useless: Set[Path]) -> int | None:
    files = (
        path.name
        for folder in _states(job)
        if folder not in useless
        for path in folder.glob("state-*.safetensors")
    )
    return max((int(name.split("-")[1]) for name in files), default=None)


def facts_so_far(job: Job) -> Any | None:
    """What the job's newest resume state says besides its tensors; None where there is none."""
    from safetensors import SafetensorError, safe_open

    def age(path: Path) -> float:
        try:
            return -path.stat().st_mtime
        except OSError:
            return 0.0  # a newer one has replaced it meanwhile

    for path in sorted(job.state.glob("*/state-*.safetensors") if job.state else (), key=age):
        try:
            with safe_open(path, "numpy") as file:
                return json.loads(file.metadata()["facts"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            continue
    return None


def _pace(progress: re.Match | None) -> tuple[float | None, float | None]:
    """(seconds left, seconds of the whole job) as its last line of progress has them."""
    found = _LEFT.search(progress[0]) if progress else None
    if not found:
        return None, None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    left = 3600 * hours + 60 * minutes + seconds
    at, last = int(progress[1]), int(progress[2])
    return left, left * last / (last - at) if at < last else None


def _taken(job: Job) -> float | None:
    """Seconds that a finished job took, from Snakemake's benchmark."""
    try:
        with open(job.benchmark, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return float(rows[-1]["s"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def seconds_left(statuses: list[JobStatus]) -> tuple[float, int]:
    """(seconds of one job after another that are left, jobs of which nothing is known).

    A waiting job takes as long as those of its kind took or will take, of its own cell where
    there are some.
    """
    taken: dict[tuple, list[float]] = {}
    for status in statuses:
        seconds = _taken(status.job) if status.state == "done" else status.seconds_whole
        if seconds is not None:
            job = status.job
            for key in [(job.rule, job.dataset, job.architecture), (job.rule,)]:
                taken.setdefault(key, []).append(seconds)
    # A training of the sweep is as long as the one that is kept.
    for key in list(taken):
        if key[0] == "train_candidate":
            taken.setdefault(("train_model", *key[1:]), taken[key])
    total, unknown = 0.0, 0
    for status in statuses:
        if status.state == "done":
            continue
        job, left = status.job, status.seconds_left
        known = taken.get((job.rule, job.dataset, job.architecture)) or taken.get((job.rule,))
        if left is None and known:
            left = mean(known)
        total, unknown = total + (left or 0), unknown + (left is None)
    return total, unknown


def status_text(folder: Path, config: Config | None = None) -> str:
    """The whole status as text."""
    from .leftovers import find_leftovers

    jobs = experiment_jobs(folder, config)
    leftovers = find_leftovers(folder, config)
    useless = {state.folder for state in leftovers}
    statuses = [status_of(job, useless=useless) for job in jobs]
    if not statuses:
        return f"{folder}: nothing is trained here; it shows reference runs"
    counts = Counter(status.state for status in statuses)
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    lines = [f"{folder}: {len(statuses)} jobs, {', '.join(parts)}", ""]
    rows = [("dataset", "architecture", *STAGES.values())]
    cells = dict.fromkeys((s.job.dataset, s.job.architecture) for s in statuses)
    for cell in cells:
        own = [s for s in statuses if (s.job.dataset, s.job.architecture) == cell]
        rows.append((*cell, *(_summary([s for s in own if s.job.rule == r]) for r in STAGES)))
    lines += aligned(rows, left=3)
    outdated = Counter(
        (status.job.dataset, status.job.architecture, status.note)
        for status in statuses
        if status.state == "outdated"
    )
    if outdated:
        lines += ["", "outdated, which will run again:"]
    for (dataset, architecture, changed), number in outdated.items():
        lines.append(f"  {dataset} x {architecture}, {counted(number, 'job')}: {changed}")
    for state in ("running", "failed", "stopped"):
        chosen = [status for status in statuses if status.state == state]
        if chosen:
            lines += ["", f"{state}:"]
        for status in chosen:
            job = status.job
            kind = STAGES[job.rule]
            lines.append(f"  {job.dataset} x {job.architecture}, {kind} {job.name}: {status.note}")
            if state == "failed":
                lines.append(f"    log: {job.log}")
    if counts["done"] < len(statuses):
        seconds, unknown = seconds_left(statuses)
        left = f"about {duration_text(seconds)} of one job after another" if seconds else "unknown"
        if unknown:
            left += f"; {unknown} jobs not counted, since none like them is done"
        lines += ["", f"left: {left}"]
    if leftovers:
        lines += ["", "resume states that no job can use any more; each line deletes one:"]
    for state in leftovers:
        size, age = size_text(state.size_bytes), duration_text(state.age_seconds)
        lines.append(f"  {state.command}   # {size}, written {age} ago")
    page = folder / "report.html"
    lines += ["", f"report: {page if page.exists() else 'not built yet'}"]
    return "\n".join(lines)


def _summary(statuses: list[JobStatus]) -> str:
    if not statuses:
        return "-"
    counts = Counter(status.state for status in statuses)
    if len(statuses) == 1:
        return statuses[0].state
    done = f"{counts['done']}/{len(statuses)}"
    return ", ".join(
        [done, *(f"{counts[s]} {s}" for s in ("outdated", "running", "failed") if counts[s])]
    )
