"""The recipe of one dataset x architecture: everything that its jobs depend on, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..data.recipe import DataRecipe
from ..io import versions
from ..io.errors import UserError
from ..io.files import read_json, write_text_atomically
from ..io.model import Model, each_once
from ..networks.recipes import NetworkRecipe
from ..training.recipe import SweepRecipe, TrainingRecipe
from ..training.schedule import spaced_epochs
from .messages import parse_model

READ_ELSEWHERE = {
    "training": set(versions.CHANGES_NO_RESULT),
    "measurement": {"terminal_phase_accuracy"},  # read where tables are collected
}
"""Keys of a recipe's parts whose change runs no training and no measurement again."""


class MeasurementRecipe(Model):
    """The measured epochs, and what is measured."""

    epochs: Annotated[int, Field(ge=2, le=1_000_000)] | tuple[Annotated[int, Field(ge=1)], ...] = 50
    """The number of measured epochs, spaced as in the authors' notebook, or a list of epochs. Epoch
    0 (before training) and the last epoch are always measured as well. Their weights are saved
    during the training, so that another choice, even a smaller one, trains again."""
    terminal_phase_accuracy: Annotated[float, Field(gt=0, le=1)] = 0.999
    """Train accuracy at which the terminal phase of training starts; ImageNet 0.996."""
    activation_classes: tuple[int, int, int] = (0, 1, 2)
    """The three classes of Figure 1, which leaves out datasets of two classes."""
    activation_epochs: (
        Annotated[int, Field(ge=1, le=1000)] | tuple[Annotated[int, Field(ge=0)], ...]
    ) = 4
    """Epochs of Figure 1, whose raw features are kept: their number, or a list of epochs."""
    activation_examples_per_class: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100
    """Raw features kept per class of Figure 1."""
    layers: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Further layers whose outputs are measured in the same pass, in the order of the network:
    names of modules, such as `hidden.0`, and `input` for the images. The tables contain their
    statistics as `<statistic>@<layer>`."""
    layer_pool: Literal["mean", "flatten"] = "mean"
    """How feature maps of a layer become vectors: mean over the image, or flattened."""

    batch_norm_examples: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """Batch normalisation while measuring: null uses the running mean and variance, as at test
    time; a number uses the mean and variance of batches of this size, in the order of the prepared
    data, as in training (He and Su's code uses 100)."""

    scatter: Literal["projected", "full"] = "projected"
    """The stored part of the within-class covariance: C x C numbers, enough for NC1, or all d x d,
    for the variability collapse index (VCI) and the parts of `training.loss: mse`."""

    other_dataset: Annotated[str, Field(min_length=1)] | None = None
    """Name of another dataset, prepared as `data` says, whose features are measured in the same
    pass; null for none. On the test split, `outlier_...` and `nc5_...` measure how well its images
    are detected as outliers, `transfer_...` how well the frozen features classify it. Its images
    need the size and channels of the cell's dataset."""

    LATER: ClassVar = frozenset(
        {"layers", "layer_pool", "batch_norm_examples", "scatter", "other_dataset"}
    )

    @field_validator("epochs", "activation_epochs")
    @classmethod
    def _rising(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or list(value) != sorted(set(value))):
            raise ValueError("must be a number, or a list of epochs in rising order, each once")
        return value

    @field_validator("layers")
    @classmethod
    def _layers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in each_once(value):
            if "@" in name:
                raise ValueError(f"{name!r} cannot be a layer's name, since it holds an @")
        return value

    @field_validator("activation_classes")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != 3 or min(value) < 0:
            raise ValueError("must be three different classes, numbered from 0")
        return value


class RobustnessRecipe(Model):
    """DeepFool, with the paper's values."""

    images: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100
    """Test images attacked, the same ones at every epoch."""
    overshoot: Annotated[float, Field(ge=0, le=1000)] = 0.02
    """How far the perturbation goes past the boundary, as a fraction of its norm."""
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Largest number of linearisations per image."""
    candidate_classes: Annotated[int, Field(ge=2, le=1_000_000)] = 10
    """Number of classes, those with the largest logits, whose boundaries are considered."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed that selects the images."""


class ResourcesRecipe(Model):
    """Resources that a job requests from the scheduler. No result depends on them."""

    gpu: Annotated[int, Field(ge=0, le=1024)] = 1
    """GPUs of a training; a measuring job uses at most one. None is requested without a GPU."""
    gpu_slots: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of small jobs that may share one GPU; with `--resources gpu=8` and 4 slots, eight jobs
    run on two GPUs. Only jobs with the same value share."""
    memory_mb: Annotated[int, Field(ge=1, le=1_000_000_000)] = 8000
    """Main memory of such a job."""
    runtime_minutes: Annotated[int, Field(ge=1, le=1_000_000)] = 1440
    """Time limit of such a job on a cluster; a job that reaches it resumes."""


class RecipeParts(Model):
    """The parts of a recipe that a config may change, all with the paper's values."""

    data: DataRecipe = DataRecipe()
    """How the images are prepared."""
    training: TrainingRecipe = TrainingRecipe()
    """Optimiser, schedule and arithmetic."""
    sweep: SweepRecipe = SweepRecipe()
    """Learning rates and their selection."""
    measurement: MeasurementRecipe = MeasurementRecipe()
    """Measured epochs and kept features."""
    robustness: RobustnessRecipe = RobustnessRecipe()
    """DeepFool."""
    resources: ResourcesRecipe = ResourcesRecipe()
    """GPUs, memory and time of a job."""


class Recipe(RecipeParts):
    """Everything that the jobs of one dataset x architecture depend on, except the seed."""

    dataset: str
    """A dataset's name."""
    architecture: str
    """Its row of the figures: vgg, resnet, densenet, or a user-defined one."""
    network: NetworkRecipe
    """The network, with all parameters resolved."""

    @model_validator(mode="after")
    def _epochs_exist(self) -> Recipe:
        last, measurement = self.training.epochs, self.measurement
        epochs, shown = measurement.epochs, measurement.activation_epochs
        if isinstance(epochs, tuple) and epochs[-1] > last:
            raise ValueError(
                f"measurement.epochs asks for epoch {epochs[-1]}, past the last one, {last} "
                "(training.epochs)"
            )
        if isinstance(shown, tuple) and (missing := set(shown) - set(self.measured_epochs)):
            raise ValueError(
                f"measurement.activation_epochs: epoch {min(missing)} is not a measured epoch (the "
                f"last one is {last}); add it to measurement.epochs"
            )
        return self

    @model_validator(mode="after")
    def _selectable(self) -> Recipe:
        if self.data.random_labels == 1 and self.sweep.learning_rate is None:
            raise ValueError(
                "data.random_labels: is 1, so errors select a learning rate only by chance; "
                "set sweep.learning_rate"
            )
        return self

    @property
    def of_other_dataset(self) -> Recipe | None:
        """The recipe with `measurement.other_dataset` as its dataset, or None: how that dataset is
        prepared, with its own classes and labels."""
        name = self.measurement.other_dataset
        data = self.data.model_copy(update={"imbalance": None, "random_labels": 0.0})
        return None if name is None else self.model_copy(update={"dataset": name, "data": data})

    @property
    def measured_epochs(self) -> tuple[int, ...]:
        """The measured epochs, in order: among them 0 and the last one."""
        value, last = self.measurement.epochs, self.training.epochs
        if isinstance(value, int):
            value = spaced_epochs(last, value)
        return tuple(sorted({0, *value, last}))

    @property
    def activation_epochs(self) -> tuple[int, ...]:
        """The measured epochs whose raw features are kept: evenly spread over the measured ones."""
        value, measured = self.measurement.activation_epochs, self.measured_epochs
        if isinstance(value, tuple):
            return value
        if value == 1:
            return measured[-1:]
        steps = [round(i * (len(measured) - 1) / (value - 1)) for i in range(value)]
        return tuple(sorted({measured[i] for i in steps}))

    def figure_1_classes(self, num_classes: int) -> tuple[int, ...]:
        """The classes of Figure 1 in a dataset of `num_classes`; none where those are fewer than 3.

        Raises UserError where the dataset lacks one of them.
        """
        if num_classes < 3:
            return ()
        classes = self.measurement.activation_classes
        if max(classes) >= num_classes:
            raise UserError(
                f"measurement.activation_classes: {self.dataset} has the classes 0 to "
                f"{num_classes - 1}, so there is no class {max(classes)}; choose three of them"
            )
        return classes


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe as JSON."""
    write_text_atomically(path, recipe.model_dump_json(indent=2) + "\n")


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe written by :func:`write_recipe`; raises UserError."""
    return parse_model(Recipe, read_json(path, "a recipe written by this project"), str(path))
