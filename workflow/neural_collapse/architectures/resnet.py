"""ResNet (He et al. 2016) out of torchvision's residual blocks."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from .network import Network
from .recipes import ResNetRecipe

_BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(Network):
    """torchvision's ResNet of any width and number of stages.

    With the stem "imagenet" and four stages of width 64 it *is* torchvision's: same layers, order
    of construction and initialisation (the same random seed gives the same weights), same state
    keys but for ``classifier``, which is torchvision's ``fc``. With the stem "small", ``conv1`` is
    3x3 of stride 1 and the max-pool an identity, as in the authors' notebook.

    Args:
        recipe: the layers.
        channels: of the images.
        num_classes: outputs of the classifier.
    """

    groupable = True

    def __init__(self, recipe: ResNetRecipe, channels: int, num_classes: int) -> None:
        super().__init__()
        block = _BLOCKS[recipe.block]
        width = recipe.width
        if recipe.stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
            pool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
            pool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = pool
        inputs = width
        self._stages = [f"layer{number}" for number in range(1, len(recipe.blocks) + 1)]
        for stage, (name, count) in enumerate(zip(self._stages, recipe.blocks, strict=True)):
            planes = width * 2**stage
            self.add_module(name, _stage(block, inputs, planes, count, 1 if stage == 0 else 2))
            inputs = planes * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        # Norms start at 1 and 0 and the classifier at nn.Linear's default, in torchvision as here.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """(B, C, P, P) -> (B, d): the last stage's channels, averaged over the image."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self._stages:
            x = getattr(self, name)(x)
        return self.avgpool(x).flatten(1)

    def normed_convolutions(self) -> list[tuple[str, str]]:
        """Every convolution: convN has bnN; a shortcut's has the layer after it."""
        pairs = []
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                place, _, last = name.rpartition(".")
                norm = "1" if last == "0" else last.replace("conv", "bn")
                pairs.append((name, f"{place}.{norm}".lstrip(".")))
        return pairs


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, count: int, stride: int
) -> nn.Sequential:
    outputs = planes * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(outputs),
        )
    first = block(inputs, planes, stride, shortcut)
    return nn.Sequential(first, *(block(outputs, planes) for _ in range(1, count)))
