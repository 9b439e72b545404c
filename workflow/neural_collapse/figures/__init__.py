"""Figures, drawn from tables alone; each name is loaded when it is first used."""

from __future__ import annotations

from importlib import import_module

NAMES = (*(f"figure_{number}" for number in range(1, 9)), "sweep", "overview")
"""The paper's figures and the two that sum up, in the order in which they are shown."""
STUDIES = (
    *("separation", "optimisers", "losses", "imbalance", "etf"),
    *("outliers", "transfer"),
)
"""Figures of studies beyond the paper, which a config asks for by name."""
MOVING = ("gif", "html")
"""Formats of Figure 1 alone: an animation, and a page in which it can be turned."""

_HOMES = {
    "FIGURES": "registry",
    "FigureEntry": "registry",
    "caption": "registry",
    "figure_1": "picture",
    **{f"figure_{number}": "grid" for number in range(2, 9)},
    "etf": "etf_figure",
    "imbalance": "imbalance_figure",
    "losses": "losses_figure",
    "optimisers": "optimisers_figure",
    "outliers": "other_figure",
    "overview": "overview_figure",
    "plot": "registry",
    "save": "style",
    "separation": "separation_figure",
    "sweep": "sweep_figure",
    "transfer": "other_figure",
}

__all__ = sorted([*_HOMES, "MOVING", "NAMES", "STUDIES"])


def __getattr__(name: str):
    # A submodule of the same name as its function (`sweep`, `overview`) would hide the function
    # once imported, so those modules are called *_figure.
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
