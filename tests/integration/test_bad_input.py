"""Bad files handed to every subcommand: one sentence that names the file, and nothing is touched.

Wrong values of a config are in tests/unit/test_config.py.  Here stand broken, foreign and missing
files, and options that no job can be run with.  Each case spoils a copy of a whole tiny run that
lies under a path with spaces and letters that are not ASCII.  Then a subcommand is called twice,
once where nothing was written yet and once where results of an earlier run lie already.
"""

from __future__ import annotations

import base64
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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from experiments import CHANGES, Experiment
from PIL import Image

from neural_collapse.cli.main import main
from neural_collapse.collapse import moments
from neural_collapse.experiment.recipe import Recipe, write_recipe
from neural_collapse.io.tensors import read_tensors, write_tensors
from neural_collapse.networks.build import build_network
from neural_collapse.training import checkpoints

FOLDER = 'spaces, ünï-çødé 数据, it\'s "q" $HOME'
CELL = {"dataset": "digits", "architecture": "densenet"}
MODULE = "networks_with_mistakes"
SOURCE = """
def raises(): raise RuntimeError("the weights are\\nnot there")
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


DEVICE = "--device cpu --gpus 0 --state-root @out/state"
JOB = "--recipe @in/recipe.json --data-folder @in/data"
LAYOUT = "--datasets digits --architectures densenet"
COMMANDS = {
    "plan": "--config @in/config.yaml",
    "status": "@in/results",
    "show": "@in/results",
    "statistics": "--features @in/own/features.npy --labels @in/own/labels.npy"
    " --classifier @in/own/classifier.npy --output @out/own.csv",
    "export-reference": "--results-folder @in/results --output-folder @out/reference"
    " --resources-folder @in/resources",
    "download-dataset": "--dataset own --output-folder @out/raw --custom"
    ' {"label":"Own","path":"@in/own.npz"}',
    "prepare-dataset": "--dataset digits --raw-folder @in/raw --output-folder @out/data"
    ' --data-recipe {"examples_per_class":20,"test_examples_per_class":5}',
    "train-candidate": f"{JOB} {DEVICE} --learning-rate 0.05 --output @out/curve.parquet",
    "select-learning-rate": "--recipe @in/recipe.json --curves @in/curve.parquet"
    " --table @out/sweep.parquet --selection @out/selection.json",
    "train-model": f"{JOB} {DEVICE} --seed 3 --winner @in/curve.parquet --checkpoint-folder"
    " @out/checkpoints --history @out/history.parquet --run-facts @out/run.json",
    "extract-features": f"{JOB} {DEVICE} --checkpoint-folder @in/checkpoints --seed 3"
    " --output-folder @out/features",
    "compute-statistics": "--recipe @in/recipe.json --features-folder @in/features --seed 3"
    " --statistics @out/statistics.parquet --activations @out/activations.parquet",
    "measure-robustness": f"{JOB} {DEVICE} --checkpoint-folder @in/checkpoints --seed 3"
    " --output @out/robustness.parquet",
    "collect-tables": "--histories @in/history.parquet --runs @in/run.json"
    " --statistics @in/statistics.parquet --robustness @in/robustness.parquet"
    " --activations @in/activations.parquet --sweeps @in/sweep.parquet --recipes @in/recipe.json"
    ' --output-folder @out/tables --labels {"digits":"Digits","densenet":"DenseNet"}',
    "plot": f"--figure 2 --tables @in/tables --output @out/figure.svg {LAYOUT}",
    "compare-with-paper": f"--tables-folder @in/tables --output-folder @out/compared {LAYOUT}",
    "report": "--tables-folder @in/tables --figures-folder @in/figures --output @out/report.html"
    f' --runs @in/run.json --cards @in/data/card.json --config-json {{"experiment":"x"}} {LAYOUT}',
}


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
        words = []
        for word in COMMANDS[name].split():
            for mark, place in {"@in": str(self.inputs), "@out": str(self.outputs)}.items():
                within_json = json.dumps(place, ensure_ascii=False)[1:-1]
                word = word.replace(mark, within_json if word.startswith("{") else place)
            words.append(word)
        return words

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

    def another_network(self) -> None:
        wider = recipe(network={**recipe().network.model_dump(), "growth": 8}).network
        built = build_network(wider, channels=1, num_classes=10, image_size_px=8, seed=0)
        path = self / "checkpoints/epoch-0002.safetensors"
        checkpoints.save_checkpoint(path, built.state_dict(), {})

    def bomb(self) -> Any:
        """An object whose pickle leaves a file behind when it is loaded."""
        return _Bomb(str(self.executed))

    def own_dataset(self, path: str, **more) -> list[str]:
        """Options of prepare-dataset for a user-defined dataset, which is downloaded first."""
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
    for name, outputs in made.items():
        run(name, *world.command(name))
        for output in outputs:
            os.rename(world.outputs / output, world / output)
    cell = world / "results/digits/densenet"
    (cell / "seed-3").mkdir(parents=True)
    for name in ("statistics.parquet", "robustness.parquet", "history.parquet", "run.json"):
        shutil.copy(world / name, cell / "seed-3")
    shutil.copy(world / "recipe.json", cell)
    shutil.copytree(world / "tables", world / "results/tables")
    shutil.copytree(world / "data", world / "resources/digits/prepared/all")

    (world / "own").mkdir()
    rng = np.random.default_rng(0)
    labels, images = np.arange(40) % 4, rng.integers(0, 256, (40, 8, 8), np.uint8)
    np.save(world / "own/features.npy", rng.normal(size=(40, 6)))
    np.save(world / "own/labels.npy", labels)
    np.save(world / "own/classifier.npy", rng.normal(size=(4, 6)))
    dataset = {"train_images": images, "test_images": images}
    np.savez(world / "own.npz", **dataset, train_labels=labels, test_labels=labels)
    for folder in ("figures", *(f"pictures/{s}/{c}" for s in ("train", "test") for c in "ab")):
        (world / folder).mkdir(parents=True)
        for name in ("figure_2.png", "1.png"):
            Image.new("L", (8, 8), 50).save(world / folder / name)
    (world / f"{MODULE}.py").write_text(SOURCE)
    shutil.rmtree(world.outputs)
    return world


# ------------------------------------------------------------------------- the cases


# Each: the subcommand that must refuse; what is wrong; what the sentence must name, a part of a
# path, a key or an option; and a function that spoils the inputs, and may return options that come
# after (and win over) the others.


def options(*given: str) -> Callable[[World], list[str]]:
    return lambda world: list(given)


def pickled(w: World) -> bytes:
    return pickle.dumps({"weight": w.bomb()})


def change_moments(change: Callable[[dict], Any]) -> Callable[[World], None]:
    def corrupt(w: World) -> None:
        tensors, metadata = read_tensors(w / MOMENTS, "moments file", moments.FORMAT)
        change(tensors)
        write_tensors(w / MOMENTS, tensors, metadata, moments.FORMAT)

    return corrupt


LAST = "epoch-0002.safetensors"
CHECKPOINT, MOMENTS = f"checkpoints/{LAST}", f"features/{LAST}"
CARD, IMAGES, LABELS = "data/card.json", "data/train_images.npy", "data/train_labels.npy"
OWN_RECIPE = "results/digits/densenet/recipe.json"
PICTURE = "pictures/train/b/1.png"

# Whatever happens to a file that a subcommand reads, the sentence names it.
DAMAGES: dict[str, Callable[[World, str], Any]] = {
    "is missing": World.remove,
    "is a folder": World.folder_instead,
    "is empty": lambda w, file: w.write(file, b""),
    "is truncated": World.cut,
    "is neither text nor anything else": lambda w, file: w.write(file, b"\xff\xfe\0nothing"),
    "is a pickle": lambda w, file: w.write(file, pickled(w)),
    "is nested too deep": lambda w, file: w.write(file, "[" * 100_000),
}
READ = [
    ("plan", "config.yaml"),
    ("prepare-dataset", "raw/source.json"),
    ("prepare-dataset", "raw/digits.npz"),
    ("train-candidate", "recipe.json"),
    ("train-candidate", CARD),
    ("select-learning-rate", "curve.parquet"),
    ("train-model", "curve.parquet"),
    ("train-model", IMAGES),
    ("train-model", LABELS),
    ("extract-features", CHECKPOINT),
    ("measure-robustness", CHECKPOINT),
    ("compute-statistics", MOMENTS),
    ("compute-statistics", "recipe.json"),
    ("collect-tables", "statistics.parquet"),
    ("collect-tables", "run.json"),
    ("plot", "tables/runs.parquet"),
    ("compare-with-paper", "tables/measurements.parquet"),
    ("report", "run.json"),
    ("report", CARD),
    ("export-reference", "results/tables/runs.parquet"),
    ("statistics", "own/features.npy"),
]
NAMED_OTHERWISE = {
    ("extract-features", "is missing"): "the checkpoint of epoch 2",
    ("measure-robustness", "is missing"): "the checkpoint of epoch 2",
}
# All damages to one file a format, since one function reads them.
FIRST = {Path(file).suffix: file for _, file in reversed(READ)}
DAMAGE_CASES = [
    (
        command,
        f"{file} {name}",
        NAMED_OTHERWISE.get((command, name), Path(file).name),
        lambda w, file=file, damage=damage: damage(w, file),
    )
    for command, file in READ
    for name, damage in DAMAGES.items()
    if FIRST[Path(file).suffix] == file or name in ("is missing", "is truncated")
]

# A file of JSON in which a key is changed or, with None, taken away.
JSON_CASES = [
    (
        command,
        f"{file} with {changes}",
        says or Path(file).name,
        lambda w, file=file, changes=changes: w.json(file, **changes),
    )
    for command, file, changes, says in [
        ("train-model", "recipe.json", {"training__optimizer": "adam"}, "training.optimizer"),
        ("train-model", CARD, {"counts": "many"}, ""),
        ("train-model", CARD, {"image_size_px": 9}, IMAGES),
        ("train-model", CARD, {"counts__train__kept": [21] + [20] * 9}, LABELS),
        ("collect-tables", "run.json", {"architecture": None}, ""),
        ("report", "run.json", {"seed": "three"}, ""),
        ("export-reference", "results/digits/densenet/seed-3/run.json", {"data_hash": None}, ""),
        ("prepare-dataset", "raw/source.json", {"dataset": "mnist"}, ""),
    ]
]

OTHER = {"measurement": {"epochs": [1, 2], "other_dataset": "mnist"}}

# Recipes that do not fit what they are used with.
RECIPE_CASES = [
    (command, f"the recipe has {changes}", says, lambda w, changes=changes: w.recipe(**changes))
    for command, says, changes in [
        *(
            (command, says, changes)
            for command in ("train-candidate", "train-model", "extract-features")
            for says, changes in [
                ("activation_classes", {"measurement": {"activation_classes": [0, 1, 57]}}),
                ("robustness.images: 51", {"robustness": {"images": 51}}),
            ]
        ),
        ("compute-statistics", "epoch-0000", {"measurement": {"activation_classes": [0, 1, 57],
                                                              "epochs": [1, 2]}}),
        ("extract-features", "--other-card: give the one card of the prepared mnist", OTHER),
        ("compute-statistics", "holds nothing of mnist; delete its folder", OTHER),
        ("train-model", "training.batch_size", {"training": {"epochs": 2, "batch_size": 5000}}),
        ("train-model", "curve.parquet", {"architecture": "resnet"}),
        ("select-learning-rate", "curve.parquet", {"dataset": "mnist_subset"}),
        ("select-learning-rate", "curve.parquet", {"training": {"epochs": 5}}),
        ("select-learning-rate", "curve.parquet", {"sweep": {"selection": "held_out_error"}}),
        ("train-model", "raises",
         {"network": {"family": "custom", "function": f"{MODULE}:raises"}}),
        ("train-model", "no_such_module",
         {"network": {"family": "custom", "function": "no_such_module:f"}}),
    ]
]  # fmt: skip

# Files that can be read and hold what they should not.
CONTENT_CASES = [
    (command, f"{says}: {name}", says, corrupt)
    for command, says, name, corrupt in [
        ("extract-features", LAST, "a wider network", World.another_network),
        ("measure-robustness", LAST, "moments", lambda w: shutil.copy(w / MOMENTS, w / CHECKPOINT)),
        ("extract-features", "checkpoints", "a file", lambda w: w.file_instead("checkpoints")),
        ("extract-features", "epoch 2", "a digit that is no number",
         lambda w: os.rename(w / CHECKPOINT, w / "checkpoints/epoch-².safetensors")),
        ("train-model", LABELS, "objects",
         lambda w: np.save(w / LABELS, np.array([w.bomb()] * 3), allow_pickle=True)),
        ("extract-features", LABELS, "no class 4",
         lambda w: w.array(LABELS, lambda a: np.where(a == 4, 5, a))),
        ("compute-statistics", LAST, "a checkpoint",
         lambda w: shutil.copy(w / CHECKPOINT, w / MOMENTS)),
        ("compute-statistics", LAST, "no test set",
         change_moments(lambda t: [t.pop(k) for k in list(t) if k.startswith("test.")])),
        ("compute-statistics", "lacks Figure 1's 'features'; delete", "no raw features",
         change_moments(lambda t: [t.pop(k) for k in list(t) if k.startswith("extra.")])),
        ("compute-statistics", LAST, "raw features of another width",
         change_moments(lambda t: t.update({"extra.features": torch.ones(15, 2)}))),
        ("collect-tables", "statistics.parquet", "another table",
         lambda w: shutil.copy(w / "history.parquet", w / "statistics.parquet")),
        ("collect-tables", "statistics.parquet", "every row twice",
         lambda w: w.table("statistics.parquet", lambda t: pa.concat_tables([t, t]))),
        ("select-learning-rate", "curve.parquet", "no rows",
         lambda w: w.table("curve.parquet", lambda t: t.slice(0, 0))),
        ("compare-with-paper", "tables", "a file", lambda w: w.file_instead("tables")),
        ("show", "recipe.json", "a list",
         lambda w: (w.remove("results/tables"), w.write(OWN_RECIPE, [1]))),
        ("show", "results: contains no training", "nothing", lambda w: w.remove("results")),
        ("status", "results", "nothing", lambda w: w.remove("results")),
        ("status", "recipe.json", "truncated", lambda w: w.cut(OWN_RECIPE)),
        ("export-reference", "card.json", "a list",
         lambda w: w.write("resources/digits/prepared/all/card.json", [1])),
        ("export-reference", "resources", "nothing", lambda w: w.remove("resources")),
        ("statistics", "class 3", "a class lacks", lambda w: w.array("own/labels.npy",
                                                                     lambda a: a.clip(0, 2))),
        ("prepare-dataset", "own.npz", "deleted",
         lambda w: (w.own_dataset("own.npz"), w.remove("own.npz"))[0]),
        ("prepare-dataset", PICTURE, "text for an image",
         lambda w: (w.own_dataset("pictures"), w.write(PICTURE, "no image"))[0]),
    ]
]  # fmt: skip

OPTION_CASES = [
    (command, f"the options {' '.join(given)[:60]}", says, options(*given))
    for command, says, given in [
        ("train-model", "--gpus", ("--gpus", "-1")),
        ("train-candidate", "--processes", ("--processes", "0")),
        ("train-candidate", "recipe.json", ("--learning-rate", "0.7")),
        ("train-candidate", "--learning-rate", ("--learning-rate", "fast")),
        ("train-model", "--seed", ("--seed", "1.5")),
        ("measure-robustness", "--seed", ("--seed", str(2**70))),
        ("train-model", "--device", ("--device", "tpu")),
        ("extract-features", "device: cuda", ("--device", "cuda")),
        ("prepare-dataset", "--data-recipe", ("--data-recipe", "{")),
        ("prepare-dataset", "--data-recipe", ("--data-recipe", "[" * 100_000)),
        ("prepare-dataset", "--data-recipe", ("--data-recipe", '{"colour": 1}')),
        ("prepare-dataset", "--custom", ("--custom", "[1]")),
        ("download-dataset", "--custom", ("--custom", '{"label": "x"}')),
        ("download-dataset", "mnits", ("--dataset", "mnits", "--custom", "null")),
        ("plot", "figure_99", ("--figure", "figure_99")),
        ("plot", "gif", ("--output", "figure_2.gif")),
        ("plot", "--output", ("--figure", "2", "3")),
        ("plot", "--epoch-axis", ("--epoch-axis", "square")),
        ("collect-tables", "--labels", ("--labels", '{"digits": 1}')),
        ("report", "--config-json", ("--config-json", "{}")),
        ("statistics", "own.txt", ("--output", "/nowhere/own.txt")),
        ("show", "--width", ("--width", "0")),
        ("show", "there: ", ("--seed", "99")),
    ]
]  # fmt: skip

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


def under_a_file(w: World, option: str) -> list[str]:
    w.write("a file", "x")
    return [option, str(w / "a file/deeper.svg")]


PLACE_CASES = [
    *(
        (command, f"{option} lies under a file", "a file",
             lambda w, option=option: under_a_file(w, option))
        for command, option in [
            *((command, option) for command, option, _ in OUTPUTS if command != "statistics"),
            *((command, "--state-root") for command in JOBS),
            ("compare-with-paper", "--log"),
        ]
    ),
    *(
        (command, f"{option} is a folder", "data",
             lambda w, option=option: [option, str(w / "data")])
        for command, option, name in [*OUTPUTS, ("train-model", "--log", "log.")]
        if "." in name and command != "statistics"
    ),
]  # fmt: skip

CASES = [
    *(*DAMAGE_CASES, *JSON_CASES, *RECIPE_CASES),
    *(*CONTENT_CASES, *OPTION_CASES, *PLACE_CASES),
]


# ------------------------------------------------------------------------- the tests


@pytest.fixture
def world(whole, tmp_path, monkeypatch):
    """A copy of the whole that a case may corrupt."""
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
    *("tables/measurements.parquet", "figure.svg", "report.html"),
    *("compared/table_1.parquet", "compared/claims.parquet"),
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


@pytest.mark.parametrize(
    ("command", "says", "corrupt"),
    [pytest.param(command, says, s, id=f"{command}: {name}") for command, name, says, s in CASES],
)
def test_bad_input_is_one_sentence_and_touches_nothing(world, command, says, corrupt, capsys):
    more = corrupt(world)
    arguments = [command, *world.command(command), *(more if isinstance(more, list) else [])]
    for earlier in (False, True):
        if earlier:
            for name in EARLIER:
                (world.outputs / name).parent.mkdir(parents=True, exist_ok=True)
                (world.outputs / name).write_text("of an earlier run")
        before = files(world.folder)
        sentence = refused(arguments, capsys)
        assert says in sentence
        assert not world.executed.exists(), "a file that was only to be read ran code"
        assert files(world.folder) == before


GOOD = [*dict.fromkeys(command for command, *_ in OUTPUTS)]


@pytest.mark.parametrize("command", [*GOOD, "plan", "status", "show"])
def test_command_paths_of_any_letters_work(world, command, capsys):
    """The same lines with nothing corrupted: the cases above fail only for what they corrupt."""
    log = world.outputs / "logs ü" / "log"
    status = main([command, *world.command(command), "--log", str(log)])
    assert status == 0, capsys.readouterr().err
    for _, option, name in [output for output in OUTPUTS if output[0] == command]:
        assert option and any(world.outputs.glob(f"{name}*"))
    assert log.is_file()


@pytest.mark.parametrize("small_disk", [8192], indirect=True)
def test_read_only_results_folder_is_one_sentence(world, small_disk, capsys):
    world.outputs = small_disk
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for command in GOOD:
        sentence = refused([command, *world.command(command)], capsys)
        assert str(world.outputs) in sentence, command
    compare = ["compare-with-paper", *world.command("compare-with-paper")]
    log = ["--log", str(world.outputs / "log")]
    assert "log: cannot be written" in refused([*compare, *log], capsys)


def test_snakemake_paths_with_quotes_and_dollars_reach_the_command(tmp_path):
    """Every rule's command gets the very paths of the config, whatever the shell makes of them."""
    folder = 'rés $HOME `x` "q" it\'s'
    tiny = Experiment(tmp_path / FOLDER, **CHANGES, results_folder=folder, resources_folder=folder)
    planned = tiny.run("--dry-run", "--printshellcmds")
    commands = re.findall(r"^(?:Shell command:)? *(python -m neural_.*)$", planned, re.MULTILINE)
    assert len({line.split()[3] for line in commands}) >= 10, planned[-3000:]
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
    tiny.run("--until", "prepare_dataset")
    assert list((tiny.folder / folder).glob("digits/prepared/*/card.json"))
