"""Status of an experiment, from its results, logs, benchmarks and resume states.

Nothing is locked or changed, so it can run during jobs, also on a cluster.
"""

from __future__ import annotations

import csv
import math
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Literal

from ..experiment.config import Config
from ..io.text import aligned, counted, duration_text, size_text
from .jobs import STAGES, Job, changed_since, experiment_jobs, lock_user, written_at
from .leftovers import find_leftovers

State = Literal["done", "outdated", "running", "failed", "stopped", "waiting"]
STATES: tuple[State, ...] = ("done", "outdated", "running", "failed", "stopped", "waiting")
SILENT_SECONDS = 900
"""A job on another machine that has said nothing for so long is taken for stopped."""

_PROGRESS = re.compile(r"(?:epoch|checkpoint) +(\d+)/(\d+)\b.*")
_GPU = re.compile(r"runs on (.+)")
_LEFT = re.compile(r"(?:(\d+):)?(\d+):(\d\d) left")


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
    device: str = ""
    """The GPUs of one that runs, as its log names them."""


def status_of(job: Job, now: float | None = None, useless: Set[Path] = frozenset()) -> JobStatus:
    """How far one job is; `useless` are folders of resume states from which it cannot resume."""
    if job.output.exists():
        changed = changed_since(job)
        return JobStatus(job, "outdated" if changed else "done", changed)
    now = time.time() if now is None else now
    lines = _tail(job.log)
    progress = next((found for line in reversed(lines) if (found := _PROGRESS.search(line))), None)
    note = progress[0] if progress else ""
    if host := _host(job, now):
        elsewhere = "" if host == socket.gethostname() else f" on {host}"
        device = next((found[1] for line in reversed(lines) if (found := _GPU.search(line))), "")
        note = f"{note or 'starting'}{elsewhere}"
        return JobStatus(job, "running", note, *_pace(progress), device)
    if error := _error(lines):
        return JobStatus(job, "failed", error)
    states = {path for path in job.state.glob("*") if path.is_dir()} if job.state else set()
    kept = [path for state in states - useless for path in state.glob("state-*.safetensors")]
    if kept:
        # Of several recipes the one that was in use last.
        newest = max(kept, key=lambda path: (written_at(path), path.name))
        epoch = int(newest.stem.split("-")[1])
        return JobStatus(job, "stopped", f"resumes after epoch {epoch}", *_pace(progress))
    if lines and job.state and job.state.exists() and not states & useless:
        return JobStatus(job, "stopped", note, *_pace(progress))
    return JobStatus(job, "waiting")


def _tail(path: Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 20_000, 0))
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


def _host(job: Job, now: float) -> str | None:
    """Where the job runs, if it does; a state of another recipe has a lock of its own."""
    try:
        idle = now - job.log.stat().st_mtime
    except OSError:
        idle = math.inf
    locks = sorted(job.state.glob("*.lock")) if job.state else ()
    return next(filter(None, (lock_user(lock, idle, SILENT_SECONDS) for lock in locks)), None)


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
    """(seconds left if jobs run one after another, jobs of which nothing is known).

    A waiting job takes as long as those of its kind took or will take, of its own cell where
    there are some.
    """
    taken: dict[tuple, list[float]] = {}
    for status in statuses:
        seconds = _taken(status.job) if status.state == "done" else status.seconds_whole
        if seconds is not None:
            rule = status.job.rule
            for key in [(rule, status.job.cell), (rule,)]:
                taken.setdefault(key, []).append(seconds)
    # A training of the sweep is as long as the one that is kept.
    for key in [key for key in taken if key[0] == "train_candidate"]:
        taken.setdefault(("train_model", *key[1:]), taken[key])
    total, unknown = 0.0, 0
    for status in statuses:
        if status.state == "done":
            continue
        rule, left = status.job.rule, status.seconds_left
        known = taken.get((rule, status.job.cell)) or taken.get((rule,))
        if left is None and known:
            left = mean(known)
        total, unknown = total + (left or 0), unknown + (left is None)
    return total, unknown


def experiment_statuses(
    folder: Path, config: Config | None = None
) -> tuple[list[JobStatus], list[str]]:
    """How far each job is, and lines about the resume states that no job can use any more."""
    leftovers = find_leftovers(folder, config)
    useless = {state.folder for state in leftovers}
    lines = ["resume states that no job can use any more; each line deletes one:"]
    for leftover in leftovers:
        size, age = size_text(leftover.size_bytes), duration_text(leftover.age_seconds)
        lines.append(f"  {leftover.command}   # {size}, written {age} ago")
    jobs = experiment_jobs(folder, config)
    return [status_of(job, useless=useless) for job in jobs], lines if leftovers else []


def status_text(folder: Path, config: Config | None = None) -> str:
    """The whole status as text."""
    statuses, leftovers = experiment_statuses(folder, config)
    if not statuses:
        return f"{folder}: nothing is trained here; it shows reference runs"
    by_state = {state: [s for s in statuses if s.state == state] for state in STATES}
    parts = [f"{len(found)} {state}" for state, found in by_state.items() if found]
    lines = [f"{folder}: {len(statuses)} jobs, {', '.join(parts)}", "", *_table(statuses)]
    outdated = Counter((status.job.cell, status.note) for status in by_state["outdated"])
    if outdated:
        lines += ["", "outdated, which will run again:"]
    for (cell, changed), number in outdated.items():
        lines.append(f"  {' x '.join(cell)}, {counted(number, 'job')}: {changed}")
    for state in ("running", "failed", "stopped"):
        if by_state[state]:
            lines += ["", f"{state}:"]
        for status in by_state[state]:
            lines.append(f"  {status.job}: {status.note}")
            if state == "failed":
                lines.append(f"    log: {status.job.log}")
    if len(by_state["done"]) < len(statuses):
        lines += ["", f"left: {left_text(statuses)}"]
    if leftovers:
        lines += ["", *leftovers]
    page = folder / "report.html"
    lines += ["", f"report: {page if page.exists() else 'not built yet'}"]
    return "\n".join(lines)


def _table(statuses: list[JobStatus]) -> list[str]:
    """A row a cell, a column a stage."""
    rows = [("dataset", "architecture", *STAGES.values())]
    for cell in dict.fromkeys(status.job.cell for status in statuses):
        own = [status for status in statuses if status.job.cell == cell]
        rows.append(
            (*cell, *(stage_summary([s for s in own if s.job.rule == rule]) for rule in STAGES))
        )
    return aligned(rows, left=3)


def stage_summary(statuses: Sequence[JobStatus]) -> str:
    """How far the jobs of one stage of a cell are."""
    if len(statuses) < 2:
        return statuses[0].state if statuses else "-"
    counts = Counter(status.state for status in statuses)
    others = (f"{counts[s]} {s}" for s in ("outdated", "running", "failed") if counts[s])
    return ", ".join([f"{counts['done']}/{len(statuses)}", *others])


def left_text(statuses: list[JobStatus]) -> str:
    """The time left, and how many jobs it does not count."""
    seconds, unknown = seconds_left(statuses)
    text = f"about {duration_text(seconds)} if jobs run one after another" if seconds else "unknown"
    if unknown:
        text += (
            f"; {counted(unknown, 'job')} not counted, since no job of the same kind is finished"
        )
    return text
