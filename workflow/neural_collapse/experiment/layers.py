"""Checks, before any job starts, that measured layers and other datasets exist and fit."""

from __future__ import annotations

from ..io.errors import UserError
from .config import Config, resolve_recipe
from .cost import DataSize, data_size
from .recipe import Recipe


def check_layers(config: Config, source: str = "config") -> None:
    """Raise UserError where a cell measures layers, or by batches, that it does not have, images of
    another dataset that do not fit, or fixes a classifier for which it has too few features.

    torch is loaded only where a recipe says so. A user-defined dataset that is not prepared yet is
    left to the jobs that read it; see :func:`check_measured`, before a training.
    """
    for cell in config.cells():
        recipe = resolve_recipe(config, *cell)
        sizes = [of and data_size(config, of) for of in (recipe, recipe.of_other_dataset)]
        try:
            if sizes[0] and needs_sizes(recipe):
                check_measured(recipe, sizes[0])
            if all(sizes):
                check_other(recipe, *sizes)
        except UserError as error:
            place = f"{source}: the recipe of {' x '.join(cell)}"
            raise UserError(f"{place}: {error}") from None


def needs_sizes(recipe: Recipe) -> bool:
    """Whether :func:`check_measured` has something to look at."""
    measurement = recipe.measurement
    by_batches = measurement.batch_norm_examples is not None
    return bool(measurement.layers) or by_batches or recipe.network.classifier == "etf"


def check_measured(recipe: Recipe, size: DataSize) -> None:
    """The same of one recipe and the sizes of its prepared data."""
    from ..collapse.features import check_batches
    from ..networks.build import construct_without_weights
    from ..networks.layers import layer_dimensions

    measurement = recipe.measurement
    for split, examples in (("train", size.train), ("test", size.test)):
        check_batches(examples, measurement.batch_norm_examples, split)
    if measurement.layers or recipe.network.classifier == "etf":
        network = construct_without_weights(
            recipe.network,
            channels=size.channels,
            num_classes=size.num_classes,
            image_size_px=size.side_px,
        )
        shape = (size.channels, size.side_px, size.side_px)
        layer_dimensions(network.eval(), measurement.layers, measurement.layer_pool, shape)


def check_other(recipe: Recipe, own: DataSize, other: DataSize) -> None:
    """Raise UserError where the prepared images of `measurement.other_dataset` do not fit."""
    from ..collapse.features import check_batches

    name, measurement = recipe.measurement.other_dataset, recipe.measurement
    for what, size, expected in (
        ("channels", other.channels, own.channels),
        ("pixels a side", other.side_px, own.side_px),
    ):
        if size != expected:
            raise UserError(
                f"measurement.other_dataset: prepared images of {name} have {size} {what}, those "
                f"of {recipe.dataset} {expected}; name a dataset that is prepared alike"
            )
    for split, examples in (("train", other.train), ("test", other.test)):
        check_batches(examples, measurement.batch_norm_examples, f"{name} {split}")
