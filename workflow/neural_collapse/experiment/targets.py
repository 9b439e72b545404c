"""Inputs of the targets of a config: recipes, files, titles. Does not import torch."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.registry import dataset_entry, folder_suffix
from ..figures import MOVING, NAMES
from ..figures.specs import Look
from ..io.errors import UserError
from ..results import TABLES
from .config import Config, resolve_recipe
from .paths import Paths, run_job
from .recipe import Recipe


class Experiment:
    """An experiment's config, its cells' recipes, and the files that its targets are made of."""

    def __init__(self, config: Config):
        self.config = config
        self.paths = Paths(config.folder, config.resources_folder)
        self.recipes: dict[tuple[str, str], Recipe] = {
            cell: resolve_recipe(config, *cell) for cell in config.cells()
        }
        others = [recipe.of_other_dataset for recipe in self.recipes.values()]
        prepared = [recipe for recipe in (*self.recipes.values(), *others) if recipe is not None]
        # Two user-defined datasets of the same name may share the resources folder.
        self.suffixes = {
            name: folder_suffix(config.custom_datasets.get(name), config.resources_folder)
            for name in (*config.datasets, *(recipe.dataset for recipe in prepared))
        }
        self.preparations = {
            (recipe.dataset, config.preparation(recipe)): recipe for recipe in prepared
        }

    def card(self, dataset: str, architecture: str) -> str:
        """The data card of the prepared dataset that a cell trains on."""
        return self._card(self.recipes[dataset, architecture])

    def other_cards(self, dataset: str, architecture: str) -> list[str]:
        """The data card of the other dataset that a cell measures; nothing where there is none."""
        other = self.recipes[dataset, architecture].of_other_dataset
        return [] if other is None else [self._card(other)]

    def _card(self, recipe: Recipe) -> str:
        return self.paths.prepared("card.json", recipe.dataset, self.config.preparation(recipe))

    def cards(self) -> list[str]:
        """The data card of every prepared dataset."""
        return [self.paths.prepared("card.json", *key) for key in self.preparations]

    @property
    def runs(self) -> list[tuple[str, str, int]]:
        """(dataset, architecture, seed) of every run."""
        return [(*cell, seed) for cell in self.recipes for seed in self.config.seeds]

    def of_runs(self, name: str) -> list[str]:
        """A file of every run."""
        return [self.paths.run(name, *run) for run in self.runs]

    def recipe_files(self) -> list[str]:
        """The recipe of every cell."""
        return [self.paths.recipe(*cell) for cell in self.recipes]

    def sweep_tables(self) -> list[str]:
        """The table of every sweep."""
        return [
            self.paths.sweep("sweep.parquet", *cell)
            for cell, recipe in self.recipes.items()
            if recipe.sweep.learning_rate is None
        ]

    def terminal_phase_accuracies(self) -> dict[str, float]:
        """At which train accuracy each cell's terminal phase starts."""
        return {
            " x ".join(cell): recipe.measurement.terminal_phase_accuracy
            for cell, recipe in self.recipes.items()
        }

    def robustness_states(self) -> list[str]:
        """Where the attacks of all runs keep what they have."""
        return [self.paths.state(run_job(*run), "robustness") for run in self.runs]

    def table_files(self) -> list[str]:
        """Every table that the target `tables` makes."""
        return [self.paths.table(name) for name in (*TABLES, "table_1", "claims")]

    @cached_property
    def figures(self) -> list[str]:
        """Names of the figures that are drawn: those asked for, or the paper's that can be."""
        if self.config.figures.names is not None:
            return list(self.config.figures.names)
        sweeps = self.sweep_tables() or self.config.shows_reference
        return [name for name in NAMES if name != "sweep" or sweeps]

    def drawings(self, *suffixes: str) -> dict[str, str]:
        """Files of all figures in these formats, by "<figure>_<format>"."""
        return {
            f"{name}_{suffix}": self.paths.figure(name, suffix)
            for name in self.figures
            for suffix in suffixes
            if suffix not in MOVING or name == "figure_1"
        }

    @property
    def look(self) -> Look:
        """How figures look."""
        return Look(**self.config.figures.model_dump(exclude={"formats", "names"}))

    def titles(self) -> str:
        """How columns and rows are titled, as JSON."""
        config = self.config
        labels = {n: dataset_entry(config.custom_datasets, n).label for n in config.datasets}
        return json.dumps(labels | {n: config.rows[n].label for n in config.architectures})

    def layout(self) -> list[str]:
        """Columns and rows of the figures, and their titles, as options of the command line."""
        datasets, architectures = self.config.datasets, self.config.architectures
        names = ["--datasets", *datasets, "--architectures", *architectures]
        return [*names, "--labels", self.titles()]

    def reference_folder(self, root: Path) -> Path:
        """The set of reference runs that is shown: where the config says, or below `root`."""
        given = Path(self.config.reference_folder)
        return given if given.is_dir() else root / given

    def reference_files(self, root: Path) -> list[str]:
        """The files of the reference runs that are shown; none where only own runs are.

        Raises UserError where the folder holds none.
        """
        if not self.config.shows_reference:
            return []
        folder = self.reference_folder(root)
        if not (folder / "runs.json").is_file():
            known = sorted(path.parent.name for path in folder.parent.glob("*/runs.json"))
            raise UserError(
                f"reference_folder: {self.config.reference_folder} holds no reference runs; "
                f"beside it: {', '.join(known) or 'none'}"
            )
        tables = [str(folder / "tables" / f"{name}.parquet") for name in TABLES]
        return [*tables, str(folder / "runs.json"), str(folder / "cards.json")]

    def custom_options(self, dataset: str) -> list[Any]:
        """A user-defined dataset as options of the command line; none for a built-in one."""
        custom = self.config.custom_datasets.get(dataset)
        if custom is None:
            return []
        # How its column is titled is read where tables are collected.
        return ["--custom", custom.model_copy(update={"label": dataset}).model_dump_json()]
