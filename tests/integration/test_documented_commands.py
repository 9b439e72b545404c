"""What README.md and docs/ tell people to type works: every block of commands and of Python is run.

Snakemake plans its jobs and starts none; results are made-up tables. docs/tutorial.md is run by
tests/workflow/test_tutorial.py, docs/extending.md and
docs/own-features.md are run in full by test_extending.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_tables import write_experiment

from neural_collapse.experiment.config import load_config, resolve_recipe
from neural_collapse.experiment.recipe import write_recipe

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_ELSEWHERE = {"extending.md", "own-features.md", "tutorial.md"}
SHELLS = {"sh", "bash", "shell", "console"}
STUDIES = ROOT / "results/reference/studies"
KEPT = STUDIES / "etf"

# Lines that are not run, by how they begin, and why.
JOBS = "needs jobs on a cluster"
NOT_RUN = {
    "make test ": "runs this test",
    "make bench": "minutes to an hour; tests/unit/benchmarks runs their pieces",
    ".venv/bin/python -m pytest": "is run on a machine with a GPU",
    ".venv/bin/neural-collapse check-gpu": "needs a GPU",
    "benchmarks/gpu_window.sh": "needs a GPU; tests/unit/benchmarks runs it without",
    "git clone <this repository>": "a placeholder for an address",
    "tmux ": "needs a terminal",
    "squeue ": JOBS,
    "tail -f ": JOBS,
    "less ": JOBS,
    "sacct ": JOBS,
    "scancel ": JOBS,
    "flock ": "needs two nodes",
}


class Model(torch.nn.Module):
    """A network as README's example has it: 512 features and a layer `fc` of ten classes."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = torch.nn.Flatten(), torch.nn.Linear(512, 10)

    def forward(self, images):
        return self.fc(self.body(images))


def given():
    """What the Python blocks start from."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 2, 16, 16, generator=generator)
    data = torch.utils.data.TensorDataset(images, torch.arange(40) % 10)
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    return {
        "features": np.random.default_rng(0).standard_normal((40, 6)),
        "labels": np.arange(40) % 4,
        "weight": np.random.default_rng(1).standard_normal((4, 6)),
        "bias": np.zeros(4),
        "model": Model(),
        **dict.fromkeys(("loader", "train_loader", "test_loader"), loader),
    }


def blocks(*languages):
    """Every fenced block in one of the languages."""
    found_blocks = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"^( *)```(\S*)\n(.*?)^\1```$", text, re.M | re.S):
            if found[2] in languages and page.name not in RUN_ELSEWHERE:
                line = text[: found.start()].count("\n") + 1
                found_blocks.append(pytest.param(found[3], id=f"{page.relative_to(ROOT)}:{line}"))
    return found_blocks


seen = set()


def first_time(line):
    """Plans cost seconds and leave nothing behind, so each is made once."""
    # Every study's recipe is planned by tests/workflow.
    command = line.split(" #")[0].split("NAME=")[0].strip()
    again = command in seen and command.startswith(("make ", ".venv/bin/snakemake "))
    seen.add(command)
    return not again


def not_run(line):
    return [start for start in NOT_RUN if line.startswith(start)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout that is set up and has results of two experiments."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        source, copy = ROOT / name, folder / name
        # One study of the shipped ones: to draw them all takes most of a minute.
        if source.exists() and (STUDIES not in source.parents or KEPT in source.parents):
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                copy.symlink_to(source.readlink())
            else:
                copy.write_bytes(source.read_bytes())
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    for name, command in {
        "python": sys.executable,
        "snakemake": f"{BIN}/snakemake --dry-run",
        "neural-collapse": f"{sys.executable} -m neural_collapse",
    }.items():
        # A dry run needs none of these; without it Snakemake does.
        asks = (
            'case " $* " in *" --cores "*|*-profile*|*--unlock*|*--dry-run*) ;; *) exit 9 ;; esac\n'
        )
        check = asks if name == "snakemake" else ""
        (programs / name).write_text(f'#!/bin/sh\n{check}exec {command} "$@"\n')
        (programs / name).chmod(0o755)
    for config, datasets, architectures in [
        ("config/quickstart.yaml", ("digits", "mnist_subset"), ("vgg", "resnet", "densenet")),
        ("config.yaml", ("mnist",), ("resnet",)),
    ]:
        config = load_config(ROOT / config)
        results = write_experiment(folder, config.experiment, datasets, architectures)
        for dataset in datasets:
            for architecture in architectures:
                recipe = resolve_recipe(config, dataset, architecture)
                write_recipe(recipe, results / dataset / architecture / "recipe.json")
    (folder / ".venv/.made").touch()  # younger than what it is made from
    return folder


@pytest.mark.parametrize("block", blocks(*SHELLS))
def test_documented_commands_run(block, checkout):
    lines = [line for line in block.splitlines() if not not_run(line) and first_time(line)]
    programs = checkout / ".venv/bin"
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=checkout,
        env=os.environ
        | {"PATH": f"{programs}:{BIN}:{os.environ['PATH']}", "PYTHONPATH": "workflow"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("block", blocks("python"))
def test_documented_python_runs(block):
    names = given()
    exec(compile(block, "block", "exec"), names)
    assert np.isfinite([names["result"].nc1, names["result"].nc3]).all()


def test_documented_blocks_have_a_language_and_reasons_are_used():
    lines = [line for block in blocks(*SHELLS) for line in block.values[0].splitlines()]
    used = {start for line in lines for start in not_run(line)}
    assert used == set(NOT_RUN)
    hidden = [block.id for block in blocks("") if "─►" not in block.values[0]]
    assert not hidden, "a block without a language is not run"
