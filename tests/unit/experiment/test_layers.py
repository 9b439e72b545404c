"""Layers that recipes ask for: those that do not exist are named before any job starts."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from neural_collapse.collapse.measure import compute_moments
from neural_collapse.collapse.moments import StoredMoments
from neural_collapse.collapse.result import CollapseResult
from neural_collapse.experiment.config import check_config, load_config, resolve_recipe
from neural_collapse.experiment.layers import check_functions, check_layers
from neural_collapse.experiment.plan import plan
from neural_collapse.experiment.stages.measure import statistics_of
from neural_collapse.figures import STUDIES
from neural_collapse.io.errors import UserError

STUDY_CONFIGS = Path(__file__).parents[3] / "config" / "studies"


def config(measurement, network=None, data=None):
    return check_config(
        {
            "experiment": "x",
            "datasets": ["digits"],
            "architectures": ["vgg"],
            "recipe": {
                "network": network or {"family": "mlp", "depth": 2, "width": 6},
                "measurement": measurement,
                "data": data or {},
            },
        }
    )


@pytest.mark.parametrize(
    ("measurement", "said"),
    [
        ({"layers": ["input", "hidden.2"]}, "no layer 'hidden.2'; it has input, hidden, hidden.0"),
        ({"layers": ["classifier"]}, "no layer 'classifier'"),
        (
            {"batch_norm_examples": 1399},
            "1399 leaves a last batch of one image",
        ),
        ({"batch_norm_examples": 396}, "of the 397 images of the test split"),
        (
            {"other_dataset": "mnist"},
            "other_dataset: prepared images of mnist have 28 pixels a side, those of digits 8; ",
        ),
        ({"other_dataset": "svhn"}, "images of svhn have 3 channels, those of digits 1; "),
    ],
)
def test_what_the_network_or_data_lack_is_one_sentence_that_names_the_cell(measurement, said):
    with pytest.raises(UserError) as error:
        check_layers(config(measurement))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("config: the recipe of digits x vgg: measurement.")


def test_batches_that_leave_one_image_of_another_dataset_are_named():
    data = {"image_size_px": 8, "examples_per_class": 100, "test_examples_per_class": 30}
    wrong = config({"other_dataset": "mnist", "batch_norm_examples": 333}, data=data)
    with pytest.raises(UserError, match="of the 1000 images of the train split"):
        check_layers(wrong)
    wrong = config(
        {"other_dataset": "mnist", "batch_norm_examples": 909}, data={"image_size_px": 8}
    )
    with pytest.raises(UserError, match="of the 10000 images of the mnist test split"):
        check_layers(wrong)


def test_a_fixed_classifier_without_room_is_one_sentence_that_names_the_cell():
    narrow = {"family": "mlp", "depth": 2, "width": 9, "classifier": "etf"}
    for check in (check_layers, plan):
        with pytest.raises(UserError) as error:
            check(config({}, narrow))
        assert str(error.value).startswith("config: the recipe of digits x vgg: 'classifier: etf'")
        assert "9 features for 10 classes" in str(error.value)
    check_layers(config({}, narrow | {"width": 10}))


def test_layers_that_exist_are_taken_whatever_the_family():
    check_layers(config({"layers": ["input", "hidden.0", "hidden.1"], "batch_norm_examples": 100}))
    resnet = {"name": "resnet18", "width": 4, "blocks": [1, 1]}
    check_layers(config({"layers": ["input"], "layer_pool": "flatten"}, resnet))


def test_recipes_without_layers_do_not_wait_for_torch():
    code = (
        "import sys; from neural_collapse.experiment.config import load_config;"
        "from neural_collapse.experiment.layers import check_functions, check_layers;"
        "config = load_config('config/quickstart.yaml'); check_layers(config);"
        "check_functions(config); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_a_function_that_cannot_be_imported_is_named_and_none_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("functions_here.py").write_text("def small(): raise RuntimeError")
    check_functions(config({}, {"family": "custom", "function": "functions_here:small"}))
    wrong = config({}, {"family": "custom", "function": "functions_here:smal"})
    with pytest.raises(UserError, match="no attribute 'smal'; correct its name") as error:
        check_functions(wrong, "my.yaml")
    assert str(error.value).startswith("my.yaml: the recipe of digits x vgg: function ")
    assert "" not in sys.path
    run = Path("results", wrong.experiment, "digits/vgg/seed-0/run.json")
    run.parent.mkdir(parents=True)
    run.touch()
    check_functions(wrong)  # only drawn


def moments(random, dim):
    features, labels = random.normal(size=(40, dim)), np.arange(40) % 4
    features[:, 0] += labels
    return compute_moments(features, labels, 4, None, None)


def test_statistics_name_their_layer_and_the_law_is_that_of_the_layers_in_order():
    random = np.random.default_rng(0)
    layers = {name: (moments(random, 5), moments(random, 6)) for name in ("c", "a", "b")}
    last = moments(random, 7)
    recipe = resolve_recipe(config({}), "digits", "vgg")
    found = statistics_of(recipe, StoredMoments(last, last, {}, {}, layers))
    for split, place in (("train", 0), ("test", 1)):
        values = found[split]
        fuzziness = [
            CollapseResult.of(pair[place])["separation_fuzziness"] for pair in layers.values()
        ]
        assert [values[f"separation_fuzziness@{name}"] for name in layers] == fuzziness
        slope, _, r, *_ = scipy.stats.linregress(range(3), np.log(fuzziness))
        assert values["separation_rate"] == pytest.approx(np.exp(slope), rel=1e-12)
        assert values["separation_linearity"] == pytest.approx(r, rel=1e-12)
        assert values["cdnv"] == CollapseResult.of(last)["cdnv"] != values["cdnv@a"]
    two = statistics_of(recipe, StoredMoments(last, last, {}, {}, dict(list(layers.items())[:2])))
    assert "separation_rate" not in two["train"] and "cdnv@c" in two["train"]


@pytest.mark.parametrize("path", sorted(STUDY_CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_is_valid_and_draws_a_figure_of_its_own(path):
    study = load_config(path)
    check_layers(study)
    assert study.experiment == path.stem and set(study.figures.names or ()) & set(STUDIES)
