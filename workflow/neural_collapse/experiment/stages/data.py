"""The prepared dataset that a stage reads."""

from __future__ import annotations

from pathlib import Path

from ...data.prepared import PreparedDataset
from ...io.errors import UserError
from ..cost import DataSize
from ..layers import check_measured
from ..recipe import Recipe


def open_data(recipe: Recipe, data_folder: Path) -> PreparedDataset:
    """The prepared dataset of a recipe.

    Raises UserError where it lacks what measuring will ask of it, which must not be found out
    only after a training.
    """
    data = PreparedDataset.open(data_folder)
    recipe.figure_1_classes(data.num_classes)
    check_measured(recipe, DataSize.of(data))
    asked, examples = recipe.robustness.images, len(data.test_labels)
    if asked > examples:
        raise UserError(
            f"robustness.images: {asked} are asked for, but {recipe.dataset} has {examples} test "
            "images; lower it"
        )
    return data
