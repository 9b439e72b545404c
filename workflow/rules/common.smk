# All functions of the workflow: the typed config, recipe slices, and what targets consist of.

import json
import os
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT / "workflow"))

from neural_collapse.config import check_config, resolve_recipe
from neural_collapse.errors import UserError
from neural_collapse.provenance import code_hash
from neural_collapse.training.devices import physical_gpus

try:
    CONFIG = check_config(
        config, ", ".join(map(str, workflow.overwrite_configfiles)) or "config.yaml"
    )
except UserError as error:
    raise WorkflowError(str(error)) from None

FOLDER, RESOURCES = CONFIG.folder, CONFIG.resources_folder
RECIPES = {cell: resolve_recipe(CONFIG, *cell) for cell in CONFIG.cells()}
PREPARATIONS = {(dataset, recipe.data.name): recipe for (dataset, _), recipe in RECIPES.items()}
FIGURE_NAMES = (*(f"figure_{number}" for number in range(1, 9)), "sweep", "overview")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

# Jobs import the library from this checkout, in whichever environment they run.
_library = str(ROOT / "workflow")
_path = f"export PYTHONPATH={_library!r}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
if not workflow.deployment_settings.deployment_method:
    _path += f"export PATH={str(Path(sys.executable).parent)!r}:$PATH; "
shell.prefix(_path)


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
    figure="|".join(FIGURE_NAMES),


def has_gpu():
    """Whether jobs will find a GPU: on a cluster the scheduler gives one."""
    if CONFIG.device != "auto":
        return CONFIG.device == "cuda"
    return not workflow.local_exec or bool(physical_gpus())


GPU = has_gpu()


def recipe_of(wildcards):
    return RECIPES[wildcards.dataset, wildcards.architecture]


def recipe_slice(*parts):
    """A params function: only the parts of the recipe that the job reads decide its rerun."""

    def of(wildcards):
        recipe = recipe_of(wildcards)
        return {part: getattr(recipe, part).model_dump(mode="json") for part in parts}

    return of


def recipe_resource(key):
    """A resources function: what the recipe asks the scheduler for; no GPU where there is none."""

    def of(wildcards):
        value = getattr(recipe_of(wildcards).resources, key)
        return value if key != "gpu" or GPU else 0

    return of


def threads_of(wildcards):
    return recipe_of(wildcards).training.threads


def epochs_of(wildcards):
    return recipe_of(wildcards).measured_epochs


def prepared(name):
    """An input function: a file of the prepared dataset that this cell trains on."""

    def of(wildcards):
        folder = f"{RESOURCES}/{wildcards.dataset}/prepared/{recipe_of(wildcards).data.name}"
        return f"{folder}/{name}"

    return of


def state(name):
    """A params function: where an interrupted job keeps what it has, outside of its outputs."""

    def of(wildcards):
        return f"{FOLDER}/.state/{name.format(**wildcards)}"

    return of


def swept(dataset, architecture):
    return RECIPES[dataset, architecture].sweep.learning_rate is None


def curve(wildcards, learning_rate):
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


def custom_of(wildcards):
    """A person's own dataset as JSON for the command line; nothing for a built-in one."""
    custom = CONFIG.custom_datasets.get(wildcards.dataset)
    return [] if custom is None else ["--custom", custom.model_dump_json()]


def custom_files(wildcards):
    custom = CONFIG.custom_datasets.get(wildcards.dataset)
    return [] if custom is None else custom.path


def source_options(wildcards):
    options = custom_of(wildcards)
    if CONFIG.mirror is not None:
        options += ["--mirror", CONFIG.mirror]
    if wildcards.dataset == "imagenet":
        options += ["--imagenet-folder", CONFIG.imagenet_folder]
    return options


def cards():
    return [f"{RESOURCES}/{dataset}/prepared/{name}/card.json" for dataset, name in PREPARATIONS]


def of_runs(name):
    """A file of every run."""
    return [
        f"{FOLDER}/{dataset}/{architecture}/seed-{seed}/{name}"
        for dataset, architecture in RECIPES
        for seed in CONFIG.seeds
    ]


def sweep_tables():
    return [
        f"{FOLDER}/{dataset}/{architecture}/sweep/sweep.parquet"
        for dataset, architecture in RECIPES
        if swept(dataset, architecture)
    ]


TABLES = ("measurements", "runs", "sweep", "activations")


def table_files():
    names = [*TABLES, "table_1", "claims"]
    return [f"{FOLDER}/tables/{name}.parquet" for name in names]


def drawn_figures():
    return [name for name in FIGURE_NAMES if name != "sweep" or sweep_tables()]


def figure_files():
    return [
        f"{FOLDER}/figures/{name}.{extension}"
        for name in drawn_figures()
        for extension in CONFIG.figures.formats
    ]


def titles():
    """How columns and rows are titled, as JSON."""
    from neural_collapse.datasets.registry import dataset_entry

    labels = {name: dataset_entry(CONFIG.custom_datasets, name).label for name in CONFIG.datasets}
    labels |= {name: CONFIG.rows[name].label for name in CONFIG.architectures}
    return json.dumps(labels)


def figure_command():
    """What draws a figure of this experiment; {image} stands for its file."""
    files = [os.path.relpath(path) for path in workflow.overwrite_configfiles]
    given = f" --configfile {' '.join(files)}" if files else ""
    return f"snakemake --cores 1{given} {{image}}"


onstart:
    for dataset in CONFIG.datasets:
        if CONFIG.missing(dataset):
            logger.info(
                f"{dataset}: left out, since it cannot be downloaded freely; "
                "give its folder as imagenet_folder in the config"
            )
    if not GPU and CONFIG.device == "auto":
        logger.info("No GPU found: networks run on the CPU.")
