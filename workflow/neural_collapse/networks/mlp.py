"""Multilayer perceptron."""

from collections import OrderedDict

from torch import Tensor, nn

from .network import Network
from .recipes import MLPRecipe


class MLP(Network):
    """Hidden layers ``hidden.0``, ``hidden.1``, ..., each of ``linear``, ``norm``, ``activation``.

    Weights are drawn as torch draws those of its linear layers.
    """

    def __init__(
        self, recipe: MLPRecipe, channels: int, num_classes: int, image_size_px: int
    ) -> None:
        super().__init__()
        inputs = [channels * image_size_px**2, *[recipe.width] * (recipe.depth - 1)]
        self.hidden = nn.Sequential(*(_layer(recipe, size) for size in inputs))
        self.classifier = nn.Linear(recipe.width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, P, P) -> (B, width): the output of the last hidden layer."""
        return self.hidden(x.flatten(1))


def _layer(recipe: MLPRecipe, inputs: int) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(inputs, recipe.width))
    if recipe.batch_norm:
        parts["norm"] = nn.BatchNorm1d(recipe.width)
    if recipe.activation == "relu":
        parts["activation"] = nn.ReLU()
    return nn.Sequential(parts)
