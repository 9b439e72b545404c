"""The whole DAG on real digits: every rule and file, the same bits twice, and what runs again."""

import json
import os
import re
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from experiments import CHANGES, Experiment, job_counts
from PIL import Image

from neural_collapse.collapse.registry import OF_OTHER_DATASET, REGISTRY
from neural_collapse.results.tables import read_table
from neural_collapse.training.schedule import spaced_epochs

FIGURES = [*(f"figure_{number}" for number in range(1, 9)), "sweep", "overview"]
MEASURED = ("statistics", "robustness")


def rules_run(output: str) -> list[str]:
    return re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", output, re.MULTILINE)


def copy_of(experiment: Experiment, folder: Path) -> Experiment:
    shutil.copytree(experiment.folder, folder, symlinks=True)
    again = Experiment(folder)
    again.values = deepcopy(experiment.values)
    return again


def test_every_rule_ran_and_progress_says_run_epoch_loss_error(experiment):
    assert set(rules_run(experiment.output)) >= {
        *("download_dataset", "prepare_dataset", "train_candidate"),
        *("select_learning_rate", "train_model", "extract_features", "compute_statistics"),
        *("measure_robustness", "collect_tables", "plot_figures", "compare_with_paper"),
        "build_report",
    }
    assert re.search(
        r"digits x resnet  seed 1 .* epoch 6/6  train loss \S+  train error .* %  test error .* %",
        experiment.output,
    )


@pytest.fixture(scope="module")
def measurements(experiment):
    return read_table(experiment.results / "tables" / "measurements.parquet", "measurements")


def test_measurements_are_complete(measurements):
    asked_for = ("vci", "separation_", "mse_", "minority_")  # by recipes of studies alone
    expected = {name for name in REGISTRY if not name.startswith(asked_for)}
    expected -= {name for name, entry in REGISTRY.items() if entry.unbalanced}
    expected -= set(OF_OTHER_DATASET)
    runs = measurements.groupby(["dataset", "architecture", "seed"])
    assert {*runs.groups} == {("digits", name, s) for name in ("vgg", "resnet") for s in (0, 1)}
    for _, rows in runs:
        assert set(rows["statistic"]) >= expected | {"separation_fuzziness"}
        nc1 = rows[rows["statistic"] == "nc1_within_class_variability"]
        assert set(nc1["epoch"]) == {0, *spaced_epochs(6, 3)}
        assert set(nc1["split"]) == {"train", "test"}
        assert set(rows[rows["statistic"] == "error"]["epoch"]) == set(range(7))


def test_statistics_agree_with_the_training_history(measurements):
    """Two independent ways to the same number: evaluation in training, and stored decisions."""
    wide = measurements.pivot_table(
        index=["architecture", "seed", "epoch", "split"], columns="statistic", values="value"
    ).dropna(subset=["network_accuracy"])
    assert len(wide) == 2 * 2 * 4 * 2
    np.testing.assert_allclose(1 - wide["error"], wide["network_accuracy"], atol=1e-12)


def test_every_training_follows_the_closed_form_of_nc0(measurements):
    errors = measurements.loc[measurements["statistic"] == "nc0_prediction_error", "value"]
    assert len(errors) == 2 * 2 * 4
    assert errors.max() < 1e-5


def test_both_seeds_use_the_sweeps_winner(experiment):
    runs = read_table(experiment.results / "tables" / "runs.parquet", "runs")
    chosen = json.loads((experiment.results / "digits/resnet/sweep/selection.json").read_text())
    swept = runs[runs["architecture"] == "resnet"]
    assert set(swept["learning_rate"]) == {chosen["learning_rate"]}
    assert set(swept["learning_rate_origin"]) == {"sweep"}
    sweep = read_table(experiment.results / "tables" / "sweep.parquet", "sweep")
    last = sweep[(sweep["epoch"] == 6) & (sweep["split"] == "test")]
    errors = last[last["statistic"] == "error"].set_index("learning_rate")["value"]
    assert errors[chosen["learning_rate"]] == errors.min()


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_a_whole_run_are_not_blank(experiment, name):
    with Image.open(experiment.results / "figures" / f"{name}.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 400
    assert 0.005 < (pixels < 200).any(axis=2).mean() < 0.6
    assert (experiment.results / "figures" / f"{name}.svg").stat().st_size > 5000


def test_the_captions_band_of_several_seeds(experiment):
    page = (experiment.results / "report.html").read_text()
    assert "2 seeds" in page
    assert not re.search(r'(?:src|href)="https?://', page)


def test_claims_and_table_1_cover_every_cell(experiment):
    claims = read_table(experiment.results / "tables" / "claims.parquet", "claims")
    assert len(claims.groupby(["dataset", "architecture"])) == 2
    assert set(claims["holds"]) <= {"holds", "does not", "cannot say"}
    table = read_table(experiment.results / "tables" / "table_1.parquet", "table_1")
    assert list(table["seeds"]) == [2, 2]
    assert r"\toprule" in (experiment.results / "tables" / "table_1.tex").read_text()


def test_snakemakes_own_report_works_with_captions(experiment, tmp_path):
    page = tmp_path / "snakemake.html"
    experiment.run("--report", str(page))
    text = page.read_text()
    assert "Figure 6. Within-class variability collapses" in text
    assert "The paper's claims" in text or "The paper\\u2019s claims" in text


def test_nothing_is_left_behind_and_running_again_does_nothing(experiment):
    assert not list((experiment.results / ".state").rglob("*.safetensors"))
    assert "Nothing to be done" in experiment.run()


def test_the_same_recipe_gives_the_same_bits(experiment, tmp_path):
    again = Experiment(tmp_path / "again", **CHANGES | {"seeds": [0], "architectures": ["resnet"]})
    again.run(*(f"results/tiny/digits/resnet/seed-0/{name}.parquet" for name in MEASURED))
    runs = [path for path in again.results.glob("digits/resnet/*/**/*") if path.is_file()]
    compared = [path for path in runs if path.suffix in {".parquet", ".safetensors"}]
    for path in compared:
        twin = experiment.results / path.relative_to(again.results)
        assert twin.read_bytes() == path.read_bytes(), path.name
    # Checkpoints, features, learning curve, statistics, activations, robustness; the sweep of two
    # rates.
    assert len(compared) == 4 + 4 + 4 + 3


def test_new_learning_rates_train_only_themselves_and_a_divergent_one_never_wins(
    experiment, tmp_path
):
    again = copy_of(experiment, tmp_path / "copy")
    # One that learns nothing in six epochs, so that the winner stays, and one that diverges.
    again.values["recipe"]["sweep"]["additional_learning_rates"] = [1e-7, 1e6]
    ran = rules_run(again.run("tables"))
    assert ran.count("train_candidate") == 2
    expected = {"train_candidate", "select_learning_rate", "collect_tables"}
    assert set(ran) <= expected | {"compare_with_paper", "tables"}
    table = read_table(again.results / "tables" / "sweep.parquet", "sweep")
    diverged = table[table["learning_rate"] == 1e6]
    assert diverged["diverged"].all() and not diverged["selected"].any()
    last = diverged[diverged["epoch"] == diverged["epoch"].max()]
    assert (last[last["statistic"] == "error"]["value"] == 1).all()


def test_selection_lost_is_made_again(experiment, tmp_path):
    again = copy_of(experiment, tmp_path / "copy")
    (again.results / "digits/resnet/sweep/selection.json").unlink()
    again.values |= {"architectures": ["resnet"], "seeds": [0, 1, 2]}
    ran = rules_run(again.run("models"))
    assert sorted(ran) == ["models", "select_learning_rate", "train_model"]


def test_copy_with_new_times_is_up_to_date_after_touch(experiment, tmp_path):
    """As docs/paper.md says of `cp -r`."""
    shutil.copytree(experiment.folder, tmp_path / "copy", copy_function=shutil.copyfile)
    again = Experiment(tmp_path / "copy", **CHANGES)
    for path in again.results.rglob("*"):
        # Of small files Snakemake compares the content as well, not of folders.
        seconds = 1e9 if "features" in path.parts else 1.1e9
        os.utime(path, (seconds, seconds))
    assert "Nothing to be done" not in again.run("-n")
    again.run("--touch", "--forceall")
    assert "Nothing to be done" in again.run("-n")


def test_results_without_records_are_said_and_watched_again_after_touch(experiment, tmp_path):
    """A moved results folder is like one whose records are gone."""
    again = copy_of(experiment, tmp_path / "copy")
    assert "no record" not in again.run("-n")
    shutil.rmtree(again.folder / ".snakemake")
    again.values["recipe"]["training"]["epochs"] += 1
    said = again.run("-n")
    assert "Snakemake has no record of how" in said and "training.epochs was" in said
    again.values["recipe"]["training"]["epochs"] -= 1
    assert "run once with --touch --forceall" in again.run("-n")
    again.run("--touch", "--forceall")
    again.values["recipe"]["training"]["epochs"] += 1
    planned = again.run("-n")
    assert "no record" not in planned and "train_model" in job_counts(planned)


def test_a_figures_look_trains_nothing(experiment, tmp_path):
    again = copy_of(experiment, tmp_path / "copy")
    again.values["figures"]["epoch_axis"] = "log"
    assert set(job_counts(again.run("-n", "figures"))) == {"plot_figures", "figures", "total"}


def test_where_the_terminal_phase_starts_is_read_from_curves_that_are_there(experiment, tmp_path):
    again = copy_of(experiment, tmp_path / "copy")
    again.values["recipe"]["measurement"]["terminal_phase_accuracy"] = 0.2
    again.values["recipe"]["training"]["evaluation_batch_size"] = 17  # changes no result either
    ran = set(rules_run(again.run("tables")))
    assert ran == {"collect_tables", "compare_with_paper", "tables"}
    runs = read_table(again.results / "tables" / "runs.parquet", "runs")
    assert set(runs["terminal_phase_accuracy"]) == {0.2}
    curves = read_table(again.results / "tables" / "measurements.parquet", "measurements")
    curves = curves[(curves["split"] == "train") & (curves["statistic"] == "error")]
    for run in runs.itertuples():
        own = curves[(curves["architecture"] == run.architecture) & (curves["seed"] == run.seed)]
        first = own[own["value"] <= 0.8]["epoch"].min()
        assert run.terminal_phase_epoch == first


def test_a_longer_training_makes_everything_of_it_again(experiment, tmp_path):
    again = copy_of(experiment, tmp_path / "copy")
    again.values["overrides"].append(
        {"architectures": ["vgg"], "recipe": {"training": {"epochs": 7}}}
    )
    planned = job_counts(again.run("-n", "tables"))
    assert planned["train_model"] == planned["extract_features"] == 2
    assert "train_candidate" not in planned and "prepare_dataset" not in planned


def test_another_dataset_is_measured_without_training_again(experiment, measurements, tmp_path):
    """A user-defined one of four classes; the other cell and all other values stay as they are."""
    random, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 240), ("test", 40)):
        labels = np.arange(count) % 4
        images = random.integers(0, 60, (count, 8, 8)) + 60 * labels[:, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    np.savez(tmp_path / "other.npz", **arrays)
    again = copy_of(experiment, tmp_path / "copy")
    again.values |= {
        "seeds": [0],
        "custom_datasets": {"other": {"label": "Other", "path": str(tmp_path / "other.npz")}},
    }
    again.values["overrides"].append(
        {"architectures": ["vgg"], "recipe": {"measurement": {"other_dataset": "other"}}}
    )
    ran = rules_run(again.run("tables"))
    assert not {"train_candidate", "train_model", "measure_robustness"} & set(ran)
    assert ran.count("prepare_dataset") == 1
    assert ran.count("extract_features") == ran.count("compute_statistics") == 1
    after = read_table(again.results / "tables" / "measurements.parquet", "measurements")
    of_other = after["statistic"].isin(OF_OTHER_DATASET)
    before = measurements[measurements["seed"] == 0]
    pd.testing.assert_frame_equal(
        after[~of_other].reset_index(drop=True), before.reset_index(drop=True)
    )
    found = after[of_other]
    assert set(found["architecture"]) == {"vgg"} and set(found["split"]) == {"test"}
    assert set(found["statistic"]) == set(OF_OTHER_DATASET)
    assert len(found) == 4 * len(OF_OTHER_DATASET)
    assert found["value"].between(0, 1).all()
    # Brightness alone tells the four classes apart, even for a network as it was drawn.
    probe = found[found["statistic"] == "transfer_probe_accuracy"]
    assert probe["value"].min() > 0.5


def test_a_plan_leaves_the_recipes_of_another_run(tmp_path):
    tiny = Experiment(tmp_path)
    recipe = tiny.results / "digits/resnet/recipe.json"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("of the run that is going on")
    assert "hours" in tiny.run("plan")
    assert recipe.read_text() == "of the run that is going on"


def test_a_readers_error_is_in_the_log(experiment, tmp_path):
    again = copy_of(experiment, tmp_path / "copy")
    path = again.results / "digits/vgg/seed-0/statistics.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(path)
    (again.results / "tables" / "measurements.parquet").unlink()
    done = again.snakemake("--rerun-triggers", "mtime", "--", "tables")
    assert done.returncode != 0
    assert "is not a table of this project" in done.stdout and "Traceback" not in done.stdout
