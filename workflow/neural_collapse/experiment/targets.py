"""Inputs of the targets of a config: recipes, files, titles. Does not import torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.registry import dataset_entry, folder_suffix
from ..figures import MOVING, NAMES
from ..figures.specs import Look
from ..io.errors import UserError
from ..io.files import tree_digest
from ..results import TABLES
from .config import Config, resolve_recipe
from .paths import Paths, candidate_job
from .recipe import READ_ELSEWHERE, Recipe


class Experiment:
    """An experiment's config, its cells' recipes, and the files that its targets are made of.

    Methods of `wildcards`, an object with the attributes dataset and architecture, are input and
    params functions of rules.
    """

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

    def recipe_of(self, wildcards: Any) -> Recipe:
        """The recipe of the cell that a rule's wildcards name."""
        return self.recipes[wildcards.dataset, wildcards.architecture]

    def recipe_slice(self, *parts: str) -> Callable[[Any], dict[str, Any]]:
        """A params function: only the parts of the recipe that the job reads decide its rerun.

        The recipe's file, written before the first job starts, is no input: Snakemake would not
        look at the params of any job after one that makes it.
        """

        def of(wildcards: Any) -> dict[str, Any]:
            recipe = self.recipe_of(wildcards)
            return {
                part: getattr(recipe, part).model_dump(
                    mode="json", exclude=READ_ELSEWHERE.get(part)
                )
                for part in parts
            }

        return of

    def threads(self, wildcards: Any) -> int:
        """CPU threads of a cell's jobs."""
        return self.recipe_of(wildcards).training.threads

    def card(self, wildcards: Any) -> str:
        """The data card of the prepared dataset that a cell trains on."""
        return self.config.card_path(self.recipe_of(wildcards))

    def other_cards(self, wildcards: Any) -> list[str]:
        """The data card of the other dataset that a cell measures; nothing where there is none."""
        other = self.recipe_of(wildcards).of_other_dataset
        return [] if other is None else [self.config.card_path(other)]

    def candidates(self, wildcards: Any) -> list[str]:
        """The learning curve of every candidate of a cell's sweep."""
        cell = wildcards.dataset, wildcards.architecture
        return [self.paths.candidate(name, *cell) for name in self.recipes[cell].sweep.named()]

    def sweep_states(self, wildcards: Any) -> list[str]:
        """Where the candidates of a sweep keep what they have."""
        cell = wildcards.dataset, wildcards.architecture
        names = self.recipes[cell].sweep.named()
        return [self.paths.state(candidate_job(name, *cell)) for name in names]

    def raw_source(self, wildcards: Any) -> str:
        """The record of a dataset's raw files."""
        return self.paths.raw(wildcards.dataset, self.suffixes[wildcards.dataset])

    def custom_options(self, wildcards: Any) -> list[str]:
        """A user-defined dataset as options of the command line; none for a built-in one."""
        custom = self.config.custom_datasets.get(wildcards.dataset)
        if custom is None:
            return []
        # How its column is titled is read where tables are collected.
        entry = custom.model_copy(update={"label": wildcards.dataset})
        return ["--custom", entry.model_dump_json()]

    def custom_files(self, wildcards: Any) -> list[str]:
        """The file or folder of a user-defined dataset."""
        custom = self.config.custom_datasets.get(wildcards.dataset)
        return [] if custom is None else [custom.path]

    def custom_contents(self, wildcards: Any) -> str | None:
        """What lies in the folder of a user-defined dataset, of which its own time says nothing."""
        folders = filter(os.path.isdir, self.custom_files(wildcards))
        return next(map(tree_digest, folders), None)

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

    def sweep_tables(self) -> list[str]:
        """The table of every sweep."""
        return [
            self.paths.sweep("sweep.parquet", *cell)
            for cell, recipe in self.recipes.items()
            if recipe.sweep.learning_rate is None
        ]

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
