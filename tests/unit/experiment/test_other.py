"""The other dataset of a recipe, as the job that measures it opens it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from neural_collapse.experiment.config import check_config, resolve_recipe
from neural_collapse.experiment.stages import other
from neural_collapse.io.errors import UserError


def prepared(name, side=8, channels=1):
    labels = range(40)
    return SimpleNamespace(
        name=name,
        channels=channels,
        image_size_px=side,
        num_classes=10,
        train_labels=labels,
        test_labels=labels,
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            prepared("own", 7),
            "images of own have 7 pixels a side, those of digits 8; name a dataset",
        ),
        (prepared("own", channels=3), "images of own have 3 channels, those of digits 1; name a"),
        (prepared("mnist"), "folder/card.json: is of mnist, but the recipe names own"),
    ],
)
def test_prepared_images_that_do_not_fit_are_one_sentence(found, said, monkeypatch):
    """Of a user-defined dataset, what a config cannot know."""
    recipe = resolve_recipe(
        check_config(
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
        ),
        "digits",
        "resnet",
    )
    monkeypatch.setattr("neural_collapse.data.prepared.PreparedDataset.open", lambda _: found)
    with pytest.raises(UserError) as error:
        other.open_other(recipe, prepared("digits"), [Path("folder/card.json")])
    assert said in str(error.value) and "\n" not in str(error.value)
    fits = prepared("own")
    monkeypatch.setattr("neural_collapse.data.prepared.PreparedDataset.open", lambda _: fits)
    assert other.open_other(recipe, prepared("digits"), [Path("folder/card.json")]) is fits
