"""Reference results: a set grows, is never overwritten, and is never mixed with own runs."""

import json
import os
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from neural_collapse.cli.main import main
from neural_collapse.experiment.config import load_config
from neural_collapse.experiment.export import export_reference
from neural_collapse.experiment.recipe import Recipe, write_recipe
from neural_collapse.results.claims import summary
from neural_collapse.results.tables import empty_table, read_table, write_table

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))
from sample_tables import LABELS, make_tables, write_experiment

NAMES = ("measurements", "runs", "sweep", "activations")


def export(results, reference):
    """Into the set `reference`, with the data cards beside the results."""
    resources = results.parents[1] / "resources"
    return main(
        ["export-reference", "--results-folder", str(results), "--output-folder", str(reference),
         "--resources-folder", str(resources)]
    )  # fmt: skip


@pytest.fixture
def reference(tmp_path):
    results = write_experiment(tmp_path, "one", ("digits",), ("vgg",), last=8)
    assert export(results, tmp_path / "set") == 0
    return tmp_path / "set"


def test_config_of_a_study_s_set_draws_its_figures(tmp_path):
    results = write_experiment(tmp_path, "one", ("digits",), ("vgg",))
    resources, names = tmp_path / "resources", ["separation", "overview"]
    export_reference(results, tmp_path / "set", resources, names)
    assert load_config(tmp_path / "set" / "config.yaml").figures.names == tuple(names)


def test_config_of_a_set_without_a_sweep_draws_no_empty_sweep(tmp_path):
    results = write_experiment(tmp_path, "one", ("digits",), ("vgg",))
    table = results / "tables" / "sweep.parquet"
    write_table(empty_table("sweep"), table, "sweep")
    assert export(results, tmp_path / "set") == 0
    figures = load_config(tmp_path / "set" / "config.yaml").figures.names
    assert figures == (*(f"figure_{number}" for number in range(1, 9)), "overview")


def test_a_set_holds_tables_runs_cards_and_a_config(reference, tmp_path):
    own = make_tables(("digits",), ("vgg",), last=8)
    for name in NAMES:
        table = read_table(reference / "tables" / f"{name}.parquet", name)
        assert set(table.origin) <= {"reference"} and len(table) == len(own[name])
    assert [run["dataset"] for run in json.loads((reference / "runs.json").read_text())] == [
        "digits"
    ]
    assert json.loads((reference / "cards.json").read_text())[0]["data_hash"] == "hash-digits"
    config = load_config(reference / "config.yaml")
    assert config.results_from == "reference" and config.cells() == [], "nothing is trained"
    assert (config.datasets, config.architectures) == (("digits",), ("vgg",))


def test_a_set_grows_and_what_is_in_it_stays(reference, tmp_path, capsys):
    before = read_table(reference / "tables" / "measurements.parquet", "measurements")
    write_experiment(tmp_path, "two", ("digits", "shapes"), ("resnet",))
    assert export(tmp_path / "results/two", reference) == 0
    after = read_table(reference / "tables" / "measurements.parquet", "measurements")
    kept = after[(after.dataset == "digits") & (after.architecture == "vgg")]
    pd.testing.assert_frame_equal(kept.reset_index(drop=True), before)
    assert len(json.loads((reference / "runs.json").read_text())) == 3
    assert [c["name"] for c in json.loads((reference / "cards.json").read_text())] == [
        "digits", "shapes",
    ]  # fmt: skip
    config = load_config(reference / "config.yaml")
    assert config.custom_datasets["shapes"].label == "shapes", "a user-defined dataset is known"


def test_a_run_that_is_in_it_is_refused_and_nothing_changes(reference, tmp_path, capsys):
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    write_experiment(tmp_path, "again", ("digits",), ("resnet", "vgg"), last=9)
    assert export(tmp_path / "results/again", reference) == 2
    said = capsys.readouterr().err
    assert "holds digits x vgg, seed 0 already; reference results are never overwritten" in said
    assert {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()} == before


def test_what_is_missing_is_one_sentence(tmp_path, capsys):
    write_experiment(tmp_path, "e", ("svhn",), ("vgg",))
    (tmp_path / "resources/svhn/prepared/p/card.json").unlink()
    assert export(tmp_path / "results/e", tmp_path / "set") == 2
    assert "the data card of svhn used in training is missing" in capsys.readouterr().err
    (tmp_path / "results/e/svhn/vgg/seed-0/run.json").unlink()
    assert export(tmp_path / "results/e", tmp_path / "set") == 2
    assert "run.json: does not exist" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("changed", [{"learning_rate": 0.1}, {"epochs": 9}, {"network": "VGG13"}])
def test_tables_of_an_earlier_training_are_refused(tmp_path, capsys, changed):
    write_experiment(tmp_path, "e", ("digits",), ("vgg",))
    path = tmp_path / "results/e/digits/vgg/seed-0/run.json"
    facts = json.loads(path.read_text())
    del facts["terminal_phase_accuracy"], facts["terminal_phase_epoch"]
    path.write_text(json.dumps(facts | changed))
    assert export(tmp_path / "results/e", tmp_path / "set") == 2
    said = capsys.readouterr().err
    assert "run.json" in said and str(*changed) in said
    assert "of an earlier training" in said and "run snakemake tables first" in said
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("written", range(6))
def test_an_interrupted_export_leaves_the_set_and_can_be_repeated(
    reference, tmp_path, monkeypatch, written
):
    write_experiment(tmp_path, "two", ("digits",), ("resnet", "densenet"))
    shutil.copytree(reference, tmp_path / "whole")
    assert export(tmp_path / "results/two", tmp_path / "whole") == 0
    assert collect(None, tmp_path / "before", "--reference-folder", reference) == 0

    real, calls = os.replace, []

    def killed(*paths):
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(paths)
        real(*paths)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            export_reference(tmp_path / "results/two", reference, tmp_path / "resources")
    assert len(calls) == written
    assert collect(None, tmp_path / "after", "--reference-folder", reference) == 0
    for name in NAMES:
        tables = [tmp_path / when / f"{name}.parquet" for when in ("before", "after")]
        assert tables[0].read_bytes() == tables[1].read_bytes()
    assert export(tmp_path / "results/two", reference) == 0
    for path in (tmp_path / "whole").rglob("*.*"):
        if path.name != "config.yaml":  # which names its own folder
            assert (
                path.read_bytes() == (reference / path.relative_to(tmp_path / "whole")).read_bytes()
            )


def test_another_seed_of_a_cell_brings_no_second_sweep(tmp_path):
    for seed in (0, 1):
        write_experiment(tmp_path, f"{seed}", ("digits",), ("resnet",), seeds=(seed,))
        assert export(tmp_path / "results" / f"{seed}", tmp_path / "set") == 0
    sweep = read_table(tmp_path / "set" / "tables" / "sweep.parquet", "sweep")
    assert len(sweep) == len(make_tables(("digits",), ("resnet",), last=6)["sweep"])
    assert set(read_table(tmp_path / "set" / "tables" / "runs.parquet", "runs").seed) == {0, 1}


def test_a_part_of_the_recipe_may_tell_an_earlier_training(tmp_path, capsys):
    write_experiment(tmp_path, "e", ("digits",), ("vgg",))
    path = tmp_path / "results/e/digits/vgg/seed-0/run.json"
    facts = json.loads(path.read_text())
    then = json.dumps({"training": {"weight_decay": 0.01, "epochs": 8}, "sweep": {"count": 3}})
    table = tmp_path / "results/e/tables/runs.parquet"
    write_table(read_table(table, "runs").assign(recipe=then), table, "runs")
    for decay in (0.5, 0.01):
        now = {"training": {"weight_decay": decay}, "sweep": {"count": 25}}
        path.write_text(json.dumps(facts | {"recipe": now}))
        assert export(tmp_path / "results/e", tmp_path / "set") == (2 if decay == 0.5 else 0)
        if decay == 0.5:
            assert "training.weight_decay is 0.5, not 0.01" in capsys.readouterr().err
    shipped = read_table(tmp_path / "set" / "tables" / "runs.parquet", "runs")
    assert shipped.recipe.tolist() == [then]


def test_a_collected_run_holds_what_it_was_trained_and_measured_with(own_run, tmp_path):
    folder, _ = own_run
    path = folder / "digits" / "vgg" / "seed-0" / "run.json"
    trained = {"training": {"weight_decay": 0.25}, "measurement": {"epochs": 7}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": trained}))
    assert collect(folder, tmp_path / "out") == 0
    (text,) = read_table(tmp_path / "out" / "runs.parquet", "runs").recipe
    recipe = json.loads(text)
    assert recipe["training"] == {"weight_decay": 0.25}
    assert recipe["measurement"]["epochs"] == 50, "a run does not say what is measured later"


def test_code_that_was_not_committed_is_pointed_out(tmp_path, capsys):
    write_experiment(tmp_path, "e", ("digits",), ("vgg",), commit="abc+changes")
    assert export(tmp_path / "results/e", tmp_path / "set") == 0
    assert "was not made by committed code" in capsys.readouterr().err


def collect(folder, output, *reference):
    cells = sorted(folder.glob("*/*/seed-*")) if folder else []
    paths = {
        "histories": [cell / "history.parquet" for cell in cells],
        "statistics": [cell / "statistics.parquet" for cell in cells],
        "activations": [cell / "activations.parquet" for cell in cells],
        "runs": [cell / "run.json" for cell in cells],
        "recipes": [cell.parent / "recipe.json" for cell in cells],
    }
    options = [part for name, files in paths.items() for part in (f"--{name}", *map(str, files))]
    labels = json.dumps({name: LABELS[name] for name in ("digits", "vgg", "resnet", "densenet")})
    return main(
        ["collect-tables", *options, "--robustness", "--sweeps", "--labels", labels,
         "--output-folder", str(output), *map(str, reference)]
    )  # fmt: skip


@pytest.fixture
def own_run(tmp_path):
    """A run of the same cell as the reference's, with other values."""
    cell = tmp_path / "mine" / "digits" / "vgg" / "seed-0"
    network = {"family": "vgg", "convolutions": [1], "width": 4, "hidden_width": 8}
    recipe = Recipe(dataset="digits", architecture="vgg", network=network)
    write_recipe(recipe, cell.parent / "recipe.json")
    tables = make_tables(("digits",), ("vgg",), last=5)
    frame = tables["measurements"]
    curves = frame.statistic.isin(["loss", "error"])
    history = frame[curves].drop(columns="origin").assign(learning_rate=0.05, diverged=False)
    write_table(history, cell / "history.parquet", "history")
    write_table(frame[~curves], cell / "statistics.parquet", "measurements")
    write_table(tables["activations"], cell / "activations.parquet", "activations")
    facts = tables["runs"].drop(columns=["origin", "architecture_label"]).to_dict("records")[0]
    (cell / "run.json").write_text(json.dumps(facts, default=int))
    return tmp_path / "mine", tables


def test_both_stand_in_one_table_and_neither_changes(own_run, reference, tmp_path):
    folder, tables = own_run
    assert collect(folder, tmp_path / "out", "--reference-folder", reference) == 0
    for name in ("measurements", "runs", "activations"):
        found = read_table(tmp_path / "out" / f"{name}.parquet", name)
        shipped = read_table(reference / "tables" / f"{name}.parquet", name)
        parts = dict(tuple(found.groupby("origin")))
        assert parts.keys() == {"own", "reference"}
        assert len(parts["own"]) == len(tables[name]) and len(parts["reference"]) == len(shipped)
    runs = read_table(tmp_path / "out" / "runs.parquet", "runs").set_index("origin")
    assert runs.epochs.to_dict() == {"own": 5, "reference": 8}


def test_only_own_and_only_reference_runs(own_run, reference, tmp_path):
    folder, _ = own_run
    assert collect(folder, tmp_path / "own") == 0
    assert collect(None, tmp_path / "reference", "--reference-folder", reference) == 0
    for origin in ("own", "reference"):
        for name in ("measurements", "runs", "activations"):
            table = read_table(tmp_path / origin / f"{name}.parquet", name)
            assert set(table.origin) == {origin}


def test_reference_runs_of_other_datasets_are_left_out(tmp_path):
    write_experiment(tmp_path, "e", ("digits", "shapes"), ("vgg",))
    export(tmp_path / "results/e", tmp_path / "set")
    assert collect(None, tmp_path / "out", "--reference-folder", tmp_path / "set") == 0
    assert set(read_table(tmp_path / "out" / "runs.parquet", "runs").dataset) == {"digits"}


def test_table_1_and_claims_judge_each_on_its_own(own_run, reference, tmp_path):
    folder, _ = own_run
    out = tmp_path / "out"
    collect(folder, out, "--reference-folder", reference)
    layout = ["--datasets", "digits", "--architectures", "vgg", "resnet"]
    layout += ["--labels", '{"resnet": "ResNet"}']
    command = ["--tables-folder", str(out), "--output-folder", str(out)]
    assert main(["compare-with-paper", *command, *layout]) == 0
    table = read_table(out / "table_1.parquet", "table_1")
    rows = table[["architecture", "origin", "seeds"]].values.tolist()
    assert rows == [["vgg", "own", 1], ["vgg", "reference", 1], ["resnet", "own", 0]]
    own, shipped = table.ours_end[:2]
    assert own != shipped
    lines = (out / "table_1.md").read_text().splitlines()
    assert "(reference)" not in lines[2] and "(reference)" in lines[3]
    claims = read_table(out / "claims.parquet", "claims")
    assert claims.groupby("origin").architecture.unique().map(list).to_dict() == {
        "own": ["vgg"],
        "reference": ["vgg"],
    }
    counts = summary(claims).set_index("phenomenon")
    # One own cell and one reference cell: never added up.
    assert counts.loc["robustness"].sum() == 1 and counts.loc["robustness (reference)"].sum() == 1
    ends = claims[claims.phenomenon.str.startswith("NC1")].set_index("origin").at_end
    assert ends["own"] != ends["reference"]


def test_no_path_of_the_machine_is_exported():
    from neural_collapse.experiment.export import _without_places

    card = {"source": {"files": [{"source": "/home/me/mnist/a.gz", "name": "a.gz"}]}, "n": 1}
    files = [{"source": "a local file", "name": "a.gz"}]
    assert _without_places(card) == {"source": {"files": files}, "n": 1}
