"""Paths: with Snakemake's wildcards as defaults, and one place for all of them."""

import re
from pathlib import Path

import pytest

from neural_collapse.experiment.paths import Paths, candidate_job, cell_job, run_job

ROOT = Path(__file__).parents[3]
PATHS = Paths("results/x", "resources")
CELL = {"dataset": "mnist", "architecture": "vgg"}


@pytest.mark.parametrize(
    ("template", "concrete", "wildcards"),
    [
        (PATHS.raw(), PATHS.raw("mnist", ""), CELL | {"suffix": ""}),
        (
            PATHS.prepared("card.json"),
            PATHS.prepared("card.json", "mnist", "pad-2"),
            {"dataset": "mnist", "preparation": "pad-2"},
        ),
        (PATHS.recipe(), PATHS.recipe("mnist", "vgg"), CELL),
        (PATHS.sweep("sweep.parquet"), PATHS.sweep("sweep.parquet", "mnist", "vgg"), CELL),
        (
            PATHS.candidate(),
            PATHS.candidate("0.01", "mnist", "vgg"),
            CELL | {"learning_rate": "0.01"},
        ),
        (PATHS.run("run.json"), PATHS.run("run.json", "mnist", "vgg", 3), CELL | {"seed": 3}),
        (cell_job(), cell_job("mnist", "vgg"), CELL),
        (run_job(), run_job("mnist", "vgg", 3), CELL | {"seed": 3}),
        (
            candidate_job(),
            candidate_job("0.01", "mnist", "vgg"),
            CELL | {"learning_rate": "0.01"},
        ),
    ],
)
def test_template_filled_in_is_the_concrete_path(template, concrete, wildcards):
    assert template.format(**wildcards) == concrete and "{" not in concrete


def test_benchmark_lies_beside_the_log_of_its_job():
    assert PATHS.log("train_model", run_job("mnist", "vgg", 0)) == (
        "results/x/logs/train_model/mnist-vgg-seed-0.log"
    )
    assert PATHS.benchmark("train_model", "a") == "results/x/logs/train_model/a.tsv"
    assert PATHS.benchmark("plot_figures") == "results/x/logs/plot_figures.tsv"


def test_no_rule_spells_out_a_path():
    for file in [*(ROOT / "workflow" / "rules").glob("*.smk"), ROOT / "Snakefile"]:
        text = re.sub(r"code_hash\(.*\)", "", file.read_text())
        found = re.findall(r"\"[^\"]*(?:results|logs|seed-\S*|\.state)/[^\"]*\"", text)
        assert not found, file.name
