"""From a recipe to a network with its initial weights."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ..io.errors import UserError
from .densenet import DenseNet
from .mlp import MLP
from .network import Network
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
    """A network with fresh weights, on the CPU and in training mode.

    The weights depend on ``recipe``, the sizes and ``seed`` alone; they are drawn on the CPU, so
    that every device starts from the same bits. No random state outside is changed.

    Args:
        recipe: which network.
        channels: of the images.
        num_classes: outputs of the classifier, at least 2.
        image_size_px: height and width of the images.
        seed: of the initial weights, 0 or more.

    Returns:
        A network whose ``features`` maps (B, channels, image_size_px, image_size_px) to (B, d) and
        whose ``classifier`` is an ``nn.Linear(d, num_classes)``.

    Raises:
        UserError: the images are too small for the network, or a custom function does not give
            what its recipe promises.
    """
    with _isolated_randomness(seed), torch.device("cpu"):
        network = _construct(recipe, channels, num_classes, image_size_px)
        if recipe.classifier == "etf":
            _fix_classifier(network.classifier)
        return network


def construct_without_weights(
    recipe: NetworkRecipe, *, channels: int, num_classes: int, image_size_px: int
) -> Network:
    """The network on the meta device: shapes and no memory; a custom one in full.

    Raises:
        UserError: as ``build_network``.
    """
    device = "cpu" if recipe.family == "custom" else "meta"
    with _isolated_randomness(0), torch.device(device):
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
    """Raise UserError where fixing the last layer would not fix its weights, or others too."""
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
                f"'classifier: etf' cannot fix the last layer of {name}, whose {key} {why}; give "
                "it a plain nn.Linear of its own"
            )


@torch.no_grad()
def _fix_classifier(layer: nn.Linear) -> None:
    """Make a last layer d -> C a simplex ETF that no training changes (Zhu et al. 2021).

    Its weight becomes W^T = sqrt(C / (C - 1)) P (I - 11^T / C), rows of length 1, with P (d, C)
    orthonormal columns drawn from torch's generator; its bias zero. Neither has a gradient, so that
    optimisers leave them alone, weight decay included.
    """
    classes, dim = layer.weight.shape
    P, R = torch.linalg.qr(torch.randn(dim, classes, dtype=torch.float64))
    P *= R.diagonal().sign()  # so that every frame is as likely
    centring = torch.eye(classes, dtype=torch.float64) - 1 / classes
    layer.weight.copy_(math.sqrt(classes / (classes - 1)) * (P @ centring).T)
    if layer.bias is not None:
        layer.bias.zero_()
    layer.requires_grad_(False)


@contextmanager
def _isolated_randomness(seed: int) -> Iterator[None]:
    """Seeds the CPU's generators inside, and gives back their former state on leaving.

    Not ``torch.manual_seed``, which would reach the GPUs' generators as well. Python's and NumPy's
    are covered for the sake of custom functions.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
