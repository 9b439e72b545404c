"""A fixed ETF classifier: the Gram matrix of a simplex, no gradient, whatever the family."""

from __future__ import annotations

from functools import partial
from textwrap import dedent

import numpy as np
import pytest
import torch

from neural_collapse.io.errors import UserError
from neural_collapse.networks.build import build_network, construct_without_weights
from neural_collapse.networks.registry import label, resolve_network

FAMILIES = {
    "vgg": {"family": "vgg", "convolutions": [1], "width": 4, "hidden_width": 16},
    "resnet": {"family": "resnet", "block": "basic", "blocks": [1], "width": 12},
    "densenet": {"family": "densenet", "blocks": [2], "growth": 4},
    "mlp": {"family": "mlp", "depth": 1, "width": 7},
}
SIZES = {"channels": 1, "num_classes": 7, "image_size_px": 8}


def built(family: str, seed: int = 0, classifier: str = "etf"):
    recipe = resolve_network(FAMILIES[family] | {"classifier": classifier})
    return build_network(recipe, seed=seed, **SIZES)


@pytest.fixture
def custom(tmp_path, monkeypatch):
    """A user-defined network whose last layer has no bias."""
    code = """
        from torch import nn

        def network():
            layers = nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 7, bias=False)
            return nn.Sequential(nn.Flatten(), *layers)
    """
    (tmp_path / "with_etf.py").write_text(dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FAMILIES, "custom", {"family": "custom", "function": "with_etf:network"})


WAYS = {
    "weight_norm": "utils.parametrizations.weight_norm(last)",
    "spectral_norm": "utils.parametrizations.spectral_norm(last)",
    "hooked": "utils.weight_norm(last)",
    "tied": "last; last.weight = layers[1].weight",
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("way", WAYS)
def test_a_last_layer_whose_weight_is_not_its_own_is_one_sentence(way, tmp_path, monkeypatch):
    code = f"""
        from torch import nn
        from torch.nn import utils

        def network():
            layers = nn.Linear(64, 7), nn.Linear(7, 7), nn.ReLU()
            last = nn.Linear(7, 7)
            last = {WAYS[way]}
            return nn.Sequential(nn.Flatten(), *layers, last)
    """
    (tmp_path / f"not_own_{way}.py").write_text(dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    recipe = {"family": "custom", "function": f"not_own_{way}:network"}
    build_network(resolve_network(recipe), seed=0, **SIZES)  # learned, it is as good as any
    fixed = resolve_network(recipe | {"classifier": "etf"})
    for make in (construct_without_weights, partial(build_network, seed=0)):
        with pytest.raises(UserError) as error:
            make(fixed, **SIZES)
        why = "shared with another layer" if way == "tied" else "parametrised"
        assert f"whose weight is {why}; end the network in a plain nn.Linear" in str(error.value)


@pytest.mark.parametrize("family", ["vgg", "resnet", "densenet", "mlp", "custom"])
def test_rows_are_a_simplex_and_nothing_of_them_learns(family, custom):
    network = built(family)
    weight = network.classifier.weight.detach().double().numpy()
    classes = 7
    simplex = classes / (classes - 1) * (np.eye(classes) - 1 / classes)
    np.testing.assert_allclose(weight @ weight.T, simplex, atol=1e-6)
    np.testing.assert_allclose(weight.sum(0), 0, atol=1e-6)
    assert family == "custom" or not network.classifier.bias.any()
    network(torch.randn(3, 1, 8, 8)).square().sum().backward()
    frozen = [name for name, p in network.named_parameters() if p.grad is None]
    assert frozen == ["classifier.weight", "classifier.bias"][: 1 if family == "custom" else 2]


def test_the_seed_turns_it_and_the_rest_is_that_of_the_learned_network():
    one, again, other = (built("mlp", seed) for seed in (0, 0, 1))
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.allclose(one.classifier.weight, other.classifier.weight, atol=0.1)
    learned = built("mlp", 0, "learned")
    for name, value in learned.state_dict().items():
        same = torch.equal(value, one.state_dict()[name])
        assert same == (not name.startswith("classifier"))


def test_any_frame_is_as_likely():
    """Each entry's mean over seeds is zero, unless the factorisation fixes its signs."""
    weights = torch.stack([built("mlp", seed).classifier.weight.detach() for seed in range(400)])
    spread = weights.std(0) / 400**0.5
    assert (weights.mean(0).abs() < 5 * spread).all()


def test_too_few_features_are_one_sentence():
    narrow = resolve_network({"family": "mlp", "depth": 1, "width": 6, "classifier": "etf"})
    for make in (construct_without_weights, partial(build_network, seed=0)):
        with pytest.raises(UserError) as error:
            make(narrow, **SIZES)
        assert "'classifier: etf' needs at least as many features as classes" in str(error.value)
        assert "6 features for 7 classes" in str(error.value)
        assert "\n" not in str(error.value)


def test_recipes_name_it_only_where_it_is_fixed():
    learned = resolve_network({"name": "resnet18"})
    assert (
        "classifier" not in learned.model_dump() and "classifier" not in learned.model_dump_json()
    )
    assert resolve_network({"name": "resnet18", "classifier": "learned"}) == learned
    fixed = resolve_network({"name": "resnet18", "classifier": "etf"})
    assert fixed.model_dump()["classifier"] == "etf"
    assert (label(learned), label(fixed)) == ("ResNet18", "ResNet18, fixed ETF classifier")
