"""The networks: recipes (plain data, without torch), and what builds them (with torch).

Recipes come at once, builders on first use: the Snakefile imports this package at every parse and
must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .recipes import CustomRecipe, DenseNetRecipe, NetworkRecipe, ResNetRecipe, VGGRecipe
from .registry import NAMED, label, resolve_network

if TYPE_CHECKING:
    from .build import NetworkDescription, build_network, describe
    from .network import Network

__all__ = [
    "NAMED",
    "CustomRecipe",
    "DenseNetRecipe",
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

_WITH_TORCH = {
    "Network": "network",
    "NetworkDescription": "build",
    "build_network": "build",
    "describe": "build",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(import_module(f".{_WITH_TORCH[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
