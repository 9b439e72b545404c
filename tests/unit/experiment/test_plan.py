"""`neural-collapse plan`: what cells cost, and which finished runs the hours rest on."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from neural_collapse.collapse.features import Watched, extract_splits
from neural_collapse.collapse.moments import save_moments
from neural_collapse.experiment import provenance
from neural_collapse.experiment.config import check_config, load_config, resolve_recipe
from neural_collapse.experiment.cost import plan_cells
from neural_collapse.experiment.plan import (
    FinishedRun,
    finished_runs,
    plan,
    telling_runs,
    throughput,
)
from neural_collapse.io.errors import UserError
from neural_collapse.networks.build import build_network

ROOT = Path(__file__).parents[3]
RUNS = Path(__file__).with_name("runs_of_one_machine.json")
"""Of config/mnist-small.yaml: two runs each of three kinds of network."""
CUSTOM = """
import torch
from torch import nn


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Curious(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x):
        x = self.body(x)
        return self.last(x if x.sum().item() > 0 else -x)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A config of a user-defined network, by the name of its function, with changes."""
    (tmp_path / "planned_networks.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)

    def config(function="small", recipe=None, **changes):
        usual = {
            "network": {"family": "custom", "function": f"planned_networks:{function}"},
            "training": {"epochs": 9},
            "sweep": {"learning_rate": 0.1},
            "measurement": {"epochs": 3},
        }
        values = {
            "experiment": "own",
            "datasets": ["digits"],
            "architectures": ["mine"],
            "results_folder": str(tmp_path / "results"),
            "resources_folder": str(tmp_path / "resources"),
            "custom_architectures": {"mine": {"label": "Mine"}},
            "custom_datasets": {"mine": {"label": "Mine", "path": "mine.npz"}},
            "recipe": usual | (recipe or {}),
        }
        return check_config(values | changes)

    return config


def write_card(config, dataset, train, test=(397,)):
    """The card of the prepared data of a cell, with so many images of each class."""
    card = {"num_classes": 10, "channels": 1, "image_size_px": 8}
    card["counts"] = {"train": {"kept": list(train)}, "test": {"kept": list(test)}}
    name = config.preparation(resolve_recipe(config, dataset, "mine"))
    path = Path(config.resources_folder) / dataset / "prepared" / name / "card.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card))


def finish(config, seconds=100.0, **changes):
    """The run.json of a finished run of the config's only cell, as this machine writes it."""
    recipe = resolve_recipe(config, *config.cells()[0])
    run = {
        "recipe": recipe.model_dump(mode="json"),
        "epochs": recipe.training.epochs,
        "resumed_after": 0,
        "seconds": seconds,
        "train_examples": 1000,
        "test_examples": 500,
        "channels": 1,
        "image_size_px": 8,
        "num_classes": 10,
        "machine": provenance.machine() | {"device": "cpu"},
    } | changes
    path = Path(config.folder) / "digits" / recipe.architecture / "seed-0" / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run))
    return path


def test_plan_user_defined_network_is_counted(own):
    (cell,) = plan_cells(own())
    assert cell.network.parameters == 650 and cell.flops > 0
    assert "unknown" not in plan(own(), "cpu")


def test_plan_network_that_needs_numbers_has_an_unknown_time(own):
    text = plan(own("Curious"), "cpu")
    assert "not counted  digits x mine: its time is unknown" in text
    assert "time         unknown" in text and "650" in text


def test_plan_counts_the_download_and_preparation_of_another_dataset(own):
    recipe = {"data": {"image_size_px": 8}}
    both = recipe | {"measurement": {"epochs": 3, "other_dataset": "mnist_subset"}}
    assert "jobs         6 before figures" in plan(own(recipe=recipe), "cpu")
    assert "jobs         8 before figures" in plan(own(recipe=both), "cpu")


def test_plan_user_defined_dataset_is_counted(own):
    config = own(datasets=["mine", "digits"], seeds=[0, 1])
    text = plan(config, "cpu")
    # Of each of two cells: two trainings with features, statistics and attack; and two datasets.
    assert "jobs         20 before figures, 4 of them trainings" in text
    assert "epochs       36" in text and "checkpoints  16" in text
    assert "not counted  mine: disk and time" in text
    assert "missing      mine: there is no mine.npz" in text
    write_card(config, "mine", [140] * 10)
    mine, digits = plan_cells(config)
    assert mine.size == digits.size and mine.flops == digits.flops > 0
    assert "missing  " not in plan(config, "cpu")
    assert "not counted  " not in plan(config, "cpu")


def test_plan_counts_an_oversampled_epoch_by_its_repeated_images(own):
    data = {"imbalance": {"ratio": 10, "minority_classes": [8, 9]}, "examples_per_class": 100}
    kept, forward = [100] * 8 + [10] * 2, 2 * 640
    for dataset in ("digits", "mine"):
        flops = []
        for oversample in (False, True):
            recipe = {"data": data, "training": {"epochs": 9, "oversample": oversample}}
            config = own(recipe=recipe, datasets=[dataset])
            write_card(config, dataset, kept)
            flops.append(plan_cells(config)[0].flops)
        assert flops[1] - flops[0] == 9 * 3 * (1000 - sum(kept)) * forward
    runs = [
        finished_runs([finish(config, train_examples=820, **more)], "cpu")
        for more in ({}, {"examples_per_epoch": 1000})
    ]
    assert runs[1][0].flops - runs[0][0].flops == 9 * 3 * (1000 - 820) * forward


def test_plan_network_whose_size_overflows_is_one_sentence(own):
    network = {"name": "resnet18", "width": 100_000, "blocks": [1] * 20}
    config = own(recipe={"network": network}, architectures=["resnet"])
    with pytest.raises(UserError, match=r"digits x resnet: network: cannot be built .*smaller"):
        plan(config, "cpu")


def test_plan_override_without_effect_is_reported(own):
    overrides = [{"datasets": ["mnist"], "recipe": {"training": {"epochs": 3}}}]
    text = plan(own(overrides=overrides), "cpu")
    assert "no effect    overrides 0 (counted from 0): match no" in text


def test_plan_missing_function_is_one_sentence(own):
    with pytest.raises(UserError, match="has no attribute 'lost'; correct its name"):
        plan(own("lost"), "cpu")


def test_finished_runs_user_defined_network_is_used_if_countable(own):
    used = finish(own(), 100)
    (run,) = finished_runs([used], "cpu")
    assert (run.kind, run.seconds) == ("planned_networks:small", 100)
    assert "as 1 finished run of this machine reached" in plan(own(), "cpu")
    for function in ("Curious", "lost"):
        assert finished_runs([finish(own(function), 100)], "cpu") == []
        assert "this machine has no run yet" in plan(own(), "cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": 0},
        {"recipe": {}},
        {"recipe": {"network": {"family": "none"}}},
        {"resumed_after": 9},
        {"machine": {"device": "cpu", "processor": "another"}},
    ],
)
def test_finished_runs_run_without_facts_is_left_out(own, changes):
    assert finished_runs([finish(own(), **changes)], "cpu") == []


def test_telling_runs_long_ones_count_before_short_ones():
    rehearsals = [FinishedRun("resnet", 1e9, 5.0)] * 9
    long = FinishedRun("vgg", 1e13, 100.0)
    assert telling_runs([*rehearsals, long], "resnet") == [long]
    assert telling_runs(rehearsals, "resnet") == rehearsals, "better than nothing"
    same = FinishedRun("resnet", 4e13, 300.0)
    assert telling_runs([*rehearsals, long, same], "resnet") == [same]
    # Each counts by its length: 5e13 operations in 400 s.
    assert throughput([long, same]) == 1.25e11


def test_throughput_of_finished_runs_predicts_each_other(tmp_path, monkeypatch):
    runs = json.loads(RUNS.read_text(encoding="utf-8"))
    monkeypatch.setattr(provenance, "machine", lambda: {"processor": "AMD EPYC"})
    files = []
    for number, run in enumerate(runs):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(run))
    found = finished_runs(files, "cpu")
    assert len(found) == len(runs) >= 6
    for run in found:
        others = [other for other in found if other is not run]
        seconds = run.flops / throughput(telling_runs(others, run.kind))
        # Both DenseNets differ in width, the other pairs are the same network on a shared machine.
        near = 3 if run.kind == "densenet" else 1.15
        assert 1 / near < seconds / run.seconds < near


IMBALANCE = {"minority_classes": [8, 9], "ratio": 4}
MLP = {"family": "mlp", "depth": 2, "width": 20}


@pytest.mark.parametrize(
    ("recipe", "layers"),
    [
        ({}, []),
        ({"layers": ["input", "hidden.0"]}, [64, 20]),
        ({"scatter": "full", "layers": ["hidden.0"]}, [20]),
    ],
)
@pytest.mark.parametrize("imbalance", [None, IMBALANCE], ids=["balanced", "unequal"])
def test_features_bytes_are_those_of_the_files(recipe, layers, imbalance, own, tmp_path):
    data = {"imbalance": imbalance} if imbalance else {}
    parts = {"network": MLP, "data": data, "measurement": {"epochs": 3, **recipe}}
    (cell,) = plan_cells(own(recipe=parts))
    assert cell.network.layer_dimensions == tuple(layers)
    rng, few = np.random.default_rng(0), 1 if imbalance is None else 4
    counts = [40] * 8 + [40 // few] * 2
    labels = np.repeat(np.arange(10), counts), np.repeat(np.arange(10), 10)
    images = [rng.integers(0, 256, (len(y), 1, 8, 8), dtype=np.uint8) for y in labels]
    data = SimpleNamespace(
        **{"train_images": images[0], "train_labels": labels[0], "num_classes": 10},
        **{"test_images": images[1], "test_labels": labels[1], "mean": [0.5], "std": [0.5]},
    )
    network = build_network(
        cell.recipe.network, channels=1, num_classes=10, image_size_px=8, seed=0
    )
    measured = cell.recipe.measurement
    splits = extract_splits(
        network,
        data,
        batch_size=64,
        device="cpu",
        scatter=measured.scatter,
        watched=Watched(measured.layers, measured.layer_pool),
    )
    raw = torch.zeros(3 * measured.activation_examples_per_class, 20)
    for epoch in (0, 1, 3, 9):
        path = tmp_path / f"epoch-{epoch}.safetensors"
        save_moments(path, splits.train, splits.test, {}, {"raw": raw}, splits.layers)
    # A file begins with 8 bytes and names of so many.
    written = sum(
        path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
        for path in tmp_path.glob("*.safetensors")
    )
    assert cell.recipe.measured_epochs == cell.recipe.activation_epochs == (0, 1, 3, 9)
    assert cell.features_bytes == written


def test_plan_counts_the_time_of_layers_and_of_another_dataset(own):
    def planned(**measurement):
        recipe = {"network": MLP, "training": {}, "measurement": {"epochs": [350], **measurement}}
        return plan_cells(own(recipe=recipe, datasets=["mnist"]))[0]

    alone = planned()
    images = alone.size.train + alone.size.test
    # Two checkpoints; of 784 pixels and ten classes: the product with the span of the means and
    # that with the class centres, and an outer product; two operations each, doubled for float64.
    layer = 2 * (2 * 2 * 10 * 784 + 2 * 10 * 10)
    layers = planned(layers=["input"])
    assert layers.flops - alone.flops == pytest.approx(2 * images * layer)
    other = planned(other_dataset="fashion_mnist")
    assert other.flops - alone.flops > 2 * 60_000 * alone.network.forward_flops


def test_plan_names_the_source_of_its_hours(own):
    assert "this machine has no run yet" in plan(own(), "cpu")
    finish(own(), 30)
    assert "1 finished run of this machine reached, each under 60 s" in plan(own(), "cpu")
    resnet = own(recipe={"network": {"name": "resnet18"}}, architectures=["resnet"])
    assert "(none of them like ResNet18)" in plan(resnet, "cpu")


@pytest.mark.parametrize(
    ("dataset", "architecture", "train", "images_per_second"),
    [("mnist", "vgg", 50_000, 52_921), ("fashion_mnist", "densenet", 60_000, 431)],
)
def test_plan_without_measurements_takes_the_hours_of_an_h100(
    dataset, architecture, train, images_per_second, tmp_path
):
    """Images a second as check-gpu printed them, in TF32 with CUDA graphs."""
    config = load_config(ROOT / "config.yaml")
    changes = {"datasets": [dataset], "architectures": [architecture]}
    changes["results_folder"] = str(tmp_path)
    row, *_ = plan(config.model_copy(update=changes), device="cuda").splitlines()[3:]
    # Evaluation is a third of a step: after each of 350 epochs, and at 50 of each of 25 rates.
    trained, evaluated = 26 * 350 * train, (350 + 25 * 50) * (train + 10_000)
    hours = (trained + evaluated / 3) / images_per_second / 3600
    assert float(row.split()[-2]) == pytest.approx(hours, rel=0.03)


def test_plan_a_user_defined_network_on_a_gpu_has_no_measurement(own):
    assert "at 10 TFLOP/s, an assumption, since this machine has no run" in plan(own(), "cuda")


def test_plan_large_images_take_no_longer_in_a_coarser_precision(tmp_path):
    """They do not wait for the CPU, with or without a CUDA graph."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config |= {"datasets": ["imagenet"], "imagenet_folder": str(tmp_path)}
    config |= {"results_folder": str(tmp_path)}
    hours = []
    for precision in ("float32", "tf32", "bfloat16"):
        config["recipe"]["training"]["precision"] = precision
        rows = plan(check_config(config), "cuda").splitlines()
        hours.append([float(row.split()[-2].replace(",", "")) for row in rows[3:6]])
    assert np.all(np.diff(hours, axis=0) < 0), hours


def test_plan_names_the_networks_whose_hours_are_another_cards(tmp_path):
    timed = {"network": "VGG11", "kind": "vgg", "side_px": 32, "precision": "tf32"}
    timed |= {"cuda_graphs": True, "channels_last": True, "failure": "", "flops_per_second": 1e12}
    (tmp_path / "check-gpu.json").write_text(json.dumps({"networks": [timed]}))
    config = load_config(ROOT / "config.yaml")
    changes = {"datasets": ["mnist"], "results_folder": str(tmp_path)}
    text = plan(config.model_copy(update=changes), "cuda")
    assert "as check-gpu measured (ResNet18, DenseNet40: as an H100 reached);" in text


def test_plan_finished_runs_of_another_precision_say_nothing_of_a_gpu(own):
    path = finish(own())
    run = json.loads(path.read_text())
    run["machine"]["device"] = "cuda"
    path.write_text(json.dumps(run))
    assert "as 1 finished run of this machine reached" in plan(own(), "cuda")
    recipe = {"training": {"epochs": 9, "precision": "tf32"}}
    assert "an assumption" in plan(own(recipe=recipe), "cuda")


def test_plan_a_finished_run_on_several_gpus_counts_each(own):
    hours = {}
    for processes in (1, 4):
        finish(own(), seconds=1e6, processes=processes)
        line = next(line for line in plan(own(), "cpu").splitlines() if line.startswith("time"))
        hours[processes] = float(line.split("about ")[1].split(" h ")[0].replace(",", ""))
    assert hours[4] == pytest.approx(4 * hours[1], rel=1e-3)


def test_plan_takes_a_networks_own_speed_before_that_of_one_with_a_graph(tmp_path):
    way = {"kind": "vgg", "side_px": 32, "precision": "tf32", "channels_last": True, "failure": ""}
    own = way | {"network": "VGG11", "cuda_graphs": False, "flops_per_second": 1e12}
    other = way | {"network": "VGG13", "cuda_graphs": True, "flops_per_second": 9e12}
    (tmp_path / "check-gpu.json").write_text(json.dumps({"networks": [own, other]}))
    config = load_config(ROOT / "config.yaml")
    changes = {"datasets": ["mnist"], "architectures": ["vgg"], "results_folder": str(tmp_path)}
    assert "at 1 TFLOP/s, as check-gpu measured" in plan(config.model_copy(update=changes), "cuda")
