"""The multilayer perceptron against the same layers written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from neural_collapse.io.errors import UserError
from neural_collapse.networks.build import build_network, construct_without_weights
from neural_collapse.networks.registry import label, resolve_network

SIZES = {"channels": 2, "num_classes": 3, "image_size_px": 4}


def recipe(**changes):
    return resolve_network({"family": "mlp", "depth": 3, "width": 5} | changes)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_forward_in_training_mode_equals_its_layers_written_out(batch_norm, activation):
    network = build_network(recipe(batch_norm=batch_norm, activation=activation), **SIZES, seed=0)
    linears = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linears] == [32, 5, 5, 5]
    x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    h = x.reshape(6, 32)
    for linear in linears[:-1]:
        h = h @ linear.weight.T + linear.bias
        if batch_norm:  # scale 1 and shift 0 when fresh
            h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
        if activation == "relu":
            h = h.clamp(min=0)
    torch.testing.assert_close(network.features(x), h, rtol=1e-4, atol=1e-5)
    expected = functional.linear(h, linears[-1].weight, linears[-1].bias)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_parameters_are_counted_with_those_of_the_norms():
    linear = 32 * 5 + 5 + 2 * (5 * 5 + 5) + 5 * 3 + 3
    for norms, expected in ((True, linear + 3 * 2 * 5), (False, linear)):
        network = construct_without_weights(recipe(batch_norm=norms), **SIZES)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_label_names_what_is_left_out():
    assert label(recipe()) == "MLP (3) width 5"
    changed = recipe(batch_norm=False, activation="identity")
    assert label(changed) == "MLP (3) width 5 without batch norm identity"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": None}, "'width' is None"),
        ({"depth": 0}, "'depth' is 0"),
        ({"activation": "tanh"}, "'activation' is 'tanh'"),
        ({"batch_norm": 1}, "'batch_norm' is 1"),
        ({"dept": 2}, "unknown key 'dept' for the family 'mlp'; did you mean 'depth'?"),
    ],
)
def test_network_that_cannot_be_built_raises_one_sentence(changes, said):
    with pytest.raises(UserError) as error:
        recipe(**changes)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_missing_width_is_named():
    with pytest.raises(UserError, match="the family 'mlp' needs the key 'width'; add it"):
        resolve_network({"family": "mlp", "depth": 3})
