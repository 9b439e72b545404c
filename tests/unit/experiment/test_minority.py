"""What recipes with an imbalance or a fixed classifier measure, and what they do not."""

import json

import numpy as np
import pandas as pd
import pytest
from sample_tables import RUN
from scipy.spatial.distance import pdist

from neural_collapse.collapse.measure import compute_moments
from neural_collapse.collapse.moments import StoredMoments
from neural_collapse.collapse.result import UndefinedStatisticWarning
from neural_collapse.experiment.config import check_config, resolve_recipe
from neural_collapse.experiment.stages.collect import _predicted, _require_agreement
from neural_collapse.experiment.stages.measure import UNLEARNED, statistics_of
from neural_collapse.io.errors import UserError
from neural_collapse.training.closed_form import sum_of_rows_factors


def recipe_of(**parts):
    values = {"network": {"family": "mlp", "depth": 1, "width": 12}, **parts}
    names = {"datasets": ["digits"], "architectures": ["vgg"]}
    return resolve_recipe(
        check_config({"experiment": "x", **names, "recipe": values}), "digits", "vgg"
    )


@pytest.fixture
def stored():
    """Train and test moments of ten classes, and what they are of."""
    random = np.random.default_rng(0)
    W, b = random.standard_normal((10, 12)), random.standard_normal(10)
    given = []
    for examples in (400, 300):
        labels = random.integers(0, 10, examples)
        features = W[labels] + 3 * random.standard_normal((examples, 12))
        given.append((features, labels))
    train = compute_moments(*given[0], 10, W, b)
    test = compute_moments(*given[1], 10, W, b, train_means=train.class_means)
    return StoredMoments(train, test, {}, {}, {}), W, b, given[1]


def test_a_minority_has_its_cosine_on_train_and_its_accuracy_on_test(stored):
    moments, W, b, (features, labels) = stored
    imbalance = {"ratio": 1, "minority_classes": [7, 2, 4]}
    found = statistics_of(recipe_of(data={"imbalance": imbalance}), moments)
    cosine = np.mean(1 - pdist(W[[7, 2, 4]], "cosine"))
    assert found["train"]["minority_classifier_cosine"] == pytest.approx(cosine, rel=1e-12)
    of_minority = np.isin(labels, [7, 2, 4])
    right = (features @ W.T + b).argmax(1) == labels
    assert found["test"]["minority_accuracy"] == right[of_minority].mean() != right.mean()
    assert "minority_accuracy" not in found["train"]
    assert "minority_classifier_cosine" not in found["test"]


def test_one_class_has_no_cosine_and_no_imbalance_has_no_minority(stored):
    one = {"imbalance": {"ratio": 1, "minority_classes": [3]}}
    found = statistics_of(recipe_of(data=one), stored[0])
    assert "minority_classifier_cosine" not in found["train"]
    assert "minority_accuracy" in found["test"]
    without = statistics_of(recipe_of(), stored[0])
    assert not [name for split in without.values() for name in split if "minority" in name]


def test_a_classifier_of_zeros_has_no_cosine_of_its_minority(stored):
    moments = stored[0]
    moments.train.weight.zero_()
    imbalance = {"ratio": 1, "minority_classes": [7, 2, 4]}
    with pytest.warns(UndefinedStatisticWarning):  # of NC2 and NC3
        found = statistics_of(recipe_of(data={"imbalance": imbalance}), moments)
    assert np.isnan(found["train"]["minority_classifier_cosine"])
    assert np.isfinite(found["test"]["minority_accuracy"])


def predicted(tmp_path, recipe, **facts):
    """NC0's prediction of a run that was measured before training and at the last epoch."""
    run = RUN | {"dataset": "digits", "architecture": "vgg", "learning_rate": 0.1, "epochs": 2}
    run |= {"train_examples": 100, **facts}
    (tmp_path / "run.json").write_text(json.dumps(run))
    key = {"dataset": "digits", "architecture": "vgg", "seed": 0, "split": "train"}
    values = {"epoch": [0, 2], "statistic": "nc0_sum_of_rows", "value": [2.0, 1.0]}
    cells = {("digits", "vgg"): recipe}
    table = _predicted([tmp_path / "run.json"], cells, pd.DataFrame(values | key))
    return table[table["statistic"] == "nc0_predicted"].set_index("epoch")["value"].to_dict()


def test_the_closed_form_counts_the_steps_of_an_oversampled_epoch(tmp_path):
    training = {"epochs": 2, "batch_size": 10, "weight_decay": 0.1, "learning_rate_milestones": []}
    plain = recipe_of(training=training)
    oversampled = recipe_of(training=training | {"oversample": True})
    factors = [sum_of_rows_factors(plain.training, 0.1, examples)[2] for examples in (100, 300)]
    assert predicted(tmp_path, plain) == {0: 2, 2: pytest.approx(2 * factors[0])}
    found = predicted(tmp_path, oversampled, examples_per_epoch=300)
    assert found == {0: 2, 2: pytest.approx(2 * factors[1])}
    assert factors[1] < 0.8 * factors[0]


def test_nothing_is_predicted_of_a_fixed_classifier(tmp_path):
    training = {"epochs": 2, "batch_size": 10, "learning_rate_milestones": []}
    network = {"family": "mlp", "depth": 1, "width": 12, "classifier": "etf"}
    assert predicted(tmp_path, recipe_of(training=training, network=network)) == {}
    # A user-defined network may fix it too, which its run tells.
    assert predicted(tmp_path, recipe_of(training=training), learned_classifier=False) == {}


def test_the_mse_is_not_split_where_its_classifier_does_not_decay():
    random = np.random.default_rng(1)
    labels = np.arange(60) % 10
    features = random.standard_normal((10, 12))[labels] + random.standard_normal((60, 12))
    moments = compute_moments(
        features, labels, 10, random.standard_normal((10, 12)), None, scatter="full"
    )
    stored = StoredMoments(moments, moments, {}, {}, {})
    parts = {"training": {"loss": "mse"}, "measurement": {"scatter": "full"}}
    fixed = {"network": {"family": "mlp", "depth": 1, "width": 12, "classifier": "etf"}}
    assert "mse_nc1" in statistics_of(recipe_of(**parts), stored)["train"]
    assert "mse_nc1" not in statistics_of(recipe_of(**parts, **fixed), stored)["train"]
    stored = stored._replace(metadata=UNLEARNED)
    assert "mse_nc1" not in statistics_of(recipe_of(**parts), stored)["train"]


def test_a_measured_network_that_is_not_the_trained_one_is_one_sentence():
    key = {"dataset": "digits", "architecture": "vgg", "seed": 4, "split": "train", "epoch": [1, 2]}
    curves = pd.DataFrame({**key, "statistic": "error", "value": [0.3, 0.0]})

    def check(accuracies, **parts):
        measured = pd.DataFrame({**key, "statistic": "network_accuracy", "value": accuracies})
        _require_agreement({("digits", "vgg"): recipe_of(**parts)}, curves, measured)

    check([0.1, 0.99])
    check([0.1, 0.1], measurement={"batch_norm_examples": 8})
    with pytest.raises(UserError, match=r"digits x vgg, seed 4: the network measured at epoch 2"):
        check([0.7, 0.1])
