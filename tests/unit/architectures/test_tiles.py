"""3x3 convolutions by tiles, against torch's in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from neural_collapse.architectures import build_network, resolve_network, tiles
from neural_collapse.architectures.convolutions import Conv2d
from neural_collapse.architectures.folding import fold_batch_norms, for_features

needs_x86 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="tiles are taken on x86 CPUs alone",
)


def layer(inputs: int, outputs: int, images: int, *size: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, inputs, *size, generator=generator).relu().to(dtype)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
    bias = torch.randn(outputs, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    return x, weight.to(dtype), bias.to(dtype)


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return ((found - true).square().mean() / true.square().mean()).sqrt().item()


@pytest.mark.parametrize("outputs", tiles.TILE_PX)
def test_the_matrices_give_sums_of_three_taps(outputs):
    rng = np.random.default_rng(0)
    data, taps = rng.standard_normal(outputs + 2), rng.standard_normal(3)
    a, g, b = tiles._matrices(outputs)
    found = a @ ((g @ taps) * (b @ data))
    np.testing.assert_allclose(found, np.correlate(data, taps, "valid"), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (6, 8), (5, 3), (14, 14)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_tiles_are_the_convolution(size, with_bias):
    """Sizes that are no whole number of tiles as well; in float64, where only a fault shows."""
    x, weight, bias = layer(3, 5, 4, *size, dtype=torch.float64)
    bias = bias if with_bias else None
    found = tiles.convolved(x, tiles.transformed(weight), bias)
    torch.testing.assert_close(found, conv2d(x, weight, bias, padding=1), rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels, px", [(128, 16), (256, 8), (512, 4)])
def test_rounding_is_like_a_direct_convolutions(channels, px):
    x, weight, bias = layer(channels, channels, 8, px, px)
    true = conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = tiles.convolved(x, tiles.transformed(weight), bias)
    assert error(found, true) < 1e-6
    assert error(found, true) < 2.5 * error(conv2d(x, weight, bias, padding=1), true)


@needs_x86
def test_which_layers_take_tiles():
    x, weight, bias = layer(128, 128, 8, 8, 8)
    convolution = Conv2d(128, 128, 3, padding=1)
    with torch.no_grad():
        convolution.weight.copy_(weight)
        convolution.bias.copy_(bias)
        direct = convolution(x)
        convolution.by_tiles = True
        by_tiles = convolution(x)
        assert convolution._filters is not None and not torch.equal(direct, by_tiles)
        assert torch.equal(by_tiles, tiles.convolved(x, tiles.transformed(weight), bias))
    assert torch.equal(convolution(x), direct)  # whose gradient can be asked for
    for change in (
        {"x": x.double(), "weight": weight.double()},
        {"x": x[:, :, :5, :5]},  # 6 x 8 px would be computed for 5 x 5
        {"x": x[:1, :, :2, :4], "weight": weight},  # one tile
        {"x": x[:, :64], "weight": weight[:, :64]},
    ):
        assert not tiles.pays(**{"x": x, "weight": weight} | change)


@needs_x86
def test_a_networks_features_by_tiles_are_as_exact():
    recipe = resolve_network({"name": "resnet18"})
    network = build_network(recipe, channels=3, num_classes=10, image_size_px=32, seed=0).eval()
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        ready = for_features(network)
        found, folded = ready.features(images), fold_batch_norms(network).features(images)
        true = network.double().features(images.double())
    taken = [m for m in ready.modules() if isinstance(m, Conv2d) and m._filters is not None]
    assert len(taken) == 9  # all of stride 1 from 128 channels on
    assert error(found, true) < 2 * error(folded, true)
    assert not any(m.by_tiles for m in network.modules() if isinstance(m, Conv2d))


def test_a_network_that_is_no_copy_takes_no_tiles():
    network = nn.Sequential(Conv2d(128, 128, 3, padding=1))
    assert for_features(network) is network
    assert not network[0].by_tiles
