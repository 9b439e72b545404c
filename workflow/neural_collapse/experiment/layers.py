"""Whether the layers that recipes ask for exist, known before any job starts."""

from __future__ import annotations

from ..io.errors import UserError
from .config import Config, resolve_recipe
from .cost import DataSize, data_size
from .recipe import Recipe


def check_layers(config: Config, source: str = "config") -> None:
    """Raise UserError where a cell measures layers, or by batches, that it does not have.

    torch is loaded only where a recipe says so. A user-defined dataset that is not prepared yet is
    left to :func:`check_measured`, before its training.
    """
    for cell in config.cells():
        recipe = resolve_recipe(config, *cell)
        measurement = recipe.measurement
        if not measurement.layers and measurement.batch_norm_examples is None:
            continue
        size = data_size(config, recipe)
        if size is not None:
            try:
                check_measured(recipe, size)
            except UserError as error:
                place = f"{source}: the recipe of {' x '.join(cell)}"
                raise UserError(f"{place}: {error}") from None


def check_measured(recipe: Recipe, size: DataSize) -> None:
    """The same of one recipe and the sizes of its prepared data."""
    from ..collapse.features import check_batches
    from ..networks.build import construct_without_weights
    from ..networks.layers import layer_dimensions

    measurement = recipe.measurement
    for split, examples in (("train", size.train), ("test", size.test)):
        check_batches(examples, measurement.batch_norm_examples, split)
    if measurement.layers:
        network = construct_without_weights(
            recipe.network,
            channels=size.channels,
            num_classes=size.num_classes,
            image_size_px=size.side_px,
        )
        shape = (size.channels, size.side_px, size.side_px)
        layer_dimensions(network.eval(), measurement.layers, measurement.layer_pool, shape)
