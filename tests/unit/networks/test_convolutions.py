"""Convolutions that every CPU computes correctly, against float64."""

import pytest
import torch
from torch import nn

from neural_collapse.networks.build import build_network
from neural_collapse.networks.convolutions import PointwiseConv2d, make_safe
from neural_collapse.networks.registry import resolve_network


def gradients(module: nn.Module, x: torch.Tensor, cotangent: torch.Tensor):
    x = x.clone().requires_grad_(True)
    module.zero_grad()
    out = module(x)
    out.backward(cotangent.to(out.dtype))
    return [out.detach(), x.grad, module.weight.grad.clone()]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("stride", [2, 3, 4, (1, 2)])
@pytest.mark.parametrize("channels", [1, 3, 4, 6, 7, 16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_strided_pointwise_convolution_has_the_gradients_of_float64(
    channels, stride, threads, layout
):
    generator = torch.Generator().manual_seed(1)
    plain = nn.Conv2d(channels, 8, 1, stride, bias=False)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(plain.weight.shape, generator=generator))
    x = torch.randn(16, channels, 9, 9, generator=generator)
    exact = nn.Conv2d(channels, 8, 1, stride, bias=False).double()
    exact.load_state_dict(plain.state_dict())
    cotangent = torch.randn(exact(x.double()).shape, generator=generator)
    # In float64 oneDNN has no part.
    expected = gradients(exact, x.double(), cotangent.double())
    safe = make_safe(nn.Sequential(plain))[0].to(memory_format=layout)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = gradients(safe, x.contiguous(memory_format=layout), cotangent)
    finally:
        torch.set_num_threads(before)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_no_strided_pointwise_convolution_of_torch_is_left_in_a_resnet(name):
    recipe = resolve_network({"name": name, "width": 4})
    network = build_network(recipe, channels=1, num_classes=3, image_size_px=32, seed=0)
    strided = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride[0] > 1
    ]
    assert len(strided) == 3
    assert all(type(module) is PointwiseConv2d for module in strided)


def test_user_defined_networks_are_made_safe_and_keep_their_state():
    network = nn.Sequential(nn.Conv2d(3, 16, 1, stride=2), nn.Conv2d(3, 3, 3, stride=2))
    keys = list(network.state_dict())
    weight = network[0].weight
    assert make_safe(network) is network
    assert type(network[0]) is PointwiseConv2d and type(network[1]) is nn.Conv2d
    assert list(network.state_dict()) == keys and network[0].weight is weight


@pytest.mark.parametrize("options", [{"padding": 1}, {"groups": 3}, {"stride": 1}])
def test_other_pointwise_convolutions_are_not_replaced(options):
    layer = nn.Conv2d(3, 3, 1, **({"stride": 2} | options))
    assert type(make_safe(nn.Sequential(layer))[0]) is nn.Conv2d
