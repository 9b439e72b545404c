"""ResNet (He et al. 2016): basic and bottleneck blocks, for images of any size.

Not torchvision's blocks: importing torchvision loads torch's compiler, seconds of every job.
"""

from torch import Tensor, nn

from .convolutions import PointwiseConv2d
from .network import Network, mean_over_image
from .recipes import ResNetRecipe


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; `stride` is that of the first."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, P, P) -> (B, planes, P / stride, P / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x.add_(shortcut))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the 3x3 has the stride (version 1.5)."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, P, P) -> (B, 4 planes, P / stride, P / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x.add_(shortcut))


class ResNet(Network):
    """ResNet of any width and number of stages.

    With the stem "imagenet" and four stages of width 64 it equals torchvision's: the same layers,
    order of construction and initialisation (the same random seed gives the same weights), and the
    same state keys except that ``classifier`` is torchvision's ``fc``. With the stem "small",
    ``conv1`` is 3x3 with stride 1 and the max-pool is an identity, as in the authors' notebook.
    All convolutions are padded, so images may have any size.
    """

    def __init__(
        self, recipe: ResNetRecipe, channels: int, num_classes: int, image_size_px: int
    ) -> None:
        super().__init__()
        block = BasicBlock if recipe.block == "basic" else Bottleneck
        width = recipe.width
        if recipe.stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.maxpool = pool if recipe.stem == "imagenet" else nn.Identity()
        inputs = width
        self._stages = [f"layer{number}" for number in range(1, len(recipe.blocks) + 1)]
        for stage, (name, count) in enumerate(zip(self._stages, recipe.blocks, strict=True)):
            planes = width * 2**stage
            self.add_module(name, _stage(block, inputs, planes, count, 1 if stage == 0 else 2))
            inputs = planes * block.expansion
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
        return mean_over_image(x)

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
        # Made before the block, as torchvision does, so that a seed gives the same weights.
        shortcut = nn.Sequential(
            PointwiseConv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(outputs),
        )
    first = block(inputs, planes, stride)
    first.downsample = shortcut
    return nn.Sequential(first, *(block(outputs, planes, 1) for _ in range(1, count)))
