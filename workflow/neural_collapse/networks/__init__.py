"""The networks: recipes (plain data, without torch), and what builds them (with torch).

Names are imported on first use: the Snakefile, which imports this package at every parse, must not
wait for torch, and measuring a model must not need pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import NetworkDescription, build_network, describe
    from .network import Network
    from .recipes import (
        CustomRecipe,
        DenseNetRecipe,
        MLPRecipe,
        NetworkRecipe,
        ResNetRecipe,
        VGGRecipe,
    )
    from .registry import NAMED, label, resolve_network

__all__ = [
    "NAMED",
    "CustomRecipe",
    "DenseNetRecipe",
    "MLPRecipe",
    "Network",
    "NetworkDescription",
    "NetworkRecipe",
    "ResNetRecipe",
    "VGGRecipe",
    "build_network",
    "describe",
    "label",
    "resolve_network",
]

_MODULE_OF = {
    **dict.fromkeys(("NAMED", "label", "resolve_network"), "registry"),
    **dict.fromkeys(
        (
            "CustomRecipe",
            "DenseNetRecipe",
            "MLPRecipe",
            "NetworkRecipe",
            "ResNetRecipe",
            "VGGRecipe",
        ),
        "recipes",
    ),
    "Network": "network",
    "NetworkDescription": "build",
    "build_network": "build",
    "describe": "build",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
