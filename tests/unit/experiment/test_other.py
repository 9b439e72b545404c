"""The other dataset of a recipe, as the job that measures it opens it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from neural_collapse.experiment.config import check_config, resolve_recipe
from neural_collapse.experiment.stages import other
from neural_collapse.io.errors import UserError


def prepared(name, side=8):
    return SimpleNamespace(
        name=name,
        channels=1,
        image_size_px=side,
        num_classes=10,
        train_labels=range(40),
        test_labels=range(40),
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (prepared("own", 7), "images of own have 7 pixels a side, those of digits 8; name a"),
        (prepared("mnist"), "folder/card.json: is of mnist, but the recipe names own"),
        (prepared("own"), None),
    ],
)
def test_prepared_images_that_do_not_fit_are_one_sentence(found, said, monkeypatch):
    """Of a user-defined dataset, what a config cannot know."""
    config = check_config(
        {
            "experiment": "x",
            "datasets": ["digits"],
            "architectures": ["resnet"],
            "custom_datasets": {"own": {"label": "Own", "path": "own.npz"}},
            "recipe": {
                "network": {"name": "resnet18"},
                "measurement": {"other_dataset": "own"},
            },
        }
    )
    recipe = resolve_recipe(config, "digits", "resnet")
    monkeypatch.setattr("neural_collapse.data.prepared.PreparedDataset.open", lambda _: found)
    given = recipe, prepared("digits"), [Path("folder/card.json")]
    if said is None:
        assert other.open_other(*given) is found
        return
    with pytest.raises(UserError) as error:
        other.open_other(*given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_probe_learns_from_examples_spread_over_the_train_set(monkeypatch):
    """A dataset may be sorted by class."""
    dataset = SimpleNamespace(train_labels=np.arange(20) // 5, test_labels=np.arange(4))
    learned = {}

    shares = SimpleNamespace(share=lambda _: 0.5)

    def extract(*_, keep_rows, **__):
        return SimpleNamespace(kept=np.array(keep_rows), test=shares, test_rows=None)

    def probe(features, labels, test_features, test_labels):
        learned.update(rows=features.tolist(), labels=labels.tolist())
        return 0.25

    monkeypatch.setattr(other, "PROBE_EXAMPLES", 3)
    monkeypatch.setattr(other, "extract_splits", extract)
    monkeypatch.setattr(other, "linear_probe_accuracy", probe)
    monkeypatch.setattr(other, "compute_moments", lambda *_, **__: shares)
    monkeypatch.setattr(other, "outlier_statistics", lambda *_: {})
    own = SimpleNamespace(test_labels=None, num_classes=4)
    layer = SimpleNamespace(weight=None, bias=None)
    splits = SimpleNamespace(train=None, test=layer, test_rows=None)
    recipe = SimpleNamespace(
        training=SimpleNamespace(evaluation_batch_size=4),
        measurement=SimpleNamespace(batch_norm_examples=None),
    )
    found = other.other_statistics(None, own, dataset, splits, recipe, "cpu")
    assert learned == {"rows": [0, 10, 19], "labels": [0, 2, 3]}
    assert found["other_dataset.transfer_probe_accuracy"] == 0.25
