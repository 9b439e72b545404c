"""What a recipe says of the data. Light: importing it imports no numpy and no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..io.model import Model


class DataRecipe(Model):
    """How the published images become the arrays that are trained on."""

    examples_per_class: Annotated[int, Field(ge=2, le=1_000_000_000)] | None = None
    """Train images kept of each class, drawn with `subset_seed`; null keeps all. The paper
    balances its train sets: MNIST 5000, SVHN 4600, ImageNet 600."""
    test_examples_per_class: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Test images kept of each class; null keeps the whole published test set, as in the paper."""
    image_size_px: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Height and width to which images are made smaller first, bilinear and antialiased as
    torchvision's Resize does with PIL images; null leaves them alone."""
    padding_pixels: Annotated[int, Field(ge=0, le=32)] = 0
    """Zero pixels added on each side before normalising: 2 makes 28-pixel images 32 wide."""
    average_pooling: Literal[1, 2, 4] = 1
    """Averages squares of this many pixels a side, rounded to a byte; 1 leaves images alone."""
    subset_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides which images a balanced subset keeps; recorded in the data card."""

    LATER: ClassVar = frozenset({"image_size_px"})

    @property
    def name(self) -> str:
        """How the prepared arrays' folder is called: what is not as published."""
        parts = [
            ("train", self.examples_per_class, None),
            ("test", self.test_examples_per_class, None),
            ("subset", self.subset_seed, 0),
            ("size", self.image_size_px, None),
            ("average", self.average_pooling, 1),
            ("pad", self.padding_pixels, 0),
        ]
        changed = [f"{word}-{value}" for word, value, usual in parts if value != usual]
        return "_".join(changed) or "as-published"

    def side_px(self, published_px: int) -> int:
        """Height and width of the prepared images of published ones of that size."""
        size = self.image_size_px or published_px
        return -(-size // self.average_pooling) + 2 * self.padding_pixels
