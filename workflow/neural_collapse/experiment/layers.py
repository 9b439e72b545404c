"""Checks, before any job starts, that functions, layers and other datasets exist and fit."""

from __future__ import annotations

import sys
from pathlib import Path

from ..io.errors import UserError
from .config import Config, resolve_recipe
from .cost import DataSize, data_size
from .paths import Paths
from .recipe import Recipe


def check_layers(config: Config, source: str = "config") -> None:
    """Raise UserError where a cell measures layers, or by batches, that it does not have, images of
    another dataset that do not fit, or fixes a classifier for which it has too few features.

    A user-defined dataset that is not prepared yet is left to the jobs that read it.
    """
    for cell in config.cells():
        recipe = resolve_recipe(config, *cell)
        sizes = [of and data_size(config, of) for of in (recipe, recipe.of_other_dataset)]
        try:
            if sizes[0]:
                check_measured(recipe, sizes[0])
            if all(sizes):
                check_other(recipe, *sizes)
        except UserError as error:
            place = f"{source}: the recipe of {' x '.join(cell)}"
            raise UserError(f"{place}: {error}") from None


def check_functions(config: Config, source: str = "config") -> None:
    """Raise UserError where the function of a network that is to be trained cannot be imported."""
    paths = Paths(config.folder, config.resources_folder)
    for cell in config.cells():
        network = resolve_recipe(config, *cell).network
        if network.family != "custom":
            continue  # without importing torch
        if all(Path(paths.run("run.json", *cell, seed)).exists() for seed in config.seeds):
            continue
        from ..networks.user_defined import imported_function

        sys.path.insert(0, "")  # as for the jobs, which are started with python -m
        try:
            imported_function(network.function)
        except UserError as error:
            raise UserError(f"{source}: the recipe of {' x '.join(cell)}: {error}") from None
        finally:
            sys.path.remove("")


def check_measured(recipe: Recipe, size: DataSize) -> None:
    """The same of one recipe and the sizes of its prepared data."""
    measurement, batch = recipe.measurement, recipe.measurement.batch_norm_examples
    needs_network = measurement.layers or recipe.network.classifier == "etf"
    if batch is None and not needs_network:
        return  # without importing torch
    from ..collapse.features import check_batches
    from ..networks.build import construct_without_weights
    from ..networks.layers import layer_dimensions

    for split, examples in (("train", size.train), ("test", size.test)):
        check_batches(examples, batch, split)
    if needs_network:
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

    name, batch = recipe.measurement.other_dataset, recipe.measurement.batch_norm_examples
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
        check_batches(examples, batch, f"{name} {split}")
