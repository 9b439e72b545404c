"""Paths: with Snakemake's wildcards as defaults, and one place for all of them."""

import re
from pathlib import Path

from neural_collapse.experiment.paths import Paths, run_job

ROOT = Path(__file__).parents[3]
PATHS = Paths("results/x", "resources")


def test_template_filled_in_is_the_concrete_path():
    names = {"dataset": "mnist", "architecture": "vgg", "seed": 3}
    assert PATHS.run("run.json").format(**names) == PATHS.run("run.json", "mnist", "vgg", 3)
    candidate = PATHS.candidate().format(**names, learning_rate="0.01")
    assert candidate == PATHS.candidate("0.01", "mnist", "vgg")
    prepared = PATHS.prepared("card.json").format(**names, preparation="pad-2")
    assert prepared == PATHS.prepared("card.json", "mnist", "pad-2")


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
