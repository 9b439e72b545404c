"""The data part of a recipe. Importing this module imports neither numpy nor torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from ..io.errors import UserError
from ..io.model import Model, each_once

LONGEST_NAME = 64
"""Characters by which an imbalance tells its folder; file systems allow 255 bytes in all."""


class ImbalanceRecipe(Model):
    """Fewer train images of some classes, the minority; test images stay as they are."""

    kind: Literal["step", "exponential"] = "step"
    """`step`: each minority class keeps 1 / ratio of its images; `exponential`: the number falls by
    a constant factor from class to class, minority classes last and in the given order, down to 1 /
    ratio (Cui et al. 2019, doi:10.1109/CVPR.2019.00949)."""
    ratio: Annotated[float, Field(ge=1, le=1e9)]
    """Images of the largest class divided by those of the smallest; 1 keeps all images, and the
    minority is still measured."""
    minority_classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """The minority classes, as numbers. The cosine of their classifiers and their test accuracy are
    measured."""
    _minority_once = field_validator("minority_classes")(each_once)

    @property
    def name(self) -> str:
        """Part of the name of the prepared arrays' folder; with a hash for many classes."""
        order = (
            self.minority_classes if self.kind == "exponential" else sorted(self.minority_classes)
        )
        known = [self.kind, f"{self.ratio:.17g}"]
        name = "-".join([*known, *map(str, order)])
        if len(name) > LONGEST_NAME:
            name = "-".join([*known, hashlib.blake2b(name.encode(), digest_size=8).hexdigest()])
        return name

    def counts(self, available: Sequence[int]) -> list[int]:
        """Images kept of each class, given those available, rounded.

        Raises UserError where a minority class does not exist, none is left as the majority, or a
        class would have no image.
        """
        key, classes, minority = "data.imbalance", len(available), self.minority_classes
        if max(minority) >= classes:
            raise UserError(
                f"{key}.minority_classes: there is no class {max(minority)}, the classes are 0 to "
                f"{classes - 1}; name some of them"
            )
        if len(minority) == classes:
            raise UserError(
                f"{key}.minority_classes: are all {classes} classes, so none is the "
                "majority; leave some out"
            )
        kept = self.kept(available)
        if 0 in kept:
            raise UserError(
                f"{key}.ratio: {self.ratio:g} leaves class {kept.index(0)} without images; lower it"
            )
        return kept

    def kept(self, available: Sequence[int]) -> list[int]:
        """As `counts`, without a check."""
        classes, minority = len(available), self.minority_classes
        powers = dict.fromkeys(minority, 1.0)
        if self.kind == "exponential":
            order = [label for label in range(classes) if label not in minority] + [*minority]
            powers = {label: rank / (classes - 1) for rank, label in enumerate(order)}
        return [round(n / self.ratio ** powers.get(label, 0)) for label, n in enumerate(available)]


class DataRecipe(Model):
    """How the published images become the arrays that are trained on."""

    examples_per_class: Annotated[int, Field(ge=2, le=1_000_000_000)] | None = None
    """Train images kept per class, drawn with `subset_seed`; null keeps all. The paper balances its
    train sets: MNIST 5000, SVHN 4600, ImageNet 600."""
    test_examples_per_class: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Test images kept per class; null keeps the whole published test set, as in the paper."""
    image_size_px: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Height and width to which images are downsampled first, bilinear and antialiased as by
    torchvision's Resize with PIL images; null does not resize."""
    padding_pixels: Annotated[int, Field(ge=0, le=32)] = 0
    """Zero pixels added on each side before normalising: 2 makes 28-pixel images 32 wide."""
    average_pooling: Literal[1, 2, 4] = 1
    """Side of the squares of pixels that are averaged, rounded to a byte; 1 does not average."""
    subset_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed that selects the images of a balanced subset; recorded in the data card."""

    imbalance: ImbalanceRecipe | None = None
    """Fewer train images for some classes: `{ratio: 100, minority_classes: [5, 6, 7, 8, 9]}`. The
    kept images are the first ones of the balanced subset."""
    random_labels: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of the train images whose labels are shuffled, drawn with `subset_seed`; class
    counts do not change."""

    LATER: ClassVar = frozenset({"image_size_px", "imbalance", "random_labels"})

    @property
    def name(self) -> str:
        """Name of the prepared arrays' folder: the keys that differ from the published dataset."""
        parts = [
            ("train", self.examples_per_class, None),
            ("test", self.test_examples_per_class, None),
            ("subset", self.subset_seed, 0),
            ("size", self.image_size_px, None),
            ("average", self.average_pooling, 1),
            ("pad", self.padding_pixels, 0),
            ("imbalance", self.imbalance and self.imbalance.name, None),
            ("random-labels", self.random_labels, 0),
        ]
        changed = [f"{word}-{value}" for word, value, usual in parts if value != usual]
        return "_".join(changed) or "as-published"

    def train_counts(self, available: Sequence[int]) -> list[int]:
        """Train images kept of each class, given those available; see `ImbalanceRecipe.counts`."""
        if self.examples_per_class is not None:
            available = [self.examples_per_class] * len(available)
        return [*available] if self.imbalance is None else self.imbalance.counts(available)

    def train_examples(self, published: int, classes: int) -> int:
        """Train images kept of `published` ones; classes are assumed to be equally large if the
        recipe does not set their size."""
        if self.examples_per_class is None and self.imbalance is None:
            return published
        return sum(self._of_equal_classes(published, classes))

    def oversampled_examples(self, published: int, classes: int) -> int:
        """Images in an epoch with oversampling, with the same assumption."""
        return classes * max(self._of_equal_classes(published, classes))

    def _of_equal_classes(self, published: int, classes: int) -> list[int]:
        of_each = [self.examples_per_class or published // classes] * classes
        return of_each if self.imbalance is None else self.imbalance.kept(of_each)

    def side_px(self, published_px: int) -> int:
        """Height and width of the prepared images, given those of the published ones."""
        size = self.image_size_px or published_px
        return -(-size // self.average_pooling) + 2 * self.padding_pixels
