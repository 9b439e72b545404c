"""Subcommands of the pipeline's stages, as the rules run them."""

from __future__ import annotations

import os
from pathlib import Path

from .parser import Commands, Option, at_least, json_text, option, path, paths, titles

RECIPE = path("recipe", "the cell's recipe.json", dest="recipe_path")
DATA = path("data-folder", "output folder of prepare-dataset")
CHECKPOINTS = path("checkpoint-folder", "weights of the measured epochs")
TABLES = path("tables-folder", "output folder of collect-tables")
OUTPUT = path("output", "the file to write")
OUTPUT_FOLDER = path("output-folder", "the folder to write")
DATASET = option("--dataset", required=True, metavar="NAME", help="name in a config")
CUSTOM = option("--custom", type=json_text, metavar="JSON", help="a user-defined dataset")
SEED = option("--seed", type=at_least(0), required=True, metavar="N", help="seed of the run")
LABELS = option(
    "--labels", type=titles, default={}, metavar="JSON", help="titles of columns and rows"
)
REFERENCE = path("reference-folder", "reference runs to include", required=False)
DONE_STATES = paths("done-states", "states of finished jobs, to delete")
RUNS = paths("runs", "run.json of every run")
PROCESSES = option(
    "--processes",
    type=at_least(1),
    metavar="N",
    help="processes of the training (default: one per GPU, or one on the CPU)",
)
_DEFAULT = "default: those of the runs, in the paper's order"
LAYOUT = (
    option("--datasets", nargs="+", metavar="NAME", help=f"columns, in order; {_DEFAULT}"),
    option("--architectures", nargs="+", metavar="NAME", help=f"rows, in order; {_DEFAULT}"),
    LABELS,
)


def device_options() -> tuple[Option, ...]:
    """Device and resume states of a job."""
    return (
        option(
            "--device",
            choices=("auto", "cpu", "cuda"),
            default=os.environ.get("NC_DEVICE", "auto"),
            help="auto uses a GPU if there is one (default: the environment variable NC_DEVICE, or "
            "auto)",
        ),
        option(
            "--gpus", type=at_least(0), default=1, metavar="N", help="GPUs of the job (default: 1)"
        ),
        option(
            "--gpu-slots",
            type=at_least(1),
            metavar="N",
            help="jobs that may share one GPU (default: environment variable NC_GPU_SLOTS, or 1)",
        ),
        path("state-root", "folder of resume states"),
    )


def add_to(cli: Commands) -> None:
    """Add these subcommands."""
    cli.group("the pipeline's stages, in order")
    _add_data(cli)
    _add_trainings(cli)
    _add_measurements(cli)
    _add_results(cli)
    cli.group("reference results, and the config's pages")
    cli.add(
        "export-reference", "add an experiment's runs to a set of reference results",
        "experiment.export:export_reference",
        path("results-folder", "results of the experiment, such as results/paper"),
        path("output-folder", "folder of the set, such as results/reference/paper"),
        path("resources-folder", "folder of the downloads (default: resources)",
             required=False, default=Path("resources")),
        option("--figures", nargs="+", metavar="NAME", default=(),
               help="figures in the set's config (default: the paper's)"),
    )  # fmt: skip
    cli.add(
        "draw-reference", "draw the sets of reference runs that are not up to date",
        "cli.reference:draw_reference",
        path("sets-folder", "folder of the sets (default: results/reference)",
             required=False, default=Path("results/reference")),
        option("--processes", type=at_least(1), default=1, metavar="N",
               help="processes that draw (default: 1)"),
    )  # fmt: skip
    cli.add("config-schema", "print the config's JSON schema", "experiment.generated:json_schema")
    cli.add(
        "config-page", "print the reference page of config keys", "experiment.generated:config_page"
    )


def _add_data(cli: Commands) -> None:
    cli.add(
        "download-dataset", "download a dataset's files and verify their checksums",
        "experiment.stages.prepare:download",
        DATASET, OUTPUT_FOLDER, CUSTOM,
        option("--mirror", default=os.environ.get("NC_DATA_MIRROR"),
               help="folder or URL with the datasets' files (default: the environment variable "
                    "NC_DATA_MIRROR)"),
        path("imagenet-folder", "folder of ILSVRC-2012 (default: the environment variable "
             "NC_IMAGENET_FOLDER)",
             required=False, default=os.environ.get("NC_IMAGENET_FOLDER")),
    )  # fmt: skip
    cli.add(
        "prepare-dataset", "decode, balance and pad a dataset once",
        "experiment.stages.prepare:prepare",
        DATASET, path("raw-folder", "output folder of download-dataset"), OUTPUT_FOLDER, CUSTOM,
        option("--data-recipe", type=json_text, required=True, metavar="JSON",
               help="the data recipe"),
        option("--workers", type=at_least(1), default=1, metavar="N",
               help="threads that decode images (default: 1)"),
    )  # fmt: skip


def _add_trainings(cli: Commands) -> None:
    cli.add(
        "train-candidate", "train one learning rate of the sweep",
        "experiment.stages.train:train_candidate",
        RECIPE, DATA, OUTPUT, PROCESSES, *device_options(),
        option("--learning-rate", type=float, required=True, metavar="RATE",
               help="a learning rate of the sweep"),
    )  # fmt: skip
    cli.add(
        "select-learning-rate", "select the learning rate of the sweep",
        "experiment.stages.train:select_learning_rate",
        RECIPE, DONE_STATES,
        path("table", "the sweep's table to write"),
        path("selection", "the file to write with the selected rate"),
        paths("curves", "the learning curves of the sweep", dest="curve_paths"),
    )  # fmt: skip
    cli.add(
        "train-model", "train with the selected rate and save checkpoints",
        "experiment.stages.train:train_model",
        RECIPE, DATA, CHECKPOINTS, SEED, PROCESSES, *device_options(),
        path("history", "the learning curve to write", dest="history_path"),
        path("run-facts", "the run.json to write", dest="run_path"),
        path("winner", "the learning curve of the selected rate", required=False),
    )  # fmt: skip


def _add_measurements(cli: Commands) -> None:
    cli.add(
        "extract-features", "compute moments of the features of every checkpoint",
        "experiment.stages.measure:extract_features",
        RECIPE, DATA, CHECKPOINTS, OUTPUT_FOLDER, SEED, DONE_STATES, *device_options(),
        paths("other-card", "card.json of measurement.other_dataset, if the recipe has one",
              dest="other_cards"),
    )  # fmt: skip
    cli.add(
        "compute-statistics", "compute NC1 to NC4 of every measured epoch",
        "experiment.stages.measure:compute_statistics",
        RECIPE, SEED, DONE_STATES,
        path("features-folder", "output folder of extract-features"),
        path("statistics", "the table of statistics to write"),
        path("activations", "the table of features for Figure 1 to write"),
    )  # fmt: skip
    cli.add(
        "measure-robustness", "run DeepFool on every checkpoint",
        "experiment.stages.measure:measure_robustness",
        RECIPE, DATA, CHECKPOINTS, OUTPUT, SEED, *device_options(),
    )  # fmt: skip


def _add_results(cli: Commands) -> None:
    cli.add(
        "collect-tables", "concatenate the tables of all runs",
        "experiment.stages.collect:collect_tables",
        OUTPUT_FOLDER, REFERENCE, LABELS, RUNS, DONE_STATES,
        paths("histories", "the learning curves of the runs"),
        paths("statistics", "the tables of statistics of the runs"),
        paths("robustness", "the tables of DeepFool's results"),
        paths("activations", "the tables of features for Figure 1"),
        paths("sweeps", "the tables of the sweeps"),
        paths("recipes", "the recipe.json of every cell"),
    )  # fmt: skip
    cli.add(
        "compare-with-paper", "write Table 1 and evaluate the claims",
        "experiment.stages.collect:compare",
        TABLES, OUTPUT_FOLDER, *LAYOUT,
    )  # fmt: skip
    cli.add(
        "plot", "draw figures from the tables", "experiment.stages.figures:plot",
        path("tables", "folder of tables, such as results/paper/tables"),
        option("--figure", nargs="+", metavar="NAME",
               help="1 to 8, sweep, overview or a study's (default: the paper's)"),
        path("output", "files to write for one figure: .png, .svg, .pdf, .rst (the caption); "
             "for Figure 1 also .gif and .html", required=False, nargs="+"),
        path("output-folder", "folder to write for several figures", required=False),
        option("--formats", nargs="+", default=["png", "svg", "pdf"], metavar="FORMAT",
               help="formats in the folder (default: png svg pdf); gif and html only for Figure 1"),
        option("--epoch-axis", choices=("linear", "log"), default="linear",
               help="scale of the epoch axis (default: linear)"),
        option("--width", choices=("auto", "column", "page"), default="auto",
               help="width of the figures (default: a column for up to three panels)"),
        option("--shared-y-axis", choices=("auto", "figure", "row", "none"), default="auto",
               help="panels that share a vertical scale (default: the figure's own choice)"),
        option("--processes", type=at_least(1), default=1, metavar="N",
               help="processes that draw (default: 1)"),
        *LAYOUT,
    )  # fmt: skip
    cli.add(
        "report", "build the report page", "experiment.stages.figures:report",
        TABLES, OUTPUT, RUNS, REFERENCE, *LAYOUT,
        path("figures-folder", "folder of the figures"),
        paths("cards", "the data cards"),
        option("--config-json", type=json_text, required=True, metavar="JSON", help="the config"),
    )  # fmt: skip
