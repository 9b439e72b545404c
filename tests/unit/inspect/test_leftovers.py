"""Resume states that no job can use any more are found; what a job may go on from never is."""

import json
import os
import shutil
import subprocess

import pytest
from traces import DEAD, jobs_in, lock

from neural_collapse.cli.main import main
from neural_collapse.data.download import download_dataset
from neural_collapse.data.prepare import prepare_dataset
from neural_collapse.experiment.config import check_config, resolve_recipe
from neural_collapse.experiment.recipe import write_recipe
from neural_collapse.inspect import leftovers
from neural_collapse.inspect.leftovers import find_leftovers
from neural_collapse.inspect.status import status_text
from neural_collapse.io import versions
from neural_collapse.io.locks import FINISHED
from neural_collapse.training.state import StateFolder


@pytest.fixture
def make_config(tmp_path):
    """`make_config(epochs=2, sweep={...}, **config)`: a config of one small cell."""

    def of(epochs=2, sweep=None, **more):
        recipe = {
            "network": {"name": "resnet18", "blocks": [1], "width": 2},
            "data": {"examples_per_class": 8, "test_examples_per_class": 2},
            "training": {"epochs": epochs, "batch_size": 40},
            "sweep": {"count": 2, "learning_rate_min": 0.01} | (sweep or {}),
            "robustness": {"images": 20},
            "measurement": {"epochs": 2, "activation_epochs": 1},
        }
        return check_config(
            {
                "experiment": "e",
                "datasets": ["digits"],
                "architectures": ["resnet"],
                "results_folder": str(tmp_path / "results"),
                "resources_folder": str(tmp_path / "resources"),
                "recipe": recipe,
            }
            | more
        )

    return of


@pytest.fixture
def folder(make_config, tmp_path):
    """The experiment's folder; its data are prepared."""
    recipe = resolve_recipe(make_config(), "digits", "resnet")
    prepared = tmp_path / "resources/digits/prepared" / recipe.data.name
    download_dataset("digits", tmp_path / "raw")
    prepare_dataset("digits", tmp_path / "raw", prepared, recipe.data)
    return tmp_path / "results/e"


def state(job, name="0123456789abcdef"):
    """A resume state under a job's name, as a killed process leaves it."""
    path = job.state / name
    path.mkdir(parents=True)
    (path / "state-000001-0.safetensors").write_bytes(bytes(1000))
    lock(job, DEAD, name=name)
    return path


@pytest.mark.parametrize(
    ("command", "name", "sweep"),
    [
        ("train-candidate", "0.01", {}),
        ("train-candidate", "0.25", {"selection": "held_out_error"}),
        ("train-model", "seed-0", {"learning_rate": 0.1}),
    ],
)
def test_leftovers_state_of_a_training_is_listed_only_if_changed(
    command, name, sweep, folder, make_config, monkeypatch, tmp_path
):
    config = make_config(sweep=sweep)
    rule = "train_model" if command == "train-model" else "train_candidate"
    job = jobs_in(config, "resnet", begun=False)[rule, name]
    write_recipe(job.recipe, tmp_path / "recipe.json")
    more = {
        "train-candidate": ["--learning-rate", name, "--output", tmp_path / "curve.parquet"],
        "train-model": ["--seed", 0, "--checkpoint-folder", tmp_path / "c",
                        "--history", tmp_path / "h.parquet", "--run-facts", tmp_path / "run.json"],
    }[command]  # fmt: skip
    data = tmp_path / "resources/digits/prepared" / job.recipe.data.name
    more += ["--recipe", tmp_path / "recipe.json", "--data-folder", data, "--device", "cpu"]
    monkeypatch.setattr(StateFolder, "finish", lambda self: None)
    assert main([command, *map(str, more), "--state-root", str(job.state)]) == 0
    (kept,) = [path for path in job.state.iterdir() if path.is_dir()]
    lock(job, DEAD, name=kept.name)

    assert find_leftovers(folder, config) == []
    (found,) = find_leftovers(folder, make_config(epochs=3, sweep=sweep))
    assert found.folder == kept and found.size_bytes > 1000
    monkeypatch.setattr(versions, "TRAINING", versions.TRAINING + 1)
    assert [found.folder for found in find_leftovers(folder, config)] == [kept]


def test_leftovers_state_of_a_done_job_is_listed_without_a_config(folder, make_config):
    config = make_config()
    job = jobs_in(config, "resnet", begun=False)["train_candidate", "0.01"]
    kept = state(job)
    write_recipe(job.recipe, folder / "digits/resnet/recipe.json")
    assert find_leftovers(folder) == [], "an unfinished job may resume from it"
    job.output.parent.mkdir(parents=True)
    job.output.touch()
    for given in (None, config):
        assert [found.folder for found in find_leftovers(folder, given)] == [kept]


def test_leftovers_state_that_the_next_job_deletes_is_not_listed(folder, make_config):
    config = make_config()
    job = jobs_in(config, "resnet", begun=False)["train_candidate", "0.01"]
    (state(job) / FINISHED).touch()
    job.output.parent.mkdir(parents=True)
    for _ in range(2):
        assert find_leftovers(folder, config) == []
        job.output.touch()
    # Nothing comes after a candidate that is no longer one.
    (found,) = find_leftovers(folder, make_config(sweep={"count": 3, "learning_rate_min": 0.02}))
    assert found.folder.parent == job.state


def test_leftovers_config_of_a_part_leaves_the_rest(folder, make_config):
    whole = make_config(architectures=["resnet", "vgg"])
    job = jobs_in(whole, begun=False)["train_candidate", "0.01"]
    kept = state(job)
    assert [found.folder for found in find_leftovers(folder, make_config())] == [kept]
    write_recipe(job.recipe, folder / "digits/vgg/recipe.json")
    # The folder knows that cell's recipe, which resumes from its own states alone.
    assert [found.folder for found in find_leftovers(folder, make_config())] == [kept]
    fingerprints = leftovers._fingerprints(job, _hash(job, whole))
    kept.rename(kept.with_name(*fingerprints))
    assert find_leftovers(folder, make_config()) == []


def _hash(job, config):
    prepared = f"{config.resources_folder}/digits/prepared/{job.recipe.data.name}"
    with open(f"{prepared}/card.json", encoding="utf-8") as file:
        return json.load(file)["data_hash"]


def test_leftovers_state_in_use_or_of_unknown_data_is_not_listed(folder, make_config, tmp_path):
    config = make_config()
    job = jobs_in(config, "resnet", begun=False)["train_candidate", "0.01"]
    features = jobs_in(config, "resnet", begun=False)["extract_features", "seed-0"]
    kept = state(job)
    state(features)
    assert [found.folder for found in find_leftovers(folder, config)] == [kept]
    for process, host in [(os.getpid(), None), (1, "node7")]:
        lock(job, process, host, kept.name)
        assert find_leftovers(folder, config) == []
    os.utime(kept / "state-000001-0.safetensors", (1, 1))
    assert len(find_leftovers(folder, config)) == 1, "left behind on the other machine"
    shutil.rmtree(tmp_path / "resources")
    assert find_leftovers(folder, config) == []


def test_leftovers_state_deleted_meanwhile_is_not_listed(folder, make_config, monkeypatch):
    config = make_config()
    kept = state(jobs_in(config, "resnet", begun=False)["train_candidate", "0.01"])

    def deleted(*_):
        shutil.rmtree(kept)
        return False

    monkeypatch.setattr(leftovers, "_usable", deleted)
    assert find_leftovers(folder, config) == []


def test_status_leftover_gives_the_command_that_deletes_it(folder, make_config):
    config = make_config()
    job = jobs_in(config, "resnet", begun=False)["train_candidate", "0.01"]
    kept = state(job)
    job.log.parent.mkdir(parents=True)
    job.log.write_text("digits x resnet  epoch 1/9  loss 0.1  1:30 left\n")
    text = status_text(folder, config)
    (line,) = [line for line in text.splitlines() if "rm -r" in line]
    assert "resumes after" not in text and "6 jobs, 6 waiting" in text
    assert str(kept) in line and "1 kB, written 0 s ago" in line
    assert kept.is_dir()
    subprocess.run(line, shell=True, check=True)
    assert not list(job.state.iterdir())
    assert "resume states" not in status_text(folder, config)
