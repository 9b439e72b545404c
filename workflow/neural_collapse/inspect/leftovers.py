"""Unused resume states: those of an earlier recipe or an earlier version of the training code.

The states of a finished job are deleted when the next job starts. Unused ones remain until a user
deletes them, because a recipe may be changed back.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from ..experiment.config import Config
from ..io.locks import FINISHED
from ..training.schedule import SWEEP_EVALUATIONS, spaced_epochs
from .jobs import Job, changed_since, experiment_jobs, lock_user

IN_USE_SECONDS = 86_400
"""A state that a process on another machine has locked is taken for in use for so long after it
was last written."""


@dataclass(frozen=True)
class Leftover:
    """A folder of resume states that nothing can use."""

    folder: Path
    size_bytes: int
    age_seconds: float
    """Since it was last written."""

    @property
    def command(self) -> str:
        """What deletes it, and its lock."""
        return f"rm -r {shlex.quote(str(self.folder))}*"


def find_leftovers(folder: Path, config: Config | None = None) -> list[Leftover]:
    """Resume states in an experiment's folder that none of its jobs can use.

    Those are the states of jobs that are done or in no recipe, and, where a config says where its
    data lie, of trainings by another recipe. States in use are left out, and so is what cannot be
    judged, or is only kept until the next job deletes it.
    """
    states = sorted(path for path in folder.glob(".state/*/*") if path.is_dir())
    jobs = _jobs(folder, config) if states else {}
    found = []
    for path in states:
        job = jobs.get(path.parent.name)
        if job is not None and ((path / FINISHED).exists() or _usable(path.name, job, config)):
            continue
        try:
            files = [file.stat() for file in path.rglob("*") if file.is_file()]
            written = max((file.st_mtime for file in files), default=path.stat().st_mtime)
        except FileNotFoundError:  # a job or a user has just deleted it, or a file of it
            continue
        age = time.time() - written
        if lock_user(Path(f"{path}.lock"), age, IN_USE_SECONDS) is None:
            found.append(Leftover(path, sum(file.st_size for file in files), age))
    return found


def _jobs(folder: Path, config: Config | None) -> dict[str, Job]:
    """Jobs by the name of their states' folder.

    A config may be of a part of the experiment: cells and seeds that only its folder knows are
    jobs as well.
    """
    jobs = experiment_jobs(folder, config)
    if config is not None and any(folder.glob("*/*/recipe.json")):
        jobs = [*experiment_jobs(folder, None), *jobs]
    return {job.state.name: job for job in jobs if job.state is not None}


def _usable(name: str, job: Job, config: Config | None) -> bool:
    """Whether a state of this fingerprint is one from which the job would resume, or may."""
    if job.output.exists() and not changed_since(job):
        return False
    if config is None or job.rule not in ("train_candidate", "train_model"):
        return True
    card = config.data_card(job.recipe)
    return card is None or "data_hash" not in card or name in _fingerprints(job, card["data_hash"])


def _fingerprints(job: Job, data_hash: str) -> set[str]:
    """Every fingerprint that the states of a training can have."""
    from ..training.loop import training_fingerprint
    from ..training.selection import held_out_hash

    recipe, sweep = job.recipe, job.recipe.sweep
    if job.seed is not None:
        # Which rate wins may not be known yet.
        return {
            training_fingerprint(recipe, data_hash, rate, job.seed, recipe.measured_epochs)
            for rate in sweep.learning_rates
        }
    if sweep.selection == "held_out_error":
        data_hash = held_out_hash(data_hash, sweep.held_out_fraction, sweep.seed)
    judged = spaced_epochs(recipe.training.epochs, SWEEP_EVALUATIONS)
    return {training_fingerprint(recipe, data_hash, job.learning_rate, sweep.seed, (), judged)}
