# All functions of the workflow: the typed config, recipe slices, and what targets consist of.

import json
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT / "workflow"))

from neural_collapse.data.registry import folder_suffix
from neural_collapse.experiment import versions
from neural_collapse.experiment.config import check_config, resolve_recipe
from neural_collapse.experiment.recipe import READ_ELSEWHERE, write_recipe
from neural_collapse.io.yaml import read_yaml
from neural_collapse.training.schedule import learning_rate_name
from neural_collapse.figures import MOVING, NAMES
from neural_collapse.io.errors import UserError
from neural_collapse.io.files import tree_digest
from neural_collapse.experiment.provenance import code_hash
from neural_collapse.training.devices import physical_gpus

try:
    for path in workflow.configfiles:
        read_yaml(path)  # Snakemake takes the last of two equal keys in silence
    CONFIG = check_config(config, ", ".join(map(str, workflow.configfiles)))
except UserError as error:
    raise WorkflowError(str(error)) from None

FOLDER, RESOURCES = CONFIG.folder, CONFIG.resources_folder
RECIPES = {cell: resolve_recipe(CONFIG, *cell) for cell in CONFIG.cells()}
# Two user-defined datasets of the same name may share the resources folder.
SUFFIXES = {
    dataset: folder_suffix(CONFIG.custom_datasets.get(dataset), RESOURCES)
    for dataset in CONFIG.datasets
}
PREPARATIONS = {
    (dataset, recipe.data.name + SUFFIXES[dataset]): recipe
    for (dataset, _), recipe in RECIPES.items()
}
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

SEEN_BY_CANDIDATES = {"seed", "selection", "held_out_fraction"}  # of the sweep's keys

# Jobs import the library from this checkout, in whichever environment they run. Where files come
# from and where networks run they learn here, not from params, which would run them again.
EXPORTS = [f"PYTHONPATH={shlex.quote(str(ROOT / 'workflow'))}${{{{PYTHONPATH:+:$PYTHONPATH}}}}"]
if not workflow.deployment_settings.deployment_method:
    EXPORTS.append(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
EXPORTS.append(f"NC_DEVICE={CONFIG.device}")
if CONFIG.mirror:
    EXPORTS.append(f"NC_DATA_MIRROR={shlex.quote(CONFIG.mirror)}")
if CONFIG.imagenet_folder:
    EXPORTS.append(f"NC_IMAGENET_FOLDER={shlex.quote(CONFIG.imagenet_folder)}")
shell.prefix("".join(f"export {export}; " for export in EXPORTS))


pathvars:
    results=FOLDER,
    resources=RESOURCES,
    logs=f"{FOLDER}/logs",
    prepared=f"{RESOURCES}/{{dataset}}/prepared/{{preparation}}",
    cell=f"{FOLDER}/{{dataset}}/{{architecture}}",
    sweep="<cell>/sweep",
    run="<cell>/seed-{seed}",


wildcard_constraints:
    dataset="|".join(sorted({dataset for dataset, _ in RECIPES})),
    architecture="|".join(CONFIG.architectures),
    seed=r"\d+",
    learning_rate=r"[0-9.e+-]+",
    preparation="|".join(sorted({name for _, name in PREPARATIONS})),
    suffix=r"(-[0-9a-f]{8})?",


MACHINE_HAS_GPU = bool(physical_gpus())


def has_gpu():
    """Whether jobs will find a GPU: on a cluster the scheduler gives one.

    Asked for each job, since Snakemake does not know where jobs run while it reads this file. In
    a cluster's job the answer must be the one that it was submitted with, whatever its node has.
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


def recipe_of(wildcards):
    return RECIPES[wildcards.dataset, wildcards.architecture]


def recipe_file(wildcards):
    """The cell's whole recipe, written before the first job starts; `recipe_slice` decides reruns.

    It is no input: Snakemake would not look at the params of any job after one that makes it.
    """
    return recipe_path(wildcards.dataset, wildcards.architecture)


def recipe_path(dataset, architecture):
    return f"{FOLDER}/{dataset}/{architecture}/recipe.json"


def recipe_slice(*parts):
    """A params function: only the parts of the recipe that the job reads decide its rerun."""

    def of(wildcards):
        recipe = recipe_of(wildcards)
        return {
            part: getattr(recipe, part).model_dump(mode="json", exclude=READ_ELSEWHERE.get(part))
            for part in parts
        }

    return of


def recipe_resource(key):
    """A resources function: what the recipe asks the scheduler for; no GPU where there is none."""

    def of(wildcards, rulename):
        value = getattr(recipe_of(wildcards).resources, key)
        if key == "gpu" and (not has_gpu() or asked_as_gres(rulename)):
            return 0
        return value

    return of


def one_gpu(wildcards, rulename):
    """A resources function: measuring takes one GPU, however many the training has."""
    return min(1, recipe_resource("gpu")(wildcards, rulename))


def threads_of(wildcards):
    return recipe_of(wildcards).training.threads


def epochs_of(wildcards):
    return recipe_of(wildcards).measured_epochs


def prepared(name):
    """An input function: a file of the prepared dataset that this cell trains on."""

    def of(wildcards):
        preparation = recipe_of(wildcards).data.name + SUFFIXES[wildcards.dataset]
        return f"{RESOURCES}/{wildcards.dataset}/prepared/{preparation}/{name}"

    return of


def state(name):
    """A params function: where an interrupted job keeps what it has, outside of its outputs."""

    def of(wildcards):
        return f"{FOLDER}/.state/{name.format(**wildcards)}"

    return of


def sweep_states(wildcards):
    """A params function: where the candidates of a sweep keep theirs."""
    names = recipe_of(wildcards).sweep.named()
    return [state(f"{{dataset}}-{{architecture}}-{name}")(wildcards) for name in names]


def swept(dataset, architecture):
    return RECIPES[dataset, architecture].sweep.learning_rate is None


def curve(wildcards, learning_rate):
    """A candidate's learning curve."""
    folder = f"{FOLDER}/{wildcards.dataset}/{wildcards.architecture}/sweep"
    return f"{folder}/learning-rate-{learning_rate}.parquet"


def curves(wildcards):
    """The learning curves of every candidate of a sweep."""
    return [curve(wildcards, rate) for rate in recipe_of(wildcards).sweep.named()]


def winner(wildcards):
    """The learning curve that won the sweep; nothing where the learning rate is pinned.

    Every job of a run takes it as an input, not the selection itself: so a sweep that is made
    larger runs nothing again where its winner stays.
    """
    if not swept(wildcards.dataset, wildcards.architecture):
        return []
    chosen = checkpoints.select_learning_rate.get(
        dataset=wildcards.dataset, architecture=wildcards.architecture
    ).output.selection
    with open(chosen, encoding="utf-8") as file:
        return curve(wildcards, json.load(file)["learning_rate_name"])


def raw_source(wildcards):
    """An input function: the record of a dataset's raw files."""
    return f"{RESOURCES}/{wildcards.dataset}/raw{SUFFIXES[wildcards.dataset]}/source.json"


def custom_of(wildcards):
    """A person's own dataset as JSON for the command line; nothing for a built-in one."""
    custom = CONFIG.custom_datasets.get(wildcards.dataset)
    if custom is None:
        return []
    # How its column is titled is read where tables are collected.
    return ["--custom", custom.model_copy(update={"label": wildcards.dataset}).model_dump_json()]


def custom_files(wildcards):
    custom = CONFIG.custom_datasets.get(wildcards.dataset)
    return [] if custom is None else custom.path


def custom_contents(wildcards):
    """A params function: the images of a person's folder, of which its own time says nothing."""
    custom = CONFIG.custom_datasets.get(wildcards.dataset)
    return tree_digest(custom.path) if custom and os.path.isdir(custom.path) else None


def cards():
    return [f"{RESOURCES}/{dataset}/prepared/{name}/card.json" for dataset, name in PREPARATIONS]


def of_runs(name):
    """A file of every run."""
    return [
        f"{FOLDER}/{dataset}/{architecture}/seed-{seed}/{name}"
        for dataset, architecture in RECIPES
        for seed in CONFIG.seeds
    ]


def recipe_files():
    """The recipe of every cell."""
    return [recipe_path(*cell) for cell in RECIPES]


def terminal_phase_accuracies():
    """At which train accuracy each cell's terminal phase starts."""
    return {
        f"{dataset} x {architecture}": recipe.measurement.terminal_phase_accuracy
        for (dataset, architecture), recipe in RECIPES.items()
    }


def robustness_states():
    """Where the attacks of all runs keep what they have."""
    of = state("{dataset}-{architecture}-seed-{seed}-robustness")
    return [
        of({"dataset": dataset, "architecture": architecture, "seed": seed})
        for dataset, architecture in RECIPES
        for seed in CONFIG.seeds
    ]


def sweep_tables():
    return [
        f"{FOLDER}/{dataset}/{architecture}/sweep/sweep.parquet"
        for dataset, architecture in RECIPES
        if swept(dataset, architecture)
    ]


def reference_folder():
    """The set of reference runs that is shown: where the config says, or in this checkout."""
    given = Path(CONFIG.reference_folder)
    return given if given.is_dir() else ROOT / given


def reference_files():
    """The files of the reference runs that are shown; none where only one's own are."""
    if not CONFIG.shows_reference:
        return []
    folder = reference_folder()
    if not (folder / "runs.json").is_file():
        known = sorted(path.parent.name for path in folder.parent.glob("*/runs.json"))
        raise WorkflowError(
            f"reference_folder: {CONFIG.reference_folder} holds no reference runs; "
            f"beside it: {', '.join(known) or 'none'}"
        )
    tables = [str(folder / "tables" / f"{name}.parquet") for name in TABLES]
    return [*tables, str(folder / "runs.json"), str(folder / "cards.json")]


def reference_options():
    return ["--reference-folder", reference_folder()] if CONFIG.shows_reference else []


TABLES = ("measurements", "runs", "sweep", "activations")


def table_files():
    names = [*TABLES, "table_1", "claims"]
    return [f"{FOLDER}/tables/{name}.parquet" for name in names]


def drawn_figures():
    sweeps = sweep_tables() or CONFIG.shows_reference
    return [name for name in NAMES if name != "sweep" or sweeps]


def drawings(reported):
    """Files of all figures by name: those that Snakemake's report shows, or the others."""
    files = [
        (name, format) for name in drawn_figures() for format in (*CONFIG.figures.formats, "rst")
    ]
    return {
        f"{name}_{format}": f"{FOLDER}/figures/{name}.{format}"
        for name, format in files
        if (format not in MOVING or name == "figure_1") and reported == (format in ("png", *MOVING))
    }


def figure_files():
    return [*drawings(reported=True).values(), *drawings(reported=False).values()]


def in_report(path):
    """A figure for Snakemake's report, with the caption that is written beside it."""
    return report(
        path,
        caption=f"{os.path.splitext(os.path.abspath(path))[0]}.rst",
        category="Figures",
        labels={"figure": os.path.basename(path)},
    )


def titles():
    """How columns and rows are titled, as JSON."""
    from neural_collapse.data.registry import dataset_entry

    labels = {name: dataset_entry(CONFIG.custom_datasets, name).label for name in CONFIG.datasets}
    labels |= {name: CONFIG.rows[name].label for name in CONFIG.architectures}
    return json.dumps(labels)


onstart:
    try:
        for (dataset, architecture), recipe in RECIPES.items():
            write_recipe(recipe, recipe_path(dataset, architecture))
    except UserError as error:
        raise WorkflowError(str(error)) from None
    for dataset in CONFIG.datasets:
        if CONFIG.missing(dataset):
            logger.info(
                f"{dataset}: left out, since it cannot be downloaded freely; "
                "give its folder as imagenet_folder in the config"
            )
    for index in CONFIG.overrides_without_effect:
        logger.warning(
            f"overrides.{index}: matches no dataset x architecture of this experiment"
        )
    if CONFIG.device == "auto" and not has_gpu():
        logger.info("No GPU found: networks run on the CPU.")
