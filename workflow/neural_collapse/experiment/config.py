"""The config of an experiment, and the recipe of each of its cells.

A config file (``config.yaml``) names datasets, architectures and seeds, gives one ``recipe`` for
all of them, and lists ``overrides`` for some.  ``load_config`` checks it; ``resolve_recipe`` folds
it into the :class:`Recipe` of one dataset x architecture: everything that its jobs depend on.
Importing this module imports no torch, so that planning a workflow stays fast.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import partial
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    create_model,
    field_validator,
)

from ..data.registry import DATASETS, CustomDataset, DatasetEntry, dataset_entry, folder_suffix
from ..figures import NAMES, STUDIES
from ..io.errors import UserError
from ..io.files import path_text
from ..io.model import Model, Strict, each_once
from ..io.text import did_you_mean, shown
from ..io.yaml import read_yaml
from ..networks.registry import resolve_network
from ..training.recipe import READ_BY_LOSS
from .messages import parse_model
from .paths import Paths
from .recipe import Recipe, RecipeParts

NAME = r"^[A-Za-z0-9][A-Za-z0-9_]*$"
EXPERIMENT = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
LONGEST_NAME = 64
"""Characters of a name: a log's file name holds several, and file systems allow 255 bytes."""
Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME)]


PathText = Annotated[str, AfterValidator(path_text)]


_ADAM = ("adam", "adamw")
_READ_WITH: dict[str, tuple[str, tuple]] = {
    **{f"training.{key}": ("training.loss", (loss,)) for key, loss in READ_BY_LOSS.items()},
    "training.momentum": ("training.optimizer.name", ("sgd", "sgdw")),
    "training.optimizer.betas": ("training.optimizer.name", _ADAM),
    "training.optimizer.epsilon": ("training.optimizer.name", _ADAM),
    "sweep.held_out_fraction": ("sweep.selection", ("held_out_error",)),
}
"""Keys of a recipe that are read only with some values of another key."""


class _PartialNetwork(BaseModel):
    """A published network by `name`, or a `family`; other keys set its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)


def _optional(annotation: Any) -> Any:
    """The annotation of a field that may be left out of an override."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Model):
            return _partial(candidate)
    return annotation


def _partial(model: type[Model]) -> type[BaseModel]:
    """`model` with every key optional and without defaults, for overrides."""
    fields = {
        name: (_optional(field.rebuild_annotation()), Field(None, description=field.description))
        for name, field in model.model_fields.items()
    }
    # Checks of a single key run if the key is given; checks of several keys run on the resolved
    # recipe.
    checks = {
        name: field_validator(*check.info.fields, mode=check.info.mode)(partial(check.func))
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


PartialRecipe = create_model(
    "PartialRecipe",
    __base__=_partial(RecipeParts),
    __doc__="Any part of a recipe.",
    network=(
        _PartialNetwork,
        Field(None, description="`name` of a published network, or a `family` and its parameters."),
    ),
)


class Override(Model):
    """A change of the recipe for some cells. Later overrides take precedence."""

    datasets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The datasets to which it applies; default: all."""
    architectures: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The architectures to which it applies; default: all."""
    recipe: PartialRecipe  # type: ignore[valid-type]
    """The changed keys."""

    def matches(self, dataset: str, architecture: str) -> bool:
        """Whether it applies to this cell."""
        return (self.datasets is None or dataset in self.datasets) and (
            self.architectures is None or architecture in self.architectures
        )


class ArchitectureEntry(Model):
    """A row of the figures."""

    label: Annotated[str, Field(min_length=1)]
    """Title of the row."""


class FiguresConfig(Model):
    """Style of the figures; a change repeats no measurement."""

    epoch_axis: Literal["linear", "log"] = "linear"
    """Horizontal axis of Figures 2 to 8."""
    width: Literal["auto", "column", "page"] = "auto"
    """Width of a column (87 mm) or of a page (178 mm); `auto` uses a column for up to three panels
    in a row. The overview and the figures of studies other than `optimisers` and `imbalance` are
    always as wide as a page."""
    shared_y_axis: Literal["auto", "figure", "row", "none"] = "auto"
    """Which panels of Figures 2 to 8 share a vertical scale; `auto` is `figure`, and `none` for
    Figures 7 and 8, because their datasets differ most."""
    names: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(each_once)] | None = None
    """Figures to draw, in this order; default: those of the paper. Studies have further figures,
    such as `separation`."""
    formats: tuple[Literal["png", "svg", "pdf", "gif", "html"], ...] = (
        *("png", "svg", "pdf", "gif", "html"),
    )
    """File formats of each figure; `gif` (an animation) and `html` (an interactive page) are only
    for Figure 1."""

    @field_validator("names")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        known = (*NAMES, *STUDIES)
        for name in value or ():
            if name not in known:
                raise ValueError(f"unknown figure {name!r}; {did_you_mean(name, known)}")
        return value

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
    """One experiment: the content of `config.yaml`."""

    experiment: Annotated[str, Field(pattern=EXPERIMENT, max_length=LONGEST_NAME)]
    """Name of its results folder, `results/<experiment>`."""
    datasets: tuple[str, ...] = Field(min_length=1)
    """The columns of the figures, in this order."""
    architectures: tuple[str, ...] = Field(("vgg", "resnet", "densenet"), min_length=1)
    """The rows of the figures, in this order."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0,), min_length=1)
    """One training per seed and cell; with several seeds, figures show the mean and a band."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; `auto` uses a GPU if there is one."""
    mirror: PathText | None = None
    """The first place to look for the datasets' files, as `<mirror>/<dataset>/<file>` or
    `<mirror>/<file>`: an http URL, or a folder, also with unpacked or torchvision's files. The
    environment variable NC_DATA_MIRROR does the same."""
    imagenet_folder: PathText | None = None
    """Folder of ILSVRC-2012: its tar files or an ImageFolder. Without it, ImageNet's cells are left
    out."""
    resources_folder: PathText = "resources"
    """Folder of downloads and prepared datasets."""
    results_folder: PathText = "results"
    """Folder of the results of all experiments."""
    results_from: Literal["own", "reference", "both"] = "own"
    """Runs in figures, Table 1 and claims: `own` (missing runs are trained), `reference` (nothing
    is trained) or `both`, which are marked everywhere."""
    reference_folder: PathText = "results/reference/paper"
    """The set of reference runs for `results_from`. None of the paper's size is shipped yet;
    results/reference/paper-narrow is, with narrow networks."""
    figures: FiguresConfig = FiguresConfig()
    """Style of the figures."""
    custom_datasets: dict[Name, CustomDataset] = {}  # noqa: RUF012 (pydantic copies it)
    """User-defined datasets, by name."""
    custom_architectures: dict[Name, ArchitectureEntry] = {}  # noqa: RUF012 (pydantic copies it)
    """User-defined rows, by name; `overrides` give their network."""
    recipe: PartialRecipe = PartialRecipe()  # type: ignore[valid-type]
    """The recipe of every cell; the defaults are the paper's."""
    overrides: tuple[Override, ...] = ()
    """Changes for some datasets or architectures, applied in order."""

    _once = field_validator("datasets", "architectures", "seeds")(each_once)

    @property
    def rows(self) -> dict[str, ArchitectureEntry]:
        """Every architecture that can be named."""
        return DEFAULT_ARCHITECTURES | self.custom_architectures

    def cells(self) -> list[tuple[str, str]]:
        """Every (dataset, architecture) that runs: ImageNet only if its folder is given, and none
        if only reference runs are shown."""
        datasets = [name for name in self.datasets if self.shows_own and not self.missing(name)]
        return list(product(datasets, self.architectures))

    def missing(self, dataset: str) -> bool:
        """Whether this dataset's cells are left out, because its images cannot be downloaded."""
        return self.shows_own and dataset == "imagenet" and self.imagenet_folder is None

    @property
    def overrides_without_effect(self) -> list[int]:
        """The overrides, counted from 0, that match no dataset x architecture named here."""
        return [
            index
            for index, override in enumerate(self.overrides)
            if not any(override.matches(*c) for c in product(self.datasets, self.architectures))
        ]

    @property
    def shows_own(self) -> bool:
        """Whether runs of this experiment are made and shown."""
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

    def card_path(self, recipe: Recipe) -> str:
        """The path of the data card of a recipe's prepared dataset."""
        paths = Paths(self.folder, self.resources_folder)
        return paths.prepared("card.json", recipe.dataset, self.preparation(recipe))

    def data_card(self, recipe: Recipe) -> dict[str, Any] | None:
        """The data card of a recipe's prepared dataset; None if it is not prepared yet."""
        try:
            card = json.loads(Path(self.card_path(recipe)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return card if isinstance(card, dict) else None


def _check_plain(values: Any, source: str) -> None:
    """Raise UserError for values that no key of a config can have, before other checks."""
    waiting: list[tuple[Any, tuple[str, ...]]] = [(values, ())]
    seen = 0
    while waiting:
        value, path = waiting.pop()
        seen += 1
        if len(path) > 20 or seen > 100_000:
            raise UserError(f"{source}: is nested too deep, too long, or contains itself")
        place = f"{source}: {'.'.join(path)}" if path else source
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


def check_config(values: Any, source: str = "config") -> Config:
    """The typed config of a mapping; raises UserError naming the key that is wrong.

    Every cell's recipe is resolved as well, so nothing wrong is left for a job to find.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: must hold keys and values, like the shipped config.yaml")
    _check_plain(values, source)
    config = parse_model(Config, dict(values), source)
    _check_names(config, source)
    shadowed = set(config.custom_datasets) & set(DATASETS)
    if shadowed:
        raise UserError(
            f"{source}: custom_datasets.{min(shadowed)}: this name is a built-in dataset's; "
            "choose another"
        )
    for key in ("results_folder", "resources_folder"):
        _check_folder(Path(getattr(config, key)), f"{source}: {key}")
    for cell in product(config.datasets, config.architectures) if config.shows_own else ():
        resolve_recipe(config, *cell, source)
    _check_read(config, source)
    return config


def _check_read(config: Config, source: str) -> None:
    """Raise UserError for a key that is set and that no recipe made of it can read.

    The cells of overrides are not looked at: this config may be a part of a larger experiment.
    """
    parts = [config.recipe, *(override.recipe for override in config.overrides)]
    given = [part.model_dump(exclude_unset=True) for part in parts]
    for key, (chosen_by, readers) in _READ_WITH.items():
        usual, choice = attrgetter(key, chosen_by)(RecipeParts())
        choices = [_at(part, chosen_by, ...) for part in given]
        if choices[0] is ...:
            choices[0] = choice
        for number, part in enumerate(given):
            # What an override does not choose itself was chosen before it; what follows may change.
            first = 0 if choices[number] is ... else number
            if _at(part, key, usual) != usual and not set(choices[first:]) & set(readers):
                place = f"overrides.{number - 1}.recipe" if number else "recipe"
                values = " or ".join("null" if value is None else value for value in readers)
                raise UserError(
                    f"{source}: {place}.{key}: is read only with {chosen_by}: {values}; write that "
                    "as well, or leave this key out"
                )


def _at(values: Any, path: str, default: Any) -> Any:
    """The value at a path of keys; `default` where there is none."""
    for key in path.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return default
        values = values[key]
    return values


def _check_folder(folder: Path, source: str) -> None:
    """Raise UserError if a file exists at the path of a folder."""
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            if not path.is_dir():
                raise UserError(f"{source}: {path} is a file, not a folder; choose another")
            return


def _check_names(config: Config, source: str) -> None:
    """Raise UserError for a dataset or architecture that does not exist."""
    known = {"dataset": [*DATASETS, *config.custom_datasets], "architecture": list(config.rows)}
    overrides = {f"overrides.{i}.": override for i, override in enumerate(config.overrides)}
    for place, part in {"": config, **overrides}.items():
        for kind, choices in known.items():
            for name in getattr(part, f"{kind}s") or ():
                if name not in choices:
                    hint = did_you_mean(name, choices)
                    raise UserError(f"{source}: {place}{kind}s: unknown {kind} {name!r}; {hint}")


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
    config: Config, dataset: str, architecture: str, source: str = "config"
) -> Recipe:
    """The recipe of one cell: the defaults, `config.recipe`, then each matching override."""
    values = _merge_recipe({}, config.recipe)
    for override in config.overrides:
        if override.matches(dataset, architecture):
            values = _merge_recipe(values, override.recipe)
    spec = values.pop("network", None)
    place = f"{source}: the recipe of {dataset} x {architecture}"
    if spec is None:
        raise UserError(f"{place} names no network; give network.name in an override")
    try:
        network = resolve_network(spec)
    except UserError as error:
        raise UserError(f"{place}: network: {error}") from None
    values |= {"dataset": dataset, "architecture": architecture, "network": network}
    recipe = parse_model(Recipe, values, place)
    entry = dataset_entry(config.custom_datasets, dataset)
    try:
        _require_published(recipe, entry)
        if entry.num_classes is not None:
            recipe.figure_1_classes(entry.num_classes)
        if dataset in DATASETS:
            _require_images(recipe, entry)
        _require_other(config, recipe)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return recipe


def _require_published(recipe: Recipe, entry: DatasetEntry) -> None:
    """Raise UserError where a recipe asks for more than its dataset has, if that is known."""
    data, most, of = recipe.data, entry.train_per_class, "{} train images of its smallest class"
    if data.imbalance is not None and most is not None:  # the smallest may be of the minority
        most, of = entry.largest_class, "at most {} train images of any class"
    for key, limit, what in [
        ("image_size_px", entry.image_size_px, "{} pixels a side"),
        ("examples_per_class", most, of),
        ("test_examples_per_class", entry.test_per_class, "{} test images of its smallest class"),
    ]:
        asked = getattr(data, key)
        if asked is not None and limit is not None and asked > limit:
            has = what.format(limit)
            raise UserError(f"data.{key}: is {asked}, but {entry.name} has {has}; lower it")


def _require_images(recipe: Recipe, entry: DatasetEntry) -> None:
    """Raise UserError where batches or the attack ask for more images than a built-in dataset's."""
    data, training, classes = recipe.data, recipe.training, entry.num_classes
    # Raises where a class has no image, whichever is the largest; preparing knows them all.
    data.train_counts([entry.largest_class] * classes)
    train = data.train_examples(entry.train_examples, classes)
    if training.oversample:
        train = data.oversampled_examples(entry.train_examples, classes)
    of_each = data.test_examples_per_class
    test = entry.test_examples if of_each is None else classes * of_each
    if recipe.robustness.images > test:
        raise UserError(
            f"robustness.images: is {recipe.robustness.images}, but {entry.name} has {test} test "
            "images; lower it"
        )
    used = f"{train} train images are used of {entry.name}"
    if training.keep_incomplete_batch and train % training.batch_size == 1:
        raise UserError(
            f"training.batch_size: {training.batch_size} leaves a last batch of one example and so "
            f"of one class, since {used}; choose another"
        )
    if training.batch_size > train and not training.keep_incomplete_batch:
        raise UserError(
            f"training.batch_size: is {training.batch_size}, but {used}, so no batch is full; "
            "lower it"
        )


def _require_other(config: Config, recipe: Recipe) -> None:
    """Raise UserError where a recipe measures another dataset that cannot be had or prepared."""
    other = recipe.of_other_dataset
    if other is None:
        return
    key, name = "measurement.other_dataset", other.dataset
    known = (*DATASETS, *config.custom_datasets)
    if name not in known:
        raise UserError(f"{key}: unknown dataset {name!r}; {did_you_mean(name, known)}")
    if name == recipe.dataset:
        raise UserError(f"{key}: {name} is the cell's own dataset; name another")
    if config.missing(name):
        raise UserError(f"{key}: {name} cannot be downloaded freely; give imagenet_folder")
    _require_published(other, dataset_entry(config.custom_datasets, name))
