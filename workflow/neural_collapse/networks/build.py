"""Construction of networks from recipes, with initial weights."""

import math
from collections.abc import Callable

import torch
from torch import nn

from ..io.errors import UserError
from .densenet import DenseNet
from .mlp import MLP
from .network import Network
from .randomness import isolated_randomness
from .recipes import NetworkRecipe
from .registry import label
from .resnet import ResNet
from .user_defined import CustomNetwork
from .vgg import VGG

FAMILIES: dict[str, Callable[..., Network]] = {
    "vgg": VGG,
    "resnet": ResNet,
    "densenet": DenseNet,
    "mlp": MLP,
    "custom": CustomNetwork,
}


def build_network(
    recipe: NetworkRecipe, *, channels: int, num_classes: int, image_size_px: int, seed: int
) -> Network:
    """A network with initial weights, on the CPU and in train mode.

    The weights depend only on ``recipe``, the sizes and ``seed``; they are drawn on the CPU, so
    they are bit-identical for all devices. Global random states are not changed.

    Args:
        recipe: from `resolve_network`.
        channels: channels of the images.
        num_classes: outputs of the classifier, at least 2.
        image_size_px: height and width of the images.
        seed: seed of the initial weights, at least 0.

    Returns:
        A module whose ``features(x)`` maps (B, channels, image_size_px, image_size_px) to (B, d),
        whose ``classifier`` is an ``nn.Linear(d, num_classes)``, and whose ``forward`` is
        ``classifier(features(x))``.

    Raises:
        UserError: the images are too small for the network, a user-defined function fails or
            returns no suitable network, or ``classifier: etf`` does not apply to it.
    """
    with isolated_randomness(seed), torch.device("cpu"):
        network = _construct(recipe, channels, num_classes, image_size_px)
        if recipe.classifier == "etf":
            _fix_classifier(network.classifier)
        return network


def construct_without_weights(
    recipe: NetworkRecipe, *, channels: int, num_classes: int, image_size_px: int
) -> Network:
    """The network on the meta device, without memory for weights; a user-defined one on the CPU.

    Raises:
        UserError: as in ``build_network``.
    """
    device = "cpu" if recipe.family == "custom" else "meta"
    with isolated_randomness(0), torch.device(device):
        return _construct(recipe, channels, num_classes, image_size_px)


def _construct(
    recipe: NetworkRecipe, channels: int, num_classes: int, image_size_px: int
) -> Network:
    if channels < 1 or num_classes < 2 or image_size_px < 1:
        raise UserError(
            f"no network fits images of {channels} channels and {image_size_px} px in "
            f"{num_classes} classes; it takes at least 1 channel, 1 px and 2 classes"
        )
    network = FAMILIES[recipe.family](recipe, channels, num_classes, image_size_px)
    if recipe.classifier == "etf":
        _require_fixable(network, label(recipe))
    return network


def _require_fixable(network: Network, name: str) -> None:
    """Raise UserError if the weights of the last layer cannot be fixed on their own."""
    layer = network.classifier
    classes, dim = layer.out_features, layer.in_features
    if dim < classes:
        raise UserError(
            f"'classifier: etf' needs at least as many features as classes, but {name} has {dim} "
            f"features for {classes} classes; make it wider"
        )
    own = dict(layer.named_parameters(recurse=False))
    elsewhere = {
        weight
        for module in network.modules()
        if module is not layer
        for weight in module.parameters(recurse=False)
    }
    for key in ("weight", "bias"):
        weight = getattr(layer, key)
        if weight is not None and (key not in own or weight in elsewhere):
            why = "is shared with another layer" if key in own else "is parametrised"
            raise UserError(
                f"'classifier: etf' cannot fix the last layer of {name}, whose {key} {why}; end "
                "the network in a plain nn.Linear"
            )


@torch.no_grad()
def _fix_classifier(layer: nn.Linear) -> None:
    """Make a last layer d -> C a fixed simplex ETF (Zhu et al. 2021).

    Its weight becomes W^T = sqrt(C / (C - 1)) P (I - 11^T / C), rows of norm 1, with random
    orthonormal columns P (d, C) drawn from torch's generator; its bias becomes zero. Neither has a
    gradient, so optimisers do not change them, not even by weight decay.
    """
    classes, dim = layer.weight.shape
    P, R = torch.linalg.qr(torch.randn(dim, classes, dtype=torch.float64))
    P *= R.diagonal().sign()  # uniform over all frames
    centring = torch.eye(classes, dtype=torch.float64) - 1 / classes
    layer.weight.copy_(math.sqrt(classes / (classes - 1)) * (P @ centring).T)
    if layer.bias is not None:
        layer.bias.zero_()
    layer.requires_grad_(False)
