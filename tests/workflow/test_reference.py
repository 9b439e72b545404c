"""Whose runs are shown: the workflow with reference runs alone, with both, and without any."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from experiments import ROOT, job_counts, snakemake
from sample_tables import write_experiment

from neural_collapse.cli.main import main
from neural_collapse.results.tables import read_table

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


def plan(folder, *arguments) -> tuple[set[str], str]:
    """The rules of a dry run, and all that it says."""
    done = snakemake("-n", "-p", "--configfile", *arguments, folder=folder)
    assert done.returncode == 0, done.stdout
    return {*job_counts(done.stdout)}, done.stdout


def test_only_reference_runs_train_nothing(reference, tmp_path):
    rules, said = plan(tmp_path, reference / "config.yaml")
    assert not rules & TRAINING
    assert rules >= {"collect_tables", "plot_figures", "compare_with_paper"}
    assert f"--reference-folder {reference}" in said


def test_both_train_what_is_missing_and_own_shows_no_reference(reference, tmp_path):
    given = [ROOT / "config/tiny.yaml", "--config", f"reference_folder={reference}"]
    rules, said = plan(tmp_path, *given, "results_from=both")
    assert rules >= TRAINING
    assert f"--reference-folder {reference}" in said
    assert "--reference-folder" not in plan(tmp_path, *given)[1]


def test_a_set_that_is_not_there_is_one_sentence_before_any_job(reference, tmp_path):
    config = yaml.safe_load((reference / "config.yaml").read_text())
    config["reference_folder"] = str(reference.parent / "nowhere")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = snakemake("-n", "--configfile", "c.yaml", folder=tmp_path)
    assert done.returncode != 0 and "Job stats" not in done.stdout
    assert "nowhere holds no reference runs; beside it: set" in done.stdout


FIGURES = ["figure_1", "figure_6", "sweep"]


@pytest.fixture
def sets(reference, tmp_path, monkeypatch):
    """A folder with a set of which three figures are drawn, and nothing drawn yet."""
    folder = tmp_path / "sets"
    shutil.copytree(reference, folder / "set")
    path = folder / "set" / "config.yaml"
    figures = {"names": FIGURES, "formats": ["png", "svg", "html"]}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"figures": figures}))
    monkeypatch.chdir(tmp_path)
    return folder


def test_draw_reference_draws_what_is_missing_or_older_than_its_set(sets, capsys):
    folder = Path("results/reference-set")

    def draw():
        assert main(["draw-reference", "--sets-folder", str(sets)]) == 0
        return capsys.readouterr().err.removeprefix(f"{folder}: ")

    assert draw() == "drawing, since measurements.parquet is missing\n"
    # What the rules make of the same config.
    drawn = {f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg", "rst")}
    drawn.add("figure_1.html")
    assert {path.name for path in folder.glob("figures/*")} == drawn
    tables = {"measurements", "runs", "sweep", "activations", "table_1", "claims"}
    assert {path.stem for path in folder.glob("tables/*.parquet")} == tables
    assert set(read_table(folder / "tables/runs.parquet", "runs")["origin"]) == {"reference"}
    assert draw() == "up to date\n"
    (folder / "figures/figure_6.svg").unlink()
    assert draw() == "drawing, since figure_6.svg is missing\n"
    assert (folder / "figures/figure_6.svg").is_file()
    later = (folder / "figures/figure_1.png").stat().st_mtime_ns + 10**10
    os.utime(sets / "set" / "runs.json", ns=(later, later))
    assert draw() == "drawing, since runs.json is newer\n"


def test_draw_reference_of_a_folder_without_sets_is_one_sentence(tmp_path, capsys):
    assert main(["draw-reference", "--sets-folder", str(tmp_path)]) == 2
    assert "holds no set of reference runs" in capsys.readouterr().err


def test_draw_reference_imports_no_torch(sets):
    code = (
        "import sys; from neural_collapse.cli.main import main; "
        f"main(['draw-reference', '--sets-folder', {str(sets)!r}]); "
        "sys.exit(', '.join({'torch', 'snakemake'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
