"""The layers of this project's own, against torch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from neural_collapse.networks import norms
from neural_collapse.networks.convolutions import Conv2d, _pixels_at_once
from neural_collapse.networks.norms import BatchNorm2d


def random_like(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            # Drawn in float32, that a float64 module has the same values.
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return module


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 2 + 1
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def cotangent(out: torch.Tensor) -> torch.Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)


def outcome(module: nn.Module, x: torch.Tensor, autocast: bool = False) -> dict[str, torch.Tensor]:
    """Output, all gradients of a random linear loss, and the buffers, in float64."""
    x = x.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = torch.relu_(module(x))  # in place, as the networks have it
    out.backward(cotangent(out))
    found = {"out": out.detach(), "x": x.grad} | dict(module.named_buffers())
    found |= {name: parameter.grad for name, parameter in module.named_parameters()}
    return {name: value.double() for name, value in found.items()}


def assert_near(found: dict, true: dict, tolerance: float) -> None:
    assert found.keys() == true.keys()
    for name, value in true.items():
        error = (found[name] - value).norm() / value.norm()
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


# Maps of few channels; 14 x 14 and 7 x 28 px leave few pixels to take together.
@pytest.mark.parametrize(
    "shape", [(8, 8, 32, 32), (8, 16, 32, 32), (5, 12, 14, 14), (1, 14, 7, 28), (9, 3, 4, 4)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
def test_few_channels_are_normalised_as_many_are(monkeypatch, shape, dtype, tolerance):
    monkeypatch.setattr(norms, "PAYS_FROM", 0)
    x = maps(*shape, dtype=dtype)
    norm = random_like(BatchNorm2d(shape[1]))
    assert norm._pixels_at_once(x) > 1
    reference = random_like(nn.BatchNorm2d(shape[1]).double())
    found, true = outcome(norm, x), outcome(reference, x.double())
    assert_near(found, true, tolerance)


def test_sums_of_few_channels_are_more_exact_than_one_after_another():
    x = maps(128, 8, 32, 32)
    true = outcome(random_like(nn.BatchNorm2d(8).double()), x.double())
    assert_near(outcome(random_like(BatchNorm2d(8)), x), true, 4e-6)


@pytest.mark.parametrize(
    "x",
    [
        maps(64, 17, 32, 32),  # enough channels
        maps(256, 1, 32, 32),
        maps(4096, 8, 9, 9),  # an odd number of pixels
        maps(128, 8, 32, 32).contiguous(),
        maps(4, 8, 8, 8),  # too small
        maps(0, 8, 8, 8),
    ],
)
def test_what_does_not_pay_goes_torchs_way(x):
    assert BatchNorm2d(x.shape[1])._pixels_at_once(x) == 1
    assert BatchNorm2d(8).eval()._pixels_at_once(maps(128, 8, 32, 32)) == 1


def test_a_recomputed_norm_has_the_same_gradients(monkeypatch):
    monkeypatch.setattr(norms, "PAYS_FROM", 0)
    x = maps(4, 8, 8, 8)
    plain = outcome(random_like(BatchNorm2d(8)), x)
    norm = random_like(BatchNorm2d(8))
    twice = x.clone().requires_grad_(True)
    out = checkpoint(norm, twice, use_reentrant=False).relu()
    out.backward(cotangent(out))
    assert torch.equal(twice.grad.double(), plain["x"])


@pytest.mark.parametrize("px", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_convolution_of_a_tiny_map_is_the_same_function(px, layout):
    x = maps(32, 5, px, px).double().contiguous(memory_format=layout)
    convolution = random_like(Conv2d(5, 6, 3, padding=1).double()).to(memory_format=layout)
    reference = random_like(nn.Conv2d(5, 6, 3, padding=1).double())
    assert_near(outcome(convolution, x), outcome(reference, x), 1e-14)


def test_a_tiny_map_under_autocast_is_as_near_as_torchs():
    x = maps(64, 32, 2, 2)
    true = outcome(random_like(nn.Conv2d(32, 8, 3, padding=1).double()), x.double())
    assert_near(
        outcome(random_like(Conv2d(32, 8, 3, padding=1)), x.bfloat16(), autocast=True), true, 1e-2
    )


# Inputs, outputs, kernel, stride, padding, pixels of a side and what is taken together of them.
OTHER_WAYS = [
    pytest.param((8, 8, 3, 1, 1), (32, 32), (2, 2), id="few channels"),
    pytest.param((4, 8, 3, 1, 1), (5, 28), (2, 4), id="fewer in than out"),
    pytest.param((20, 4, 3, 1, 1), (7, 24), (4, 1), id="few out"),
    pytest.param((8, 20, 3, 1, 1), (24, 24), (1, 2), id="few in"),
    pytest.param((8, 16, 3, 2, 1), (14, 6), (1, 1), id="stride of 2"),
    pytest.param((3, 5, 3, 2, 1), (2, 2), (1, 1), id="stride of 2 to 1 px"),
    pytest.param((6, 9, 1, 2, 0), (8, 8), (1, 1), id="pixels"),
    pytest.param((6, 9, 1, 2, 0), (7, 5), (1, 1), id="pixels of odd maps"),
]


@pytest.fixture
def wide_vectors(monkeypatch):
    """The ways of a CPU with AVX-512, on any."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layer", "px", "at_once"), OTHER_WAYS)
def test_another_way_is_the_same_function(wide_vectors, layer, px, at_once, bias):
    inputs, outputs = layer[:2]
    x = maps(3, inputs, *px)
    single = outcome(random_like(Conv2d(*layer, bias=bias)), x)
    x = x.double().contiguous(memory_format=torch.channels_last)
    convolution = random_like(Conv2d(*layer, bias=bias).double())
    true = outcome(random_like(nn.Conv2d(*layer, bias=bias).double()), x)
    assert_near(outcome(convolution, x), true, 1e-13)
    assert_near(single, true, 1e-5)
    taken = type(convolution(x.requires_grad_(True)).grad_fn).__name__
    assert taken == "_ConvolutionBackward"
    if layer[2:] == (3, 1, 1):
        assert tuple(_pixels_at_once(px[1], n) for n in (outputs, inputs)) == at_once


@pytest.mark.parametrize(("layer", "px", "at_once"), OTHER_WAYS)
def test_another_way_under_autocast_is_as_near_as_torchs(wide_vectors, layer, px, at_once):
    x = maps(32, layer[0], *px)
    true = outcome(random_like(nn.Conv2d(*layer).double()), x.double())
    convolution = random_like(Conv2d(*layer))
    found = outcome(convolution, x, autocast=True)
    assert_near(found, true, 1e-2)
    assert convolution.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "px"), [((17, 34, 3, 2, 1), 8), ((8, 20, 3, 1, 1), 24), ((6, 9, 1, 2, 0), 8)]
)
def test_no_way_round_for_a_gradient_that_nobody_wants(wide_vectors, layer, px):
    found = Conv2d(*layer)(maps(2, layer[0], px, px))
    assert type(found.grad_fn).__name__ == "ConvolutionBackward0"


def test_a_stride_of_2_from_many_channels_goes_torchs_way(wide_vectors):
    found = Conv2d(17, 34, 3, 2, 1)(maps(2, 17, 8, 8).requires_grad_(True))
    assert type(found.grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize("frozen", ["x", "weight", "both"])
def test_only_the_gradients_that_are_wanted_are_made(wide_vectors, frozen):
    x = maps(2, 8, 24, 24).requires_grad_(frozen == "weight")
    convolution = random_like(Conv2d(8, 8, 3, padding=1)).requires_grad_(frozen == "x")
    reference = random_like(nn.Conv2d(8, 8, 3, padding=1))
    out = convolution(x)
    torch.testing.assert_close(out, reference(x))
    assert out.requires_grad == (frozen != "both")
    if frozen == "x":
        out.sum().backward()
        reference(x).sum().backward()
        torch.testing.assert_close(convolution.weight.grad, reference.weight.grad)
        torch.testing.assert_close(convolution.bias.grad, reference.bias.grad)
    elif frozen == "weight":
        out.square().sum().backward()
        (true,) = torch.autograd.grad(reference(x).square().sum(), x)
        torch.testing.assert_close(x.grad, true)


def test_narrow_vectors_hold_fewer_pixels(monkeypatch):
    channels = (1, 2, 4, 8, 12, 16, 64)
    for capability, pixels in {
        "AVX512": [1, 1, 4, 2, 1, 1, 1],
        "AVX2": [1, 1, 2, 1, 1, 1, 1],
        "DEFAULT": [1] * 7,
    }.items():
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        assert [_pixels_at_once(32, n) for n in channels] == pixels


@pytest.mark.parametrize(
    ("options", "x"),
    [
        ({"stride": 2}, maps(2, 8, 7, 8)),  # an odd number of rows
        ({"padding_mode": "circular"}, maps(2, 8, 32, 32)),
        ({"groups": 2}, maps(2, 8, 32, 32)),
        ({"dilation": 2}, maps(2, 8, 32, 32)),
        ({}, maps(2, 8, 32, 32).contiguous()),
        ({}, maps(2, 8, 20, 20)),  # too small to pay
        ({}, maps(2, 8, 32, 31)),  # no even number of pixels in a row
        ({"padding": "same"}, maps(2, 8, 32, 32)),
    ],
)
def test_where_nothing_else_pays_or_fits_it_is_torchs_convolution(wide_vectors, options, x):
    options = {"padding": 1} | options
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(True)
    found = random_like(Conv2d(8, 8, 3, **options))(x)
    assert type(found.grad_fn).__name__ == "ConvolutionBackward0"
    assert torch.equal(found, random_like(nn.Conv2d(8, 8, 3, **options))(x))


@pytest.mark.parametrize(
    "shape",
    [(0, 4, 2, 2), (3, 4, 2, 2), (3, 4, 1, 1), (40, 4, 2, 1), (4, 2, 2), (2, 4, 30, 31)],
)
def test_any_shape_that_torchs_convolution_takes_will_do(shape):
    convolution = random_like(Conv2d(4, 5, 3, padding=1).double())
    reference = random_like(nn.Conv2d(4, 5, 3, padding=1).double())
    x = torch.ones(shape).double()
    torch.testing.assert_close(convolution(x), reference(x))


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}]
)
def test_a_norm_of_other_options_goes_torchs_way(options):
    x = maps(128, 8, 32, 32)
    torch.testing.assert_close(BatchNorm2d(8, **options)(x), nn.BatchNorm2d(8, **options)(x))


# Layers that take another way with maps(64, 16, 32, 32), and torch's.
LAYERS = [
    pytest.param(BatchNorm2d, nn.BatchNorm2d, (16,), id="norm"),
    pytest.param(Conv2d, nn.Conv2d, (16, 4, 3, 1, 1), id="few channels"),
    pytest.param(Conv2d, nn.Conv2d, (16, 5, 3, 2, 1), id="stride of 2"),
    pytest.param(Conv2d, nn.Conv2d, (16, 5, 1, 2), id="pixels"),
]


def both(own, torchs, options) -> tuple[nn.Module, nn.Module]:
    return random_like(own(*options).double()), random_like(torchs(*options).double())


def penalty(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of a loss that holds a gradient's norm."""
    x = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    (slope.square().sum() + layer(x).mean()).backward()
    return [x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize(("own", "torchs", "options"), LAYERS)
def test_second_derivatives_are_torchs(wide_vectors, own, torchs, options):
    ours, theirs = both(own, torchs, options)
    x = maps(64, 16, 32, 32).double().contiguous(memory_format=torch.channels_last)
    for found, true in zip(penalty(ours, x), penalty(theirs, x), strict=True):
        torch.testing.assert_close(found, true, rtol=1e-8, atol=1e-8 * float(true.abs().max()))
    v = torch.ones_like(x)
    found, true = (
        torch.autograd.functional.vhp(lambda z, layer=layer: layer(z).pow(3).sum(), x, v)[1]
        for layer in (ours, theirs)
    )
    torch.testing.assert_close(found, true, rtol=1e-8, atol=1e-8 * float(true.abs().max()))


@pytest.mark.parametrize(("own", "torchs", "options"), LAYERS)
def test_transforms_of_torch_find_torchs_layer(wide_vectors, own, torchs, options):
    x = maps(64, 16, 32, 32).double().contiguous(memory_format=torch.channels_last)

    def found(layer: nn.Module) -> list[torch.Tensor]:
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()  # its running statistics change in place, which torch.func refuses
        by_func = torch.func.grad(lambda z: layer(z).pow(3).sum())(x)
        forwards = torch.func.jvp(layer, (x,), (x,))[1]
        z = x.clone().requires_grad_(True)
        out = layer.train()(z)
        several = torch.stack([cotangent(out), torch.ones_like(out)])
        (batched,) = torch.autograd.grad(out, z, several, is_grads_batched=True)
        return [by_func, forwards, batched]

    ours, theirs = (found(layer) for layer in both(own, torchs, options))
    for own_value, true in zip(ours, theirs, strict=True):
        tolerance = 1e-10 * float(true.abs().max())
        torch.testing.assert_close(own_value, true, rtol=1e-10, atol=tolerance)


def test_without_onednn_the_ways_are_the_same_functions(wide_vectors):
    x = maps(16, 8, 32, 32)
    true = outcome(random_like(nn.Conv2d(8, 8, 3, padding=1).double()), x.double())
    with torch.backends.mkldnn.flags(enabled=False):
        found = outcome(random_like(Conv2d(8, 8, 3, padding=1)), x)
    assert_near(found, true, 1e-5)


@pytest.mark.parametrize("px", [1, 32])
def test_maps_of_another_dtype_than_the_weights_are_refused_as_by_torch(wide_vectors, px):
    convolution = Conv2d(8, 8, 3, padding=1)
    for dtype in (torch.uint8, torch.float64):
        with pytest.raises(RuntimeError):
            convolution(maps(2, 8, px, px).to(dtype))


@pytest.mark.parametrize("px", [1, 32])
def test_half_precision_maps_follow_autocast(wide_vectors, px):
    convolution = random_like(Conv2d(8, 8, 3, padding=1))
    x = maps(2, 8, px, px, dtype=torch.float16).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        out = convolution(x)
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and x.grad.dtype == torch.float16
    assert convolution.weight.grad.dtype == torch.float32


def test_a_backward_pass_keeps_the_forward_passs_precision(wide_vectors):
    x = maps(2, 8, 32, 32).requires_grad_(True)
    out = random_like(Conv2d(8, 8, 3, padding=1))(x)
    (true,) = torch.autograd.grad(out, x, cotangent(out), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(out, x, cotangent(out))
    assert torch.equal(found, true)


def test_the_kernel_is_the_weights(wide_vectors):
    convolution = Conv2d(8, 8, 3, padding=1)
    convolution.weight = nn.Parameter(torch.randn(8, 8, 5, 5))
    x = maps(2, 8, 32, 32)
    true = torch.nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
    assert torch.equal(convolution(x), true)


def test_a_seed_gives_the_weights_of_torchs_convolution():
    torch.manual_seed(3)
    own = Conv2d(4, 5, 3, padding=1).state_dict()
    torch.manual_seed(3)
    theirs = nn.Conv2d(4, 5, 3, padding=1).state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[n], theirs[n]) for n in theirs)
