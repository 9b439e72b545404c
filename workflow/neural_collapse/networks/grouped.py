"""Several networks of one recipe as one: their convolutions side by side, in groups.

A very small network spends its time between kernels, not in them; a group of K of them does K
times the work in each. Channels lie member by member: (B, K * C, P, P).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .densenet import DenseNet
from .network import Network


class GroupedLinear(nn.Module):
    """K linear layers; (B, K * inputs) -> (B, K * outputs). weight: (K, outputs, inputs)."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        members = len(self.weight)
        inputs_KBD = x.unflatten(1, (members, -1)).transpose(0, 1)
        outputs = torch.baddbmm(self.bias[:, None], inputs_KBD, self.weight.transpose(1, 2))
        return outputs.transpose(0, 1).flatten(1)


class GroupedNetwork(Network):
    """K networks that see the same images and never each other.

    networks: of one recipe, of this project's families; their weights are copied. Every
    parameter's and buffer's first axis holds the members one after another.

    Raises ValueError for a network that cannot be grouped; see :func:`can_be_grouped`.
    """

    def __init__(self, networks: Sequence[Network]):
        super().__init__()
        if not all(map(can_be_grouped, networks)):
            raise ValueError("only VGG, ResNet and DenseNet can be trained in a group")
        self.members = len(networks)
        self.body = copy.deepcopy(networks[0])
        self._shapes = [value.shape for value in networks[0].state_dict().values()]
        for index, (name, module) in enumerate(_leaves(self.body)):
            layers = [network.get_submodule(name) for network in networks]
            parent, _, last = name.rpartition(".")
            grouped = _grouped(layers, first=index == 0)
            setattr(self.body.get_submodule(parent), last, grouped.train(module.training))
        if isinstance(self.body, DenseNet):
            self.body.set_groups(self.members)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the images x, (B, C, P, P) -> (B, K, classes)."""
        return self.classifier(self.features(x)).unflatten(1, (self.members, -1))

    def features(self, x: Tensor) -> Tensor:
        """Activations, (B, C, P, P) -> (B, K * d)."""
        return self.body.features(x)

    @property
    def classifier(self) -> GroupedLinear:  # type: ignore[override]
        return self.body.classifier

    def normed_convolutions(self) -> list[tuple[str, str]]:
        """Those of its members."""
        pairs = self.body.normed_convolutions()
        return [(f"body.{convolution}", f"body.{norm}") for convolution, norm in pairs]

    def member(self, index: int) -> dict[str, Tensor]:
        """The state of one member, by its own network's names."""
        state = self.body.state_dict()
        return {
            name: value.chunk(self.members)[index].reshape(shape) if value.dim() else value
            for (name, value), shape in zip(state.items(), self._shapes, strict=True)
        }


def can_be_grouped(network: nn.Module) -> bool:
    """Whether it is made of layers whose groups are known, in an order that is."""
    return isinstance(network, Network) and network.groupable


def _leaves(network: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Conv2d, _BatchNorm, nn.Linear)
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]


def _grouped(layers: Sequence[nn.Module], first: bool) -> nn.Module:
    layer, members = layers[0], len(layers)
    if isinstance(layer, nn.Linear):
        return GroupedLinear(layers)
    if isinstance(layer, nn.Conv2d):
        # All members see the same images, so the first convolution needs no groups.
        grouped: nn.Module = nn.Conv2d(
            layer.in_channels * (1 if first else members),
            layer.out_channels * members,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            groups=1 if first else members * layer.groups,
            bias=layer.bias is not None,
        )
    else:
        grouped = type(layer)(layer.num_features * members, layer.eps, layer.momentum)
    alike = next(layer.parameters())
    grouped = grouped.to(alike.device, alike.dtype)
    with torch.no_grad():
        own = [member.state_dict() for member in layers]
        for name, value in grouped.state_dict().items():
            parts = [state[name] for state in own]
            value.copy_(torch.cat(parts) if parts[0].dim() else parts[0])
    return grouped
