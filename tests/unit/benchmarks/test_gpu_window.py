"""The script for a GPU that is lent for a quarter of an hour, on the CPU and the tiny recipe."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu_window.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", SCRIPT, *arguments],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_both_commands_bring_home_a_cell_although_there_is_no_gpu(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    dry = {"OUT": str(out), "NC_WINDOW_FOLDER": str(work), "NC_WINDOW_CONFIG": "config/tiny.yaml"}
    dry |= {"NC_WINDOW_DATASET": "digits", "NC_WINDOW_DEVICE": "cpu", "NC_WINDOW_TESTS": "2"}
    first = run("first", **dry)
    log = (out / "log.txt").read_text()
    assert log == first.stdout
    assert "torch finds no GPU here" in log and "== check-gpu: status 2" in log
    assert "== train-model: status 0" in log, log[-3000:]
    second = run("second", **dry)
    steps = ["extract-features", "compute-statistics", "measure-robustness", "tables", "compare"]
    assert [name for name in steps if f"== {name}: status 0" in second.stdout] == steps
    assert "train-model" not in second.stdout
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "tables.tar.gz"]
    with tarfile.open(out / "tables.tar.gz") as archive:
        names = set(archive.getnames())
        facts = json.load(archive.extractfile("cell/run.json"))
    assert {"tables/table_1.md", "tables/measurements.parquet", "cell/recipe.json"} <= names
    assert facts["learning_rate"] == 0.0679


def test_without_a_command_it_says_what_there_are():
    done = run()
    assert done.returncode == 2
    assert re.findall(r"gpu_window.sh (\w+)", done.stdout) == ["prepare", "first", "second"]
