"""Whose runs are shown: the workflow with reference runs alone, with both, and without any."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neural_collapse.cli.main import main
from neural_collapse.results.tables import read_table

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


def test_draw_reference_draws_what_is_missing_or_older_than_its_set(
    reference, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    # What the rules make of the same config.
    figures = {f"figure_{number}" for number in range(1, 9)} | {"sweep", "overview"}
    drawn = {f"{name}.{suffix}" for name in figures for suffix in ("png", "svg", "pdf", "rst")}
    tables = {"measurements", "runs", "sweep", "activations", "table_1", "claims"}

    def draw():
        assert main(["draw-reference", "--sets-folder", str(reference.parent)]) == 0
        return capsys.readouterr().err

    folder = tmp_path / "results/reference-set"
    assert draw() == "results/reference-set: drawing, since measurements.parquet is missing\n"
    drawn |= {"figure_1.gif", "figure_1.html"}
    assert {path.name for path in folder.glob("figures/*")} == drawn
    assert {path.stem for path in folder.glob("tables/*.parquet")} == tables
    assert set(read_table(folder / "tables/runs.parquet", "runs")["origin"]) == {"reference"}
    assert draw() == "results/reference-set: up to date\n"
    (folder / "figures/figure_6.svg").unlink()
    assert draw() == "results/reference-set: drawing, since figure_6.svg is missing\n"
    assert (folder / "figures/figure_6.svg").is_file()
    later = (folder / "figures/figure_1.png").stat().st_mtime_ns + 10**10
    os.utime(reference / "runs.json", ns=(later, later))
    assert draw() == "results/reference-set: drawing, since runs.json is newer\n"


def test_draw_reference_of_a_folder_without_sets_is_one_sentence(tmp_path, capsys):
    assert main(["draw-reference", "--sets-folder", str(tmp_path)]) == 2
    assert "holds no set of reference runs" in capsys.readouterr().err


def test_draw_reference_imports_no_torch(reference, tmp_path):
    code = (
        "import sys; from neural_collapse.cli.main import main; "
        f"main(['draw-reference', '--sets-folder', {str(reference.parent)!r}]); "
        "sys.exit(', '.join({'torch', 'snakemake'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_set_that_is_not_there_is_one_sentence_before_any_job(reference, tmp_path):
    config = yaml.safe_load((reference / "config.yaml").read_text())
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(config | {"reference_folder": str(reference.parent / "nowhere")})
    )
    code, output = dry_run(tmp_path, "--cores", "1", "--configfile", "c.yaml")
    assert code != 0 and "Job stats" not in output
    assert "nowhere holds no reference runs; beside it: set" in output
