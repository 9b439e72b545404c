"""The configuration: typed models, one resolved recipe a cell, and the epochs that are measured.

A config file (``config.yaml``) names datasets, architectures and seeds, gives one ``recipe`` for
all of them, and lists ``overrides`` for some.  ``load_config`` checks it; ``resolve_recipe`` folds
it into the :class:`Recipe` of one dataset x architecture: everything that its jobs depend on.
Importing this module imports no torch, so that planning a workflow stays fast.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from ..data.recipe import DataRecipe
from ..data.registry import (
    DATASETS,
    CustomDataset,
    dataset_entry,
    folder_suffix,
    published_sizes,
)
from ..io.errors import UserError
from ..io.files import with_home, write_text_atomically
from ..io.model import Model, Strict
from ..networks.recipes import NetworkRecipe
from ..networks.registry import resolve_network

NAME = r"^[A-Za-z0-9][A-Za-z0-9_]*$"
READ_ELSEWHERE = {
    "training": {"evaluation_batch_size"},  # changes no result
    "measurement": {"terminal_phase_accuracy"},  # read where tables are collected
}
"""Keys of a recipe's parts whose change runs no training and no measurement again."""
EXPERIMENT = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
LONGEST_NAME = 64
"""Characters of a name: a log's file name holds several, and file systems allow 255 bytes."""
Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME)]
LearningRate = Annotated[float, Field(gt=0, le=1e6)]


def _path_text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty; leave the key out instead")
    value = with_home(value)
    if "{" in value or "}" in value:
        raise ValueError("must not hold { or }, which stand for wildcards in Snakemake")
    if len(value) > 2000 or max(len(part.encode()) for part in value.split("/")) > 255:
        raise ValueError("is too long for a file system; shorten it")
    return value


PathText = Annotated[str, AfterValidator(_path_text)]


def learning_rate_name(rate: float) -> str:
    """How a learning rate is written in paths and tables: five significant digits."""
    return f"{rate:.5g}"


# --------------------------------------------------------------------------- the recipe's parts


FRACTION = r"[0-9]{1,20}(/[0-9]{1,20}|\.[0-9]{1,20})?|\.[0-9]{1,20}"


class TrainingRecipe(Model):
    """Stochastic gradient descent as in the paper."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 350
    """Passes over the train set."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000_000)] = 128
    """Examples a step."""
    keep_incomplete_batch: bool = False
    """Also train on the last, incomplete batch of an epoch; the authors' notebook skips it."""
    loss: Literal["cross_entropy"] = "cross_entropy"
    """The loss, computed in float64 on the logits: in float32 it vanishes below 4e-8."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum; no Nesterov."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 5e-4
    """Coupled L2 penalty, on every parameter as in the notebook; ImageNet uses 1e-4."""
    learning_rate_milestones: tuple[str, ...] = ("1/3", "2/3")
    """Fractions of `epochs`, rounded down, after which the learning rate is multiplied by
    `learning_rate_factor`: 116 and 233 of 350. ImageNet uses 1/2 and 3/4."""
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What each milestone multiplies the learning rate by."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Arithmetic of the training step: true float32, TF32 matrix units (GPU), or bfloat16
    autocast. Features, statistics and attack always use true float32; losses and errors after each
    epoch do with float32, and TF32 otherwise."""
    cuda_graphs: bool = False
    """On one GPU, launch a training step's kernels all at once; for narrow networks. Last digits
    may differ. Not yet measured by this project; several GPUs do without."""
    compile: bool = False
    """Let torch.compile fuse a training step's kernels; its first step takes a minute. Not yet
    measured on a GPU by this project."""
    deterministic: bool = True
    """Ask the GPU for deterministic kernels: the same recipe gives the same bits there too. A
    custom network's layer may have none (torch's adaptive pooling to more than 1 px)."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of a training; part of the recipe, because another count gives other bits."""
    evaluation_batch_size: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1000
    """Examples a step where nothing is trained, at most: the CPU takes 128, and a GPU halves it
    when its memory runs out."""

    @field_validator("learning_rate_milestones", mode="before")
    @classmethod
    def _fractions(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise ValueError("must be a list of fractions such as ['1/3', '2/3']")
        fractions = []
        for item in value:
            # Fraction itself would work for hours on "1e999999999".
            number = isinstance(item, (int, float)) and not isinstance(item, bool)
            if not number and not re.fullmatch(FRACTION, str(item)):
                raise ValueError(f"{shown(item)} is not a fraction such as '1/3'")
            try:
                fractions.append(Fraction(str(item)))
            except (ValueError, ZeroDivisionError):
                raise ValueError(f"{shown(item)} is not a fraction such as '1/3'") from None
            if not 0 < fractions[-1] < 1:
                raise ValueError(f"{shown(item)} must lie between 0 and 1")
        if fractions != sorted(set(fractions)):
            raise ValueError("must be in rising order, each once")
        return tuple(str(item) for item in value)

    @model_validator(mode="after")
    def _one_milestone_an_epoch(self) -> TrainingRecipe:
        for first, second in itertools.pairwise(self.milestones):
            if first == second:
                given = ", ".join(map(repr, self.learning_rate_milestones))
                raise ValueError(
                    f"learning_rate_milestones: two of {given} are epoch {first} of {self.epochs}, "
                    "which would lower the learning rate twice; leave one out"
                )
        return self

    @property
    def milestones(self) -> tuple[int, ...]:
        """The epochs after which the learning rate falls, e.g. (116, 233) of 350.

        One that is rounded down to 0, of a training of one or two epochs, is left out.
        """
        epochs = (math.floor(self.epochs * Fraction(f)) for f in self.learning_rate_milestones)
        return tuple(epoch for epoch in epochs if epoch > 0)

    def learning_rate_at(self, initial: float, epoch: int) -> float:
        """The learning rate during `epoch` (the first is 1) of a run that began with `initial`."""
        return initial * self.learning_rate_factor ** sum(epoch > m for m in self.milestones)


class SweepRecipe(Model):
    """Which learning rates are tried, and how one is chosen."""

    learning_rate: LearningRate | None = None
    """Pins the learning rate and skips the sweep; null sweeps."""
    learning_rate_min: LearningRate = 1e-4
    """Smallest of the geometrically spaced learning rates."""
    learning_rate_max: LearningRate = 0.25
    """Largest of them."""
    count: Annotated[int, Field(ge=1, le=1000)] = 25
    """How many there are: numpy.geomspace(min, max, count); ImageNet has 10."""
    additional_learning_rates: tuple[LearningRate, ...] = ()
    """Tried as well; adding one later trains only that one."""
    selection: Literal["test_error", "held_out_error"] = "test_error"
    """What chooses the winner, at the last epoch: the test error, as in the paper, or the error on
    train images that the sweep's trainings did not see."""
    held_out_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of each class's train images that `held_out_error` keeps from the sweep's trainings."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The seed of the sweep's trainings. Every seed of the experiment then uses its winner."""

    @model_validator(mode="after")
    def _range(self) -> SweepRecipe:
        if self.learning_rate_min > self.learning_rate_max:
            raise ValueError(
                f"learning_rate_min ({self.learning_rate_min:g}) is above "
                f"learning_rate_max ({self.learning_rate_max:g}); swap them"
            )
        if self.count > 1 and self.learning_rate_min == self.learning_rate_max:
            raise ValueError("learning_rate_min equals learning_rate_max; set count to 1")
        names = [learning_rate_name(rate) for rate in self.learning_rates]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"the learning rate {min(doubled)} stands twice in the sweep")
        return self

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Every candidate in ascending order; one alone where it is pinned."""
        if self.learning_rate is not None:
            return (self.learning_rate,)
        import numpy

        spaced = numpy.geomspace(self.learning_rate_min, self.learning_rate_max, self.count)
        return tuple(sorted([*map(float, spaced), *self.additional_learning_rates]))

    def named(self) -> dict[str, float]:
        """The candidates by the name that they have in paths."""
        return {learning_rate_name(rate): rate for rate in self.learning_rates}


class MeasurementRecipe(Model):
    """Which epochs are measured, and what is kept of them."""

    epochs: Annotated[int, Field(ge=2, le=1_000_000)] | tuple[Annotated[int, Field(ge=1)], ...] = 50
    """How many epochs are measured, spaced as in the authors' notebook, or the epochs themselves.
    Epoch 0, the network before training, and the last epoch are always measured as well."""
    terminal_phase_accuracy: Annotated[float, Field(gt=0, le=1)] = 0.999
    """Train accuracy at which the terminal phase of training starts; ImageNet 0.996."""
    activation_classes: tuple[int, int, int] = (0, 1, 2)
    """The three classes of Figure 1. A dataset of two classes is left out of it."""
    activation_epochs: (
        Annotated[int, Field(ge=1, le=1000)] | tuple[Annotated[int, Field(ge=0)], ...]
    ) = 4
    """Epochs whose raw features are kept for Figure 1: how many, or the epochs themselves."""
    activation_examples_per_class: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100
    """Raw features kept of each of those classes."""

    @field_validator("epochs", "activation_epochs")
    @classmethod
    def _rising(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or list(value) != sorted(set(value))):
            raise ValueError("must be a number, or a list of epochs in rising order, each once")
        return value

    @field_validator("activation_classes")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != 3 or min(value) < 0:
            raise ValueError("must be three different classes, numbered from 0")
        return value


class RobustnessRecipe(Model):
    """DeepFool, as the paper runs it."""

    images: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100
    """Test images attacked, the same ones at every epoch."""
    overshoot: Annotated[float, Field(ge=0, le=1000)] = 0.02
    """How far past the boundary the perturbation goes, as a share of its length."""
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Linearisations before DeepFool gives up on an image."""
    candidate_classes: Annotated[int, Field(ge=2, le=1_000_000)] = 10
    """Classes with the largest logits whose boundaries are considered."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Draws the images."""


class ResourcesRecipe(Model):
    """What a job asks of the scheduler. No result depends on it."""

    gpu: Annotated[int, Field(ge=0, le=1024)] = 1
    """GPUs of a training or measuring job; 0 where the machine has none."""
    gpu_slots: Annotated[int, Field(ge=1, le=64)] = 1
    """Small jobs that may share one card on purpose; with `--resources gpu=8` and 4 slots, eight
    jobs run on two cards. Only jobs of equal slots share."""
    memory_mb: Annotated[int, Field(ge=1, le=1_000_000_000)] = 8000
    """Main memory of such a job."""
    runtime_minutes: Annotated[int, Field(ge=1, le=1_000_000)] = 1440
    """Time limit of such a job on a cluster; a job that hits it resumes."""


class _RecipeParts(Model):
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


class Recipe(_RecipeParts):
    """Everything that the jobs of one dataset x architecture depend on, the seed apart."""

    dataset: str
    """A dataset's name."""
    architecture: str
    """The row of the figures that it stands in: vgg, resnet, densenet, or a person's own."""
    network: NetworkRecipe
    """The network, every number resolved."""

    @model_validator(mode="after")
    def _epochs_exist(self) -> Recipe:
        last = self.training.epochs
        for key in ("epochs", "activation_epochs"):
            value = getattr(self.measurement, key)
            if isinstance(value, tuple) and value[-1] > last:
                raise ValueError(
                    f"measurement.{key} asks for epoch {value[-1]}, past the last one, "
                    f"{last} (training.epochs)"
                )
        return self

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
        if isinstance(value, int):
            if value == 1:
                return measured[-1:]
            steps = [round(i * (len(measured) - 1) / (value - 1)) for i in range(value)]
            return tuple(sorted({measured[i] for i in steps}))
        missing = sorted(set(value) - set(measured))
        if missing:
            raise UserError(
                f"measurement.activation_epochs: epoch {missing[0]} is not a measured epoch of "
                f"{self.dataset} x {self.architecture}; add it to measurement.epochs"
            )
        return value

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


class _PartialNetwork(BaseModel):
    """A network by `name`, a published one, or by `family`; other keys change its numbers."""

    model_config = ConfigDict(extra="allow", frozen=True)


SWEEP_EVALUATIONS = 50
"""How often a candidate of the sweep is evaluated: its last epoch decides, and a curve needs no
more. Not the measured epochs, whose change must not train the sweep again."""


def spaced_epochs(last: int, count: int) -> tuple[int, ...]:
    """The epochs that the authors' notebook measures: `count` of 1..`last`, denser at the start.

    The spacing is geometric where that advances at least one epoch, otherwise one epoch. Fewer
    than `count` come back where `last` is smaller.
    """
    if count >= last:
        return tuple(range(1, last + 1))
    epochs = [1.0]
    ratio = (last / epochs[-1]) ** (1 / (count - len(epochs)))
    while len(epochs) < count:
        following = epochs[-1] * ratio
        if following - epochs[-1] >= 1:
            epochs.append(following)
        else:
            epochs.append(epochs[-1] + 1)
            if len(epochs) < count:
                ratio = (last / epochs[-1]) ** (1 / (count - len(epochs)))
    return tuple(sorted({round(epoch) for epoch in epochs}))


# --------------------------------------------------------------------------- the config file


def _optional(annotation: Any) -> Any:
    """The annotation of a field that may be left out of an override."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Model):
            return _partial(candidate)
    return annotation


def _partial(model: type[Model]) -> type[BaseModel]:
    """`model` with every key optional and nothing filled in: what an override may say."""
    fields = {
        name: (_optional(field.rebuild_annotation()), Field(None, description=field.description))
        for name, field in model.model_fields.items()
    }
    # A key's own check runs where the key is given; what several keys must agree on is checked
    # in the resolved recipe.
    checks = {
        name: field_validator(*check.info.fields, mode=check.info.mode)(_alone(check.func))
        for name, check in model.__pydantic_decorators__.field_validators.items()
        if "*" not in check.info.fields
    }
    return create_model(
        f"Partial{model.__name__}",
        __base__=Strict,
        __doc__=model.__doc__,
        __validators__=checks,
        **fields,
    )


def _alone(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A model's validator for another model."""
    return lambda value: check(value)


PartialRecipe = create_model(
    "PartialRecipe",
    __base__=_partial(_RecipeParts),
    __doc__="Any part of a recipe.",
    network=(
        _PartialNetwork,
        Field(None, description="A published network's `name` or a `family`, and its numbers."),
    ),
)


class Override(Model):
    """A change of the recipe for some cells. Later ones win."""

    datasets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The datasets it is for; left out, all."""
    architectures: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The architectures it is for; left out, all."""
    recipe: PartialRecipe  # type: ignore[valid-type]
    """What changes."""

    def matches(self, dataset: str, architecture: str) -> bool:
        """Whether it is for this cell."""
        return (self.datasets is None or dataset in self.datasets) and (
            self.architectures is None or architecture in self.architectures
        )


class ArchitectureEntry(Model):
    """A row of the figures."""

    label: Annotated[str, Field(min_length=1)]
    """How the row is titled."""


class FiguresConfig(Model):
    """How figures look; nothing is measured again when it changes."""

    epoch_axis: Literal["linear", "log"] = "linear"
    """Horizontal axis of Figures 2 to 8."""
    formats: tuple[Literal["png", "svg", "pdf", "gif", "html"], ...] = (
        *("png", "svg", "pdf", "gif", "html"),
    )
    """Files drawn of each figure; `gif`, an animation, and `html`, a page in which it can be
    turned, are of Figure 1 alone."""

    @field_validator("formats")
    @classmethod
    def _png(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "png" not in value:
            raise ValueError("must contain png, which the report shows")
        return value


DEFAULT_ARCHITECTURES = {
    "vgg": ArchitectureEntry(label="VGG"),
    "resnet": ArchitectureEntry(label="ResNet"),
    "densenet": ArchitectureEntry(label="DenseNet"),
}


class Config(Model):
    """One experiment: what `config.yaml` holds."""

    experiment: Annotated[str, Field(pattern=EXPERIMENT, max_length=LONGEST_NAME)]
    """Names the folder of its results, `results/<experiment>`."""
    datasets: tuple[str, ...] = Field(min_length=1)
    """The columns of the figures, in this order."""
    architectures: tuple[str, ...] = Field(("vgg", "resnet", "densenet"), min_length=1)
    """The rows of the figures, in this order."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0,), min_length=1)
    """One training each of every cell; figures show mean and band of several."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run: auto takes a GPU where there is one."""
    mirror: PathText | None = None
    """Where the datasets' files are looked for first, as <mirror>/<dataset>/<file> or
    <mirror>/<file>: an http address, or a folder, which may hold them unpacked or as torchvision
    leaves them. The environment variable NC_DATA_MIRROR does the same."""
    imagenet_folder: PathText | None = None
    """Where ILSVRC-2012 lies: its tar files or an ImageFolder. Without it, its cells are left
    out."""
    resources_folder: PathText = "resources"
    """Where downloads are kept."""
    results_folder: PathText = "results"
    """Where every experiment has its folder."""
    results_from: Literal["own", "reference", "both"] = "own"
    """Whose runs figures, Table 1 and claims show: one's own, which are trained where they are
    missing; the reference runs, so that nothing is trained; or both, told apart everywhere."""
    reference_folder: PathText = "results/reference/paper"
    """The set of reference runs that is shown where `results_from` says so. None of the paper's
    size is shipped yet; results/reference/mnist-small is."""
    figures: FiguresConfig = FiguresConfig()
    """How figures look."""
    custom_datasets: dict[Name, CustomDataset] = {}  # noqa: RUF012 (pydantic copies it)
    """A person's own datasets, by name."""
    custom_architectures: dict[Name, ArchitectureEntry] = {}  # noqa: RUF012 (pydantic copies it)
    """A person's own rows, by name; their network is given in `overrides`."""
    recipe: PartialRecipe = PartialRecipe()  # type: ignore[valid-type]
    """The recipe of every cell; what is left out is the paper's."""
    overrides: tuple[Override, ...] = ()
    """Changes for some datasets or architectures, in order; later ones win."""

    @field_validator("datasets", "architectures", "seeds")
    @classmethod
    def _once(cls, value: tuple) -> tuple:
        doubled = [item for item in value if value.count(item) > 1]
        if doubled:
            raise ValueError(f"{doubled[0]!r} stands twice")
        return value

    @property
    def rows(self) -> dict[str, ArchitectureEntry]:
        """Every architecture that can be named."""
        return DEFAULT_ARCHITECTURES | self.custom_architectures

    def cells(self) -> list[tuple[str, str]]:
        """Every (dataset, architecture) that runs: ImageNet's only where its folder is given, and
        none where only reference runs are shown."""
        return [
            (dataset, architecture)
            for dataset in self.datasets
            if self.shows_own and not self.missing(dataset)
            for architecture in self.architectures
        ]

    def missing(self, dataset: str) -> bool:
        """Whether this dataset's cells are left out, since its images cannot be downloaded."""
        return self.shows_own and dataset == "imagenet" and self.imagenet_folder is None

    @property
    def overrides_without_effect(self) -> list[int]:
        """The overrides, counted from 0, that match no dataset x architecture named here."""
        return [
            index
            for index, override in enumerate(self.overrides)
            if not any(
                override.matches(dataset, architecture)
                for dataset in self.datasets
                for architecture in self.architectures
            )
        ]

    @property
    def shows_own(self) -> bool:
        """Whether one's own runs are made and shown."""
        return self.results_from != "reference"

    @property
    def shows_reference(self) -> bool:
        """Whether reference runs are shown."""
        return self.results_from != "own"

    @property
    def folder(self) -> str:
        """The folder of this experiment's results."""
        return f"{self.results_folder}/{self.experiment}"

    def preparation(self, recipe: Recipe) -> str:
        """The name of the folder in which a recipe's dataset is prepared."""
        custom = self.custom_datasets.get(recipe.dataset)
        return recipe.data.name + folder_suffix(custom, self.resources_folder)

    def data_card(self, recipe: Recipe) -> dict[str, Any] | None:
        """What is known of a recipe's prepared dataset; None where it is not prepared yet."""
        folder = Path(self.resources_folder) / recipe.dataset / "prepared"
        try:
            text = (folder / self.preparation(recipe) / "card.json").read_text(encoding="utf-8")
            card = json.loads(text)
        except (OSError, ValueError):
            return None
        return card if isinstance(card, dict) else None


def _names(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _names(argument)


def _suggestion(root: type[BaseModel], location: tuple, key: str) -> str:
    """', did you mean ...?' for a key that a model at `location` does not know."""
    models: list[type[BaseModel]] = [root]
    for part in location:
        following = []
        for model in models:
            field = model.model_fields.get(part) if isinstance(part, str) else None
            if field is not None:
                following += _names(field.rebuild_annotation())
        models = following or models
    known = sorted({name for model in models for name in model.model_fields})
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"


_LIMITED = reprlib.Repr()
_LIMITED.maxstring = _LIMITED.maxother = _LIMITED.maxlong = 60


def shown(value: Any) -> str:
    """A value as a sentence can show it: of any kind and size, on one line."""
    try:
        return _LIMITED.repr(value)
    except ValueError:
        return "a number of thousands of digits"


_ONE_JOB = "no longer exists: every learning rate is a job of its own"
REMOVED_KEYS = {
    "sweep.together": f"{_ONE_JOB}, and small jobs share a GPU by resources.gpu_slots; remove it",
    "sweep.together_as": f"{_ONE_JOB}; remove it",
    "sweep.halving_epochs": f"{_ONE_JOB} and is trained to its end; remove it",
}
"""What became of keys of earlier versions."""

# Pydantic's words for programmers, and a config file's.
_WORDS = (
    (r"^Value error, ", ""),
    (
        r"^Input should be (a valid dictionary|a valid mapping|an object)\b.*",
        "must hold keys and values",
    ),
    (r"^Input should be a valid (tuple|list)$", "must be a list"),
    (r"^Input should be a valid string$", "must be text"),
    (r"^Input should be a valid string\b.*", "must be text in Unicode"),
    (r"^Input should be a valid integer\b.*", "must be a whole number"),
    (r"^Input should be a valid number\b.*", "must be a number"),
    (r"^Input should be a valid boolean\b.*", "must be true or false"),
    (r"^Input should be ", "must be "),
    (r"^(Tuple|List|String) should have at least 1 .*", "must not be empty"),
    (r"^(Tuple|List|String) should have ", "must have "),
    (r" after validation, not [0-9]+$", ""),
    (
        r"^String should match pattern .*",
        "must be made of letters, digits and _, and begin with a letter or digit",
    ),
)


def one_sentence(error: ValidationError, where: str, root: type[BaseModel]) -> str:
    """The first problem of a pydantic error as one sentence that names the file and the key."""
    # An unknown key comes first: a misspelt one also makes the right one missing.
    problems = error.errors()
    problem = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    if isinstance(problem["input"], (list, tuple)):
        # Where a number or a list may stand, a list is no fault, but what is in it may be one.
        place = problem["loc"][:-1]
        inner = [p for p in problems if len(p["loc"]) > len(place) + 1]
        problem = next((p for p in inner if p["loc"][: len(place)] == place), problem)
    location = problem["loc"]
    parts = [str(part) for part in location if not str(part).startswith(("function-", "tuple["))]
    # A union names its branches in the location; a person's file does not.
    parts = [part for part in parts if part not in {"int", "constrained-int", "float", "str"}]
    key = ".".join(part if part.isprintable() else ascii(part)[1:-1] for part in parts)
    key = key if len(key) <= 200 else f"{key[:200]}..."
    if problem["type"] == "extra_forbidden":
        if key.split("recipe.")[-1] in REMOVED_KEYS:
            return f"{where}: the key '{key}' {REMOVED_KEYS[key.split('recipe.')[-1]]}"
        suggestion = _suggestion(root, location[:-1], str(location[-1]))
        return f"{where}: unknown key '{key}'{suggestion}"
    if problem["type"] == "missing":
        return f"{where}: the key '{key}' is missing"
    message = problem["msg"]
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    value = problem["input"]
    found = "" if isinstance(value, (dict, BaseModel)) else f" (it is {shown(value)})"
    return f"{where}: {key + ': ' if key else ''}{message}{found}"


def _check_plain(values: Any, where: str) -> None:
    """Raise UserError for what no key of a config can hold, before anything looks deeper."""
    waiting: list[tuple[Any, tuple[str, ...]]] = [(values, ())]
    seen = 0
    while waiting:
        value, path = waiting.pop()
        seen += 1
        if len(path) > 20 or seen > 100_000:
            raise UserError(f"{where}: is nested too deep, too long, or holds itself")
        place = f"{where}: {'.'.join(path)}" if path else where
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str) or not key.isprintable():
                    raise UserError(f"{place}: the key {shown(key)} must be text; put it in quotes")
            waiting += [(item, (*path, key)) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(item, (*path, str(index))) for index, item in enumerate(value)]
        elif isinstance(value, str):
            if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value):
                raise UserError(f"{place}: {shown(value)} holds a character that is not text")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{place}: the number is too large")
        elif value is not None and not isinstance(value, (bool, int, float)):
            kind = type(value).__name__
            raise UserError(f"{place}: is a {kind}; put it in quotes if it is meant as text")


def check_config(values: Any, where: str = "config") -> Config:
    """The typed config of a mapping; raises UserError naming the key that is wrong.

    Every cell's recipe is resolved as well, so nothing wrong is left for a job to find.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: must hold keys and values, like the shipped config.yaml")
    _check_plain(values, where)
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(one_sentence(error, where, Config)) from None
    known = {**DATASETS, **config.custom_datasets}
    for kind, names, choices in [
        ("dataset", config.datasets, known),
        ("architecture", config.architectures, config.rows),
    ]:
        for name in names:
            _check_name(name, choices, kind, f"{where}: {kind}s")
    for index, override in enumerate(config.overrides):
        for kind, names, choices in [
            ("dataset", override.datasets or (), known),
            ("architecture", override.architectures or (), config.rows),
        ]:
            for name in names:
                _check_name(name, choices, kind, f"{where}: overrides.{index}.{kind}s")
    shadowed = set(config.custom_datasets) & set(DATASETS)
    if shadowed:
        raise UserError(
            f"{where}: custom_datasets.{min(shadowed)}: this name is a built-in dataset's; "
            "choose another"
        )
    for key in ("results_folder", "resources_folder"):
        _check_folder(Path(getattr(config, key)), f"{where}: {key}")
    for dataset in config.datasets if config.shows_own else ():
        for architecture in config.architectures:
            resolve_recipe(config, dataset, architecture, where)
    return config


def _check_folder(folder: Path, where: str) -> None:
    """Raise UserError where a folder cannot be made, since a file is in its place."""
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            if not path.is_dir():
                raise UserError(f"{where}: {path} is a file, not a folder; choose another")
            return


def _check_name(name: str, choices: Iterable[str], kind: str, where: str) -> None:
    if name not in choices:
        close = difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"
        raise UserError(f"{where}: unknown {kind} {name!r}; {hint}")


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; usually the last one wins in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen and key.value != "<<":
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {shown(key.value)} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"the key {shown(key)} stands twice")
    return dict(pairs)


def read_yaml(path: str | Path) -> Any:
    """What a JSON or YAML file holds, as Snakemake reads one; but a key that stands twice is an
    error. Raises UserError where it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        try:
            return json.loads(text, object_pairs_hook=_object)
        except UserError:  # a ValueError as well
            raise
        except ValueError:
            return yaml.load(text, _Loader)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}: is not UTF-8 text in line {line}; save it with that encoding"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: is not valid YAML: nested too deep") from None
    except yaml.MarkedYAMLError as error:
        reason = error.problem or error.context
        mark = error.problem_mark or error.context_mark
        line = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: is not valid YAML: {reason}{line}") from None
    except Exception as error:
        # Values that look like a date or a number and are none end in PyYAML's own exceptions.
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not valid YAML: {reason[:200]}") from None


def load_config(path: str | Path) -> Config:
    """Read and check a config file; raises UserError in one sentence."""
    return check_config(read_yaml(path), str(path))


def _merge(base: dict, change: Mapping) -> dict:
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = dict(value) if isinstance(value, Mapping) else value
    return merged


def _merge_recipe(base: dict, change: BaseModel) -> dict:
    values = change.model_dump(exclude_unset=True)
    network = values.get("network")
    if network and ({"name", "family"} & network.keys()):
        # Another network: the numbers given for the one before it no longer apply.
        base = {key: value for key, value in base.items() if key != "network"}
    return _merge(base, values)


def resolve_recipe(
    config: Config, dataset: str, architecture: str, where: str = "config"
) -> Recipe:
    """The recipe of one cell: the defaults, `config.recipe`, then each matching override."""
    values = _merge_recipe({}, config.recipe)
    for override in config.overrides:
        if override.matches(dataset, architecture):
            values = _merge_recipe(values, override.recipe)
    spec = values.pop("network", None)
    place = f"{where}: the recipe of {dataset} x {architecture}"
    if spec is None:
        raise UserError(f"{place} names no network; give network.name in an override")
    try:
        network = resolve_network(spec)
    except UserError as error:
        raise UserError(f"{place}: network: {error}") from None
    try:
        recipe = Recipe(dataset=dataset, architecture=architecture, network=network, **values)
    except ValidationError as error:
        raise UserError(one_sentence(error, place, Recipe)) from None
    entry = dataset_entry(config.custom_datasets, dataset)
    try:
        if entry.num_classes is not None:
            recipe.figure_1_classes(entry.num_classes)
            _require_images(recipe, entry.num_classes)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    _ = recipe.activation_epochs  # raises where one is not measured
    return recipe


def _require_images(recipe: Recipe, num_classes: int) -> None:
    """Raise UserError where a recipe asks for more images than its built-in dataset has."""
    sizes, data = published_sizes(recipe.dataset), recipe.data
    if sizes is None:
        return
    train, test = sizes.train, sizes.test
    if data.examples_per_class is not None:
        train = num_classes * data.examples_per_class
    if data.test_examples_per_class is not None:
        test = num_classes * data.test_examples_per_class
    for key, asked, most, what in [
        ("data.examples_per_class", data.examples_per_class, sizes.train_per_class,
         "train images of its smallest class"),
        ("data.test_examples_per_class", data.test_examples_per_class, sizes.test_per_class,
         "test images of its smallest class"),
        ("robustness.images", recipe.robustness.images, test, "test images"),
    ]:  # fmt: skip
        if asked is not None and asked > most:
            raise UserError(f"{key}: is {asked}, but {recipe.dataset} has {most} {what}; lower it")
    if recipe.training.batch_size > train and not recipe.training.keep_incomplete_batch:
        raise UserError(
            f"training.batch_size: is {recipe.training.batch_size}, but {train} train images are "
            f"used of {recipe.dataset}, so no batch is full; lower it"
        )


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe as JSON."""
    write_text_atomically(path, recipe.model_dump_json(indent=2) + "\n")


def parse_model(model: type[BaseModel], values: Any, where: str) -> Any:
    """A typed model of a mapping; raises UserError naming the key and `where` it came from."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(one_sentence(error, where, model)) from None


def parse_recipe(text: str, where: str) -> Recipe:
    """The recipe that JSON text holds; raises UserError naming `where` it came from."""
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise UserError(f"{where}: is not a recipe written by this project") from None
        raise UserError(one_sentence(error, where, Recipe)) from None


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe written by :func:`write_recipe`; raises UserError."""
    try:
        return parse_recipe(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a recipe written by this project") from None


def json_schema() -> str:
    """The config's JSON schema, as shipped in workflow/schemas/config.schema.json."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2) + "\n"
