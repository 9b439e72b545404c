"""A dataset of two classes is trained and measured whole; Figure 1, of three, leaves it out."""

import json

import numpy as np
import pytest

from neural_collapse.cli.main import main
from neural_collapse.experiment.recipe import Recipe, write_recipe
from neural_collapse.results.tables import read_table

RECIPE = {
    "dataset": "two",
    "architecture": "resnet",
    "network": {"family": "resnet", "block": "basic", "blocks": [1], "width": 4},
    "training": {"epochs": 2, "batch_size": 20},
    "sweep": {"learning_rate": 0.05},
    "measurement": {"epochs": [1, 2]},
    "robustness": {"images": 10},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    labels = np.arange(60) % 2
    images = np.random.default_rng(0).integers(0, 120, (60, 8, 8)) + 100 * labels[:, None, None]
    arrays = {"images": images.astype(np.uint8), "labels": labels}
    parts = {f"{split}_{name}": a for name, a in arrays.items() for split in ("train", "test")}
    np.savez(folder / "two.npz", **parts)
    custom = json.dumps({"label": "Two", "path": str(folder / "two.npz")})
    for command in (
        ["download-dataset", "--output-folder", folder / "raw"],
        ["prepare-dataset", "--raw-folder", folder / "raw", "--output-folder", folder / "data",
         "--data-recipe", "{}"],
    ):  # fmt: skip
        assert main([*map(str, command), "--dataset", "two", "--custom", custom]) == 0
    return folder / "data"


def test_two_classes_are_measured_and_give_no_points_of_figure_1(prepared, tmp_path):
    write_recipe(Recipe(**RECIPE), tmp_path / "recipe.json")
    job = ["--recipe", tmp_path / "recipe.json", "--data-folder", prepared]
    job += ["--device", "cpu", "--gpus", "0", "--state-root", tmp_path / "state"]
    job += ["--checkpoint-folder", tmp_path / "checkpoints"]
    for command in (
        ["train-model", *job, "--seed", 0, "--history", tmp_path / "history.parquet",
         "--run-facts", tmp_path / "run.json"],
        ["extract-features", *job, "--seed", 0, "--output-folder", tmp_path / "features"],
        ["compute-statistics", "--recipe", tmp_path / "recipe.json", "--seed", 0,
         "--features-folder", tmp_path / "features",
         "--statistics", tmp_path / "statistics.parquet",
         "--activations", tmp_path / "activations.parquet"],
    ):  # fmt: skip
        assert main(list(map(str, command))) == 0
    measured = read_table(tmp_path / "statistics.parquet", "measurements")
    nc1 = measured[measured.statistic == "nc1_within_class_variability"]
    assert len(nc1) == 6 and np.isfinite(nc1.value).all()
    assert read_table(tmp_path / "activations.parquet", "activations").empty
