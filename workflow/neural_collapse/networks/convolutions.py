"""Strided 1x1 convolutions without oneDNN's wrong weight gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d


class PointwiseConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed with stride 1 on every stride-th pixel; equivalent.

    oneDNN's kernels for the weight gradient of the strided form write out of bounds if the input
    has fewer channels than their block (8 with AVX2, 16 with AVX-512; oneDNN issue 6035): depending
    on shape and threads, gradients are wrong or the process crashes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, P, Q) -> (B, outputs, ceil(P / stride), ceil(Q / stride))."""
        rows, columns = self.stride
        picked = x[..., ::rows, ::columns]
        if x.is_contiguous(memory_format=torch.channels_last):
            picked = picked.contiguous(memory_format=torch.channels_last)
        return conv2d(picked, self.weight, self.bias)


def make_safe(network: nn.Module) -> nn.Module:
    """Replace a user-defined network's strided 1x1 convolutions by :class:`PointwiseConv2d`, in
    place; returns the network. Parameters, names and state keys do not change.
    """
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (1, 1)
            and module.stride != (1, 1)
            and module.padding in ((0, 0), "valid")
            and module.groups == 1
        ):
            module.__class__ = PointwiseConv2d
    return network
