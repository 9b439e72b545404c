"""`neural-collapse status`: every state a job can be in, from the traces that it leaves."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml
from traces import CONFIG, DEAD, done, jobs_in, lock, log, make_config

from neural_collapse.cli.main import main
from neural_collapse.experiment.config import resolve_recipe
from neural_collapse.experiment.recipe import Recipe
from neural_collapse.inspect.jobs import _difference
from neural_collapse.inspect.status import SILENT_SECONDS, seconds_left, status_of, status_text
from neural_collapse.io import versions
from neural_collapse.results.run_facts import DECIDES_TRAINING


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


@pytest.fixture
def jobs(config):
    return jobs_in(config)


@pytest.fixture
def job(jobs):
    return jobs["train_model", "seed-0"]


PROGRESS = "digits x vgg  epoch 4/9  loss 0.1  1:30 left\n"


def test_status_job_not_begun_is_waiting(job):
    status = status_of(job)
    assert (status.state, status.note) == ("waiting", "")


def test_status_living_process_is_running_with_its_pace(job):
    log(job, PROGRESS)
    lock(job)
    status = status_of(job)
    assert status.state == "running" and status.seconds_left == 90
    assert status.note == "epoch 4/9  loss 0.1  1:30 left"


def test_status_reads_no_more_than_the_end_of_a_long_log(job):
    log(job, "x" * 10_000_000 + "\n" + PROGRESS)
    lock(job)
    tracemalloc.start()
    assert status_of(job).note == "epoch 4/9  loss 0.1  1:30 left"
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_status_killed_process_is_stopped_after_its_state(job):
    log(job, PROGRESS)
    lock(job, DEAD)
    assert status_of(job).state == "stopped"
    (job.state / "abc").mkdir()
    for epoch in (2, 3):
        (job.state / "abc" / f"state-{epoch:06d}-0.safetensors").touch()
    status = status_of(job)
    assert (status.state, status.note) == ("stopped", "resumes after epoch 3")
    (job.state / "def").mkdir()  # of an earlier recipe
    earlier = job.state / "def" / "state-000009-0.safetensors"
    earlier.touch()
    os.utime(earlier, (0, 0))
    assert status_of(job).note == "resumes after epoch 3"
    # As one that is deleted after it was listed.
    (job.state / "abc" / "state-000004-0.safetensors").symlink_to("deleted")
    assert status_of(job).note == "resumes after epoch 3"


def test_status_lock_of_another_recipe_hides_no_process(job):
    log(job, PROGRESS)
    lock(job, DEAD)
    lock(job, name="zzz")
    assert status_of(job).state == "running"


def test_status_job_elsewhere_is_running_while_its_log_grows(job):
    log(job, PROGRESS)
    lock(job, 1, "node7")
    assert status_of(job).state == "running" and status_of(job).note.endswith("on node7")
    assert status_of(job, time.time() + SILENT_SECONDS + 1).state == "stopped"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (PROGRESS + "error: the disk is full; make room\n", "the disk is full; make room"),
        ("Traceback (most recent call last):\n  File x\nValueError: no\n", "ValueError: no"),
        ("torch.OutOfMemoryError: CUDA out of memory\n", "torch.OutOfMemoryError: CUDA out of"),
    ],
)
def test_status_failed_job_gives_its_reason(job, text, note):
    log(job, text)
    status = status_of(job)
    assert status.state == "failed" and status.note.startswith(note)
    log(job, text + PROGRESS * 4)
    lock(job)
    assert status_of(job).state == "running", "tried again"
    done(job)
    assert status_of(job).state == "done"


def test_seconds_left_come_from_jobs_of_the_same_kind(jobs):
    done(jobs["train_model", "seed-0"], 100)
    done(jobs["extract_features", "seed-0"], 10)
    done(jobs["compute_statistics", "seed-0"], 1)
    statuses = [status_of(job) for job in jobs.values()]
    # One training, extraction and statistics of seed 1; of the attacks nothing is known.
    assert seconds_left(statuses) == (111, 2)
    log(jobs["train_model", "seed-1"], PROGRESS)
    lock(jobs["train_model", "seed-1"])
    assert seconds_left([status_of(job) for job in jobs.values()])[0] == 101


def test_seconds_left_pace_of_a_stopped_job_counts(jobs):
    stopped, waiting = jobs["train_model", "seed-0"], jobs["train_model", "seed-1"]
    log(stopped, PROGRESS)
    lock(stopped, DEAD)
    statuses = [status_of(job) for job in (stopped, waiting)]
    assert [status.state for status in statuses] == ["stopped", "waiting"]
    # 90 s for the five epochs that are left, so nine take 162 s.
    assert seconds_left(statuses) == (90 + 162, 0)
    log(stopped, "digits x vgg  epoch 9/9  loss 0.1  0:00 left\n")
    assert seconds_left([status_of(job) for job in (stopped, waiting)]) == (0, 1)


def test_status_text_counts_with_a_config_and_without(config, jobs, tmp_path, capsys):
    done(jobs["train_model", "seed-0"], 100)
    log(jobs["train_model", "seed-1"], "error: it went wrong\n")
    text = status_text(Path(config.folder), config)
    # resnet: two candidates and four jobs a seed; vgg, which is pinned: four jobs a seed.
    assert "18 jobs, 1 done, 1 failed, 16 waiting" in text
    assert "digits x vgg, training seed-1: it went wrong" in text
    assert str(jobs["train_model", "seed-1"].log) in text
    assert "0/2" in text and "report: not built yet" in text

    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"results_folder": str(tmp_path)}))
    assert main(["status", "--config", str(path)]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert main(["status", config.folder]) == 0
    assert "8 jobs, 1 done, 1 failed, 6 waiting" in capsys.readouterr().out


def trained(job, recipe, version=versions.TRAINING):
    """A finished training, by a recipe."""
    run = {"recipe": recipe, "training_version": version}
    if isinstance(recipe, Recipe):
        pinned = recipe.sweep.learning_rate
        run |= {
            "recipe": recipe.model_dump(mode="json", include=DECIDES_TRAINING),
            "learning_rate": pinned or 0.05,
            "learning_rate_origin": "pinned" if pinned else "sweep",
            "kept_epochs": recipe.measured_epochs,
        }
    job.output.parent.mkdir(parents=True, exist_ok=True)
    job.output.write_text(json.dumps(run))


def changed(config, **recipe):
    """The recipe of a cell, with changes of its parts, as `training={"epochs": 8}`."""
    values = resolve_recipe(config, "digits", "vgg").model_dump()
    return Recipe.model_validate(values | {k: values[k] | v for k, v in recipe.items()})


@pytest.mark.parametrize(
    ("was", "note"),
    [
        ({"training": {"epochs": 6}}, "training.epochs was 6, is 9"),
        (
            {"training": {"optimizer": {"name": "sgdw"}}},
            "training.optimizer was {'betas': [0.9, 0.999], 'epsilon': 1e-08, 'name': 'sgdw'}, "
            "is 'the default'",
        ),
        ({"network": {"width": 8}}, "network.width was 8, is 64"),
        ({"network": {"classifier": "etf"}}, "network.classifier was 'etf', is 'the default'"),
        ({"data": {"examples_per_class": 20}}, "data.examples_per_class was 20, is None"),
        ({"sweep": {"learning_rate": 0.2}}, "sweep.learning_rate was 0.2, is 0.1"),
        ({"sweep": {"learning_rate": None}}, "sweep.learning_rate was None, is 0.1"),
        ({"measurement": {"epochs": (1, 9)}}, "measurement.epochs asks for epoch 3"),
        (
            {"measurement": {"epochs": tuple(range(1, 10))}},
            "measurement.epochs no longer asks for epoch 2",
        ),
        ({"training": {"evaluation_batch_size": 7}}, ""),
        ({"training": {"tensorboard": True}}, ""),
        ({"measurement": {"terminal_phase_accuracy": 0.9}}, ""),
        ({"robustness": {"images": 7}, "resources": {"memory_mb": 5}}, ""),
        ({"sweep": {"count": 9, "seed": 3}}, ""),
    ],
)
def test_status_other_recipe_is_outdated(was, note, job, jobs, config):
    trained(job, changed(config, **was))
    done(jobs["extract_features", "seed-0"])
    for status in (status_of(job), status_of(jobs["extract_features", "seed-0"])):
        assert (status.state, status.note) == ("outdated" if note else "done", note)
    assert status_of(jobs["train_model", "seed-1"]).state == "waiting"


def test_status_rate_that_the_sweep_lacks_is_outdated(config):
    recipe = changed(config, sweep={"learning_rate": None})
    kept = recipe.sweep.learning_rates[0]
    run = {"recipe": recipe.model_dump(mode="json"), "learning_rate_origin": "sweep"}
    assert not _difference(run | {"learning_rate": kept}, recipe, False)
    other = _difference(run | {"learning_rate": kept * (1 + 1e-9)}, recipe, False)
    assert other.endswith("which the sweep lacks now")


def test_status_other_training_version_is_outdated(job, config):
    trained(job, changed(config), 1)
    assert status_of(job).state == "outdated" and "version 1 of the training" in status_of(job).note


@pytest.mark.parametrize("recipe", [{}, {"training": {}}, {"training": None}, [], None])
def test_status_run_without_a_recipe_is_done(recipe, job):
    trained(job, recipe)
    assert status_of(job).state == "done"


def test_status_sweep_is_outdated_with_its_training(config):
    jobs = jobs_in(config, "resnet")
    candidate = next(job for (rule, _), job in jobs.items() if rule == "train_candidate")
    training, recipe = jobs["train_model", "seed-0"], candidate.recipe
    done(candidate)
    old = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 6})})
    trained(training, old)
    os.utime(candidate.output, (1, 1))
    assert status_of(candidate).state == "outdated"
    os.utime(training.output, (1, 1))
    os.utime(candidate.output, (2, 2))
    assert status_of(candidate).state == "done", "made since"


def test_status_text_names_changed_keys(config, job, jobs):
    trained(job, changed(config, training={"epochs": 6}))
    for rule in ("extract_features", "compute_statistics", "measure_robustness"):
        done(jobs[rule, "seed-0"])
    text = status_text(Path(config.folder), config)
    assert "18 jobs, 4 outdated, 14 waiting" in text
    assert "digits x vgg, 4 jobs: training.epochs was 6, is 9" in text
    assert "0/2, 1 outdated" in text and "left: " in text
    assert "not counted, since no job of the same kind is finished" in text


def test_status_wrong_folder_is_one_sentence(tmp_path, capsys):
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder of results" in capsys.readouterr().err
    assert main(["status", str(tmp_path)]) == 2
    assert "contains no recipe, so no job has started" in capsys.readouterr().err


def test_status_changes_no_file(job, config):
    log(job, PROGRESS)
    lock(job)
    before = {path: path.stat().st_mtime_ns for path in Path(config.folder).rglob("*")}
    status_text(Path(config.folder), config)
    assert {path: path.stat().st_mtime_ns for path in Path(config.folder).rglob("*")} == before
