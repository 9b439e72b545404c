"""User-defined networks."""

import sys

import pytest
import torch
from torch import nn

from neural_collapse.io.errors import UserError
from neural_collapse.networks.build import (
    _fix_classifier,
    build_network,
    construct_without_weights,
)
from neural_collapse.networks.registry import label, resolve_network

MODULE = '''
import numpy as np
import torch
from torch import nn

NUMBER = 3

def nested(shape):
    return mlp(shape["classes"][0], shape["side"] ** 2)

def mlp(num_classes, pixels=64, hidden=12):
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(),
                         nn.Linear(hidden, num_classes))

def only_linear(num_classes):
    return nn.Linear(8, num_classes)

class Wide(nn.Module):
    """Its last linear layer is neither the last one made nor the last one named."""
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(64, classes)
        self.alias = self.head
        self.mix = nn.Linear(64, 64)
    def forward(self, x):
        return self.alias(torch.tanh(self.mix(x.flatten(1))))

class Softmax(Wide):
    def forward(self, x):
        return super().forward(x).softmax(1)

class Pair(Wide):
    def forward(self, x):
        return super().forward(x), x

class PairInTraining(Wide):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

class Counting(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(),
                         nn.Linear(144, classes))
        self.register_buffer("passes", torch.zeros(()))
    def forward(self, x):
        self.passes = self.passes + 1
        return super().forward(x)

class CosineLayer(nn.Linear):
    def forward(self, h):
        return nn.functional.linear(nn.functional.normalize(h), self.weight)

class Cosine(Wide):
    def __init__(self, classes):
        super().__init__(classes)
        self.alias = self.head = CosineLayer(64, classes)

class Twice(nn.Module):
    """Its last layer has worked once already when it is called for the classes."""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)
    def forward(self, x):
        return self.layer(self.layer(x.flatten(1)))

class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
    def forward(self, x):
        return self.layer(x)

class Viewer(nn.Module):
    """Flattens by `view`, which channels-last feature maps do not allow."""
    def __init__(self, channels, classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 5, 3), nn.Linear(180, classes)
    def forward(self, x):
        return self.head(self.conv(x).view(-1, 180))

class Volumes(Viewer):
    def __init__(self, channels, classes):
        super().__init__(channels, classes)
        self.conv = nn.Sequential(nn.Unflatten(1, (1, channels)), nn.Conv3d(1, 5, (channels, 3, 3)))

class ScaledInTraining(Wide):
    def forward(self, x):
        logits = super().forward(x)
        return logits / 2 if self.training else logits

def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5), nn.LazyLinear(classes))

def numpy_weights(classes):
    net = mlp(classes)
    net[3].weight.data = torch.from_numpy(np.random.randn(classes, 12)).float()
    return net

def no_network():
    return 7

def broken():
    raise RuntimeError("no luck")
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(MODULE)
    (tmp_path / "wants_more.py").write_text("import a_module_that_is_not_there")
    (tmp_path / "wrong.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("my_networks", "wants_more", "wrong"):
        sys.modules.pop(name, None)


def build(function, arguments=None, *, num_classes=4, image_size_px=8, channels=1, seed=0):
    spec = {"family": "custom", "function": function, "arguments": arguments or {}}
    return build_network(
        resolve_network(spec),
        channels=channels,
        num_classes=num_classes,
        image_size_px=image_size_px,
        seed=seed,
    )


@pytest.mark.parametrize(
    ("function", "arguments", "dimension"),
    [
        ("my_networks:mlp", {"num_classes": "$num_classes"}, 12),
        ("my_networks:mlp", {"num_classes": 4, "hidden": 30}, 30),
        ("my_networks:Wide", {"classes": "$num_classes"}, 64),
        (
            "my_networks:nested",
            {"shape": {"classes": ["$num_classes"], "side": "$image_size_px"}},
            12,
        ),
        ("my_networks:lazy", {"classes": "$num_classes"}, 5),
    ],
)
def test_network_is_cut_before_its_last_linear_layer(function, arguments, dimension):
    network = build(function, arguments)
    assert network.training and all(module.training for module in network.modules())
    x = torch.randn(3, 1, 8, 8)
    h = network.eval().features(x)
    assert h.shape == (3, dimension)
    assert isinstance(network.classifier, nn.Linear)
    assert network.classifier.out_features == 4
    assert torch.equal(network(x), network.classifier(h))


@pytest.mark.parametrize("name", ["Viewer", "Volumes"])
@pytest.mark.parametrize("channels", [1, 3])
def test_network_that_channels_last_does_not_suit_computes_in_nchw(channels, name):
    network = build(f"my_networks:{name}", {"channels": channels, "classes": 4}, channels=channels)
    assert network.memory_format == torch.contiguous_format
    x = torch.randn(2, channels, 8, 8)
    found = network.to(memory_format=network.memory_format)(
        x.clone(memory_format=torch.channels_last)
    )
    assert torch.equal(found, network.classifier(network.body.conv(x).flatten(1)))
    assert build("my_networks:mlp", {"num_classes": 4}).memory_format == torch.channels_last


def test_wrapped_network_computes_what_the_original_does():
    network = build("my_networks:Wide", {"classes": 4}, seed=11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        original = sys.modules["my_networks"].Wide(4)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(network(x), original(x))
    network(x).square().sum().backward()
    original(x).square().sum().backward()
    assert torch.equal(network.classifier.weight.grad, original.head.weight.grad)
    assert torch.equal(network.body.mix.weight.grad, original.mix.weight.grad)
    # No parameter twice, none lost: the optimiser and the state file see each once.
    sizes = sorted(p.numel() for p in network.parameters())
    assert sizes == sorted(p.numel() for p in original.parameters())


def test_seed_reaches_numpy_and_python_as_well():
    first, second = (build("my_networks:numpy_weights", {"classes": 4}, seed=2) for _ in range(2))
    other = build("my_networks:numpy_weights", {"classes": 4}, seed=3)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_trial_in_train_mode_leaves_no_trace():
    spec = {"family": "custom", "function": "my_networks:Counting", "arguments": {"classes": 4}}
    sizes = {"channels": 1, "num_classes": 4, "image_size_px": 8}
    network = build_network(resolve_network(spec | {"classifier": "etf"}), **sizes, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        original = sys.modules["my_networks"].Counting(4)
        _fix_classifier(original[4])
    original.passes += 2  # in eval mode
    found, wanted = list(network.state_dict().values()), list(original.state_dict().values())
    assert len(found) == len(wanted) and all(map(torch.equal, found, wanted))


def test_torchvision_function_is_a_user_defined_network():
    network = build(
        "torchvision.models:mobilenet_v2",
        {"num_classes": "$num_classes"},
        channels=3,
        num_classes=6,
    )
    assert network.eval().features(torch.randn(2, 3, 32, 32)).shape == (2, 1280)


def test_description_of_a_user_defined_network_names_its_function():
    recipe = resolve_network(
        {"family": "custom", "function": "my_networks:mlp", "arguments": {"num_classes": 4}}
    )
    network = construct_without_weights(recipe, channels=1, num_classes=4, image_size_px=8)
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert counted == 64 * 12 + 12 + 12 * 4 + 4
    assert (label(recipe), network.classifier.in_features) == ("my_networks:mlp", 12)


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        ("my_netwroks:mlp", {}, "module 'my_netwroks' cannot be found; put its folder on PYTHON"),
        ("my_networks.sub:mlp", {}, "cannot be found"),
        ("wants_more:f", {}, "needs the module 'a_module_that_is_not_there'; install it"),
        ("wrong:f", {}, "fails with ZeroDivisionError: division by zero; fix the module"),
        ("my_networks:mpl", {}, "module 'my_networks' has no attribute 'mpl'"),
        ("my_networks:NUMBER", {}, "is a int, not a function; name a function"),
        ("my_networks:no_network", {}, "returns a int; let it return a torch.nn.Module"),
        ("my_networks:broken", {}, "fails with RuntimeError: no luck"),
        ("my_networks:mlp", {"klasses": 4}, "fails with TypeError"),
        ("my_networks:mlp", {"num_classes": 10}, "10 outputs, but the data has 4 classes"),
        (
            "my_networks:mlp",
            {"num_classes": 4, "pixels": 9},
            "fails on images of shape (2, 1, 8, 8",
        ),
        ("my_networks:Softmax", {"classes": 4}, "does not end in a linear layer"),
        ("my_networks:Pair", {"classes": 4}, "returns tuple and not one row of logits"),
        ("my_networks:Maps", {}, "returns (2, 1, 8, 8) and not one row"),
        ("my_networks:Twice", {}, "cannot be separated from the rest"),
        ("my_networks:PairInTraining", {"classes": 4}, "something else in train mode"),
        ("my_networks:ScaledInTraining", {"classes": 4}, "something else in train mode"),
        ("my_networks:Cosine", {"classes": 4}, "a CosineLayer, does not compute W h + b"),
        ("torch.nn:Flatten", {}, "does not end in a linear layer"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(function, arguments, said):
    with pytest.raises(UserError) as error:
        build(function, arguments)
    assert said in str(error.value)
    assert function.split(":")[0] in str(error.value)
