"""Figures and Table 1, drawn from tables alone.

The names below are loaded when they are first used, so that numpy-only parts such as
:mod:`neural_collapse.figures.projection` can be imported without matplotlib.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "FIGURES": "registry",
    "FigureEntry": "registry",
    "caption": "registry",
    "draw": "registry",
    "figure_1": "picture",
    **{f"figure_{number}": "grid" for number in range(2, 9)},
    "Layout": "layout",
    "overview": "overview_figure",
    "project_three_classes": "projection",
    "save": "style",
    "sweep": "sweep_figure",
    "build_table_1": "table1",
    "render_table_1": "table1",
    "write_table_1": "table1",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    # A submodule of the same name as its function (`sweep`, `overview`) would hide the function
    # once imported, so those modules are called *_figure.
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
