"""DenseNet (Huang et al. 2017): plain, or with bottleneck and compression; may be checkpointed."""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..io.errors import UserError
from .network import Network, mean_over_image
from .recipes import DenseNetRecipe
from .registry import label

_BOTTLENECK_MULTIPLE = 4  # a bottleneck layer's 1x1 convolution makes 4 * growth channels


class DenseLayer(nn.Module):
    """Norm, ReLU, 3x3 convolution; with a bottleneck: norm, ReLU, 1x1, norm, ReLU, 3x3.

    torchvision's ``_DenseLayer`` always has the bottleneck and, with checkpointing, updates the
    running statistics of ``norm1`` twice per step (pytorch/pytorch#96136).
    """

    def __init__(
        self, inputs: int, growth: int, *, bottleneck: bool, memory_efficient: bool
    ) -> None:
        super().__init__()
        self.memory_efficient = memory_efficient
        self.bottleneck = bottleneck
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        if bottleneck:
            hidden = _BOTTLENECK_MULTIPLE * growth
            self.conv1 = nn.Conv2d(inputs, hidden, kernel_size=1, bias=False)
            self.norm2 = nn.BatchNorm2d(hidden)
            self.relu2 = nn.ReLU(inplace=True)
            self.conv2 = nn.Conv2d(hidden, growth, kernel_size=3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(inputs, growth, kernel_size=3, padding=1, bias=False)

    def _first(self, *maps: Tensor) -> Tensor:
        return self.conv1(self.relu1(self.norm1(torch.cat(maps, 1))))

    def _second(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu2(self.norm2(x)))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """All earlier maps of the block, each (B, ?, P, P) -> this layer's (B, growth, P, P)."""
        if not (self.memory_efficient and torch.is_grad_enabled()):
            x = self._first(*maps)
            return self._second(x) if self.bottleneck else x
        # The concatenation and its norm make a block's memory quadratic in its depth. Cut before
        # each norm: recomputation then stops short of torch's convolutions, whose inputs are all
        # that the backward pass wants, and costs no more than norms and copies.
        x = _recomputed(self._first, self.norm1, *maps)
        if not self.bottleneck:
            return x
        if isinstance(self.norm2, nn.Identity):
            # Folded: nothing to recompute, and the in-place ReLU would overwrite saved tensors.
            return self._second(x)
        return _recomputed(self._second, self.norm2, x)


def _recomputed(function: Callable[..., Tensor], norm: nn.BatchNorm2d, *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, whose inner results are recomputed in the backward pass."""
    return checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in here is random
        context_fn=lambda: (nullcontext(), _FrozenStatistics(norm)),
    )


class _FrozenStatistics:
    """Inside, a norm updates copies of its running statistics instead of the real ones.

    The forward pass has already counted this batch; its recomputation must not count it again.
    (Without running statistics the norm would save fewer tensors than in the forward pass, which
    ``checkpoint`` refuses.) It can be entered again, because a retained graph may be traversed
    more than once.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.norm = norm

    def __enter__(self) -> None:
        self.kept = dict(self.norm.named_buffers(recurse=False))
        for name, buffer in self.kept.items():
            setattr(self.norm, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for name, buffer in self.kept.items():
            setattr(self.norm, name, buffer)


class DenseBlock(nn.ModuleDict):
    """Layers that each see the block's input and the outputs of all layers before them."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, P, P) -> (B, C + layers * growth, P, P)."""
        maps = [x]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class DenseNet(Network):
    """DenseNet and DenseNet-BC.

    With the stem "imagenet", bottleneck and compression 0.5 it equals torchvision's: the same
    layers, order of construction and initialisation (the same random seed gives the same weights),
    and the same state keys except that ``body`` is torchvision's ``features``. The stem "small" is
    that of the DenseNet paper for CIFAR: one 3x3 convolution.

    Raises:
        UserError: the images are too small for the transitions.
    """

    def __init__(
        self, recipe: DenseNetRecipe, channels: int, num_classes: int, image_size_px: int
    ) -> None:
        super().__init__()
        _require_pixels(recipe, image_size_px)
        width = recipe.initial_width
        body: OrderedDict[str, nn.Module] = OrderedDict()
        if recipe.stem == "imagenet":
            body["conv0"] = nn.Conv2d(
                channels, width, kernel_size=7, stride=2, padding=3, bias=False
            )
            body["norm0"] = nn.BatchNorm2d(width)
            body["relu0"] = nn.ReLU(inplace=True)
            body["pool0"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        else:
            body["conv0"] = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        for number, count in enumerate(recipe.blocks, start=1):
            block = DenseBlock()
            for index in range(count):
                block[f"denselayer{index + 1}"] = DenseLayer(
                    width + index * recipe.growth,
                    recipe.growth,
                    bottleneck=recipe.bottleneck,
                    memory_efficient=recipe.memory_efficient,
                )
            body[f"denseblock{number}"] = block
            width += count * recipe.growth
            if number < len(recipe.blocks):
                outputs = max(1, int(width * recipe.compression))
                body[f"transition{number}"] = nn.Sequential(
                    OrderedDict(
                        norm=nn.BatchNorm2d(width),
                        relu=nn.ReLU(inplace=True),
                        conv=nn.Conv2d(width, outputs, kernel_size=1, bias=False),
                        pool=nn.AvgPool2d(kernel_size=2, stride=2),
                    )
                )
                width = outputs
        # torchvision calls the last norm norm5, after its four blocks; the name is kept for any.
        body["norm5"] = nn.BatchNorm2d(width)
        self.body = nn.Sequential(body)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, P, P) -> (B, d): the last block's normalised channels, averaged over the image."""
        x = F.relu(self.body(x), inplace=True)
        return mean_over_image(x)

    def normed_convolutions(self) -> list[tuple[str, str]]:
        """The first convolution of each bottleneck and that of the ImageNet stem; the outputs of
        the others are also used elsewhere."""
        pairs = [
            (f"{name}.conv1", f"{name}.norm2")
            for name, layer in self.named_modules()
            if isinstance(layer, DenseLayer) and layer.bottleneck
        ]
        return [*pairs, ("body.conv0", "body.norm0")] if hasattr(self.body, "norm0") else pairs


def _require_pixels(recipe: DenseNetRecipe, image_size_px: int) -> None:
    left_px, remedy = image_size_px, "or larger images"
    if recipe.stem == "imagenet":
        left_px, remedy = -(-left_px // 4), "or set stem: small"
    if left_px < 2 ** (len(recipe.blocks) - 1):
        raise UserError(
            f"images of {image_size_px} px are too small for the {len(recipe.blocks)} "
            f"blocks of {label(recipe)} with 'stem: {recipe.stem}', where each transition "
            f"halves them; use fewer 'blocks' {remedy}"
        )
