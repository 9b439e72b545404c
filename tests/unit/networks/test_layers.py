"""Outputs of inner layers, against forward passes written out."""

import pytest
import torch
from torch import nn

from neural_collapse.io.errors import UserError
from neural_collapse.networks.build import build_network
from neural_collapse.networks.layers import LayerOutputs, layer_dimensions, layer_names
from neural_collapse.networks.registry import resolve_network

SIZES = {"channels": 3, "num_classes": 4, "image_size_px": 8}
RESNET = {"name": "resnet18", "width": 4, "blocks": [1, 1]}


def network(spec):
    return build_network(resolve_network(spec), **SIZES, seed=0).eval()


def images(count=5):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_layers_of_an_mlp_are_its_layers_one_after_the_other():
    net, x = network({"family": "mlp", "depth": 3, "width": 6}), images()
    names = ["input", "hidden.0", "hidden.1.linear", "hidden.2"]
    with LayerOutputs(net, names) as outputs, torch.no_grad():
        features, rows = outputs.features(x)
    h0 = net.hidden[0](x.flatten(1))
    expected = [x.flatten(1), h0, net.hidden[1].linear(h0), features]
    for row, want in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, want, rtol=0, atol=0)
    assert layer_dimensions(net, names, "mean", (3, 8, 8)) == [192, 6, 6, 6]


@pytest.mark.parametrize("pool", ["mean", "flatten"])
def test_maps_become_rows_before_a_layer_in_place_changes_them(pool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
            self.classifier = nn.Linear(4, 4)

        def features(self, x):
            return self.relu(self.convolution(x)).mean((2, 3))

    net, x = Net(), images()
    with LayerOutputs(net, ["convolution"], pool) as outputs, torch.no_grad():
        _, (rows,) = outputs.features(x)
        maps = nn.functional.conv2d(x, net.convolution.weight, net.convolution.bias)
    assert (maps < 0).any()
    torch.testing.assert_close(rows, maps.mean((2, 3)) if pool == "mean" else maps.flatten(1))
    assert layer_dimensions(net, ["convolution"], pool, (3, 8, 8)) == [rows.shape[1]]


def test_unknown_layer_is_answered_with_those_that_exist():
    with pytest.raises(UserError) as error:
        LayerOutputs(network({"family": "mlp", "depth": 2, "width": 6}), ["hidden.2"])
    assert str(error.value) == (
        "measurement.layers: the network has no layer 'hidden.2'; it has input, hidden, hidden.0, "
        "hidden.1, hidden.0.linear, hidden.0.norm, hidden.0.activation, hidden.1.linear, "
        "hidden.1.norm, hidden.1.activation"
    )


def test_unknown_layer_of_a_large_network_lists_its_outer_ones_first():
    net = network({"name": "resnet18"})
    with pytest.raises(UserError) as error:
        LayerOutputs(net, ["nothing"])
    said = str(error.value)
    assert len(said) < 1500 and "\n" not in said
    assert all(f" {name}" in said for name, _ in net.named_children() if name != "classifier")
    listed = said.partition("it has ")[2].partition(" and ")[0].split(", ")
    assert len(listed) == 40 and set(listed) < set(layer_names(net))
    assert said.endswith(f" and {len(layer_names(net)) - len(listed)} more")


@pytest.mark.parametrize(("twice", "said"), [(True, "more than once"), (False, "does not call")])
def test_layer_without_a_single_output_is_refused(twice, said):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.classifier = nn.ReLU(), nn.Linear(192, 4)

        def features(self, x):
            x = x.flatten(1)
            return self.relu(self.relu(x)) if twice else x

    with LayerOutputs(Net(), ["relu"]) as outputs, pytest.raises(UserError, match=said):
        outputs.features(images())


def test_nothing_is_watched_afterwards():
    net = network(RESNET)
    with LayerOutputs(net, [n for n, _ in net.named_children() if n != "classifier"]):
        assert any(module._forward_hooks for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())
