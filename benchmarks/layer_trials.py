"""Layers of every kind that networks are made of, and what is wrong with them on the CPU."""

from __future__ import annotations

import copy
import random
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neural_collapse.networks.convolutions import PointwiseConv2d
from neural_collapse.networks.network import mean_over_image

TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2}  # of the largest number


class Taps(nn.Conv2d):
    """A convolution as the sum over its kernel's places, without torch's kernels for it."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, [self.padding[0]] * 4)
        step, high = self.stride[0], self.kernel_size[0]
        end = x.shape[2] - high + 1
        total: Tensor | int = 0
        for i, j in product(range(high), repeat=2):
            seen = x[:, :, i : i + end : step, j : j + end : step].chunk(self.groups, 1)
            taps = self.weight[..., i, j].chunk(self.groups)
            parts = map(torch.einsum, ["bihw,oi->bohw"] * self.groups, seen, taps)
            total = total + torch.cat(list(parts), 1)
        return total + self.bias[:, None, None]


class MeanOverImage(nn.Module):
    forward = staticmethod(mean_over_image)


# Kernel, stride, padding, groups (0: as many as channels).
CONVOLUTIONS = {
    "3x3": (3, 1, 1, 1),
    "3x3 stride 2": (3, 2, 1, 1),
    "7x7 stride 2": (7, 2, 3, 1),
    "1x1": (1, 1, 0, 1),
    "1x1 stride 2": (1, 2, 0, 1),
    "1x1 stride 3": (1, 3, 0, 1),
    "1x1 stride 4": (1, 4, 0, 1),
    "2x2 stride 2": (2, 2, 0, 1),
    "3x3 stride 3": (3, 3, 0, 1),
    "4x4 stride 4": (4, 4, 0, 1),
    "3x3, 3 groups": (3, 1, 1, 3),
    "1x1 stride 2, 3 groups": (1, 2, 0, 3),
    "1x1 stride 2, depthwise": (1, 2, 0, 0),
    "3x3 stride 2, depthwise": (3, 2, 1, 0),
}
OTHERS = {
    "BatchNorm2d": lambda i, _: nn.BatchNorm2d(i),
    "BatchNorm2d, eval": lambda i, _: nn.BatchNorm2d(i).eval(),
    "BatchNorm1d": lambda i, _: nn.BatchNorm1d(i),
    "MaxPool2d 3 stride 2": lambda *_: nn.MaxPool2d(3, 2, 1),
    "MaxPool2d 2": lambda *_: nn.MaxPool2d(2, 2, ceil_mode=True),
    "AvgPool2d 2": lambda *_: nn.AvgPool2d(2),
    "mean over image": lambda *_: MeanOverImage(),
    "Linear": lambda i, o: nn.Linear(i, o),
}
FLAT = ("BatchNorm1d", "Linear")

IMAGES = (2, 5, 16, 33)  # an odd number parts an image between two threads
CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 24, 31, 32, 33)
PX = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 16, 20, 24, 28, 32, 33)
LARGE_PX = (48, 56, 64, 84)
LARGE_INPUTS = (1, 4, 7, 8, 12, 15, 16)
VARIANTS = 8  # of a case, drawn from up to 36
# Images, inputs, outputs, px.
KNOWN = ((16, 4, 8, 8), (16, 7, 8, 32), (5, 8, 16, 32), (5, 15, 16, 16), (2, 8, 16, 56))


class Variant(NamedTuple):
    way: str
    dtype: str
    format: str
    threads: int


class Case(NamedTuple):
    kind: str
    images: int
    inputs: int
    outputs: int
    px: int

    def layers(self) -> tuple[nn.Module, dict[str, nn.Module]]:
        """The reference, and the layers by their way: "project" is what its networks use."""
        if self.kind in OTHERS:
            reference = OTHERS[self.kind](self.inputs, self.outputs)
            return reference, {"project": copy.deepcopy(reference)}
        kernel, stride, padding, groups = CONVOLUTIONS[self.kind]
        outputs = self.outputs * groups or self.inputs
        shape = (self.inputs * (groups or 1), outputs, kernel, stride, padding, 1)
        ways: dict[str, type[nn.Conv2d]] = {"project": nn.Conv2d}
        if kernel == 1 < stride and groups == 1:
            ways = {"project": PointwiseConv2d, "torch": nn.Conv2d}
        groups = groups or self.inputs
        return Taps(*shape, groups), {name: way(*shape, groups) for name, way in ways.items()}

    def variants(self) -> list[tuple[Case, Variant]]:
        formats = ["-"] if self.kind in FLAT else ["last", "first"]
        if self.kind in CONVOLUTIONS:
            formats.append("mixed")  # the layer channels-last, x channels-first
        found = product(self.layers()[1], TOLERANCE, formats, (1, 2))
        return [(self, Variant(*v)) for v in found]


Task = tuple[Case, Variant]


def results(layer: nn.Module, x: Tensor, gradient: Tensor, towards_x: bool) -> dict[str, Tensor]:
    x = x.detach().requires_grad_(towards_x)
    out = layer(x)
    sources = dict(layer.named_parameters()) | ({"x": x} if towards_x else {})
    gradient = torch.empty_like(out).copy_(gradient)  # in the output's memory format
    gradients = torch.autograd.grad(out, list(sources.values()), gradient)
    statistics = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    return {"output": out} | dict(zip(sources, gradients, strict=True)) | statistics


class Trial:
    """A case's reference, in float64, from numbers that bfloat16 has as well."""

    def __init__(self, case: Case):
        torch.set_num_threads(1)
        torch.manual_seed(hash(case[1:]))
        self.layer, self.ways = case.layers()
        for parameter in self.layer.parameters():
            parameter.data = torch.randn_like(parameter).bfloat16().double()
        self.layer.double()
        self.state = copy.deepcopy(self.layer.state_dict())
        channels = getattr(self.layer, "in_channels", case.inputs)
        size = [] if case.kind in FLAT else [case.px] * 2
        self.x = torch.randn(case.images, channels, *size).bfloat16().double()
        shape = copy.deepcopy(self.layer)(self.x).shape
        self.gradient = torch.randn(shape).bfloat16().double()
        self.expected = results(self.layer, self.x, self.gradient, True)

    def errors(self, variant: Variant, repeats: int) -> dict[str, float]:
        """The largest error of each result, as a share of its largest number."""
        torch.set_num_threads(variant.threads)
        layer = self.ways[variant.way].float()
        layer.load_state_dict(self.state)
        found: dict[str, float] = {}
        x, gradient = self.x.to(getattr(torch, variant.dtype)), self.gradient.float()
        if x.dim() == 4:
            last, first = torch.channels_last, torch.contiguous_format
            layer.to(memory_format=first if variant.format == "first" else last)
            x = x.contiguous(memory_format=last if variant.format == "last" else first)
        for repeat in range(repeats):
            towards_x = repeat % 2 == 0 or not list(layer.parameters())
            with torch.autocast("cpu", torch.bfloat16, enabled=variant.dtype == "bfloat16"):
                values = results(layer, x, gradient, towards_x)
            layer.load_state_dict(self.state)  # running statistics as before
            for name, value in values.items():
                expected = self.expected[name].detach()
                error = (value.detach() - expected).abs().max() / expected.abs().max().clamp(1e-3)
                found[name] = max(found.get(name, 0), float(error.nan_to_num(torch.inf)))
        return found


def sample(quick: bool) -> list[list[Task]]:
    """A sample of every kind, the same each time; more of strided 1x1 convolutions."""
    chosen = random.Random(0)
    tasks = [Case("1x1 stride 2", *known).variants() for known in KNOWN]
    for kind in [*CONVOLUTIONS, *OTHERS]:
        kernel, stride, padding, groups = CONVOLUTIONS.get(kind, (1, 1, 0, 1))[:4]
        strided = kernel == 1 < stride and groups == 1
        for turn in range((5 if quick else 10) * (4 if strided else 1)):
            large = turn % 5 == 0 and (strided or kind.startswith("BatchNorm2d"))
            px = chosen.choice(LARGE_PX if large else PX)
            inputs = chosen.choice(LARGE_INPUTS if large else CHANNELS)
            images, outputs = chosen.choice(IMAGES), chosen.choice(CHANNELS)
            if strided and turn % 4:
                px = max(1, px // stride) * stride  # others go another way
            if kind in FLAT or kind.startswith("BatchNorm"):
                images = max(images, 16)  # of few numbers, the variance is all rounding
            if px + 2 * padding >= kernel and not (kind == "AvgPool2d 2" and px < 2):
                variants = Case(kind, images, inputs, outputs, px).variants()
                tasks.append(sorted(chosen.sample(variants, min(VARIANTS, len(variants)))))
    return tasks
