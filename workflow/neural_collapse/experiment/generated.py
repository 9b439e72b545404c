"""What is generated of the typed models: pages and files that a test compares with the shipped."""

from __future__ import annotations

import json
from itertools import product
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ..data.registry import DATASETS, CustomDataset
from ..networks.recipes import FAMILIES
from ..networks.registry import NAMED, label
from .config import ArchitectureEntry, Config, FiguresConfig, Override, resolve_recipe
from .recipe import RecipeParts

HEAD = """\
# Every key of a config

A config names datasets (the columns of the figures), architectures (the rows) and seeds. `recipe`
applies to every cell, which is one dataset with one architecture; each entry of `overrides` changes
it for some datasets or architectures, in order. A config file given with `--configfile` replaces
`config.yaml`; they are not merged.

Defaults are the values that the paper uses for all datasets. The network has no default, and what
differs between datasets (the number of images, padding, ImageNet's protocol) is in the overrides of
`config.yaml`.

`neural-collapse plan --config FILE` prints the cost of a config on this machine. Editors that
support JSON schemas can use `workflow/schemas/config.schema.json`. `make config-page` generates
this page.
"""


WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "keys"}


def _type(annotation: Any) -> str:
    """A type in a user's words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_type, arguments)))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if annotation is type(None):
        return "null"
    if origin in (tuple, list):
        return "list"
    return WORDS.get(origin or annotation, "keys, below")


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value)}`"


def _table(model: type[BaseModel], prefix: str = "") -> list[str]:
    rows = ["| key | what it is | values | default |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        description = " ".join((field.description or "").split())
        rows.append(
            f"| `{prefix}{name}` | {description} | {_type(field.annotation)} "
            f"| {_default(field.default)} |"
        )
    return rows


def config_page() -> str:
    """config/README.md: every key, as Markdown."""
    top = [line for line in _table(Config) if not line.startswith(("| `recipe`", "| `overrides`"))]
    top += [
        "| `recipe` | The recipe of every cell, below. | keys | below |",
        "| `overrides` | Changes for some cells, below. | list | `[]` |",
    ]
    sections = {"## The file": top}
    for name, field in RecipeParts.model_fields.items():
        sections[f"## `recipe.{name}`"] = [f"{field.description}", "", *_table(field.annotation)]
        for key, inner in field.annotation.model_fields.items():
            for kind in (inner.annotation, *get_args(inner.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    sections[f"### `recipe.{name}.{key}`"] = _table(kind)
    sections["## `recipe.network`"] = [
        "A published network by `name`, or a `family` with its required parameters; other keys "
        "change the parameters: `{name: resnet18, width: 8}`. In an override, `name` or `family` "
        "replaces the network; without them, the keys change it.",
        "",
        f"Names: {', '.join(f'`{name}`' for name in NAMED)}.",
    ]
    for family, model in FAMILIES.items():
        sections[f"### `family: {family}`"] = _table(model)
    sections["## `overrides`"] = _table(Override)
    sections["## `figures`"] = _table(FiguresConfig)
    sections["## `custom_datasets`"] = ["By name, each with:", "", *_table(CustomDataset)]
    sections["## `custom_architectures`"] = ["By name, each with:", "", *_table(ArchitectureEntry)]
    sections["## Datasets"] = [
        "| name | title | classes | pixels | train | test |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{entry.name}` | {entry.label} | {entry.num_classes} | {entry.image_size_px} "
            f"| {entry.train_examples:,} | {entry.test_examples:,} |"
            for entry in DATASETS.values()
        ),
    ]
    parts = ["\n".join([title, "", *lines]) for title, lines in sections.items()]
    return "\n\n".join([HEAD.rstrip("\n"), *parts]) + "\n"


def json_schema() -> str:
    """workflow/schemas/config.schema.json: the config's JSON schema."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2) + "\n"


def paper_recipes_json(config: Config) -> str:
    """results/paper_recipes.json: recipes of `config`'s cells, with what tables call their networks
    and data.

    They stand apart from config.yaml, which a user may change and an installed package lacks. What
    config.yaml takes for speed on a GPU is not the paper's.
    """
    lines = []
    for cell in product(config.datasets, config.architectures):
        recipe = resolve_recipe(config, *cell)
        training = recipe.training.model_copy(update={"precision": "float32", "cuda_graphs": False})
        recipe = recipe.model_copy(update={"training": training})
        entry, data = DATASETS[recipe.dataset], recipe.data
        facts = {
            "dataset": recipe.dataset,
            "architecture": recipe.architecture,
            "network": label(recipe.network),
            "train_examples": (data.examples_per_class or 0) * entry.num_classes
            or entry.train_examples,
            "image_size_px": data.side_px(entry.image_size_px),
            "recipe": recipe.model_dump(
                mode="json", exclude={"resources", "dataset", "architecture"}
            ),
        }
        lines.append(json.dumps(facts, separators=(",", ":")))
    return "[\n" + ",\n".join(lines) + "\n]\n"
