"""The script for a GPU that is lent for a quarter of an hour, on the CPU and the tiny recipe."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import torch
from benchmarks.measure_along import measure_along
from packaging.requirements import Requirement

from neural_collapse.experiment.stages.measure import compute_statistics, extract_features
from neural_collapse.io.tensors import to_bytes

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu_window.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", SCRIPT, *arguments],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The first command on the CPU, with the tiny recipe: its environment and what it printed."""
    folder = tmp_path_factory.mktemp("dry")
    environment = {"OUT": f"{folder}/out", "NC_WINDOW_FOLDER": f"{folder}/work"}
    environment |= {"NC_WINDOW_CONFIG": "config/tiny.yaml", "NC_WINDOW_DATASET": "digits"}
    environment |= {"NC_WINDOW_DEVICE": "cpu", "NC_WINDOW_TESTS": "2"}
    return folder, environment, run("first", **environment).stdout


@pytest.mark.slow
def test_both_commands_bring_home_a_cell_although_there_is_no_gpu(dry):
    folder, environment, first = dry
    out, work = folder / "out", folder / "work"
    log = (out / "log.txt").read_text()
    assert sorted(log.splitlines()) == sorted(first.splitlines())  # of two steps at a time
    assert "torch finds no GPU here" in log and "== check-gpu: status 2" in log
    steps = ["train-model", "along", "measure-robustness", "tables", "compare"]
    assert [name for name in steps if f"== {name}: status 0" in log] == steps, log[-3000:]
    assert "extract-features" not in log, "measured while the training went on"
    (work / "whole").unlink()
    (work / "cell/robustness.parquet").unlink()
    second = run("second", **environment).stdout
    done = re.findall(r"== ([\w-]+): status 0", second)
    assert sorted(set(done)) == ["compare", "measure-robustness", "tables"]
    assert "== bench: status 1" in second and "train-model" not in second
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "results.tar.gz"]
    with tarfile.open(out / "results.tar.gz") as archive:
        names = set(archive.getnames())
        facts = json.load(archive.extractfile("cell/run.json"))
    assert {"tables/table_1.md", "tables/measurements.parquet", "cell/recipe.json"} <= names
    assert "so-far" not in names, "statistics of a part of the checkpoints"
    assert facts["learning_rate"] == 0.0679


@pytest.mark.slow
def test_checkpoints_measured_during_a_training_give_the_pipelines_statistics(dry, tmp_path):
    work = dry[0] / "work"
    place = {"seed": 0, "state_root": tmp_path / "f", "device": "cpu", "gpus": 0}
    recipe, data, cell = work / "cell/recipe.json", work / "data", tmp_path / "cell"
    checkpoints = work / "cell/checkpoints"
    extract_features(recipe, data, tmp_path / "once", checkpoint_folder=checkpoints, **place)
    once = [tmp_path / f"once/{name}.parquet" for name in ("statistics", "activations")]
    compute_statistics(recipe, tmp_path / "once", *once, seed=0)
    for path in once:
        assert (work / "cell" / path.name).read_bytes() == path.read_bytes()

    # Of a training that was cut off, those of the checkpoints that it left.
    cell.mkdir()
    shutil.copy(recipe, cell)
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(work / "state", tmp_path / "state")
    (last,) = tmp_path.glob("state/*/checkpoints/epoch-0006.safetensors")
    last.unlink()
    (tmp_path / "trained").touch()
    assert not measure_along(tmp_path, "cpu", 0)
    found = pd.read_parquet(tmp_path / "so-far/statistics.parquet")
    expected = pd.read_parquet(once[0]).query("epoch < 6")
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True))
    assert not (cell / "statistics.parquet").exists()


@pytest.fixture
def stub(tmp_path):
    """`stub(status)`: a Python whose programs end at once, with that status, and OUT and folder."""

    def make(status: int) -> dict[str, str]:
        python = tmp_path / "python"
        python.write_text(
            f'#!/bin/sh\n[ "$1" = -m ] && exit {status}\nexec "{sys.executable}" "$@"\n'
        )
        python.chmod(0o755)
        folders = {"OUT": str(tmp_path / "out"), "NC_WINDOW_FOLDER": str(tmp_path / "work")}
        return {"PYTHON": str(python), "NC_WINDOW_CONFIG": "config/tiny.yaml"} | folders

    return make


def test_wheels_that_travel_need_nothing_else():
    """But rich, of any version, which PyTorch's own installations bring."""
    listed = re.search(r"for name in ([^;]+);", SCRIPT.read_text())[1]
    names = set(listed.replace("\\", "").split())
    for name in names:
        for needed in map(Requirement, metadata.requires(name) or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert needed.name in names | {"rich"}, f"{name} needs {needed}"


@pytest.mark.parametrize(
    ("resnet", "expected"), [(1e6, "resnet"), (1e3, "vgg"), (None, "vgg")], ids=str
)
def test_the_cell_is_the_largest_that_fits_in_its_fastest_exact_way(
    stub, tmp_path, resnet, expected
):
    speeds = [
        {"network": network, "precision": precision, "cuda_graphs": graphs, "failure": ""}
        | {"channels_last": True, "images_per_second": speed * factor}
        for network, speed in (("ResNet18", resnet), ("VGG11", 1e5))
        for precision, graphs, factor in (
            ("float32", True, 1),
            ("tf32", True, 2),
            ("tf32", False, 1),
        )
        if speed is not None
    ]
    speeds.append(speeds[0] | {"precision": "bfloat16", "images_per_second": 1e9})
    speeds.append(speeds[0] | {"failure": "out of memory", "images_per_second": 1e9})
    (tmp_path / "work").mkdir()
    (tmp_path / "work/check-gpu.json").write_text(json.dumps({"networks": speeds}))
    changes = {"NC_WINDOW_CONFIG": "config.yaml", "NC_WINDOW_TESTS": "0"}
    log = run("first", **stub(0) | changes).stdout
    assert "== choose: status 0" in log, log
    chosen = json.loads((tmp_path / "work/cell/recipe.json").read_text())
    training = chosen["training"]
    assert chosen["architecture"] == expected
    assert (training["precision"], training["cuda_graphs"]) == ("tf32", True)


@pytest.mark.parametrize(
    ("command", "trained", "steps", "ends_s"), [("first", True, 14, 590), ("second", False, 6, 285)]
)
def test_no_step_may_go_on_beyond_the_end_of_the_command(
    stub, tmp_path, command, trained, steps, ends_s
):
    """With a trained network: what measures it, and the tables twice."""
    if trained:
        (tmp_path / "work/cell").mkdir(parents=True)
        (tmp_path / "work/cell/run.json").touch()
    log = run(command, **stub(0), NC_WINDOW_DATASET="digits").stdout
    limits = [int(found) for found in re.findall(r"at most (\d+) s", log)]
    ended = [int(found) for found in re.findall(r"(\d+) s in all", log)]
    assert len(limits) == len(ended) == steps, log
    for began, limit in zip([0, *ended], limits, strict=False):
        assert began + limit <= ends_s


def test_no_step_starts_without_time(stub):
    log = run("second", **stub(0), NC_WINDOW_SECONDS="5").stdout
    assert "== train-model: left out, no time is left" in log and "at most" not in log


def test_a_training_that_has_not_ended_brings_home_its_learning_curve(stub, tmp_path):
    environment, records = stub(124), [{"epoch": 3, "train_loss": 0.5}]
    metadata = {"epoch": "3", "kernels": "torch", "facts": json.dumps([records, False])}
    for epoch in (2, 3):
        path = tmp_path / f"work/state/key/state-{epoch:06d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_bytes({"w": torch.zeros(2)}, metadata | {"epoch": str(epoch)}))
    (tmp_path / "work/check-gpu.json").write_text("{}")
    log = run("second", **environment).stdout
    assert "== train-model: status 124" in log and "extract-features" not in log
    assert (tmp_path / "out/check-gpu.json").read_text() == "{}"
    with tarfile.open(tmp_path / "out/results.tar.gz") as archive:
        found = json.load(archive.extractfile("cell/state.json"))
    assert (found["epoch"], found["facts"]) == ("3", [records, False])


def test_a_machine_without_the_wheels_is_not_kept_waiting(stub, tmp_path):
    environment = stub(0)
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    done = run("first", **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "packages are missing; run its prepare first" in done.stderr


def test_missing_command_lists_the_commands():
    done = run()
    assert done.returncode == 2
    assert re.findall(r"gpu_window.sh (\w+)", done.stdout) == ["prepare", "first", "second"]
