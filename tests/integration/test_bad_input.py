"""Bad files handed to every subcommand: one sentence that names the file, and nothing is touched.

Wrong values of a config are in tests/unit/test_config.py.  Here stand broken, foreign and missing
files, and options that no job can be run with.  Each case spoils a copy of a whole tiny run that
lies under a path with spaces and letters that are not ASCII.  Then a subcommand is called twice,
once where nothing was written yet and once where results of an earlier run lie already.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from experiments import CHANGES, Experiment
from PIL import Image

from neural_collapse.cli.main import main
from neural_collapse.experiment.recipe import Recipe, write_recipe
from neural_collapse.io.tensors import read_tensors
from neural_collapse.networks.build import build_network
from neural_collapse.results.tables import METADATA_VERSION
from neural_collapse.training import checkpoints

FOLDER = 'spaces, ünï-çødé 数据, it\'s "q" $HOME'
CELL = {"dataset": "digits", "architecture": "densenet"}
DATA_RECIPE = '{"examples_per_class": 20, "test_examples_per_class": 5}'
LAYOUT = ["--datasets", "digits", "--architectures", "densenet"]
MODULE = "networks_of_a_careless_person"
SOURCE = """
import torch
from torch import nn

class Squashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    def forward(self, x):
        return self.body(x).softmax(1)

class Frowning(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError("no\\nimages")

def raises(): raise RuntimeError("the weights are\\nnot there")
def no_linear(): return nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
def no_module(): return 7
def few_classes(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""


def recipe(**changes) -> Recipe:
    values = {
        **CELL,
        "network": {"family": "densenet", "blocks": [1, 1], "growth": 4},
        "training": {"epochs": 2, "batch_size": 50, "evaluation_batch_size": 100},
        "sweep": {"learning_rate": 0.05},
        "measurement": {"epochs": [1, 2], "activation_examples_per_class": 5},
        "robustness": {"images": 10, "max_steps": 5},
    }
    return Recipe(**{**values, **changes})


# ------------------------------------------------------------------------- the subcommands


class World:
    """The inputs of a run, the outputs of an earlier one, and what a case does to them."""

    def __init__(self, folder: Path):
        self.inputs, self.outputs = folder / "in", folder / "out"
        self.folder = folder
        self.executed = folder / "executed"

    def __truediv__(self, name: str) -> Path:
        return self.inputs / name

    def command(self, name: str) -> list[str]:
        """The subcommand's line, all of whose inputs are good."""
        i, o = self.inputs, self.outputs
        device = ["--device", "cpu", "--gpus", "0", "--state-root", o / "state"]
        job = ["--recipe", i / "recipe.json", "--data-folder", i / "data"]
        tables = ["--tables-folder", i / "tables"]
        arrays = ["features", "labels", "classifier"]
        return list(
            map(
                str,
                {
                    "plan": ["--config", i / "config.yaml"],
                    "status": [i / "results"],
                    "show": [i / "results"],
                    "statistics": [
                        *(part for a in arrays for part in (f"--{a}", i / f"own/{a}.npy")),
                        *("--output", o / "own.csv"),
                    ],
                    "export-reference": [
                        *("--results-folder", i / "results", "--output-folder", o / "reference"),
                        *("--resources-folder", i / "resources"),
                    ],
                    "download-dataset": [
                        *("--dataset", "own", "--output-folder", o / "raw"),
                        *("--custom", json.dumps({"label": "Own", "path": str(i / "own.npz")})),
                    ],
                    "prepare-dataset": [
                        *("--dataset", "digits", "--raw-folder", i / "raw"),
                        *("--output-folder", o / "data", "--data-recipe", DATA_RECIPE),
                    ],
                    "train-candidate": [
                        *(*job, *device, "--learning-rate", "0.05"),
                        *("--output", o / "curve.parquet"),
                    ],
                    "select-learning-rate": [
                        *("--recipe", i / "recipe.json", "--curves", i / "curve.parquet"),
                        *("--table", o / "sweep.parquet", "--selection", o / "selection.json"),
                    ],
                    "train-model": [
                        *(*job, *device, "--seed", 3, "--winner", i / "curve.parquet"),
                        *("--checkpoint-folder", o / "checkpoints"),
                        *("--history", o / "history.parquet", "--run-facts", o / "run.json"),
                    ],
                    "extract-features": [
                        *(*job, *device, "--checkpoint-folder", i / "checkpoints"),
                        *("--output-folder", o / "features"),
                    ],
                    "compute-statistics": [
                        *("--recipe", i / "recipe.json", "--features-folder", i / "features"),
                        *("--statistics", o / "statistics.parquet"),
                        *("--activations", o / "activations.parquet", "--seed", 3),
                    ],
                    "measure-robustness": [
                        *(*job, *device, "--checkpoint-folder", i / "checkpoints", "--seed", 3),
                        *("--output", o / "robustness.parquet"),
                    ],
                    "collect-tables": [
                        *("--histories", i / "history.parquet", "--runs", i / "run.json"),
                        *("--statistics", i / "statistics.parquet"),
                        *("--robustness", i / "robustness.parquet"),
                        *("--activations", i / "activations.parquet"),
                        *("--sweeps", i / "sweep.parquet", "--output-folder", o / "tables"),
                        *("--recipes", i / "recipe.json"),
                        *("--labels", '{"digits": "Digits", "densenet": "DenseNet"}'),
                    ],
                    "plot": [
                        *("--figure", "2", "--tables", i / "tables"),
                        *("--output", o / "figure.svg", *LAYOUT),
                    ],
                    "compare-with-paper": [*tables, "--output-folder", o / "compared", *LAYOUT],
                    "report": [
                        *(*tables, "--figures-folder", i / "figures", *LAYOUT),
                        *("--output", o / "report.html", "--runs", i / "run.json"),
                        *("--cards", i / "data/card.json", "--config-json", '{"experiment": "x"}'),
                    ],
                }[name],
            )
        )

    # What cases do.

    def remove(self, name: str) -> None:
        path = self / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def write(self, name: str, content: bytes | str | dict | list) -> None:
        if isinstance(content, (dict, list)):
            content = json.dumps(content)
        (self / name).write_bytes(content.encode() if isinstance(content, str) else content)

    def cut(self, name: str, share: float = 0.6) -> None:
        whole = (self / name).read_bytes()
        self.write(name, whole[: int(share * len(whole))])

    def flip(self, name: str, place: float) -> None:
        """One bit, at a share of the file's length."""
        payload = bytearray((self / name).read_bytes())
        payload[int(place * (len(payload) - 1))] ^= 4
        self.write(name, bytes(payload))

    def folder_instead(self, name: str) -> None:
        self.remove(name)
        (self / name).mkdir()

    def file_instead(self, name: str) -> None:
        self.remove(name)
        self.write(name, "a file")

    def json(self, name: str, **changes) -> None:
        """Change or, with None, take away keys; a key's path is joined by two underlines."""
        values = json.loads((self / name).read_text())
        for path, value in changes.items():
            *parents, key = path.split("__")
            place = values
            for parent in parents:
                place = place[parent]
            if value is None:
                del place[key]
            else:
                place[key] = value
        self.write(name, values)

    def recipe(self, **changes) -> None:
        write_recipe(recipe(**changes), self / "recipe.json")

    def array(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        np.save(self / name, change(np.load(self / name)))

    def table(self, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
        table = pq.read_table(self / name, partitioning=None)
        changed = change(table)
        metadata = changed.schema.metadata or table.schema.metadata
        pq.write_table(changed.replace_schema_metadata(metadata), self / name)

    def weights(self, change: Callable[[dict], None]) -> None:
        path = self / "checkpoints/epoch-0002.safetensors"
        tensors, metadata = read_tensors(path, "checkpoint", checkpoints.FORMAT)
        change(tensors)
        checkpoints.save_checkpoint(path, tensors, metadata)

    def another_network(self, num_classes: int = 10, **changes) -> None:
        network = recipe(network={**recipe().network.model_dump(), **changes}).network
        built = build_network(network, channels=1, num_classes=num_classes, image_size_px=8, seed=0)
        path = self / "checkpoints/epoch-0002.safetensors"
        checkpoints.save_checkpoint(path, built.state_dict(), {})

    def bomb(self) -> Any:
        """An object whose pickle leaves a file behind when it is loaded."""
        return _Bomb(str(self.executed))

    def npz(self, **changes) -> None:
        arrays = dict(np.load(self / "own.npz"))
        for name, value in changes.items():
            arrays[name] = value(arrays[name]) if callable(value) else value
        arrays = {name: value for name, value in arrays.items() if value is not None}
        np.savez(self / "own.npz", **arrays)

    def own_dataset(self, path: str, **more) -> list[str]:
        """Options of prepare-dataset for a person's own dataset, which is downloaded first."""
        custom = json.dumps({"label": "Own", "path": str(self / path), **more})
        raw = str(self / "own raw")
        options = ["--dataset", "own", "--custom", custom]
        assert main(["download-dataset", *options, "--output-folder", raw]) == 0
        return [*options, "--raw-folder", raw, "--data-recipe", "{}"]


class _Bomb:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Every input of every subcommand, made by the subcommands themselves."""
    world = World(tmp_path_factory.mktemp("whole") / FOLDER)
    world.inputs.mkdir(parents=True)
    write_recipe(recipe(), world / "recipe.json")
    (world / "config.yaml").write_text(
        "experiment: tiny\ndatasets: [digits]\narchitectures: [resnet]\n"
        "recipe: {network: {name: resnet18}}\n"
    )

    def run(*arguments) -> None:
        assert main(list(map(str, arguments))) == 0, arguments

    run("download-dataset", "--dataset", "digits", "--output-folder", world / "raw")
    made = {
        "prepare-dataset": ["data"],
        "train-candidate": ["curve.parquet"],
        "select-learning-rate": ["sweep.parquet", "selection.json"],
        "train-model": ["checkpoints", "history.parquet", "run.json"],
        "extract-features": ["features"],
        "compute-statistics": ["statistics.parquet", "activations.parquet"],
        "measure-robustness": ["robustness.parquet"],
        "collect-tables": ["tables"],
        "plot": ["figure.svg"],
        "compare-with-paper": ["compared"],
    }
    (world / "figures").mkdir()
    for name, outputs in made.items():
        run(name, *world.command(name))
        for output in outputs:
            os.rename(world.outputs / output, world / output)
    Image.new("L", (8, 8)).save(world / "figures/figure_2.png")
    for name in ("statistics", "robustness", "history", "run"):
        for path in world.inputs.glob(f"{name}.*"):
            target = world / f"results/digits/densenet/seed-3/{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shutil.copy(world / "recipe.json", world / "results/digits/densenet/recipe.json")
    shutil.copytree(world / "tables", world / "results/tables")
    (world / "resources/digits/prepared").mkdir(parents=True)
    shutil.copytree(world / "data", world / "resources/digits/prepared/all")

    (world / "own").mkdir()
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    np.save(world / "own/features.npy", rng.normal(size=(40, 6)))
    np.save(world / "own/labels.npy", labels)
    np.save(world / "own/classifier.npy", rng.normal(size=(4, 6)))
    np.savez(
        world / "own.npz",
        **{f"{s}_images": rng.integers(0, 256, (40, 8, 8), np.uint8) for s in ("train", "test")},
        **{f"{s}_labels": labels for s in ("train", "test")},
    )
    for split in ("train", "test"):
        for name in ("a", "b"):
            (world / f"pictures/{split}/{name}").mkdir(parents=True)
            for number in range(2):
                Image.new("L", (8, 8), 50 * number).save(
                    world / f"pictures/{split}/{name}/{number}.png"
                )
    (world / f"{MODULE}.py").write_text(SOURCE)
    shutil.rmtree(world.outputs)
    return world


# ------------------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    """A subcommand that must refuse."""

    name: str
    command: str
    spoil: Callable[[World], list[str] | None]
    """Spoils the inputs, and may return options that come after (and win over) the others."""
    says: str
    """What the sentence must name: a part of a path, or an option."""


def case(command: str, name: str, says: str, spoil: Callable[[World], list[str] | None]) -> Case:
    return Case(name, command, spoil, says)


def options(*given: str) -> Callable[[World], list[str]]:
    return lambda world: list(given)


def custom_network(function: str) -> Callable[[World], None]:
    return lambda w: w.recipe(network={"family": "custom", "function": f"{MODULE}:{function}"})


def no_class(c: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda labels: np.where(labels == c, (c + 1) % 10, labels)


def pickled(w: World) -> bytes:
    return pickle.dumps({"weight": w.bomb()})


def set_column(name: str, values: Callable[[pa.Table], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.column_names.index(name), name, values(t))


LAST = "epoch-0002.safetensors"
CHECKPOINT, MOMENTS = f"checkpoints/{LAST}", f"features/{LAST}"
MEASUREMENTS = "statistics.parquet"


def one_version_on(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, METADATA_VERSION: b"2"})


# A case is a row of a table, whatever its length.
# fmt: off


def checkpoint_cases() -> list[Case]:
    """What is wrong with a checkpoint; the network must never be measured with it."""
    kinds: list[tuple[str, Callable[[World], Any]]] = [
        ("is empty", lambda w: w.write(CHECKPOINT, b"")),
        ("is truncated in its header", lambda w: w.cut(CHECKPOINT, 0.05)),
        ("is truncated in its weights", lambda w: w.cut(CHECKPOINT, 0.9)),
        ("has a wrong bit in its header's length", lambda w: w.flip(CHECKPOINT, 0)),
        ("has a wrong bit in its weights", lambda w: w.flip(CHECKPOINT, 0.8)),
        ("has a wrong bit in its last byte", lambda w: w.flip(CHECKPOINT, 1)),
        ("is of a wider network", lambda w: w.another_network(growth=8)),
        ("is of a deeper network", lambda w: w.another_network(blocks=[2, 1])),
        ("is of more classes", lambda w: w.another_network(num_classes=12)),
        ("holds NaN", lambda w: w.weights(lambda t: t["classifier.bias"].fill_(torch.nan))),
        ("holds inf", lambda w: w.weights(lambda t: t["classifier.weight"].fill_(torch.inf))),
        ("has a variance that is NaN", lambda w: w.weights(lambda t: next(v for k,
            v in t.items() if k.endswith("running_var")).fill_(torch.nan))),
        ("has weights in half precision",
            lambda w: w.weights(lambda t: t.update({k: v.half() for k, v in t.items()}))),
        ("is a pickle", lambda w: w.write(CHECKPOINT, pickled(w))),
        ("is torch's own pickle", lambda w: torch.save({"weight": w.bomb()}, w / CHECKPOINT)),
        ("holds moments", lambda w: shutil.copy(w / MOMENTS, w / CHECKPOINT)),
        ("is a folder", lambda w: w.folder_instead(CHECKPOINT)),
        ("is a link to nowhere",
            lambda w: (w.remove(CHECKPOINT), (w / CHECKPOINT).symlink_to("x"))),
    ]
    cases = [
        case(command, f"a checkpoint {name}", LAST, spoil)
        for name, spoil in kinds
        for command in ("extract-features", "measure-robustness")
    ]
    return [
        *cases,
        case("extract-features", "a measured epoch's checkpoint is missing",
            "checkpoints: the checkpoint of epoch 2", lambda w: w.remove(CHECKPOINT)),
        case("measure-robustness", "the checkpoints' folder is missing",
            "checkpoints: holds no checkpoints", lambda w: w.remove("checkpoints")),
        case("extract-features", "the checkpoints' folder is a file",
            "checkpoints: holds no checkpoints", lambda w: w.file_instead("checkpoints")),
        case("extract-features", "a checkpoint's name has a digit that is no number",
            "the checkpoint of epoch 2",
            lambda w: os.rename(w / CHECKPOINT, w / "checkpoints/epoch-².safetensors")),
    ]


RECIPE_CASES = [
    case(command, f"the recipe {name}", "recipe.json", spoil)
    for command, name, spoil in [
        ("train-model", "is missing", lambda w: w.remove("recipe.json")),
        ("train-candidate", "is a folder", lambda w: w.folder_instead("recipe.json")),
        ("extract-features", "is empty", lambda w: w.write("recipe.json", "")),
        ("compute-statistics", "is truncated", lambda w: w.cut("recipe.json")),
        ("measure-robustness", "is not text", lambda w: w.write("recipe.json", b"\xff\xfe\0")),
        ("select-learning-rate", "is a list", lambda w: w.write("recipe.json", [1])),
        ("train-model", "is nested too deep", lambda w: w.write("recipe.json", "[" * 100_000)),
        ("train-model", "is of another version",
            lambda w: w.json("recipe.json", training__optimizer="adam")),
        ("train-model", "lacks its network", lambda w: w.json("recipe.json", network=None)),
        ("train-model", "knows a strange network", lambda w: w.json("recipe.json", network="x")),
        ("train-model", "is a checkpoint",
            lambda w: shutil.copy(w / CHECKPOINT, w / "recipe.json")),
        ("train-candidate", "lacks this learning rate", options("--learning-rate", "0.7")),
        ("train-candidate", "does not know the rate nan", options("--learning-rate", "nan")),
    ]
]
RECIPE_CASES += [
    case(
        "train-model", f"a custom network {name}", f"{MODULE}:{function}", custom_network(function)
    )
    for function, name in [
        ("raises", "cannot be made"),
        ("no_linear", "has no linear layer"),
        ("no_module", "is a number"),
        ("few_classes", "has three outputs"),
        ("missing", "is not in its module"),
        ("Frowning", "takes no images"),
        ("Squashed", "ends in softmax"),
    ]
]
RECIPE_CASES += [
    case("train-model", "a custom network's module is missing", "no_such_module",
        lambda w: w.recipe(network={"family": "custom", "function": "no_such_module:f"})),
    case("extract-features", "the recipe pictures classes that the data lacks",
        "measurement.activation_classes",
        lambda w: w.recipe(measurement={"epochs": [1, 2], "activation_classes": [0, 1, 57]})),
    *(
        case(name, f"it is known before {name} that measuring will lack {lacks}", key,
            lambda w, change=change: w.recipe(**change))
        for name in ("train-candidate", "train-model")
        for lacks, key, change in [
            ("a class", "measurement.activation_classes: digits has the classes 0 to 9",
                {"measurement": {"epochs": [1, 2], "activation_classes": [0, 1, 57]}}),
            ("test images", "robustness.images: 51", {"robustness": {"images": 51}}),
        ]
    ),
    case("compute-statistics", "the recipe pictures classes that the features lack",
        "features/epoch-0000.safetensors",
        lambda w: w.recipe(measurement={"epochs": [1, 2], "activation_classes": [0, 1, 57]})),
    case("compute-statistics", "the recipe pictures epochs whose features were not kept", LAST,
        lambda w: change_moments(w, drop("extra."))),
    case("measure-robustness", "the recipe attacks more images than there are",
        "robustness.images", lambda w: w.recipe(robustness={"images": 51})),
    case("train-model", "the recipe's batch is larger than the data", "training.batch_size",
        lambda w: w.recipe(training={"epochs": 2, "batch_size": 5000})),
]


def npy_header(length: int) -> bytes:
    """The start of a .npy file of int64 that claims to be of some length."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({length},), }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


TRAIN_IMAGES, TRAIN_LABELS = "data/train_images.npy", "data/train_labels.npy"
DATA_CASES = [
    case("train-model", f"the data {name}", says, spoil)
    for name, says, spoil in [
        ("is missing", "card.json", lambda w: w.remove("data")),
        ("is a file", "card.json", lambda w: w.file_instead("data")),
        ("has no card", "card.json", lambda w: w.remove("data/card.json")),
        ("has an empty card", "card.json", lambda w: w.write("data/card.json", "")),
        ("has a truncated card", "card.json", lambda w: w.cut("data/card.json")),
        ("has a card that is a list", "card.json", lambda w: w.write("data/card.json", [1])),
        ("has a card nested too deep", "card.json",
            lambda w: w.write("data/card.json", "[" * 10**5)),
        ("has a card without counts", "card.json", lambda w: w.json("data/card.json", counts=None)),
        ("has a card whose counts are text", "card.json",
            lambda w: w.json("data/card.json", counts="many")),
        ("has a card of infinitely many classes", "card.json",
            lambda w: w.json("data/card.json", num_classes=float("inf"))),
        ("has a card of 12 classes", "card.json",
            lambda w: w.json("data/card.json", num_classes=12)),
        ("has a card whose mean is NaN", "card.json",
            lambda w: w.json("data/card.json", mean=[np.nan])),
        ("has a card whose std is inf", "card.json",
            lambda w: w.json("data/card.json", std=[np.inf])),
        ("has a card whose std is 0", "card.json", lambda w: w.json("data/card.json", std=[0.0])),
        ("has a card that lies about its size", TRAIN_IMAGES,
            lambda w: w.json("data/card.json", image_size_px=9)),
        ("has a card of three channels", TRAIN_IMAGES,
            lambda w: w.json("data/card.json", channels=3, mean=[0.1] * 3, std=[1.0] * 3)),
        ("has a card of other counts", TRAIN_LABELS,
            lambda w: w.json("data/card.json", counts__train__kept=[21] + [20] * 9)),
        ("lacks its images", TRAIN_IMAGES, lambda w: w.remove(TRAIN_IMAGES)),
        ("has an empty array", TRAIN_IMAGES, lambda w: w.write(TRAIN_IMAGES, b"")),
        ("has a truncated array", TRAIN_IMAGES, lambda w: w.cut(TRAIN_IMAGES)),
        ("has an array cut in its header", TRAIN_LABELS, lambda w: w.cut(TRAIN_LABELS, 0.03)),
        ("has text for an array", TRAIN_LABELS, lambda w: w.write(TRAIN_LABELS, "1, 2, 3")),
        ("has a broken zip for an array", TRAIN_LABELS,
            lambda w: w.write(TRAIN_LABELS, b"PK\3\4xx")),
        ("has several arrays for one", TRAIN_LABELS,
            lambda w: (np.savez(w / "x", a=[1], b=[2]), os.rename(w / "x.npz", w / TRAIN_LABELS))),
        ("has a folder for an array", TRAIN_LABELS, lambda w: w.folder_instead(TRAIN_LABELS)),
        ("has an array of objects", TRAIN_LABELS,
            lambda w: np.save(w / TRAIN_LABELS, np.array([w.bomb()] * 3), allow_pickle=True)),
        ("has a pickle for an array", TRAIN_IMAGES, lambda w: w.write(TRAIN_IMAGES, pickled(w))),
        ("has an array that claims to be huge", TRAIN_LABELS,
            lambda w: w.write(TRAIN_LABELS, npy_header(10**22))),
        ("has float images", TRAIN_IMAGES,
            lambda w: w.array(TRAIN_IMAGES, lambda a: a.astype(np.float32) / 255)),
        ("has NaN images", TRAIN_IMAGES,
            lambda w: w.array(TRAIN_IMAGES, lambda a: np.full(a.shape, np.nan))),
        ("has images in rows", TRAIN_IMAGES,
            lambda w: w.array(TRAIN_IMAGES, lambda a: a.reshape(200, 64))),
        ("has images in Fortran order", TRAIN_IMAGES,
            lambda w: w.array(TRAIN_IMAGES, np.asfortranarray)),
        ("lacks one image", TRAIN_IMAGES, lambda w: w.array(TRAIN_IMAGES, lambda a: a[1:])),
        ("has float labels", TRAIN_LABELS,
            lambda w: w.array(TRAIN_LABELS, lambda a: a.astype(float))),
        ("has a label of 10", TRAIN_LABELS, lambda w: w.array(TRAIN_LABELS, lambda a: a + 1)),
        ("has a label of -1", TRAIN_LABELS, lambda w: w.array(TRAIN_LABELS, lambda a: a - 1)),
        ("lacks a class", TRAIN_LABELS, lambda w: w.array(TRAIN_LABELS, no_class(4))),
        ("lacks a class in its test set", "test_labels.npy",
            lambda w: w.array("data/test_labels.npy", no_class(9))),
        ("has no labels at all", TRAIN_LABELS, lambda w: [w.array(TRAIN_LABELS, lambda a: a[:0]),
            w.array(TRAIN_IMAGES, lambda a: a[:0])]),
    ]
]
DATA_CASES += [
    case("extract-features", "the data lacks a class", TRAIN_LABELS, DATA_CASES[-3].spoil),
    case("measure-robustness", "the data is truncated", TRAIN_IMAGES,
        lambda w: w.cut(TRAIN_IMAGES)),
    case("train-candidate", "the data has no card", "card.json",
        lambda w: w.remove("data/card.json")),
]

MOMENT_CASES = [
    case("compute-statistics", f"a moments file {name}", LAST, spoil)
    for name, spoil in [
        ("is missing", lambda w: w.remove(MOMENTS)),
        ("is empty", lambda w: w.write(MOMENTS, b"")),
        ("is truncated", lambda w: w.cut(MOMENTS)),
        ("has a wrong bit", lambda w: w.flip(MOMENTS, 0.5)),
        ("is a checkpoint", lambda w: shutil.copy(w / CHECKPOINT, w / MOMENTS)),
        ("is a folder", lambda w: w.folder_instead(MOMENTS)),
        ("is a pickle", lambda w: w.write(MOMENTS, pickled(w))),
        ("lacks its class means",
            lambda w: change_moments(w, lambda t: t.pop("train.class_means"))),
        ("has no test set", lambda w: change_moments(w, drop("test."))),
        ("lacks the raw features' labels",
            lambda w: change_moments(w, lambda t: t.pop("extra.labels"))),
        ("has raw features of another width",
            lambda w: change_moments(w, lambda t: t.update({"extra.features": torch.ones(15, 2)}))),
        ("has class means that are NaN",
            lambda w: change_moments(w, lambda t: t["train.class_means"].fill_(torch.nan))),
    ]
]


def change_moments(w: World, change: Callable[[dict], Any]) -> None:
    from neural_collapse.collapse.moments import FORMAT
    from neural_collapse.io.tensors import write_tensors

    tensors, metadata = read_tensors(w / MOMENTS, "moments file", FORMAT)
    change(tensors)
    write_tensors(w / MOMENTS, tensors, metadata, FORMAT)


def drop(prefix: str) -> Callable[[dict], None]:
    def change(tensors: dict) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return change


TABLE_CASES = [
    case(command, f"a table {name}", file, spoil)
    for command, name, file, spoil in [
        ("collect-tables", "is missing", MEASUREMENTS, lambda w: w.remove(MEASUREMENTS)),
        ("collect-tables", "is empty", MEASUREMENTS, lambda w: w.write(MEASUREMENTS, b"")),
        ("collect-tables", "is truncated", MEASUREMENTS, lambda w: w.cut(MEASUREMENTS)),
        ("collect-tables", "is text", MEASUREMENTS, lambda w: w.write(MEASUREMENTS, "a,b\n1,2\n")),
        ("collect-tables", "is a folder", MEASUREMENTS, lambda w: w.folder_instead(MEASUREMENTS)),
        ("collect-tables", "is a pickle", MEASUREMENTS,
            lambda w: w.write(MEASUREMENTS, pickled(w))),
        ("collect-tables", "is another one", MEASUREMENTS,
            lambda w: shutil.copy(w / "history.parquet", w / MEASUREMENTS)),
        ("collect-tables", "is a stranger's", MEASUREMENTS,
            lambda w: pd.DataFrame({"a": [1]}).to_parquet(w / MEASUREMENTS)),
        ("collect-tables", "is of another schema version", MEASUREMENTS,
            lambda w: w.table(MEASUREMENTS, one_version_on)),
        ("collect-tables", "lacks a column", MEASUREMENTS,
            lambda w: w.table(MEASUREMENTS, lambda t: t.drop_columns("value"))),
        ("collect-tables", "has a column too many", MEASUREMENTS,
            lambda w: w.table(MEASUREMENTS, lambda t: t.append_column("x", t["value"]))),
        ("collect-tables", "has text for numbers", MEASUREMENTS, lambda w: w.table(MEASUREMENTS,
            set_column("value", lambda t: t["value"].cast(pa.string())))),
        ("collect-tables", "has missing values", MEASUREMENTS, lambda w: w.table(MEASUREMENTS,
            set_column("epoch", lambda t: pa.nulls(len(t), pa.int64())))),
        ("collect-tables", "has a negative epoch", MEASUREMENTS, lambda w: w.table(MEASUREMENTS,
            set_column("epoch", lambda t: pa.array([-1] * len(t), pa.int64())))),
        ("collect-tables", "has every row twice", MEASUREMENTS,
            lambda w: w.table(MEASUREMENTS, lambda t: pa.concat_tables([t, t]))),
        ("collect-tables", "of robustness is truncated", "robustness.parquet",
            lambda w: w.cut("robustness.parquet")),
        ("collect-tables", "of pictures is another one", "activations.parquet",
            lambda w: shutil.copy(w / MEASUREMENTS, w / "activations.parquet")),
        ("collect-tables", "of the sweep is missing", "sweep.parquet",
            lambda w: w.remove("sweep.parquet")),
        ("select-learning-rate", "of a learning rate is truncated", "curve.parquet",
            lambda w: w.cut("curve.parquet")),
        ("select-learning-rate", "of a learning rate has no rows", "curve.parquet",
            lambda w: w.table("curve.parquet", lambda t: t.slice(0, 0))),
        ("select-learning-rate", "of a learning rate ends early", "curve.parquet",
            lambda w: w.recipe(training={"epochs": 5}, measurement={"epochs": [1, 2]})),
        ("select-learning-rate", "of a learning rate lacks the split", "curve.parquet",
            lambda w: w.recipe(sweep={"selection": "held_out_error"})),
        ("select-learning-rate", "of a learning rate is of another dataset", "curve.parquet",
            lambda w: w.recipe(dataset="mnist_subset")),
        ("train-model", "of the winner is missing", "curve.parquet",
            lambda w: w.remove("curve.parquet")),
        ("train-model", "of the winner has no rows", "curve.parquet",
            lambda w: w.table("curve.parquet", lambda t: t.slice(0, 0))),
        ("train-model", "of the winner is of another network", "curve.parquet",
            lambda w: w.recipe(architecture="resnet")),
        ("plot", "of runs is missing", "tables/runs.parquet",
            lambda w: w.remove("tables/runs.parquet")),
        ("plot", "of measurements is truncated", "tables/measurements.parquet",
            lambda w: w.cut("tables/measurements.parquet")),
        ("compare-with-paper", "of runs is another one", "tables/runs.parquet",
            lambda w: shutil.copy(w / "tables/sweep.parquet", w / "tables/runs.parquet")),
        ("compare-with-paper", "lacks a column", "tables/measurements.parquet",
            lambda w: w.table("tables/measurements.parquet",
            lambda t: t.drop_columns("statistic"))),
        ("compare-with-paper", "is in no folder", "tables", lambda w: w.file_instead("tables")),
        ("report", "of runs has a wrong type", "tables/runs.parquet",
            lambda w: w.table("tables/runs.parquet", set_column("epochs",
            lambda t: t["epochs"].cast(pa.float64())))),
        ("show", "of measurements is truncated", "tables/measurements.parquet",
            lambda w: w.cut("results/tables/measurements.parquet")),
        ("export-reference", "of runs is truncated", "runs.parquet",
            lambda w: w.cut("results/tables/runs.parquet")),
    ]
]
TABLE_CASES = [
    case(c.command, c.name, MEASUREMENTS if c.says == MEASUREMENTS else c.says, c.spoil)
    for c in TABLE_CASES
]

RUN_CASES = [
    case(command, f"run.json {name}", "run.json", spoil)
    for command in ("collect-tables", "report")
    for name, spoil in [
        ("is missing", lambda w: w.remove("run.json")),
        ("is truncated", lambda w: w.cut("run.json")),
        ("is not text", lambda w: w.write("run.json", b"\xff\xfe")),
        ("is a list", lambda w: w.write("run.json", [1])),
        ("is nested too deep", lambda w: w.write("run.json", "[" * 100_000)),
        ("lacks the architecture", lambda w: w.json("run.json", architecture=None)),
        ("has a seed that is text", lambda w: w.json("run.json", seed="three")),
    ]
] + [
    case("collect-tables", "run.json lacks the learning rate", "run.json",
        lambda w: w.json("run.json", learning_rate=None)),
    case("report", "a data card is a list", "card.json", lambda w: w.write("data/card.json", [1])),
    case("export-reference", "run.json lacks the data's hash", "run.json",
        lambda w: w.json("results/digits/densenet/seed-3/run.json", data_hash=None)),
    case("export-reference", "a data card is a list", "card.json",
        lambda w: w.write("resources/digits/prepared/all/card.json", [1])),
    case("export-reference", "the card is missing", "resources", lambda w: w.remove("resources")),
    case("show", "the recipe is a list", "recipe.json", lambda w: (w.remove("results/tables"),
        w.write("results/digits/densenet/recipe.json", [1]))),
    case("show", "there is no such run", "there: ", options("--seed", "99")),
    case("show", "there is nothing", "results: holds no", lambda w: w.remove("results")),
    case("status", "there are no results", "results", lambda w: w.remove("results")),
    case("status", "a recipe is truncated", "recipe.json",
        lambda w: w.cut("results/digits/densenet/recipe.json")),
    case("plan", "the config is missing", "config.yaml", lambda w: w.remove("config.yaml")),
    case("plan", "the config is not text", "config.yaml",
        lambda w: w.write("config.yaml", b"\xff")),
    case("plan", "the config is a folder", "config.yaml",
        lambda w: w.folder_instead("config.yaml")),
]


def own_file(**changes) -> Callable[[World], list[str]]:
    """prepare-dataset with an .npz file whose arrays are changed."""

    def spoil(w: World) -> list[str]:
        w.npz(**changes)
        return w.own_dataset("own.npz")

    return spoil


def own_folder(change: Callable[[World], Any], **more) -> Callable[[World], list[str]]:
    """prepare-dataset with a folder of images that is changed after it was registered."""

    def spoil(w: World) -> list[str]:
        given = w.own_dataset("pictures", **more)
        change(w)
        return given

    return spoil


def own_then(change: Callable[[World], Any]) -> Callable[[World], list[str]]:
    """prepare-dataset with an .npz file that is changed after it was registered."""

    def spoil(w: World) -> list[str]:
        given = w.own_dataset("own.npz")
        change(w)
        return given

    return spoil


def pictures(w: World) -> list[str]:
    return ["--custom", json.dumps({"label": "Own", "path": str(w / "pictures")})]


PICTURE = "pictures/train/b/1.png"
OWN_CASES = [
    case("prepare-dataset", f"an own dataset {name}", says, spoil)
    for name, says, spoil in [
        ("lacks an array", "own.npz", own_file(test_labels=None)),
        ("has float images", "own.npz", own_file(train_images=lambda a: a / 255)),
        ("has NaN images", "own.npz", own_file(train_images=lambda a: a * np.nan)),
        ("has images of five axes", "own.npz", own_file(train_images=lambda a: a[:, None, None])),
        ("has two channels", "own.npz", own_file(train_images=lambda a: np.stack([a, a], -1))),
        ("has images that are not square", "",
            own_file(train_images=lambda a: a[:, :4], test_images=lambda a: a[:, :4])),
        ("has test images of another size", "own.npz",
            own_file(test_images=lambda a: a[:, :4, :4])),
        ("has images without pixels", "",
            own_file(train_images=lambda a: a[:, :0, :0], test_images=lambda a: a[:, :0, :0])),
        ("has float labels", "own.npz", own_file(train_labels=lambda a: a.astype(float))),
        ("has labels in columns", "own.npz", own_file(train_labels=lambda a: a[:, None])),
        ("lacks a label", "own.npz", own_file(train_labels=lambda a: a[1:])),
        ("has negative labels", "", own_file(train_labels=lambda a: a - 1)),
        ("has huge labels", "", own_file(train_labels=lambda a: a.astype(np.uint64) + 2**63)),
        ("lacks a class", "", own_file(train_labels=lambda a: np.where(a == 1, 2, a))),
        ("has one class", "", own_file(train_labels=lambda a: a * 0, test_labels=lambda a: a * 0)),
        ("is empty", "", own_file(**{f"{s}_{n}": lambda a: a[:0] for s in ("train",
            "test") for n in ("images", "labels")})),
        ("has labels of objects", "own.npz", own_then(lambda w: np.savez(w / "own.npz",
            **{**np.load(w / "own.npz"), "train_labels": np.array([w.bomb()] * 40)}))),
        ("is truncated", "own.npz", own_then(lambda w: w.cut("own.npz"))),
        ("has a wrong bit", "own.npz", own_then(lambda w: w.flip("own.npz", 0.3))),
        ("is no zip", "own.npz", own_then(lambda w: w.write("own.npz", "no zip"))),
        ("was deleted", "own.npz", own_then(lambda w: w.remove("own.npz"))),
        ("became a folder", "own.npz", own_then(lambda w: w.folder_instead("own.npz"))),
        ("has no folder test", "pictures", own_folder(lambda w: w.remove("pictures/test"))),
        ("has a class in test only", "pictures",
            own_folder(lambda w: w.remove("pictures/train/b"))),
        ("has no images", "pictures",
            own_folder(lambda w: (w.remove("pictures/train/b"), (w / "pictures/train/b").mkdir()))),
        ("has no classes", "pictures",
            own_folder(lambda w: [w.remove(f"pictures/{s}/{c}") for s in ("train",
            "test") for c in "ab"])),
        ("has text for an image", PICTURE, own_folder(lambda w: w.write(PICTURE, "no image"))),
        ("has an empty image", PICTURE, own_folder(lambda w: w.write(PICTURE, ""))),
        ("has a truncated image", PICTURE, own_folder(lambda w: w.cut(PICTURE))),
        ("has an image of floats", PICTURE, own_folder(lambda w: Image.fromarray(
            np.ones((8, 8), np.float32)).save(w / PICTURE, "TIFF"))),
        ("has a dangling link", PICTURE, own_folder(lambda w: (w.remove(PICTURE),
            (w / PICTURE).symlink_to(w / "gone")))),
        ("has an SVG for an image", PICTURE, own_folder(lambda w: w.write(PICTURE,
            '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'))),
        ("has images of two sizes", PICTURE,
            own_folder(lambda w: Image.new("RGB", (9, 9)).save(w / PICTURE))),
    ]
] + [
    case("download-dataset", "an own dataset is missing", "own.npz", lambda w: w.remove("own.npz")),
    case("download-dataset", "an own dataset is a folder", "own.npz",
        lambda w: w.folder_instead("own.npz")),
    case("download-dataset", "an own folder lacks its test set", "pictures",
        lambda w: (w.remove("pictures/test"), pictures(w))[1]),
    case("download-dataset", "an own folder has a class in test only", "pictures",
        lambda w: (w.remove("pictures/train/b"), pictures(w))[1]),
    case("download-dataset", "an own folder has no images", "pictures/train/b",
        lambda w: (w.remove("pictures/train/b"), (w / "pictures/train/b").mkdir(), pictures(w))[2]),
    case("download-dataset", "an own dataset has no path", "--custom",
        options("--custom", '{"label": "x"}')),
    case("download-dataset", "the dataset is unknown", "mnits",
        options("--dataset", "mnits", "--custom", "null")),
    case("download-dataset", "the mirror is missing", "/no such mirror",
        options("--dataset", "mnist", "--custom", "null", "--mirror", "/no such mirror")),
    case("download-dataset", "ImageNet's folder is missing", "/no such folder",
        options("--dataset", "imagenet", "--custom", "null", "--imagenet-folder",
        "/no such folder")),
    case("prepare-dataset", "source.json is missing", "source.json",
        lambda w: w.remove("raw/source.json")),
    case("prepare-dataset", "source.json is truncated", "source.json",
        lambda w: w.cut("raw/source.json")),
    case("prepare-dataset", "source.json is of another dataset", "source.json",
        lambda w: w.json("raw/source.json", dataset="mnist")),
    case("prepare-dataset", "source.json lacks its files", "source.json",
        lambda w: w.json("raw/source.json", files=None)),
    case("prepare-dataset", "source.json has a folder that is a number", "source.json",
        lambda w: w.json("raw/source.json", folder=7)),
    case("prepare-dataset", "source.json is nested too deep", "source.json",
        lambda w: w.write("raw/source.json", "[" * 100_000)),
    case("prepare-dataset", "the raw file is truncated", "digits.npz",
        lambda w: w.cut("raw/digits.npz")),
    case("prepare-dataset", "a class has too few images", "data.examples_per_class",
        options("--data-recipe", '{"examples_per_class": 5000}')),
    case("prepare-dataset", "pooling does not divide the images", "average_pooling",
        options("--data-recipe", '{"average_pooling": 3}')),
]

ARRAY_CASES = [
    case("statistics", f"own features {name}", says, spoil)
    for name, says, spoil in [
        ("are missing", "features.npy", lambda w: w.remove("own/features.npy")),
        ("are a folder", "features.npy", lambda w: w.folder_instead("own/features.npy")),
        ("are truncated", "features.npy", lambda w: w.cut("own/features.npy")),
        ("are text", "features.npy", lambda w: w.write("own/features.npy", "1 2 3")),
        ("are a broken zip", "features.npy", lambda w: w.write("own/features.npy", b"PK\3\4xx")),
        ("are objects", "features.npy",
            lambda w: np.save(w / "own/features.npy", np.array([w.bomb()] * 3), allow_pickle=True)),
        ("are a pickle", "features.npy", lambda w: w.write("own/features.npy", pickled(w))),
        ("are NaN", "features", lambda w: w.array("own/features.npy", lambda a: a * np.nan)),
        ("have three axes", "features", lambda w: w.array("own/features.npy", lambda a: a[None])),
        ("are narrower than the classifier", "has shape",
            lambda w: w.array("own/features.npy", lambda a: a[:, 1:])),
        ("have float labels", "labels", lambda w: w.array("own/labels.npy", lambda a: a / 2)),
        ("have labels out of range", "labels",
            lambda w: w.array("own/labels.npy", lambda a: a + 1)),
        ("lack a class", "class 3", lambda w: w.array("own/labels.npy", lambda a: a.clip(0, 2))),
        ("lack a label", "labels", lambda w: w.array("own/labels.npy", lambda a: a[1:])),
        ("have a classifier of one axis", "classifier.npy",
            lambda w: w.array("own/classifier.npy", np.ravel)),
        ("have a classifier of text", "lassifier",
            lambda w: w.array("own/classifier.npy", lambda a: a.astype(str))),
        ("have a bias of another length", "bias", lambda w: ["--bias", str(w / "own/labels.npy")]),
        ("have a test set without labels", "test labels",
            lambda w: ["--test-features", str(w / "own/features.npy")]),
    ]
]

OPTION_CASES = [
    case(command, f"the options {' '.join(given)[:60]}", says, options(*given))
    for command, says, given in [
        ("train-model", "--gpus", ("--gpus", "-1")),
        ("train-model", "--gpus", ("--gpus", "all")),
        ("train-model", "--processes", ("--processes", "0")),
        ("train-candidate", "--processes", ("--processes", "-2")),
        ("train-model", "--seed", ("--seed", "-1")),
        ("train-model", "--seed", ("--seed", "1.5")),
        ("train-model", "--seed", ("--seed", str(2**70))),
        ("measure-robustness", "--seed", ("--seed", "-1")),
        ("compute-statistics", "--seed", ("--seed", "-1")),
        ("train-model", "--device", ("--device", "tpu")),
        ("extract-features", "device: cuda", ("--device", "cuda")),
        ("measure-robustness", "--gpus", ("--gpus", "-3")),
        ("prepare-dataset", "--workers", ("--workers", "0")),
        ("prepare-dataset", "--data-recipe", ("--data-recipe", "{")),
        ("prepare-dataset", "--data-recipe", ("--data-recipe", "[" * 100_000)),
        ("prepare-dataset", "--data-recipe", ("--data-recipe", "[1]")),
        ("prepare-dataset", "--data-recipe", ("--data-recipe", '{"colour": 1}')),
        ("prepare-dataset", "--custom", ("--custom", "[1]")),
        ("plot", "figure_99", ("--figure", "figure_99")),
        ("plot", "gif", ("--output", "figure_2.gif")),
        ("plot", "--output", ("--figure", "2", "3")),
        ("plot", "--epoch-axis", ("--epoch-axis", "square")),
        ("plot", "--labels", ("--labels", "[1]")),
        ("collect-tables", "--labels", ("--labels", '{"digits": 1}')),
        ("report", "--config-json", ("--config-json", "[1]")),
        ("report", "--config-json", ("--config-json", "{}")),
        ("statistics", "own.txt", ("--output", "/nowhere/own.txt")),
        ("show", "--width", ("--width", "0")),
    ]
]

# fmt: on

# A subcommand's outputs, and the option that names each.
OUTPUTS = [
    ("statistics", "--output", "own.csv"),
    ("export-reference", "--output-folder", "reference"),
    ("download-dataset", "--output-folder", "raw"),
    ("prepare-dataset", "--output-folder", "data"),
    ("train-candidate", "--output", "curve.parquet"),
    ("select-learning-rate", "--table", "sweep.parquet"),
    ("select-learning-rate", "--selection", "selection.json"),
    ("train-model", "--checkpoint-folder", "checkpoints"),
    ("train-model", "--history", "history.parquet"),
    ("train-model", "--run-facts", "run.json"),
    ("extract-features", "--output-folder", "features"),
    ("compute-statistics", "--statistics", "statistics.parquet"),
    ("compute-statistics", "--activations", "activations.parquet"),
    ("measure-robustness", "--output", "robustness.parquet"),
    ("collect-tables", "--output-folder", "tables"),
    ("plot", "--output", "figure.svg"),
    ("compare-with-paper", "--output-folder", "compared"),
    ("report", "--output", "report.html"),
]
JOBS = ["train-candidate", "train-model", "extract-features", "measure-robustness"]


def under_a_file(option: str, name: str) -> Callable[[World], list[str]]:
    def spoil(w: World) -> list[str]:
        w.write("a file", "x")
        return [option, str(w / "a file" / name)]

    return spoil


PLACE_CASES = [
    *(
        case(command, f"{option} lies under a file", "a file", under_a_file(option, name))
        for command, option, name in OUTPUTS
    ),
    *(
        case(
            command, "the state root lies under a file", "a file", under_a_file("--state-root", "s")
        )
        for command in JOBS
    ),
    case("compare-with-paper", "the log lies under a file", "a file", under_a_file("--log", "log")),
    case("train-model", "the log is a folder", "data", lambda w: ["--log", str(w / "data")]),
    *(
        case(
            command,
            f"{option} is a folder",
            "data",
            lambda w, option=option: [option, str(w / "data")],
        )
        for command, option, name in OUTPUTS
        if "." in name and command != "statistics"
    ),
]

CASES = [
    *checkpoint_cases(),
    *RECIPE_CASES,
    *DATA_CASES,
    *MOMENT_CASES,
    *TABLE_CASES,
    *RUN_CASES,
    *OWN_CASES,
    *ARRAY_CASES,
    *OPTION_CASES,
    *PLACE_CASES,
]


# ------------------------------------------------------------------------- the tests


@pytest.fixture
def world(whole, tmp_path, monkeypatch):
    """A copy of the whole that a case may spoil."""
    fresh = World(tmp_path / FOLDER)
    shutil.copytree(whole.inputs, fresh.inputs, symlinks=True)
    monkeypatch.syspath_prepend(str(fresh.inputs))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("NC_DATA_MIRROR", "NC_IMAGENET_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    return fresh


# What an earlier run has left at every output.
EARLIER = [
    *("own.csv", "reference/runs.json.old", "raw/source.json", "data/card.json"),
    *("data/train_images.npy", "curve.parquet", "sweep.parquet", "selection.json"),
    *(f"checkpoints/{LAST}", "history.parquet", "run.json", f"features/{LAST}"),
    *("statistics.parquet", "activations.parquet", "robustness.parquet"),
    *("tables/measurements.parquet", "figure.svg", "table_1.parquet", "claims.parquet"),
    "report.html",
]


def files(folder: Path) -> dict[str, Any]:
    """Every file by its bytes, links and folders' names; resume states are no outputs."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if (
            name.startswith(("out/state", "out/data.partial"))
            or "__pycache__" in name
            or name.endswith(".lock")
        ):
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def refused(arguments: list[str], capsys) -> str:
    """The one sentence with which a subcommand refuses."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    assert status == 2, (status, said.err[-3000:])
    assert "Traceback" not in said.err
    *before, last = said.err.splitlines()
    assert last.startswith("error: "), said.err
    # Progress up to the checkpoint that is bad; warnings.
    fine = re.compile(r"digits x densenet  .*checkpoint |warning: ")
    assert all(fine.match(line) for line in before), said.err
    assert not said.out
    sentence = last.removeprefix("error: ")
    assert 20 < len(sentence) < 1000, sentence
    return sentence


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.command}: {case.name}")
def test_bad_input_is_one_sentence_and_touches_nothing(world, case, capsys):
    more = case.spoil(world)
    arguments = [case.command, *world.command(case.command)]
    if isinstance(more, list):
        arguments += [option for option in more if option is not None]
    for earlier in (False, True):
        if earlier:
            for name in EARLIER:
                (world.outputs / name).parent.mkdir(parents=True, exist_ok=True)
                (world.outputs / name).write_text("of an earlier run")
        before = files(world.folder)
        sentence = refused(arguments, capsys)
        assert case.says in sentence
        assert not world.executed.exists(), "a file that was only to be read ran code"
        assert files(world.folder) == before


def test_the_table_is_long_enough():
    assert len(CASES) >= 60
    names = [(case.command, case.name) for case in CASES]
    assert len(set(names)) == len(names)


GOOD = [name for name in dict.fromkeys(command for command, *_ in OUTPUTS)]


@pytest.mark.parametrize("command", [*GOOD, "plan", "status", "show"])
def test_paths_of_any_letters_work(world, command, capsys):
    """The same lines with nothing spoiled: the cases above fail for what they spoil alone."""
    log = world.outputs / "logs ü" / "log"
    status = main([command, *world.command(command), "--log", str(log)])
    assert status == 0, capsys.readouterr().err
    for _, option, name in [output for output in OUTPUTS if output[0] == command]:
        assert option and any(world.outputs.glob(f"{name}*"))
    assert log.is_file()


@contextlib.contextmanager
def read_only(folder: Path):
    """A file system of its own on `folder`, since root may write everywhere else; the function that
    comes with the block makes it read-only."""
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if not made or made.returncode != 0:
        if os.geteuid() == 0:
            pytest.skip(
                f"no file system can be mounted here: {made.stderr if made else 'no mount'}"
            )
        folder.chmod(0o500)
        yield lambda: None
        folder.chmod(0o700)
        return
    try:

        def seal() -> None:
            subprocess.run([mount, "-o", "remount,ro", str(folder)], check=True)

        yield seal
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_results_folder_is_one_sentence(world, capsys):
    with read_only(world.outputs) as seal:
        seal()
        for command in GOOD:
            sentence = refused([command, *world.command(command)], capsys)
            assert str(world.outputs) in sentence, command
        compare = ["compare-with-paper", *world.command("compare-with-paper")]
        assert "log: cannot be written" in refused(
            [*compare, "--log", str(world.outputs / "log")], capsys
        )


def test_quotes_and_dollars_survive_snakemakes_shell(tmp_path):
    """Every rule's command gets the very paths of the config, whatever the shell makes of them."""
    folder = 'rés $HOME `x` "q" it\'s'
    tiny = Experiment(tmp_path / FOLDER, **CHANGES, results_folder=folder, resources_folder=folder)
    planned = tiny.snakemake("--dry-run", "--printshellcmds")
    assert planned.returncode == 0, planned.stdout[-3000:]
    commands = re.findall(
        r"^Shell command: (python .*)$", planned.stdout, re.MULTILINE
    ) or re.findall(r"^ *(python -m neural_collapse .*)$", planned.stdout, re.MULTILINE)
    assert len({line.split()[3] for line in commands}) >= 10, planned.stdout[-3000:]
    for line in commands:
        words = shlex.split(line)
        paths = [word for word in words if "rés" in word and not word.startswith("{")]
        assert len(paths) >= 2 and all(folder in path for path in paths), line
        # A shell agrees with Python about what the words are.
        told = subprocess.run(
            ["bash", "-c", 'python() { printf "%s\\0" "$@" | base64; }\n' + line],
            capture_output=True,
            text=True,
            check=True,
        )
        assert base64.b64decode(told.stdout).decode().split("\0")[:-1] == words[1:]
    # And two rules are run to their end.
    tiny.run(*("--until", "prepare_dataset"))
    assert list((tiny.folder / folder).glob("digits/prepared/*/card.json"))
