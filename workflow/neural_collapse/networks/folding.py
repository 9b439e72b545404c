"""Batch norms folded into the convolutions before them: the same function in eval mode, faster."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .network import Network


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode with batch norms folded into the convolutions before them.

    Pairs are those of `Network.normed_convolutions`; without any, the network itself is returned.
    Weights are folded in float64 and rounded once, so features differ from the network's only by
    float32 rounding (about 1e-6 of the largest). The copy does not follow later changes of the
    network's weights.
    """
    pairs = network.normed_convolutions() if isinstance(network, Network) else ()
    if not pairs:
        return network.eval()
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    for convolution, norm in pairs:
        _fold(folded.get_submodule(convolution), folded.get_submodule(norm))
        parent, _, name = norm.rpartition(".")
        setattr(folded.get_submodule(parent), name, nn.Identity())
    return folded


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: _BatchNorm) -> None:
    """(W x + b - m) s + shift = (s W) x + (b - m) s + shift, s = scale / sqrt(variance + eps)."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = -norm.running_mean.double()
    if convolution.bias is not None:
        bias += convolution.bias.double()
    weight = convolution.weight
    folded = weight.double() * scale[:, None, None, None]
    weight.copy_(folded)
    shift = (bias * scale + norm.bias.double()).to(weight.dtype)
    convolution.bias = nn.Parameter(shift, requires_grad=False)
