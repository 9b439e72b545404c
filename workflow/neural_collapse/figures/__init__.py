"""Figures, drawn only from tables; each name is imported on first use."""

from __future__ import annotations

from importlib import import_module

NAMES = (*(f"figure_{number}" for number in range(1, 9)), "sweep", "overview")
"""The paper's figures, the sweep and the overview, in the order in which they are shown."""
STUDIES = ("separation", "optimisers", "losses", "imbalance", "etf", "outliers", "transfer")
"""Figures of studies beyond the paper, which a config can name."""
MOVING = ("gif", "html")
"""Formats only for Figure 1: an animation and an interactive page."""

_OF_REGISTRY = ("FIGURES", "caption", "plot")

__all__ = sorted([*NAMES, *STUDIES, *_OF_REGISTRY, "MOVING", "NAMES", "STUDIES"])


def __getattr__(name: str):
    # A submodule of the same name as its function (`sweep`, `overview`) would hide the function
    # once imported, so those modules are called *_figure.
    if name not in (*NAMES, *STUDIES, *_OF_REGISTRY):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    registry = import_module(".registry", __name__)
    return getattr(registry, name) if name in _OF_REGISTRY else registry.FIGURES[name].function
