"""What README.md and docs/ tell people to type works: every block of commands and of Python is run.

Snakemake plans its jobs and starts none; results are made-up tables. docs/tutorial.md is run by
tests/workflow/test_tutorial.py, docs/extending.md and docs/own-features.md in full by
test_extending.py.
"""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from experiments import BIN, ROOT, SNAKEMAKE, STAGES
from sample_tables import write_experiment

from neural_collapse.experiment.config import load_config, resolve_recipe
from neural_collapse.experiment.recipe import write_recipe

PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_ELSEWHERE = {"extending.md", "own-features.md", "tutorial.md"}
SHELLS = {"sh", "bash", "shell", "console"}
# One set of the shipped ones, since to draw them all takes most of a minute, and another's tables.
SETS = ROOT / "results/reference"
KEPT = {SETS / "studies/etf", SETS / "paper-narrow/tables"}

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
        if source.exists() and (SETS not in source.parents or KEPT & {*source.parents}):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy, follow_symlinks=False)
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    for name, command in {
        "python": f'exec {STAGES.python()} "$@"',
        "neural-collapse": f'exec {STAGES.python()} -m neural_collapse "$@"',
        "snakemake": f'echo "$@" >> {folder}/planned',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{command}\n")
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


planned = set()


def first_time(plan):
    """Plans cost seconds and leave nothing behind: each is made once, and that of one study."""
    plan = re.sub(r"studies/\w+|--dry-run|--quiet rules host|--quiet| #.*", "", plan).strip()
    again = plan in planned
    planned.add(plan)
    return not again


def check_plan(checkout, line):
    """Snakemake plans its jobs."""
    # A dry run needs none of these; without it Snakemake does.
    assert re.search(r"--cores |-profile |--unlock", line), line
    said = checkout / "said"
    said.unlink(missing_ok=True)
    status = SNAKEMAKE.start(["--dry-run", *line.split()], said, checkout)[1]()
    assert status == 0, said.read_text()[-4000:]


@pytest.mark.parametrize("block", blocks(*SHELLS))
def test_documented_commands_run(block, checkout):
    lines = [line for line in block.splitlines() if not not_run(line)]
    lines = [line for line in lines if not line.startswith("make plan") or first_time(line)]
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=checkout,
        env=os.environ
        | {"PATH": f"{checkout}/.venv/bin:{BIN}:{os.environ['PATH']}", "PYTHONPATH": "workflow"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    calls = checkout / "planned"
    if calls.exists():
        for line in filter(first_time, calls.read_text().splitlines()):
            check_plan(checkout, line)
        calls.unlink()


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
