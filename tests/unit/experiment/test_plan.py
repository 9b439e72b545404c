"""`neural-collapse plan`: what cells cost, and which finished runs the hours rest on."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neural_collapse.collapse.features import Watched, extract_splits
from neural_collapse.collapse.moments import save_moments
from neural_collapse.experiment import provenance
from neural_collapse.experiment.config import check_config, resolve_recipe
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

REFERENCE = Path(__file__).parents[3] / "results" / "reference" / "mnist-small" / "runs.json"
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
    """A config of a user-defined network, by the name of its function."""
    (tmp_path / "planned_networks.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)

    def config(function):
        return check_config(
            {
                "experiment": "own",
                "datasets": ["digits"],
                "architectures": ["mine"],
                "results_folder": str(tmp_path / "results"),
                "custom_architectures": {"mine": {"label": "Mine"}},
                "recipe": {
                    "network": {"family": "custom", "function": f"planned_networks:{function}"},
                    "training": {"epochs": 9},
                    "sweep": {"learning_rate": 0.1},
                    "measurement": {"epochs": 3},
                },
            }
        )

    return config


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
    (cell,) = plan_cells(own("small"))
    assert cell.network.parameters == 650 and cell.flops > 0
    assert "unknown" not in plan(own("small"), "cpu")


def test_plan_network_that_needs_numbers_has_an_unknown_time(own):
    text = plan(own("Curious"), "cpu")
    assert "not counted  digits x mine: its time is unknown" in text
    assert "time         unknown" in text and "650" in text


def test_plan_counts_the_download_and_preparation_of_another_dataset(own):
    values = own("small").model_dump(exclude_unset=True)
    recipe = values["recipe"] | {"data": {"image_size_px": 8}}
    measurement = recipe["measurement"] | {"other_dataset": "mnist_subset"}
    alone, both = (
        plan(check_config(values | {"recipe": of}), "cpu")
        for of in (recipe, recipe | {"measurement": measurement})
    )
    assert "jobs         6 before figures" in alone and "jobs         8 before figures" in both


def test_plan_user_defined_dataset_is_counted(own, tmp_path):
    values = own("small").model_dump(exclude_unset=True) | {
        "datasets": ["mine", "digits"],
        "seeds": [0, 1],
        "resources_folder": str(tmp_path / "resources"),
        "custom_datasets": {"mine": {"label": "Mine", "path": "mine.npz"}},
    }
    text = plan(check_config(values), "cpu")
    # Of each of two cells: two trainings with features, statistics and attack; and two datasets.
    assert "jobs         20 before figures, 4 of them trainings" in text
    assert "epochs       36" in text and "checkpoints  16" in text
    assert "not counted  mine: disk and time" in text
    card = {"num_classes": 10, "channels": 1, "image_size_px": 8}
    card["counts"] = {"train": {"kept": [140] * 10}, "test": {"kept": [397]}}
    config = check_config(values)
    preparation = config.preparation(resolve_recipe(config, "mine", "mine"))
    path = tmp_path / "resources/mine/prepared" / preparation / "card.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(card))
    mine, digits = plan_cells(config)
    assert mine.size == digits.size and mine.flops == digits.flops > 0
    assert "not counted  " not in plan(config, "cpu")


def test_plan_counts_an_oversampled_epoch_by_its_repeated_images(own, tmp_path):
    values = own("small").model_dump(exclude_unset=True)
    values |= {
        "resources_folder": str(tmp_path / "resources"),
        "custom_datasets": {"mine": {"label": "Mine", "path": "mine.npz"}},
    }
    data = {"imbalance": {"ratio": 10, "minority_classes": [8, 9]}, "examples_per_class": 100}
    kept, forward = [100] * 8 + [10] * 2, 2 * 640
    card = {"num_classes": 10, "channels": 1, "image_size_px": 8}
    card["counts"] = {"train": {"kept": kept}, "test": {"kept": [397]}}
    for dataset in ("digits", "mine"):
        flops, configs = [], []
        for oversample in (False, True):
            training = values["recipe"]["training"] | {"oversample": oversample}
            recipe = values["recipe"] | {"data": data, "training": training}
            changed = values | {"datasets": [dataset], "recipe": recipe, "seeds": [0]}
            configs.append(check_config(changed))
            name = configs[-1].preparation(resolve_recipe(configs[-1], dataset, "mine"))
            prepared = tmp_path / "resources" / dataset / "prepared" / name
            prepared.mkdir(parents=True, exist_ok=True)
            (prepared / "card.json").write_text(json.dumps(card))
            flops.append(plan_cells(configs[-1])[0].flops)
        assert flops[1] - flops[0] == 9 * 3 * (1000 - sum(kept)) * forward
    runs = [
        finished_runs([finish(configs[1], train_examples=820, **more)], "cpu")
        for more in ({}, {"examples_per_epoch": 1000})
    ]
    assert runs[1][0].flops - runs[0][0].flops == 9 * 3 * (1000 - 820) * forward


def test_plan_network_whose_size_overflows_is_one_sentence(own):
    values = own("small").model_dump(exclude_unset=True) | {"architectures": ["resnet"]}
    values["recipe"] = {"network": {"name": "resnet18", "width": 100_000, "blocks": [1] * 20}}
    with pytest.raises(UserError, match=r"digits x resnet: network: cannot be built .*smaller"):
        plan(check_config(values), "cpu")


def test_plan_override_without_effect_is_said(own):
    values = own("small").model_dump(exclude_unset=True)
    values["overrides"] = [{"datasets": ["mnist"], "recipe": {"training": {"epochs": 3}}}]
    assert "no effect    overrides 0 (counted from 0): match no" in plan(
        check_config(values), "cpu"
    )


def test_plan_missing_function_is_one_sentence(own):
    with pytest.raises(UserError, match="has no 'lost'"):
        plan(own("lost"), "cpu")


def test_finished_runs_user_defined_network_is_used_if_countable(own):
    used = finish(own("small"), 100)
    (run,) = finished_runs([used], "cpu")
    assert (run.kind, run.seconds) == ("planned_networks:small", 100)
    assert "as 1 finished run of this machine reached" in plan(own("small"), "cpu")
    for function in ("Curious", "lost"):
        assert finished_runs([finish(own(function), 100)], "cpu") == []
        assert "this machine has no run yet" in plan(own("small"), "cpu")


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
    assert finished_runs([finish(own("small"), **changes)], "cpu") == []


def test_telling_runs_long_ones_count_before_short_ones():
    rehearsals = [FinishedRun("resnet", 1e9, 5.0)] * 9
    long = FinishedRun("vgg", 1e13, 100.0)
    assert telling_runs([*rehearsals, long], "resnet") == [long]
    assert telling_runs(rehearsals, "resnet") == rehearsals, "better than nothing"
    same = FinishedRun("resnet", 4e13, 300.0)
    assert telling_runs([*rehearsals, long, same], "resnet") == [same]
    # Each counts by its length: 5e13 operations in 400 s.
    assert throughput([long, same]) == 1.25e11


def test_throughput_of_shipped_runs_predicts_each_other(tmp_path, monkeypatch):
    runs = json.loads(REFERENCE.read_text(encoding="utf-8"))
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
def test_features_bytes_are_those_of_the_files(recipe, layers, imbalance, tmp_path):
    values = {
        "experiment": "e",
        "datasets": ["digits"],
        "architectures": ["mlp"],
        "custom_architectures": {"mlp": {"label": "MLP"}},
        "recipe": {
            "network": MLP,
            "data": {"imbalance": imbalance} if imbalance else {},
            "training": {"epochs": 9},
            "measurement": {"epochs": 3, **recipe},
        },
    }
    (cell,) = plan_cells(check_config(values))
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


def test_plan_counts_the_time_of_layers_and_of_another_dataset():
    def flops(**measurement):
        values = {
            "experiment": "e",
            "datasets": ["mnist"],
            "architectures": ["mlp"],
            "custom_architectures": {"mlp": {"label": "MLP"}},
            "recipe": {"network": MLP, "measurement": {"epochs": [350], **measurement}},
        }
        (cell,) = plan_cells(check_config(values))
        return cell.flops, cell

    alone, cell = flops()
    images = cell.size.train + cell.size.test
    # Two checkpoints; of 784 pixels and ten classes: the product with the span of the means and
    # that with the class centres, and an outer product; two operations each, doubled for float64.
    layer = 2 * (2 * 2 * 10 * 784 + 2 * 10 * 10)
    assert flops(layers=["input"])[0] - alone == pytest.approx(2 * images * layer)
    other, _ = flops(other_dataset="fashion_mnist")
    assert other - alone > 2 * 60_000 * cell.network.forward_flops


def test_plan_says_what_its_hours_rest_on(own):
    assert "this machine has no run yet" in plan(own("small"), "cpu")
    finish(own("small"), 30)
    assert "1 finished run of this machine reached, each under 60 s" in plan(own("small"), "cpu")
    resnet = own("small").model_dump() | {
        "architectures": ["resnet"],
        "recipe": {"network": {"name": "resnet18"}},
    }
    assert "(none of them like ResNet18)" in plan(check_config(resnet), "cpu")
