"""Whose runs are shown: the workflow with reference runs alone, with both, and without any."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neural_collapse.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "figures"))
from sample_tables import write_experiment

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TRAINING = {"download_dataset", "prepare_dataset", "train_model", "extract_features"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A set of reference runs beside a results folder."""
    folder = tmp_path_factory.mktemp("reference")
    results = write_experiment(folder, "e", ("digits",), ("resnet",))
    options = ["--results-folder", results, "--output-folder", folder / "set"]
    options += ["--resources-folder", folder / "resources"]
    assert main(["export-reference", *map(str, options)]) == 0
    return folder / "set"


def dry_run(folder, *arguments):
    command = [BIN / "snakemake", "-n", "-p", "--snakefile", ROOT / "Snakefile", *arguments]
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def rules(output):
    return set(re.findall(r"^(\w+) +\d+$", output.split("Job stats:")[1], re.MULTILINE))


def test_reference_runs_alone_train_nothing(reference, tmp_path):
    code, output = dry_run(tmp_path, "--cores", "1", "--configfile", reference / "config.yaml")
    assert code == 0, output
    assert not rules(output) & TRAINING
    assert rules(output) >= {"collect_tables", "plot_figures", "compare_with_paper"}
    assert f"--reference-folder {reference}" in output


def test_both_train_what_is_missing_and_own_shows_no_reference(reference, tmp_path):
    base = ["--cores", "1", "--configfile", ROOT / "config/tiny.yaml", "--config"]
    given = f"reference_folder={reference}"
    code, output = dry_run(tmp_path, *base, given, "results_from=both")
    assert code == 0 and rules(output) >= TRAINING, output
    assert f"--reference-folder {reference}" in output
    code, output = dry_run(tmp_path, *base, given)
    assert code == 0 and "--reference-folder" not in output


def test_a_set_that_is_not_there_is_one_sentence_before_any_job(reference, tmp_path):
    config = yaml.safe_load((reference / "config.yaml").read_text())
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(config | {"reference_folder": str(reference.parent / "nowhere")})
    )
    code, output = dry_run(tmp_path, "--cores", "1", "--configfile", "c.yaml")
    assert code != 0 and "Job stats" not in output
    assert "nowhere holds no reference runs; beside it: set" in output
