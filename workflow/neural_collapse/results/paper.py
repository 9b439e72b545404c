"""The paper's protocol and numbers, for comparison in figures, Table 1 and claims.

Papyan, Han and Donoho, PNAS 117 (40), 2020, 24652-24663, doi:10.1073/pnas.2015509117.  Table 1 is
**recalled** (docs/deviations.md): the paper's text was not available, but its summary statistics
agree.  All output of these numbers says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATASETS = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "stl10", "imagenet")
"""The columns of the paper's figures, in ascending difficulty."""

ARCHITECTURES = ("vgg", "resnet", "densenet")
"""The rows of the paper's figures."""

RECALLED = (
    "The paper's numbers are recalled from its Table 1; their summary statistics check out, but "
    "the page itself was not available."
)

ROBUSTNESS_GAIN_MEDIAN = 0.0252
ROBUSTNESS_GAIN_MEAN = 0.2452

TABLE_1: dict[tuple[str, str], tuple[float, float]] = {
    ("mnist", "vgg"): (99.40, 99.56),
    ("mnist", "resnet"): (99.32, 99.71),
    ("mnist", "densenet"): (99.65, 99.70),
    ("fashion_mnist", "vgg"): (92.92, 93.31),
    ("fashion_mnist", "resnet"): (93.29, 93.64),
    ("fashion_mnist", "densenet"): (94.18, 94.35),
    ("svhn", "vgg"): (93.82, 94.53),
    ("svhn", "resnet"): (94.64, 95.70),
    ("svhn", "densenet"): (95.87, 95.93),
    ("cifar10", "vgg"): (87.85, 88.65),
    ("cifar10", "resnet"): (88.72, 89.44),
    ("cifar10", "densenet"): (91.14, 91.19),
    ("cifar100", "vgg"): (63.03, 63.85),
    ("cifar100", "resnet"): (66.19, 66.21),
    ("cifar100", "densenet"): (77.19, 76.56),
    ("stl10", "vgg"): (65.15, 68.00),
    ("stl10", "resnet"): (69.99, 70.24),
    ("stl10", "densenet"): (67.79, 70.81),
    ("imagenet", "vgg"): (47.26, 50.12),
    ("imagenet", "resnet"): (65.41, 64.45),
    ("imagenet", "densenet"): (65.04, 62.38),
}
"""Test accuracy in %, at the start of the terminal phase and at the last epoch (recall)."""


RECIPES_FILE = Path(__file__).with_name("paper_recipes.json")


@dataclass(frozen=True)
class Protocol:
    """What the paper did in one cell: the shipped config.yaml's recipe, in float32."""

    network: str
    """Name of its network, e.g. ResNet18."""
    train_examples: int
    """Images in the balanced train set."""
    image_size_px: int
    """Side of the images that its network sees."""
    recipe: Mapping[str, Mapping[str, Any]]

    def side_px(self, data: Mapping[str, int]) -> int:
        """Side of the images that a network sees, by the part `data` of a run's recipe."""
        published = data.get("image_size_px") or (
            self.image_size_px - 2 * self.recipe["data"]["padding_pixels"]
        )
        if not {"average_pooling", "padding_pixels"} <= data.keys():
            return self.image_size_px
        return published // data["average_pooling"] + 2 * data["padding_pixels"]


PROTOCOL: dict[tuple[str, str], Protocol] = {
    (facts.pop("dataset"), facts.pop("architecture")): Protocol(**facts)
    for facts in json.loads(RECIPES_FILE.read_text(encoding="utf-8"))
}
"""The paper's recipe of each cell; experiment.generated writes the file from config.yaml."""


def paper_order(names: list[str], known: tuple[str, ...]) -> list[str]:
    """`names` with the paper's in its order, then the others by name."""
    place = {name: index for index, name in enumerate(known)}
    return sorted(names, key=lambda name: (place.get(name, len(known)), name))
