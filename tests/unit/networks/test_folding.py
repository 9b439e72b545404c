"""Networks folded for measuring, and several in one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from neural_collapse.networks.build import build_network
from neural_collapse.networks.folding import fold_batch_norms
from neural_collapse.networks.registry import resolve_network

# A network, and how many of its norms cannot be folded: those that no convolution stands before.
NETWORKS = {
    "resnet": ({"name": "resnet18", "blocks": [1, 1, 1], "width": 4}, 0),
    "bottleneck": ({"name": "resnet50", "blocks": [1, 1], "width": 4}, 0),
    "vgg": (
        {"name": "vgg11", "convolutions": [1, 2], "width": 4, "hidden_width": 8}
        | {"pooled_size_px": 2},
        2,
    ),
    "densenet": ({"name": "densenet40", "blocks": [2, 2], "growth": 3}, 6),
    "densenet_bc": ({"name": "densenet250", "blocks": [2, 2], "growth": 3}, 6),
    "memory-efficient": (
        {"name": "densenet250", "blocks": [2, 2], "growth": 3, "memory_efficient": True},
        6,
    ),
    "imagenet": (
        {"name": "densenet201", "blocks": [2], "growth": 4, "stem": "imagenet"},
        3,
    ),
}


@pytest.fixture(params=NETWORKS)
def networks(request):
    """Three networks with lived-in running statistics, and the norms that stay."""
    spec, left = NETWORKS[request.param]
    made = []
    for seed in range(3):
        network = build_network(
            resolve_network(spec), channels=3, num_classes=5, image_size_px=16, seed=seed
        )
        random = torch.Generator().manual_seed(seed)
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                with torch.no_grad():
                    module.running_mean.normal_(generator=random)
                    module.running_var.uniform_(0.2, 3, generator=random)
                    module.weight.normal_(generator=random)
                    module.bias.normal_(generator=random)
        made.append(network)
    return made, left


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(9))


def test_folding_changes_no_feature(networks, images):
    (network, *_), left = networks
    network.double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold_batch_norms(network)
    network.eval()
    # In float64, where only a fault could make a difference.
    torch.testing.assert_close(
        folded.features(images.double()), network.features(images.double()), rtol=1e-11, atol=1e-11
    )
    assert sum(isinstance(module, _BatchNorm) for module in folded.modules()) == left
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_folding_changes_no_gradient_of_an_image(networks, images):
    """As DeepFool takes it."""
    (network, *_), _ = networks
    gradients = []
    for way in (fold_batch_norms(network.double()), network.eval()):
        x = images.double().requires_grad_()
        logits = way(x)
        gradients.append(
            [torch.autograd.grad(logits[:, c].sum(), x, retain_graph=True)[0] for c in range(2)]
        )
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_a_network_of_unknown_layers_is_not_folded(images):
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    assert fold_batch_norms(network) is network
