"""Cost of the cells of a config: sizes, parameters, bytes, floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..data.registry import dataset_entry
from ..io.errors import UserError
from ..networks.recipes import CustomRecipe, NetworkRecipe
from ..training.schedule import SWEEP_EVALUATIONS
from .config import Config, resolve_recipe
from .recipe import MeasurementRecipe, Recipe

if TYPE_CHECKING:
    from ..data.prepared import PreparedDataset

SPEEDS_FILE = "check-gpu.json"
"""In the results folder: what `neural-collapse check-gpu` measured of this machine's GPU."""
SIZE_KEYS = ("train_examples", "test_examples", "channels", "image_size_px", "num_classes")
"""How a run.json calls the fields of a DataSize."""


@dataclass(frozen=True)
class DataSize:
    """What a plan needs to know of a prepared dataset."""

    train: int
    test: int
    channels: int
    side_px: int
    num_classes: int
    epoch: int | None = None
    """Train images of an epoch, where some are repeated; otherwise they are `train`."""

    @classmethod
    def of(cls, data: PreparedDataset) -> DataSize:
        """Of a prepared dataset."""
        counts = len(data.train_labels), len(data.test_labels)
        return cls(*counts, data.channels, data.image_size_px, data.num_classes)

    @property
    def prepared_bytes(self) -> int:
        """Size of its prepared arrays."""
        return (self.train + self.test) * (self.channels * self.side_px**2 + 8)


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs for images of one size."""

    parameters: int
    feature_dimension: int
    forward_flops: int | None
    """Operations of an image's forward pass, two a multiply-add; None where a user-defined network
    does not run without numbers."""
    layer_dimensions: tuple[int, ...] = ()
    """d of each further layer that is measured."""

    @classmethod
    def of(
        cls, network: NetworkRecipe, size: DataSize, measured: MeasurementRecipe | None = None
    ) -> NetworkCost:
        """Built without memory for its weights, unless it is user-defined."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from ..networks.build import construct_without_weights
        from ..networks.layers import layer_dimensions

        built = construct_without_weights(
            network,
            channels=size.channels,
            num_classes=size.num_classes,
            image_size_px=size.side_px,
        )
        built.eval()
        known = sum(weight.numel() for weight in built.parameters()), built.classifier.in_features
        shape, layers = (size.channels, size.side_px, size.side_px), ()
        if measured is not None and measured.layers:
            layers = tuple(layer_dimensions(built, measured.layers, measured.layer_pool, shape))
        inputs = torch.empty(1, *shape, device="meta")
        try:
            # A user-defined network comes with its weights.
            built.to("meta")
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                built(inputs)
        except Exception:
            if not isinstance(network, CustomRecipe):
                raise
            return cls(*known, None, layers)
        return cls(*known, counter.get_total_flops(), layers)


@dataclass(frozen=True)
class CellPlan:
    """The cost of one dataset x architecture over all its trainings.

    What depends on the dataset's size is None while that is unknown.
    """

    recipe: Recipe
    runs: int
    """Trainings whose checkpoints are kept: one a seed."""
    size: DataSize | None
    network: NetworkCost | None
    other: DataSize | None = None
    """Of the dataset that `measurement.other_dataset` names."""

    @property
    def candidates(self) -> int:
        """Trainings of the sweep; 0 where the learning rate is pinned."""
        sweep = self.recipe.sweep
        return 0 if sweep.learning_rate is not None else len(sweep.learning_rates)

    @property
    def trainings(self) -> int:
        """Candidates and kept runs."""
        return self.candidates + self.runs

    @property
    def jobs(self) -> int:
        """Trainings, selection, and of each kept run its features, statistics and attack."""
        return self.trainings + bool(self.candidates) + 3 * self.runs

    @property
    def epochs(self) -> int:
        """Epochs of all trainings together."""
        return self.trainings * self.recipe.training.epochs

    @property
    def checkpoints(self) -> int:
        """Of all kept runs."""
        return self.runs * len(self.recipe.measured_epochs)

    @property
    def checkpoint_bytes(self) -> int | None:
        """Of all checkpoints together."""
        return self.network and 4 * self.checkpoints * self.network.parameters

    @property
    def features_bytes(self) -> int | None:
        """Of what is kept of their features, moments and Figure 1's raw ones, but for names."""
        from ..collapse.moments import CALIBRATION_BINS

        recipe, size, network = self.recipe, self.size, self.network
        if size is None or network is None:
            return None
        classes, dim = size.num_classes, network.feature_dimension
        dimensions = dim, *network.layer_dimensions
        # Numbers of 8 bytes. Of both splits and each layer: class means, scatter on their span,
        # counts, variances, decisions. Of the features: calibration, full scatter, last layer.
        numbers = 2 * sum(classes * (d + classes + 6) for d in dimensions)
        numbers += 2 * 3 * CALIBRATION_BINS + classes * (dim + 1)
        if recipe.measurement.scatter == "full":
            numbers += 2 * dim**2
        if recipe.data.imbalance is not None:  # the train split's scatter in balanced weights too
            numbers += len(dimensions) * classes**2
        chosen = len(recipe.figure_1_classes(classes))
        raw = 4 * dim * chosen * recipe.measurement.activation_examples_per_class
        checkpoints, shown = len(recipe.measured_epochs), len(recipe.activation_epochs)
        return self.runs * (8 * numbers * checkpoints + raw * shown)

    @cached_property
    def flops(self) -> float | None:
        """Operations of all trainings and measurements; None where they cannot be counted."""
        size, network, epochs = self.size, self.network, self.recipe.training.epochs
        if size is None or network is None or network.forward_flops is None:
            return None
        # A checkpoint is one more pass over both sets, another dataset's as well, and the attack,
        # some steps of a few images.
        robustness = self.recipe.robustness
        attack = robustness.images * robustness.candidate_classes * 3 * 4
        passed = size.train + size.test + (self.other.train + self.other.test if self.other else 0)
        checkpoints = len(self.recipe.measured_epochs)
        evaluations = 1 + min(epochs, SWEEP_EVALUATIONS)
        candidate = 3 * (size.epoch or size.train) * epochs + (size.train + size.test) * evaluations
        kept = epochs * training_images(size) + checkpoints * (passed + attack)
        images = self.candidates * candidate + self.runs * kept
        # Products with the span of the means and with the class centres, of the features with the
        # classifier too, and outer products of what they give; doubled for float64.
        classes, dim = size.num_classes, network.feature_dimension
        moments = sum(4 * classes * d + 2 * classes**2 for d in (dim, *network.layer_dimensions))
        moments += 2 * classes * dim
        if self.recipe.measurement.scatter == "full":
            moments += 2 * dim**2
        measured = self.runs * checkpoints * passed
        return images * network.forward_flops + 2 * measured * moments

    @property
    def kind(self) -> str:
        """What networks that compute alike share: see `network_kind`."""
        return network_kind(self.recipe.network)


def data_size(config: Config, recipe: Recipe) -> DataSize | None:
    """Sizes after preparation; None for a user-defined dataset that is not prepared yet."""
    entry, data = dataset_entry(config.custom_datasets, recipe.dataset), recipe.data
    if None in (entry.num_classes, entry.train_examples, entry.image_size_px, entry.channels):
        return _prepared_size(config, recipe)
    side = data.side_px(entry.image_size_px)
    classes, kept = entry.num_classes, data.test_examples_per_class
    train = min(entry.train_examples, data.train_examples(entry.train_examples, classes))
    test = entry.test_examples if kept is None else min(entry.test_examples, kept * classes)
    repeats = recipe.training.oversample
    epoch = data.oversampled_examples(entry.train_examples, classes) if repeats else None
    return DataSize(train, test, entry.channels, side, classes, epoch)


def _prepared_size(config: Config, recipe: Recipe) -> DataSize | None:
    card = config.data_card(recipe) or {}
    try:
        train, test = (card["counts"][split]["kept"] for split in ("train", "test"))
        epoch = len(train) * max(train) if recipe.training.oversample else None
        return DataSize(sum(train), sum(test), *(card[key] for key in SIZE_KEYS[2:]), epoch)
    except (KeyError, TypeError):
        return None


def network_kind(network: NetworkRecipe) -> str:
    """The network's family; of a user-defined one the function, which may compute anything."""
    return network.function if isinstance(network, CustomRecipe) else network.family


def training_images(size: DataSize) -> int:
    """Forward passes that cost as much as one epoch: backward costs twice forward, and both sets
    are evaluated."""
    return 3 * (size.epoch or size.train) + size.train + size.test


def plan_cells(config: Config) -> list[CellPlan]:
    """The cost of every cell."""
    cells = []
    for cell in config.cells():
        recipe = resolve_recipe(config, *cell)
        size = data_size(config, recipe)
        try:
            measured = recipe.measurement
            network = None if size is None else NetworkCost.of(recipe.network, size, measured)
        except (RuntimeError, MemoryError) as error:
            # Of a size that overflows; a user-defined network comes with its weights.
            raise UserError(
                f"{' x '.join(cell)}: network: cannot be built ({str(error).splitlines()[0]}); "
                "make it smaller"
            ) from None
        other = recipe.of_other_dataset and data_size(config, recipe.of_other_dataset)
        cells.append(CellPlan(recipe, len(config.seeds), size, network, other))
    return cells
