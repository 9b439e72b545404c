"""The paths of all outputs, logs, resume states and tables of an experiment.

Defaults of the methods are Snakemake's wildcards: a rule calls ``PATHS.run("run.json")``, other
code gives values: ``paths.run("run.json", "mnist", "resnet", 0)``.
"""

from __future__ import annotations

from dataclasses import dataclass

DATASET, ARCHITECTURE, SEED = "{dataset}", "{architecture}", "{seed}"


@dataclass(frozen=True)
class Paths:
    """Paths of one experiment, as text.

    results: its folder, ``results/<experiment>``; resources: where datasets lie.
    """

    results: str
    resources: str = "resources"

    # Datasets

    def raw(self, dataset: str = DATASET, suffix: str = "{suffix}") -> str:
        """The record of a dataset's downloaded files, which lie beside it."""
        return f"{self.resources}/{dataset}/raw{suffix}/source.json"

    def prepared(
        self, name: str, dataset: str = DATASET, preparation: str = "{preparation}"
    ) -> str:
        """A file of a prepared dataset: an array, or card.json."""
        return f"{self.resources}/{dataset}/prepared/{preparation}/{name}"

    # One dataset x architecture

    def recipe(self, dataset: str = DATASET, architecture: str = ARCHITECTURE) -> str:
        """The cell's resolved recipe."""
        return f"{self.results}/{dataset}/{architecture}/recipe.json"

    def sweep(self, name: str, dataset: str = DATASET, architecture: str = ARCHITECTURE) -> str:
        """A file of the sweep: sweep.parquet, all its curves; selection.json, the winner."""
        return f"{self.results}/{dataset}/{architecture}/sweep/{name}"

    def candidate(
        self,
        learning_rate: str = "{learning_rate}",
        dataset: str = DATASET,
        architecture: str = ARCHITECTURE,
    ) -> str:
        """The learning curve of one learning rate of the sweep, given by its name."""
        return self.sweep(f"learning-rate-{learning_rate}.parquet", dataset, architecture)

    def run(
        self,
        name: str,
        dataset: str = DATASET,
        architecture: str = ARCHITECTURE,
        seed: int | str = SEED,
    ) -> str:
        """A file or folder of a run: checkpoints, history.parquet, run.json, features, ..."""
        return f"{self.results}/{dataset}/{architecture}/seed-{seed}/{name}"

    # The experiment

    def table(self, name: str, suffix: str = "parquet") -> str:
        """A table of all runs."""
        return f"{self.results}/tables/{name}.{suffix}"

    def figure(self, name: str, suffix: str) -> str:
        """A figure's file."""
        return f"{self.results}/figures/{name}.{suffix}"

    @property
    def report(self) -> str:
        """The report page."""
        return f"{self.results}/report.html"

    # What jobs leave beside their outputs

    def log(self, rule: str, job: str = "") -> str:
        """A job's log; `job` is one of the names below, nothing where a rule has one job."""
        return f"{self.results}/logs/{rule}/{job}.log" if job else f"{self.results}/logs/{rule}.log"

    def benchmark(self, rule: str, job: str = "") -> str:
        """What Snakemake measured of a job: time, memory, load."""
        return self.log(rule, job).removesuffix(".log") + ".tsv"

    def state(self, job: str, stage: str = "") -> str:
        """Where an interrupted job keeps what it has, outside of its outputs."""
        return f"{self.results}/.state/{job}{stage and f'-{stage}'}"


def cell_job(dataset: str = DATASET, architecture: str = ARCHITECTURE) -> str:
    """The name of a cell's job in logs and states."""
    return f"{dataset}-{architecture}"


def candidate_job(
    learning_rate: str = "{learning_rate}",
    dataset: str = DATASET,
    architecture: str = ARCHITECTURE,
) -> str:
    """The name of a sweep's training in logs and states."""
    return f"{dataset}-{architecture}-{learning_rate}"


def run_job(
    dataset: str = DATASET, architecture: str = ARCHITECTURE, seed: int | str = SEED
) -> str:
    """The name of a run's jobs in logs and states."""
    return f"{dataset}-{architecture}-seed-{seed}"
