"""User-defined networks that do what no other network does, trained and measured."""

import random
import sys

import numpy as np
import pytest
import torch

from neural_collapse.collapse.attacks import robustness
from neural_collapse.collapse.features import extract_splits
from neural_collapse.collapse.moments import load_moments
from neural_collapse.experiment.recipe import write_recipe
from neural_collapse.experiment.stages import measure
from neural_collapse.experiment.stages.train import _facts_of
from neural_collapse.networks.registry import resolve_network
from neural_collapse.training.checkpoints import checkpoint_name
from neural_collapse.training.loop import train

MODULE = """
import random
import numpy as np
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)
    def forward(self, x):
        return self.head(self.conv(x).flatten(1))

class Viewer(Plain):
    def forward(self, x):
        return self.head(self.conv(x).view(-1, 144))

class Permuted(Plain):
    '''Permutes the pixels in an order that its state dict lacks.'''
    def __init__(self):
        super().__init__()
        self.order = torch.randperm(64)
    def forward(self, x):
        return super().forward(x.flatten(1)[:, self.order].reshape(x.shape))

class Shallow(Plain):
    def forward(self, x):
        if self.training:
            x = x * random.random() + np.random.random()
        return super().forward(x)

class Frozen(Plain):
    def __init__(self):
        super().__init__()
        self.head.requires_grad_(False)

class Normed(Plain):
    def __init__(self, norm):
        super().__init__()
        self.head = getattr(nn.utils, norm)(self.head)
"""


@pytest.fixture
def run(tmp_path, monkeypatch, make_data, make_recipe):
    """`run("Network", "name")` trains, and returns the recipe, the curve and the network."""
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def of(network, name="a", **arguments):
        spec = {"family": "custom", "function": f"own_networks:{network}", "arguments": arguments}
        recipe = make_recipe().model_copy(update={"network": resolve_network(spec)})
        options = {"learning_rate": 0.05, "seed": 3, "device": torch.device("cpu")}
        options |= {"checkpoint_folder": tmp_path / "checkpoints", "checkpoint_epochs": range(4)}
        return recipe, *train(recipe, make_data(), state_root=tmp_path / name, **options)

    yield of
    sys.modules.pop("own_networks", None)


def test_a_network_that_flattens_by_view_is_trained_measured_and_attacked(run, make_data):
    _, history, network = run("Viewer")
    _, expected, plain = run("Plain")
    assert history.records[-1].train_loss == pytest.approx(expected.records[-1].train_loss)
    data, place = make_data(), {"batch_size": 20, "device": "cpu"}
    found, wanted = (extract_splits(net, data, **place).train for net in (network, plain))
    np.testing.assert_allclose(found.class_means, wanted.class_means, rtol=1e-4, atol=1e-4)
    images = data.test_images[:6], data.mean, data.std
    np.testing.assert_allclose(robustness(network, *images), robustness(plain, *images), rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("Permuted", {}),
        ("Frozen", {}),
        ("Normed", {"norm": "weight_norm"}),
        ("Normed", {"norm": "spectral_norm"}),
    ],
)
def test_the_network_that_is_measured_is_the_one_that_was_trained(
    run, network, arguments, make_data, tmp_path, monkeypatch
):
    recipe, history, trained = run(network, **arguments)
    learned = network == "Permuted"
    facts = _facts_of(recipe, make_data(), trained)
    assert facts.get("learned_classifier", True) == learned
    monkeypatch.setattr(measure, "open_data", lambda *_: make_data())
    write_recipe(recipe, tmp_path / "recipe.json")
    place = {"state_root": tmp_path / "state", "device": "cpu", "gpus": 0, "seed": 3}
    place["checkpoint_folder"] = tmp_path / "checkpoints"
    measure.extract_features(tmp_path / "recipe.json", tmp_path, tmp_path / "features", **place)
    for record in history.records:
        found = load_moments(tmp_path / "features" / checkpoint_name(record.epoch))
        assert ("classifier" not in found.metadata) == learned
        accuracy = found.train.share(lambda decisions: decisions.network_correct)
        assert accuracy == pytest.approx(1 - record.train_error)


def test_what_a_network_draws_depends_on_seed_and_epoch_alone(run):
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    _, first, _ = run("Shallow")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    random.seed(2)
    np.random.seed(2)
    _, again, _ = run("Shallow")
    assert first.records == again.records
