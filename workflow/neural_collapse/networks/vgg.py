"""VGG (Simonyan and Zisserman 2015) with batch normalisation instead of dropout."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ..io.errors import UserError
from .network import Network
from .recipes import VGGRecipe
from .registry import label

_STAGE_WIDTHS = (1, 2, 4, 8, 8)


class VGG(Network):
    """torchvision's ``vggNN_bn`` with its two dropout layers replaced by ``BatchNorm1d``.

    Layers, order of construction and initialisation are torchvision's, so the same random seed
    gives the same weights. State keys: ``convolutions`` is torchvision's ``features``,
    ``hidden.0`` and ``hidden.3`` its ``classifier.0`` and ``classifier.3``, ``classifier`` its
    ``classifier.6``. In training mode a batch needs at least two images, as for every network with
    ``BatchNorm1d``.

    Raises:
        UserError: the last feature map is smaller than `pooled_size_px`.
    """

    def __init__(
        self, recipe: VGGRecipe, channels: int, num_classes: int, image_size_px: int
    ) -> None:
        super().__init__()
        left_px = image_size_px
        for _ in recipe.convolutions:
            left_px = -(-left_px // 2)
        if recipe.pooled_size_px > left_px:
            # Adaptive pooling would copy pixels: a first linear layer of redundant inputs.
            raise UserError(
                f"'pooled_size_px' is {recipe.pooled_size_px}, but the convolutions of "
                f"{label(recipe)} leave {left_px} px of images of {image_size_px} px; set "
                f"pooled_size_px to {left_px} or less"
            )
        layers: list[nn.Module] = []
        for count, multiple in zip(recipe.convolutions, _STAGE_WIDTHS, strict=False):
            outputs = recipe.width * multiple
            for _ in range(count):
                layers += [
                    nn.Conv2d(channels, outputs, kernel_size=3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
                channels = outputs
            # ceil_mode lets a map of 1 px through. At 32, 96 and 224 px every map that enters a
            # pool is of even size, and the mode changes nothing.
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True))
        self.convolutions = nn.Sequential(*layers)
        self.pooled_size_px = recipe.pooled_size_px
        self.hidden = nn.Sequential(
            nn.Linear(channels * recipe.pooled_size_px**2, recipe.hidden_width),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(recipe.hidden_width),
            nn.Linear(recipe.hidden_width, recipe.hidden_width),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(recipe.hidden_width),
        )
        self.classifier = nn.Linear(recipe.hidden_width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, P, P) -> (B, hidden_width): the output of the second hidden layer's norm."""
        return self.hidden(pooled(self.convolutions(x), self.pooled_size_px).flatten(1))

    def normed_convolutions(self) -> list[tuple[str, str]]:
        """Every convolution; its norm is the layer after it."""
        layers = enumerate(self.convolutions)
        convolutions = [index for index, layer in layers if isinstance(layer, nn.Conv2d)]
        return [(f"convolutions.{i}", f"convolutions.{i + 1}") for i in convolutions]


def pooled(x: Tensor, size: int) -> Tensor:
    """``nn.AdaptiveAvgPool2d(size)``, (B, C, P, P) -> (B, C, size, size).

    Its gradient has deterministic GPU kernels; that of torch's layer has none.
    """
    px = x.shape[-1]
    if px == size:
        return x
    if px % size == 0:
        return avg_pool2d(x, px // size)
    # Cells of unequal width, which overlap.
    cells = x.new_zeros(size, px)
    for i in range(size):
        start, stop = i * px // size, -(-(i + 1) * px // size)
        cells[i, start:stop] = 1 / (stop - start)
    return torch.einsum("iy,bcyx,jx->bcij", cells, x, cells)
