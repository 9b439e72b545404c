"""Runs of the workflow, each in a folder of its own; and what runs leave running."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import yaml
from warm import Forks

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

SNAKEMAKE = Forks("snakemake.cli", "snakemake.workflow", "neural_collapse.experiment.targets")
STAGES = Forks(
    "neural_collapse.cli.main",
    "neural_collapse.experiment.stages.train",
    "neural_collapse.experiment.stages.measure",
    "neural_collapse.results.tables",
    "neural_collapse.training.loop",
    "neural_collapse.collapse.features",
    "neural_collapse.collapse.attacks",
    "neural_collapse.networks.build",
)


def snakemake(*arguments, folder: Path) -> subprocess.CompletedProcess:
    """Run the checkout's Snakefile in `folder`; its standard output holds the errors as well."""
    output = folder / "snakemake.out"
    output.unlink(missing_ok=True)
    words = ["--snakefile", ROOT / "Snakefile", "--cores", "2", *arguments]
    plans = {"-n", "--dry-run"} & {*arguments}
    status = SNAKEMAKE.start(words, output, folder, None if plans else STAGES.python())[1]()
    return subprocess.CompletedProcess(arguments, status, output.read_text(encoding="utf-8"))


def job_counts(output: str) -> dict[str, int]:
    """The number of jobs of each rule that a dry run plans."""
    _, *tables = output.split("Job stats:")
    found = re.findall(r"^(\w+) +(\d+)$", tables[0] if tables else "", re.MULTILINE)
    return {rule: int(count) for rule, count in found}


class Experiment:
    """An experiment in a folder of its own, run by the checkout's real Snakefile."""

    def __init__(self, folder: Path, **changes):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        values = yaml.safe_load((ROOT / "config" / "tiny.yaml").read_text())
        self.values = values | {"device": "cpu"} | changes
        self.results = folder / "results" / self.values["experiment"]

    def write_config(self) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.values))

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run it to its end."""
        self.write_config()
        return snakemake(*arguments, folder=self.folder)

    def run(self, *arguments: str) -> str:
        """Run it, expecting success; what Snakemake said."""
        done = self.snakemake(*arguments)
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout


# Two architectures, one swept and one pinned, and two seeds.
CHANGES = {
    "architectures": ["vgg", "resnet"],
    "seeds": [0, 1],
    "figures": {"formats": ["png", "svg"]},
    "overrides": [
        {
            "architectures": ["vgg"],
            "recipe": {
                "network": {
                    "name": "vgg11",
                    "convolutions": [1, 1],
                    "width": 4,
                    "hidden_width": 16,
                },
                "sweep": {"learning_rate": 0.05},
            },
        }
    ],
}


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that are there."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        # A process whose first thread is a zombie keeps its locks until its last one has gone.
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, what: str, seconds: float = 600):
    """The first true value of `condition`; fails after a generous time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.02)
    return found
