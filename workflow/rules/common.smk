# The config, wildcards, resources, and functions for params and input.

import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.io import IOFile

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT / "workflow"))

from neural_collapse.io import versions
from neural_collapse.experiment.config import check_config
from neural_collapse.experiment.layers import check_functions, check_layers
from neural_collapse.experiment.paths import candidate_job, cell_job, run_job
from neural_collapse.experiment.provenance import code_hash
from neural_collapse.experiment.recipe import write_recipe
from neural_collapse.experiment.targets import Experiment
from neural_collapse.figures import MOVING
from neural_collapse.inspect.jobs import without_record
from neural_collapse.results import TABLES
from neural_collapse.io.errors import UserError
from neural_collapse.io.yaml import read_yaml
from neural_collapse.training.lease import physical_gpus
from neural_collapse.training.schedule import learning_rate_name

try:
    for path in workflow.configfiles:
        read_yaml(path)  # Snakemake silently uses the last of two equal keys
    CONFIG = check_config(config, ", ".join(map(str, workflow.configfiles)))
    if workflow.is_main_process:
        if not workflow.deployment_settings.deployment_method:  # else it is the jobs' alone
            check_functions(CONFIG, ", ".join(map(str, workflow.configfiles)))
        check_layers(CONFIG, ", ".join(map(str, workflow.configfiles)))
    EXPERIMENT = Experiment(CONFIG)
    REFERENCE = EXPERIMENT.reference_files(ROOT)
    MACHINE_HAS_GPU = CONFIG.device == "auto" and bool(physical_gpus())
except UserError as error:
    raise WorkflowError(str(error)) from None

if CONFIG.overrides_without_effect and workflow.is_main_process:
    logger.warning(
        f"overrides {', '.join(map(str, CONFIG.overrides_without_effect))} (counted from 0): match "
        "no dataset x architecture of this experiment, and change nothing"
    )

PATHS = EXPERIMENT.paths
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
SEEN_BY_CANDIDATES = {"seed", "selection", "held_out_fraction"}  # of the sweep's keys

# Jobs import the library from this checkout, in any environment. Sources of files and the device are
# passed here and not as params, whose change would run jobs again.
EXPORTS = [f"PYTHONPATH={shlex.quote(str(ROOT / 'workflow'))}${{{{PYTHONPATH:+:$PYTHONPATH}}}}"]
if not workflow.deployment_settings.deployment_method:
    EXPORTS.append(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
EXPORTS.append(f"NC_DEVICE={CONFIG.device}")
if CONFIG.mirror:
    EXPORTS.append(f"NC_DATA_MIRROR={shlex.quote(CONFIG.mirror)}")
if CONFIG.imagenet_folder:
    EXPORTS.append(f"NC_IMAGENET_FOLDER={shlex.quote(CONFIG.imagenet_folder)}")
shell.prefix("".join(f"export {export}; " for export in EXPORTS))


wildcard_constraints:
    dataset="|".join(sorted({dataset for dataset, _ in EXPERIMENT.preparations})),
    architecture="|".join(CONFIG.architectures),
    seed=r"\d+",
    learning_rate=r"[0-9.e+-]+",
    preparation="|".join(sorted({name for _, name in EXPERIMENT.preparations})),
    suffix=r"(-[0-9a-f]{8})?",


RECORDS_CHECKED = False


def has_gpu():
    """Whether jobs will find a GPU: on a cluster the scheduler gives one.

    Evaluated for each job, because Snakemake does not know where jobs run while it reads this file.
    In a cluster's job the answer must be that of its submission, not that of its node.
    """
    if CONFIG.device != "auto":
        return CONFIG.device == "cuda"
    # A dry run has an executor of its own; only where jobs are submitted is their number given.
    submits = workflow.dryrun and workflow.resource_settings.nodes is not None
    return workflow.remote_exec or not workflow.local_exec or submits or MACHINE_HAS_GPU


def asked_as_gres(rule):
    """Whether a cluster is asked for this rule's GPUs with --gres, so not with --gpus as well.

    Within its job the rule computes on as many GPUs as the recipe says.
    """
    at_work = workflow.remote_exec and workflow.local_exec
    return "gres" in workflow.resource_settings.overwrite_resources.get(rule, {}) and not at_work


def recipe_resource(key):
    """A resources function: what the recipe asks the scheduler for; no GPU where there is none."""

    def of(wildcards, rulename):
        value = getattr(EXPERIMENT.recipe_of(wildcards).resources, key)
        if key == "gpu" and (not has_gpu() or asked_as_gres(rulename)):
            return 0
        return value

    return of


def one_gpu(wildcards, rulename):
    """A resources function: measuring takes one GPU, however many the training has."""
    return min(1, recipe_resource("gpu")(wildcards, rulename))


TRAINING = {
    "gpu": recipe_resource("gpu"),
    "gpu_slots": recipe_resource("gpu_slots"),
    "mem_mb": recipe_resource("memory_mb"),
    "runtime": recipe_resource("runtime_minutes"),
}
MEASURING = TRAINING | {"gpu": one_gpu}


def winner(wildcards):
    """The learning curve that won the sweep; nothing where the learning rate is pinned.

    Every job of a run takes it as an input, not the selection itself: so a sweep that is made
    larger runs nothing again where its winner stays.
    """
    cell = wildcards.dataset, wildcards.architecture
    if EXPERIMENT.recipe_of(wildcards).sweep.learning_rate is not None:
        return []
    chosen = checkpoints.select_learning_rate.get(dataset=cell[0], architecture=cell[1])
    with open(chosen.output.selection, encoding="utf-8") as file:
        return PATHS.candidate(learning_rate_name(json.load(file)["learning_rate"]), *cell)


def runs_with_record(wildcards):
    """An input function: run.json of every run, once Snakemake's records have been looked at."""
    global RECORDS_CHECKED
    if workflow.is_main_process and not workflow.touch and not RECORDS_CHECKED:
        RECORDS_CHECKED = True
        metadata = workflow.persistence.metadata
        said = without_record(
            Path(PATHS.results), CONFIG, lambda path: metadata(IOFile(path)) is not None
        )
        if said:
            logger.warning(said)
    return EXPERIMENT.of_runs("run.json")


def reference_options():
    folder = EXPERIMENT.reference_folder(ROOT)
    return ["--reference-folder", folder] if CONFIG.shows_reference else []


def in_report(path):
    """A figure for Snakemake's report, with the caption next to it."""
    return report(
        path,
        caption=f"{os.path.splitext(os.path.abspath(path))[0]}.rst",
        category="Figures",
        labels={"figure": os.path.basename(path)},
    )


# Formats of figures that Snakemake's report shows, and others.
REPORTED = [suffix for suffix in CONFIG.figures.formats if suffix in ("png", *MOVING)]
UNREPORTED = [suffix for suffix in (*CONFIG.figures.formats, "rst") if suffix not in REPORTED]


def cells_at_work():
    """The cells whose recipe.json jobs of this run read.

    Another Snakemake may be running other cells, by an earlier config.
    """
    jobs = list(workflow.dag.needrun_jobs())
    if any(job.rule.name == "collect_tables" for job in jobs):
        return EXPERIMENT.recipes
    cells = {
        (job.wildcards.dataset, job.wildcards.architecture)
        for job in jobs
        if "architecture" in job.wildcards.keys()
    }
    return [cell for cell in EXPERIMENT.recipes if cell in cells]


onstart:
    try:
        for cell in cells_at_work():
            write_recipe(EXPERIMENT.recipes[cell], PATHS.recipe(*cell))
    except UserError as error:
        raise WorkflowError(str(error)) from None
    for dataset in CONFIG.datasets:
        if CONFIG.missing(dataset):
            logger.info(
                f"{dataset}: left out, since it cannot be downloaded freely; "
                "give its folder as imagenet_folder in the config"
            )
    if CONFIG.device == "auto" and not has_gpu():
        logger.info("No GPU found: networks run on the CPU.")
