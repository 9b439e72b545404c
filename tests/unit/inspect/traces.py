"""An experiment, and the traces that its jobs leave."""

import os
import socket
from pathlib import Path

from neural_collapse.experiment.config import check_config, resolve_recipe
from neural_collapse.experiment.recipe import write_recipe
from neural_collapse.inspect.jobs import jobs_of

CONFIG = {
    "experiment": "e",
    "datasets": ["digits"],
    "architectures": ["vgg", "resnet"],
    "seeds": [0, 1],
    "recipe": {
        "network": {"name": "resnet18"},
        "training": {"epochs": 9},
        "sweep": {"count": 2},
        "measurement": {"epochs": 3},
    },
    "overrides": [{"architectures": ["vgg"], "recipe": {"sweep": {"learning_rate": 0.1}}}],
}
DEAD = 2**22 + 1
"""No process has this number."""


def make_config(folder, **changes):
    """The config with its results below `folder`."""
    return check_config(CONFIG | {"results_folder": str(folder)} | changes)


def jobs_in(config, architecture="vgg", begun=True):
    """The jobs of a cell by rule and name; its recipe is written where the workflow has begun."""
    folder, recipe = Path(config.folder), resolve_recipe(config, "digits", architecture)
    if begun:
        write_recipe(recipe, folder / "digits" / architecture / "recipe.json")
    return {(job.rule, job.name): job for job in jobs_of(folder, recipe, config.seeds)}


def log(job, text):
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.write_text(text)


def lock(job, process=None, host=None, name="abc"):
    """A job's lock, by default of this process."""
    job.state.mkdir(parents=True, exist_ok=True)
    holder = f"process {process or os.getpid()} on {host or socket.gethostname()}"
    (job.state / f"{name}.lock").write_text(holder)


def done(job, seconds=None):
    job.output.parent.mkdir(parents=True, exist_ok=True)
    job.output.write_text("{}")
    if seconds is not None:
        job.benchmark.parent.mkdir(parents=True, exist_ok=True)
        job.benchmark.write_text(f"s\th:m:s\n{seconds}\t0\n")
