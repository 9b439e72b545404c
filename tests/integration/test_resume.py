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
from pathlib import Path

import pytest
from experiments import STAGES, alive, wait_until

from neural_collapse.cli.main import main
from neural_collapse.experiment.recipe import Recipe, write_recipe
from neural_collapse.io.locks import clear_finished

EPOCHS = 60
MEASURED = [1, 2, 3, 5, 8, 13, 21, 30, 45, 60]
# What each job delivers; run.json holds times.
JOBS = {
    "train-model": ["checkpoints", "history.parquet"],
    "train-candidate": ["curve.parquet"],
    "extract-features": ["features"],
    "measure-robustness": ["robustness.parquet"],
}


class Cold:
    """Runs jobs in new processes."""

    def start(self, arguments: list[str], errors: Path):
        with open(errors, "a") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "neural_collapse", *arguments], stderr=file
            )
        return process.pid, process.wait


def run(arguments, log: Path) -> None:
    """Run a job to its end, expecting success."""
    assert STAGES.start(arguments, log)[1]() == 0, log.read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The prepared digits, a recipe, and the outputs of jobs that nobody interrupted."""
    place = tmp_path_factory.mktemp("with spaces and ü")
    log, digits = place / "log", ["--dataset", "digits", "--output-folder"]
    run(["download-dataset", *digits, place / "raw"], log)
    few = '{"examples_per_class": 20, "test_examples_per_class": 5}'
    prepare = ["--raw-folder", place / "raw", "--data-recipe", few]
    run(["prepare-dataset", *digits, place / "data", *prepare], log)
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
        run(command(job, place, place / "whole"), log)
    return place


def command(job: str, place: Path, out: Path) -> list[str]:
    """The command line of a job that reads from an uninterrupted run and writes to `out`."""
    checkpoints = f"--checkpoint-folder={place}/whole/checkpoints"
    own = {
        "train-model": [
            *(f"--checkpoint-folder={out}/checkpoints", "--seed=3"),
            *(f"--history={out}/history.parquet", f"--run-facts={out}/run.json"),
        ],
        "train-candidate": ["--learning-rate=0.05", f"--output={out}/curve.parquet"],
        "extract-features": [checkpoints, "--seed=3", f"--output-folder={out}/features"],
        "measure-robustness": [checkpoints, "--seed=3", f"--output={out}/robustness.parquet"],
    }[job]
    return [
        *(job, f"--recipe={place}/recipe.json", f"--data-folder={place}/data"),
        *("--device=cpu", "--gpus=0", f"--state-root={out}/state/{job}", *own),
    ]


def contents(root: Path, names: list[str]) -> dict[str, bytes]:
    """Every file of these files and folders."""
    paths = [path for name in names for path in (root / name, *(root / name).rglob("*"))]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


def delete(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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
        time.sleep(0.001)  # a polling interval, which leaves the core to the job
    until = time.perf_counter() + moment
    while time.perf_counter() < until:
        pass  # a random instant within a step
    if alive(process):
        os.kill(process, how)
    return status()


def check(launcher, place: Path, out: Path, job: str, kills: int, how: int, seed: int) -> None:
    arguments, state, errors = command(job, place, out), out / "state" / job, out / "errors"
    chance = random.Random(seed)
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
        assert contents(out, JOBS[job]) == contents(place / "whole", JOBS[job])
        clear_finished(state)
        assert not state.exists()
        if killed == kills:
            break
        # A fast machine was done before all kills had come: once more from the beginning.
        delete(out, JOBS[job])
    said = errors.read_text()
    assert "Traceback" not in said
    if job.startswith("train"):
        assert "continues after epoch" in said


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
def test_a_job_killed_many_times_ends_with_the_same_bits(place, tmp_path, job, kills, how, seed):
    check(STAGES, place, tmp_path, job, kills, how, seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "kills"), [("train-model", 20), ("extract-features", 4), ("measure-robustness", 4)]
)
def test_a_cold_job_killed_many_times_ends_with_the_same_bits(place, tmp_path, job, kills):
    check(Cold(), place, tmp_path, job, kills, signal.SIGKILL, 7)


@pytest.mark.parametrize("job", JOBS)
def test_results_that_are_deleted_at_the_last_moment_are_made_again_at_once(place, tmp_path, job):
    """Snakemake deletes the results of a job that is killed after its last line, or whose end it
    did not live to see."""
    arguments, state = command(job, place, tmp_path), tmp_path / "state" / job
    run(arguments, tmp_path / "first")
    worked = steps_done(state)
    assert worked
    delete(tmp_path, JOBS[job])
    run(arguments, tmp_path / "second")
    assert steps_done(state) == worked
    said = (tmp_path / "second").read_text()
    assert "epoch 1/" not in said and "checkpoint 1/" not in said
    if job.startswith("train"):
        assert f"continues after epoch {EPOCHS}" in said
    assert contents(tmp_path, JOBS[job]) == contents(place / "whole", JOBS[job])
    clear_finished(state)
    assert not state.exists()


@pytest.mark.parametrize(("job", "output"), [("train-model", "checkpoints"),
                                            ("extract-features", "features")])  # fmt: skip
def test_a_corrupt_result_is_made_again_after_its_folder_was_deleted(place, tmp_path, job, output):
    """The result and the file of the resume state are one file, by a hard link."""
    arguments = command(job, place, tmp_path)
    run(arguments, tmp_path / "first")
    with open(sorted((tmp_path / output).iterdir())[-1], "rb+") as file:
        file.truncate(1000)
    delete(tmp_path, JOBS[job])
    run(arguments, tmp_path / "second")
    assert contents(tmp_path, JOBS[job]) == contents(place / "whole", JOBS[job])


def test_training_records_which_epochs_it_kept(place):
    """By which `status` knows that a changed measurement.epochs will train again."""
    run = json.loads((place / "whole" / "run.json").read_text())
    assert run["kept_epochs"] == [0, *MEASURED]


def test_second_job_on_the_same_state_names_the_first(place, tmp_path, capsys):
    arguments = command("train-model", place, tmp_path)
    first, status = STAGES.start(arguments, tmp_path / "errors")
    wait_until(lambda: steps_done(tmp_path / "state"), "a step is done")
    os.kill(first, signal.SIGSTOP)
    try:
        assert main(arguments) == 2
    finally:
        os.kill(first, signal.SIGCONT)
    (said,) = capsys.readouterr().err.splitlines()
    assert f"is in use by process {first} on " in said
    assert status() == 0
    delivered = JOBS["train-model"]
    assert contents(tmp_path, delivered) == contents(place / "whole", delivered)
