"""Runs of the workflow, each in a folder of its own; and what runs leave running."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# Most of the time of a short command is Python's imports: a process that has them already forks a
# fresh one for every command.
FORKS = """
import importlib, json, os, sys

main, *modules = [importlib.import_module(name) for name in sys.argv[1:]]
for line in sys.stdin:
    arguments, folder, environment, output = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv[1:] = arguments
        sys.exit(main.main(arguments))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Runs the `main` of a module in processes forked off a warm one, one at a time."""

    def __init__(self, *modules: str):
        self.command = [sys.executable, "-c", FORKS, *modules]
        self.process: subprocess.Popen | None = None

    def start(self, arguments, output: Path, folder: Path = Path()):
        """The process id, and a function that waits for the exit status."""
        if self.process is None:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True)
        words = [str(word) for word in arguments]
        line = [words, str(folder.resolve()), dict(os.environ), str(output.resolve())]
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), lambda: int(self.process.stdout.readline())


SNAKEMAKE = Forks("snakemake.cli", "snakemake.workflow", "neural_collapse.experiment.targets")


def snakemake(*arguments, folder: Path) -> subprocess.CompletedProcess:
    """Run the checkout's Snakefile in `folder`; its standard output holds the errors as well."""
    output = folder / "snakemake.out"
    output.unlink(missing_ok=True)
    words = ["--snakefile", ROOT / "Snakefile", "--cores", "2", *arguments]
    status = SNAKEMAKE.start(words, output, folder)[1]()
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
