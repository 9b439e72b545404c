"""The configuration: measured epochs, schedules, recipes, and every kind of mistake."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neural_collapse.data.registry import DATASETS
from neural_collapse.experiment.config import Config, check_config, load_config, resolve_recipe
from neural_collapse.experiment.generated import json_schema
from neural_collapse.experiment.recipe import Recipe, read_recipe, write_recipe
from neural_collapse.io.errors import UserError
from neural_collapse.networks.registry import label
from neural_collapse.training.schedule import spaced_epochs

ROOT = Path(__file__).parents[3]
SHIPPED = sorted([ROOT / "config.yaml", *(ROOT / "config").rglob("*.yaml")])

MINIMAL = {
    "experiment": "tiny",
    "datasets": ["digits"],
    "architectures": ["resnet"],
    "recipe": {"network": {"name": "resnet18", "width": 4}},
}


def minimal(**changes) -> dict:
    """A config that is right, with `changes` merged in; dots in a key lead deeper."""
    values = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return values


def test_measured_epochs_listed_hold_first_and_last():
    recipe = resolve_recipe(check_config(minimal()), "digits", "resnet")
    assert recipe.measured_epochs == (0, *spaced_epochs(350, 50))
    changed = minimal(**{"recipe.measurement": {"epochs": [3, 7], "activation_epochs": [0, 7]}})
    recipe = resolve_recipe(check_config(changed), "digits", "resnet")
    assert recipe.measured_epochs == (0, 3, 7, 350)
    assert recipe.activation_epochs == (0, 7)


@given(epochs=st.integers(1, 400), measured=st.integers(2, 60), kept=st.integers(1, 80))
@settings(max_examples=50, deadline=None)
def test_activation_epochs_any_number_are_measured(epochs, measured, kept):
    values = minimal()
    values["recipe"] |= {
        "training": {"epochs": epochs},
        "measurement": {"epochs": measured, "activation_epochs": kept},
    }
    recipe = resolve_recipe(check_config(values), "digits", "resnet")
    chosen = recipe.activation_epochs
    assert set(chosen) <= set(recipe.measured_epochs)
    assert len(chosen) == min(kept, len(recipe.measured_epochs))
    assert chosen[-1] == epochs
    assert kept == 1 or chosen[0] == 0


def test_overrides_later_ones_win():
    config = check_config(
        minimal(
            **{
                "datasets": ["digits", "mnist_subset"],
                "recipe.training": {"epochs": 9, "batch_size": 32},
                "overrides": [
                    {"datasets": ["digits"], "recipe": {"training": {"epochs": 10}}},
                    {"architectures": ["resnet"], "recipe": {"training": {"momentum": 0.5}}},
                    {"datasets": ["digits"], "recipe": {"training": {"epochs": 11}}},
                    {"architectures": ["vgg"], "recipe": {"training": {"epochs": 12}}},
                ],
            }
        )
    )
    digits, subset = (resolve_recipe(config, name, "resnet") for name in config.datasets)
    assert (digits.training.epochs, subset.training.epochs) == (11, 9)
    assert digits.training.momentum == subset.training.momentum == 0.5
    assert digits.training.batch_size == 32
    assert digits.training.weight_decay == 5e-4


def test_overrides_matching_no_cell_are_known():
    overrides = [
        {"datasets": ["digits"], "recipe": {}},
        {"datasets": ["mnist"], "recipe": {}},
        {"datasets": ["digits"], "architectures": ["vgg"], "recipe": {}},
        {"recipe": {}},
    ]
    assert check_config(minimal(overrides=overrides)).overrides_without_effect == [1, 2]
    # The cells of ImageNet are left out because its folder is missing, not its name.
    assert load_config(ROOT / "config.yaml").overrides_without_effect == []


def test_network_another_name_drops_earlier_numbers():
    def resolved(*networks):
        overrides = [{"recipe": {"network": network}} for network in networks]
        config = check_config(minimal(overrides=overrides))
        return resolve_recipe(config, "digits", "resnet").network.model_dump()

    assert resolved()["width"] == 4
    assert resolved({"blocks": [1, 1]}) == resolved() | {"blocks": (1, 1)}
    assert resolved({"name": "resnet34"})["width"] == 64
    assert resolved({"name": "resnet34"}, {"width": 3})["blocks"] == (3, 4, 6, 3)
    family = {"family": "resnet", "block": "basic", "blocks": [1]}
    assert resolved(family)["width"] == 64


def test_recipe_written_and_read_is_equal(tmp_path):
    recipe = resolve_recipe(check_config(minimal()), "digits", "resnet")
    write_recipe(recipe, tmp_path / "recipe.json")
    assert read_recipe(tmp_path / "recipe.json") == recipe
    without = recipe.model_dump_json(exclude={"resources"})
    assert Recipe.model_validate_json(without).training == recipe.training


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_config_resolves(path):
    config = load_config(path)
    for dataset in config.datasets:
        for architecture in config.architectures:
            recipe = resolve_recipe(config, dataset, architecture)
            assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


# PAPER.md's tables: network of VGG, ResNet, DenseNet; train examples a class; image size.
PAPER = {
    "mnist": ("VGG11", "ResNet18", "DenseNet40", 5000, 32),
    "fashion_mnist": ("VGG11", "ResNet18", "DenseNet250", None, 32),
    "svhn": ("VGG11", "ResNet18", "DenseNet40", 4600, 32),
    "cifar10": ("VGG13", "ResNet18", "DenseNet40", None, 32),
    "cifar100": ("VGG13", "ResNet50", "DenseNet250", None, 32),
    "stl10": ("VGG13", "ResNet50", "DenseNet250", None, 96),
    "imagenet": ("VGG19", "ResNet152", "DenseNet201", 600, 224),
}


@pytest.mark.parametrize("dataset", PAPER)
def test_shipped_config_of_the_paper_is_its_protocol(dataset):
    config = load_config(ROOT / "config.yaml")
    *networks, balanced, size = PAPER[dataset]
    big = dataset == "imagenet"
    for architecture, network in zip(("vgg", "resnet", "densenet"), networks, strict=True):
        recipe = resolve_recipe(config, dataset, architecture)
        data, training, attack = recipe.data, recipe.training, recipe.robustness
        assert label(recipe.network) == network
        assert architecture == "vgg" or recipe.network.stem == ("imagenet" if big else "small")
        assert (data.examples_per_class, data.test_examples_per_class) == (balanced, None)
        assert data.side_px(DATASETS[dataset].image_size_px) == size
        assert (training.epochs, training.batch_size) == ((300, 256) if big else (350, 128))
        assert training.milestones == ((150, 225) if big else (116, 233))
        assert (training.learning_rate_factor, training.momentum) == (0.1, 0.9)
        assert training.weight_decay == (1e-4 if big else 5e-4)
        assert not training.keep_incomplete_batch
        rates = recipe.sweep.learning_rates
        assert len(rates) == (10 if big else 25)
        assert (rates[0], rates[-1]) == (pytest.approx(1e-4), pytest.approx(0.25))
        assert len(recipe.measured_epochs) == 51
        assert recipe.measurement.terminal_phase_accuracy == (0.996 if big else 0.999)
        assert (attack.images, attack.overshoot, attack.max_steps) == (100, 0.02, 50)
        assert attack.candidate_classes == 10


def test_shipped_config_of_the_paper_has_480_trainings():
    config = load_config(ROOT / "config.yaml")
    cells = itertools.product(config.datasets, config.architectures)
    sweeps = [resolve_recipe(config, *cell).sweep for cell in cells]
    assert sum(len(sweep.learning_rates) for sweep in sweeps) == 480


def test_cells_imagenet_without_folder_is_left_out():
    config = load_config(ROOT / "config.yaml")
    assert len(config.cells()) == 18
    given = config.model_copy(update={"imagenet_folder": "/data/imagenet"})
    assert len(given.cells()) == 21


def test_schema_describes_every_key():
    schema = json.loads(json_schema())
    for name, part in {"Config": schema, **schema["$defs"]}.items():
        if part.get("type") != "object" or "properties" not in part:
            continue
        undescribed = [
            key for key, entry in part["properties"].items() if "description" not in entry
        ]
        assert not undescribed, f"{name}: {undescribed}"


# ------------------------------------------------------------------------- mistakes

MINORITY = {"ratio": 10, "minority_classes": [7, 8]}

# What is wrong (keys with dots lead deeper), and words that the sentence must hold.
BAD_VALUES = [
    ({"recipy": {}}, ["unknown key 'recipy'", "did you mean 'recipe'"]),
    ({"recipe.training.epoch": 3}, ["'recipe.training.epoch'", "did you mean 'epochs'"]),
    ({"recipe.sweep.together": 2}, ["sweep.together", "no longer exists", "gpu_slots", "remove"]),
    (
        {"overrides": [{"recipe": {"sweep": {"together_as": "fastest"}}}]},
        ["overrides.0.recipe.sweep.together_as", "no longer exists"],
    ),
    (
        {"recipe.data.imbalance": MINORITY | {"ratio": 1000}},
        ["digits x resnet: data.imbalance.ratio: 1000", "class 7 without images; lower"],
    ),
    (
        {"recipe.data.imbalance": MINORITY | {"minority_classes": [3, 10]}},
        ["data.imbalance.minority_classes", "no class 10", "0 to 9"],
    ),
    (
        {"recipe.data.imbalance": MINORITY | {"minority_classes": [*range(10)]}},
        ["data.imbalance.minority_classes", "are all 10 classes"],
    ),
    (
        {"recipe.data.imbalance": MINORITY | {"minority_classes": [2, 2]}},
        ["data.imbalance.minority_classes", "2 is given twice"],
    ),
    (
        {"recipe.data.imbalance": MINORITY, "recipe.data.examples_per_class": 141},
        ["data.examples_per_class: is 141, but digits has at most 140 train images of any class"],
    ),
    ({"recipe.data.random_labels": 1}, ["data.random_labels: is 1", "set sweep.learning_rate"]),
    ({"recipe.network.classifier": "fixed"}, ["'classifier' is 'fixed'", "'learned' or 'etf'"]),
    ({"overrides": [{"dataset": ["digits"], "recipe": {}}]}, ["overrides.0.dataset", "datasets"]),
    ({"overrides": [{"datasets": ["digits"]}]}, ["overrides.0.recipe", "missing"]),
    ({"overrides": [{"datasets": ["digitz"], "recipe": {}}]}, ["digitz", "'digits'"]),
    ({"overrides": [3]}, ["overrides.0", "keys and values"]),
    ({"datasets": ["mnits"]}, ["datasets", "'mnits'", "did you mean 'mnist'"]),
    ({"datasets": ["数字"]}, ["unknown dataset '数字'", "known:"]),
    ({"datasets": []}, ["datasets", "empty"]),
    ({"datasets": "digits"}, ["datasets", "list"]),
    ({"datasets": [3]}, ["datasets.0", "text", "3"]),
    ({"architectures": ["resent"]}, ["architectures", "did you mean 'resnet'"]),
    ({"seeds": [0, 1, 0]}, ["seeds", "0 is given twice"]),
    ({"seeds": [-1]}, ["seeds.0", "-1"]),
    ({"seeds": [1.5]}, ["seeds.0", "whole number"]),
    ({"seeds": [True]}, ["seeds", "true or false"]),
    ({"device": "gpu"}, ["device", "'cuda'", "'gpu'"]),
    ({"experiment": "a/b"}, ["experiment", "'a/b'"]),
    ({"experiment": "a" * 400}, ["experiment", "64 characters"]),
    ({"custom_architectures": {"a" * 400: {"label": "x"}}}, ["custom_architectures.aaa", "64"]),
    ({"results_folder": ""}, ["results_folder", "empty"]),
    ({"results_folder": "out/{dataset}"}, ["results_folder", "{"]),
    ({"results_folder": "/dev/null"}, ["results_folder", "/dev/null is a file"]),
    ({"results_folder": "a" * 256}, ["results_folder", "too long"]),
    ({"results_folder": "a\0b"}, ["results_folder", "not text"]),
    ({"mirror": "  "}, ["mirror", "empty"]),
    ({"recipe.measurement.epochs": [0, 6]}, ["measurement.epochs.0: must be greater", "(it is 0)"]),
    ({"recipe.measurement.epochs": [6, "a"]}, ["measurement.epochs.1: must be a whole", "'a'"]),
    ({"recipe.training.epochs": 10**30}, ["recipe.training.epochs", "too large"]),
    (
        {"recipe.training.optimizer": {"name": "adam", "betas": [0.9, 1.0]}},
        ["training.optimizer.betas.1", "less than 1", "1.0"],
    ),
    ({"recipe.training.learning_rate": 0.1}, ["training.learning_rate", "write sweep.learning_r"]),
    ({"recipe.training.optimizer": {"name": "adam", "lr": 1}}, ["lr", "write sweep.learning_r"]),
    ({"recipe.training.label_smoothing": 0.2}, ["written as loss: label_smoothing"]),
    (
        {"recipe.training.smoothing": 0.2},
        ["recipe.training.smoothing: is read only with training.loss: label_smoothing; write that"],
    ),
    (
        {"overrides": [{"recipe": {"training": {"loss": "mse", "focal_gamma": 3}}}],
         "recipe.training.loss": "focal"},
        ["overrides.0.recipe.training.focal_gamma: is read only with training.loss: focal"],
    ),
    (
        {"recipe.training": {"momentum": 0.5, "optimizer": {"name": "adam"}}},
        ["training.momentum: is read only with training.optimizer.name: sgd or sgdw"],
    ),
    ({"recipe.training.optimizer": {"betas": [0.8, 0.9]}}, ["read only", "name: adam or adamw"]),
    ({"recipe.training.weight_decay": math.inf}, ["recipe.training.weight_decay", "finite"]),
    ({"recipe.training.deterministic": "perhaps"}, ["deterministic", "true or false"]),
    (
        {
            "recipe.training": {"loss": "mse", "batch_size": 599, "keep_incomplete_batch": True},
            "recipe.data.examples_per_class": 60,
        },
        ["digits x resnet", "training.batch_size", "599", "one example and so of one class", "600"],
    ),
    (
        {"recipe.training": {"compile": True, "precision": "tf32"}},
        ["torch.compile does not work with precision: tf32", "leave one of them out"],
    ),
    ({"recipe.training.learning_rate_milestones": 0.5}, ["milestones", "list of fractions"]),
    ({"recipe.training.learning_rate_milestones": ["1/3", "1/3"]}, ["rising order"]),
    (
        {"recipe.training": {"epochs": 6, "learning_rate_milestones": ["1/3", "0.35", "2/3"]}},
        ["digits x resnet", "learning_rate_milestones", "epoch 2 of 6", "twice", "leave one out"],
    ),
    ({"recipe.training.learning_rate_milestones": ["4/3"]}, ["'4/3'", "between 0 and 1"]),
    ({"recipe.training.learning_rate_milestones": ["1/0"]}, ["'1/0' is not a fraction"]),
    ({"recipe.training.learning_rate_milestones": ["1e999999999"]}, ["is not a fraction"]),
    (
        {"recipe.sweep": {"learning_rate_min": 0.3, "learning_rate_max": 0.1}},
        ["digits x resnet", "learning_rate_min (0.3) is above learning_rate_max (0.1)"],
    ),
    (
        {"recipe.sweep": {"learning_rate_min": 0.1, "learning_rate_max": 0.1}},
        ["learning_rate_min equals learning_rate_max"],
    ),
    ({"recipe.sweep.additional_learning_rates": [0.25]}, ["0.25 is given twice"]),
    # More than the dataset has: 1400 and 397 images, at least 140 and 34 a class.
    ({"recipe.training.batch_size": 1401}, ["training.batch_size", "1401", "1400", "lower it"]),
    ({"recipe.data.examples_per_class": 141}, ["data.examples_per_class", "141", "140"]),
    ({"recipe.data.test_examples_per_class": 35}, ["data.test_examples_per_class", "35", "34"]),
    ({"recipe.robustness.images": 398}, ["robustness.images", "398", "397"]),
    (
        {"recipe.robustness.images": 51, "recipe.data.test_examples_per_class": 5},
        ["robustness.images", "51", "50"],
    ),
    ({"recipe.measurement.epochs": [1, 351]}, ["measurement.epochs", "351", "350"]),
    ({"recipe.measurement.epochs": [5, 2]}, ["recipe.measurement.epochs", "rising order"]),
    ({"recipe.measurement.activation_epochs": [999]}, ["activation_epochs", "999", "350"]),
    ({"recipe.measurement.activation_epochs": [15]}, ["activation_epochs", "epoch 15"]),
    ({"recipe.measurement.activation_classes": [1, 1, 2]}, ["activation_classes", "different"]),
    ({"recipe.measurement.activation_classes": [0, 1, 10]}, ["activation_classes", "0 to 9"]),
    ({"figures.names": ["seperation"]}, ["figures.names", "did you mean 'separation'"]),
    ({"figures.names": ["sweep", "sweep"]}, ["figures.names", "'sweep' is given twice"]),
    ({"recipe.measurement.layers": ["a", "a"]}, ["measurement.layers", "'a' is given twice"]),
    ({"recipe.measurement.layers": ["a@b"]}, ["measurement.layers", "'a@b'", "@"]),
    ({"recipe.measurement.other_dataset": "digits"}, ["other_dataset: digits is the cell's own"]),
    ({"recipe.measurement.other_dataset": "mnits"}, ["other_dataset", "did you mean 'mnist'"]),
    ({"recipe.measurement.other_dataset": "x"}, ["unknown dataset 'x'", "known: mnist, fashion"]),
    ({"recipe.measurement.other_dataset": "imagenet"}, ["other_dataset", "give imagenet_folder"]),
    (
        {"recipe.measurement.other_dataset": "digits", "recipe.data.examples_per_class": 141,
         "datasets": ["mnist"]},
        ["mnist x resnet: data.examples_per_class: is 141, but digits has 140 train images"],
    ),
    ({"recipe.data.image_size_px": 9}, ["data.image_size_px", "9", "8 pixels a side", "lower it"]),
    ({"recipe.network": "resnet18"}, ["recipe.network", "keys and values"]),
    ({"recipe.network": {"name": "resnet19"}}, ["'resnet19'", "did you mean 'resnet18'"]),
    ({"recipe.network": {"family": "resnext"}}, ["'resnext'", "did you mean 'resnet'"]),
    ({"recipe.network": {"width": 3}}, ["name", "family"]),
    ({"recipe": {}}, ["digits x resnet", "names no network"]),
    ({"custom_datasets": {"digits": {"label": "x", "path": "y"}}}, ["digits", "built-in"]),
    ({"custom_datasets": {"a/b": {"label": "x", "path": "y"}}}, ["custom_datasets.a/b"]),
    ({"results_folder": "~nobody-here/x"}, ["results_folder: ~nobody-here is no user's home"]),
    (
        {"custom_datasets": {"own": {"label": "x", "path": "~nobody-here/x"}}},
        ["custom_datasets.own.path: ~nobody-here is no user's home"],
    ),
    (
        {"custom_datasets": {"own": {"label": "x", "path": "my{1}.npz"}}},
        ["custom_datasets.own.path: must not hold { or }", "my{1}.npz"],
    ),
    ({"custom_datasets": {"own": {"label": "x"}}}, ["custom_datasets.own.path", "missing"]),
    ({"figures": {"formats": ["svg"]}}, ["figures.formats", "png"]),
]  # fmt: skip


def test_path_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    keys = ["mirror", "imagenet_folder", "resources_folder", "results_folder", "reference_folder"]
    own = {"custom_datasets": {"own": {"label": "Own", "path": "~/own.npz"}}}
    config = check_config(minimal(**dict.fromkeys(keys, "~/there"), **own))
    assert [getattr(config, key) for key in keys] == ["/home/me/there"] * 5
    assert config.folder == "/home/me/there/tiny"
    assert config.custom_datasets["own"].path == "/home/me/own.npz"
    assert check_config(minimal(mirror="http://a/~b")).mirror == "http://a/~b"


def sentence_of(error: UserError) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.isprintable()
    for foreign in ("pydantic", "Traceback", "Partial", "Input should", "validation error"):
        assert foreign not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize(
    ("changes", "words"), BAD_VALUES, ids=[str(i) for i in range(len(BAD_VALUES))]
)
def test_config_wrong_value_is_one_sentence_that_names_the_key(changes, words):
    with pytest.raises(UserError) as error:
        check_config(minimal(**changes), "config.yaml")
    text = sentence_of(error.value)
    assert text.startswith("config.yaml: ") or "digits x resnet" in text
    for word in words:
        assert word in text, text


def test_config_counts_of_classes_that_are_not_known_refuse_nothing():
    """Of MNIST, whose class 5 has 5421 train images and class 1 6742, the sum and least alone."""
    imbalance = {"ratio": 12000, "minority_classes": [1]}  # one image stays of class 1
    keys = {"datasets": ["mnist"], "recipe.training.batch_size": 64}
    check_config(minimal(**keys, **{"recipe.data.imbalance": imbalance}))
    few = {"imbalance": {"ratio": 2, "minority_classes": [5]}, "examples_per_class": 5842}
    check_config(minimal(**keys, **{"recipe.data": few}))
    with pytest.raises(UserError, match="5421 train images of its smallest class"):
        check_config(minimal(**keys, **{"recipe.data.examples_per_class": 5842}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recipe.training": {"batch_size": 2000, "keep_incomplete_batch": True}},
        {"recipe.data.random_labels": 1, "recipe.sweep.learning_rate": 0.05},
        {"recipe.data.random_labels": 0.5},
        {"recipe.training": {"smoothing": 0.1, "momentum": 0.9}},
        {"recipe.sweep": {"learning_rate": 0.1, "count": 3}},
        # Read by some cells, or by those of the whole experiment of which this is a part.
        {
            "recipe.training": {"smoothing": 0.2, "momentum": 0.5},
            "overrides": [
                {"architectures": ["vgg"], "recipe": {"training": {"loss": "label_smoothing"}}},
                {"recipe": {"training": {"optimizer": {"name": "adam"}}}},
                {"recipe": {"training": {"optimizer": {"betas": [0.8, 0.9]}}}},
            ],
        },
        {
            "recipe.sweep.additional_learning_rates": [0.3],
            "overrides": [{"recipe": {"sweep": {"learning_rate": 0.1}}}],
        },
    ],
)
def test_config_value_at_a_limit_is_right(changes):
    check_config(minimal(**changes))


GOOD_TEXT = yaml.safe_dump(MINIMAL)

BAD_FILES = [
    (b"", "must hold keys and values"),
    (b"experiment: [unclosed\n", "not valid YAML"),
    (b"experiment: \xff\xfe\n", "UTF-8"),
    (b"experiment: t\n# caf\xe9\n", "not UTF-8 text in line 2"),
    (b'{"datasets": ["digits"],\t"datasets": ["mnist"]}', "'datasets' is given twice"),
    (b"experiment: !!python/object/apply:os.system ['exit 3']\n", "not valid YAML"),
    (b"experiment: 2020-13-45\n", "not valid YAML"),
    (b"[" * 20000, "not valid YAML"),
    (GOOD_TEXT.encode() + b"datasets: [mnist]\n", "'datasets' is given twice"),
    (GOOD_TEXT.encode() + b"seeds: [2020-01-01]\n", "seeds.0"),
    (GOOD_TEXT.encode() + f"seeds: [0x{'f' * 5000}]\n".encode(), "too large"),
    (GOOD_TEXT.encode() + b"mirror: \"\\ud800\"\n", "mirror"),
    (GOOD_TEXT.encode() + b"3: 4\n", "the key 3 must be text"),
    (GOOD_TEXT.encode() + b"overrides: &a [*a]\n", "contains itself"),
    (GOOD_TEXT.encode() + b"mirror: !!binary aGVsbG8=\n", "mirror"),
    (
        GOOD_TEXT.encode()
        + b"overrides: [" + b"{recipe: {network: {arguments: &l0 [1, 1]}}}, "
        + b"".join(
            b"{recipe: {network: {arguments: &l%d [%s]}}}, " % (n, b"*l%d, " % (n - 1) * 9)
            for n in range(1, 12)
        )
        + b"]\n",
        "too long",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"), BAD_FILES, ids=[str(i) for i in range(len(BAD_FILES))]
)
def test_config_corrupt_file_is_one_sentence_that_names_it(tmp_path, content, words):
    path = tmp_path / "konfig mit Lücke.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_config(path)
    text = sentence_of(error.value)
    assert str(path) in text
    assert words in text


def test_config_missing_file_or_folder_is_one_sentence(tmp_path):
    for path, words in [(tmp_path / "none.yaml", "No such file"), (tmp_path, "directory")]:
        with pytest.raises(UserError, match=words):
            load_config(path)


def test_config_number_written_5e_4_is_a_number(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        GOOD_TEXT.replace("recipe:\n", "recipe:\n  training: {weight_decay: 5e-4, epochs: 12}\n")
    )
    training = resolve_recipe(load_config(path), "digits", "resnet").training
    assert training.weight_decay == 5e-4  # text in YAML 1.1, which wants 5.0e-4


def test_plan_command_wrong_config_prints_the_sentence_alone(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(GOOD_TEXT.replace("digits", "digit"))
    done = subprocess.run(
        [sys.executable, "-m", "neural_collapse", "plan", "--config", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {path}: datasets: unknown dataset 'digit'; did you mean 'digits'?\n"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not a recipe"), ("{}", "missing"), ('{"colour": 1}', "unknown key 'colour'")],
)
def test_recipe_corrupt_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_recipe(path)
    assert words in sentence_of(error.value)
    with pytest.raises(UserError, match=r"none\.json: does not exist"):
        read_recipe(tmp_path / "none.json")


@functools.cache
def _keys() -> st.SearchStrategy[str]:
    names: set[str] = set()

    def collect(schema) -> None:
        if isinstance(schema, dict):
            names.update(schema.get("properties", {}))
            for value in schema.values():
                collect(value)
        elif isinstance(schema, list):
            for value in schema:
                collect(value)

    collect(json.loads(json_schema()))
    return st.sampled_from(sorted(names | {"name", "family", "width", "blocks", "function"}))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["digits", "mnist", "resnet", "vgg", "resnet18", "vgg11", "custom", "1/3", "2/3", "cpu"]
    )
    | st.sampled_from(
        ["$channels", "a:b", "png", "1e5", "nan", "inf", "0x10", "\ud800", "\0", "{}"]
    )
    | st.binary(max_size=3)
    | st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_keys() | st.text(max_size=4) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def assert_config_or_user_error(values) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            config = check_config(values, "config.yaml")
        except UserError as error:
            text = str(error)
            assert "\n" not in text
            text.encode()
            return
    assert isinstance(config, Config)
    for cell in config.cells():
        recipe = resolve_recipe(config, *cell)
        assert isinstance(recipe, Recipe)
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        assert recipe.measured_epochs[0] == 0
        assert math.isfinite(recipe.training.learning_rate_at(1.0, 5))


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


GOOD_VALUES = [MINIMAL, *(yaml.safe_load(path.read_text(encoding="utf-8")) for path in SHIPPED)]


@st.composite
def damaged_configs(draw):
    """A shipped config in which some values were replaced, taken away or added."""
    values = copy.deepcopy(draw(st.sampled_from(GOOD_VALUES)))
    for _ in range(draw(st.integers(1, 3))):
        place = values
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], (dict, list)) or draw(st.integers(0, 3)) == 0:
                if draw(st.integers(0, 4)) == 0:
                    del place[key]
                else:
                    place[key] = draw(VALUES)
                break
            place = place[key]
        if isinstance(place, dict) and draw(st.integers(0, 3)) == 0:
            place[draw(_keys())] = draw(VALUES)
    return values


@given(damaged_configs())
@FUZZ
def test_config_any_damage_is_accepted_or_one_sentence(values):
    assert_config_or_user_error(values)


@given(st.data())
@FUZZ
def test_config_any_bytes_are_accepted_or_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    good = data.draw(st.sampled_from([GOOD_TEXT.encode(), *(p.read_bytes() for p in SHIPPED)]))
    at = data.draw(st.integers(0, len(good)))
    until = data.draw(st.integers(at, min(len(good), at + 20)))
    path.write_bytes(good[:at] + data.draw(st.binary(max_size=12)) + good[until:])
    try:
        load_config(path)
    except UserError as error:
        assert "\n" not in str(error)
