"""The content of results/paper_recipes.json: the paper's recipes, as data for `results`."""

from __future__ import annotations

import json
from itertools import product

from ..data.registry import DATASETS
from ..networks.registry import label
from .config import Config, resolve_recipe


def paper_recipes_json(config: Config) -> str:
    """The recipes of `config`'s cells, a line each, with what tables call their networks and data.

    They stand apart from config.yaml, which a user may change and an installed package lacks.
    """
    lines = []
    for cell in product(config.datasets, config.architectures):
        recipe = resolve_recipe(config, *cell)
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
