"""Jobs that are killed at random instants end with the bits of jobs that never were.

Every job is the command line itself.  When to kill is decided by what the job has left on disk so
far, plus a random moment, all from one seed; only the exact instruction differs between runs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neural_collapse.experiment.recipe import Recipe, write_recipe
from neural_collapse.io.locks import clear_finished

EPOCHS = 60
MEASURED = [1, 2, 3, 5, 8, 13, 21, 30, 45, 60]

# Importing torch takes seconds, which would be most of this test's time: a process that has
# imported it already forks a fresh one for each job.
NURSERY = """
import json, os, sys
import neural_collapse.cli.main
import neural_collapse.experiment.stages.train, neural_collapse.experiment.stages.measure
import neural_collapse.results.tables, neural_collapse.training.loop
import neural_collapse.collapse.features
import neural_collapse.collapse.attacks, neural_collapse.networks.build

for line in sys.stdin:
    arguments, errors = json.loads(line)
    child = os.fork()
    if child == 0:
        descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 2)
        os._exit(neural_collapse.cli.main.main(arguments))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Runs jobs in processes forked off a warm one."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, arguments: list[str], errors: Path) -> tuple[int, Callable[[], int]]:
        """The job's process id, and a function that waits for its exit status."""
        self.process.stdin.write(json.dumps([arguments, str(errors)]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), lambda: int(self.process.stdout.readline())


class Cold:
    """Runs jobs in new processes."""

    def start(self, arguments: list[str], errors: Path) -> tuple[int, Callable[[], int]]:
        with open(errors, "a") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "neural_collapse", *arguments], stderr=file
            )
        return process.pid, process.wait


@pytest.fixture(scope="module")
def nursery():
    warm = Nursery()
    yield warm
    warm.process.stdin.close()
    warm.process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory, nursery):
    """The prepared digits, a recipe, and the outputs of jobs that nobody interrupted."""
    place = tmp_path_factory.mktemp("with spaces and ü")
    for arguments in (
        ["download-dataset", "--dataset", "digits", "--output-folder", str(place / "raw")],
        [
            "prepare-dataset", "--dataset", "digits", "--raw-folder", str(place / "raw"),
            "--output-folder", str(place / "data"),
            "--data-recipe", '{"examples_per_class": 20, "test_examples_per_class": 5}',
        ],
    ):  # fmt: skip
        assert nursery.start(arguments, place / "log")[1]() == 0, (place / "log").read_text()
    recipe = Recipe(
        dataset="digits",
        architecture="densenet",
        network={"family": "densenet", "blocks": [1, 1], "growth": 4},
        training={"epochs": EPOCHS, "batch_size": 32, "evaluation_batch_size": 100},
        sweep={"learning_rate": 0.05},
        measurement={"epochs": MEASURED, "activation_examples_per_class": 5},
        robustness={"images": 10, "max_steps": 5},
    )
    write_recipe(recipe, place / "recipe.json")
    for job in JOBS:
        status = nursery.start(command(job, place, place / "whole"), place / "log")[1]()
        assert status == 0, (place / "log").read_text()
    return place


def command(job: str, place: Path, out: Path) -> list[str]:
    """The command line of a job that reads from an uninterrupted run and writes to `out`."""
    common = [
        job, "--recipe", str(place / "recipe.json"), "--data-folder", str(place / "data"),
        "--device", "cpu", "--gpus", "0", "--state-root", str(out / "state" / job),
    ]  # fmt: skip
    checkpoints = ["--checkpoint-folder", str(place / "whole" / "checkpoints")]
    return common + {
        "train-model": [
            "--checkpoint-folder", str(out / "checkpoints"), "--seed", "3",
            "--history", str(out / "history.parquet"), "--run-facts", str(out / "run.json"),
        ],
        "train-candidate": [
            "--learning-rate", "0.05", "--output", str(out / "curve.parquet"),
        ],
        "extract-features": [*checkpoints, "--output-folder", str(out / "features")],
        "measure-robustness": [
            *checkpoints, "--seed", "3", "--output", str(out / "robustness.parquet"),
        ],
    }[job]  # fmt: skip


# What each job delivers; run.json holds times.
JOBS = {
    "train-model": ["checkpoints", "history.parquet"],
    "train-candidate": ["curve.parquet"],
    "extract-features": ["features"],
    "measure-robustness": ["robustness.parquet"],
}


def contents(root: Path, names: list[str]) -> dict[str, bytes]:
    found = {}
    for name in names:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def steps_done(state: Path) -> set[str]:
    """What a job has finished so far: the names of its whole state files."""
    return {path.name for path in state.rglob("[es]*.safetensors")}


def interrupt(launcher, arguments, state: Path, errors: Path, how, chance: random.Random) -> int:
    """Start a job, let it do some steps, and kill it; its exit status, 0 if it was done before."""
    before = steps_done(state)
    wanted = chance.choice([0, 0, 1, 1, 2])
    moment = chance.uniform(0, 0.03)
    process, status = launcher.start(arguments, errors)
    new: set[str] = set()
    # From the lock on it may be in the middle of something.
    while alive(process) and not (len(new) >= wanted and any(state.glob("*.lock"))):
        new |= steps_done(state) - before
    until = time.perf_counter() + moment
    while time.perf_counter() < until:
        pass  # a random instant within a step
    if alive(process):
        os.kill(process, how)
    return status()


@pytest.mark.parametrize(
    ("job", "kills", "how", "seed"),
    [
        ("train-model", 24, signal.SIGKILL, 1),
        ("train-model", 5, signal.SIGTERM, 2),
        ("train-candidate", 5, signal.SIGKILL, 3),
        ("extract-features", 5, signal.SIGKILL, 4),
        ("measure-robustness", 5, signal.SIGKILL, 5),
        ("measure-robustness", 2, signal.SIGTERM, 6),
    ],
)
def test_a_job_killed_many_times_ends_with_the_same_bits(
    place, nursery, tmp_path, job, kills, how, seed
):
    check(nursery, place, tmp_path, job, kills, how, seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "kills"), [("train-model", 20), ("extract-features", 4), ("measure-robustness", 4)]
)
def test_a_cold_job_killed_many_times_ends_with_the_same_bits(place, tmp_path, job, kills):
    check(Cold(), place, tmp_path, job, kills, signal.SIGKILL, 7)


def check(launcher, place: Path, out: Path, job: str, kills: int, how: int, seed: int) -> None:
    arguments, state, errors = command(job, place, out), out / "state" / job, out / "errors"
    chance = random.Random(seed)
    delivered = JOBS[job]
    killed = 0
    while True:
        if killed < kills:
            status = interrupt(launcher, arguments, state, errors, how, chance)
        else:
            status = launcher.start(arguments, errors)[1]()
        if status == -how:
            killed += 1
            continue
        assert status == 0, errors.read_text()
        assert contents(out, delivered) == contents(place / "whole", delivered)
        clear_finished(state)
        assert not state.exists()
        if killed == kills:
            break
        # A fast machine was done before all kills had come: once more from the beginning.
        for name in delivered:
            top = out / name
            shutil.rmtree(top) if top.is_dir() else top.unlink()
    said = errors.read_text()
    assert "Traceback" not in said
    if job.startswith("train"):
        assert "continues after epoch" in said


@pytest.mark.parametrize("job", JOBS)
def test_results_that_are_deleted_at_the_last_moment_are_made_again_at_once(
    place, nursery, tmp_path, job
):
    """Snakemake deletes the results of a job that is killed after its last line, or whose end it
    did not live to see."""
    arguments, state, errors = (
        command(job, place, tmp_path),
        tmp_path / "state" / job,
        tmp_path / "e",
    )
    assert nursery.start(arguments, errors)[1]() == 0
    worked = steps_done(state)
    assert worked
    for name in JOBS[job]:
        top = tmp_path / name
        shutil.rmtree(top) if top.is_dir() else top.unlink()
    errors.unlink()
    assert nursery.start(arguments, errors)[1]() == 0
    assert steps_done(state) == worked
    said = errors.read_text()
    assert "epoch 1/" not in said and "checkpoint 1/" not in said
    if job.startswith("train"):
        assert f"continues after epoch {EPOCHS}" in said
    assert contents(tmp_path, JOBS[job]) == contents(place / "whole", JOBS[job])
    clear_finished(state)
    assert not state.exists()


def test_a_training_says_which_epochs_it_kept(place):
    """By which `status` knows that a changed measurement.epochs will train again."""
    run = json.loads((place / "whole" / "run.json").read_text())
    assert run["kept_epochs"] == [0, *MEASURED]


def test_a_second_job_in_the_same_place_says_who_is_there(place, nursery, tmp_path):
    arguments = command("train-model", place, tmp_path)
    first, status = nursery.start(arguments, tmp_path / "errors")
    while not steps_done(tmp_path / "state"):
        assert alive(first), (tmp_path / "errors").read_text()
    os.kill(first, signal.SIGSTOP)
    try:
        second = subprocess.run(
            [sys.executable, "-m", "neural_collapse", *arguments], capture_output=True, text=True
        )
    finally:
        os.kill(first, signal.SIGCONT)
    assert second.returncode == 2
    assert f"is in use by process {first} on " in second.stderr
    assert second.stderr.count("\n") == 1
    assert status() == 0
    delivered = JOBS["train-model"]
    assert contents(tmp_path, delivered) == contents(place / "whole", delivered)
