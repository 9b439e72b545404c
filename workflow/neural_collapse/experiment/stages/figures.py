"""From tables to figures and the report page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ...figures import MOVING, NAMES
from ...figures.registry import figure_entry
from ...figures.registry import plot as plot_figures
from ...figures.specs import Look
from ...io.errors import UserError
from ...io.files import read_json
from ...report.build import build_report
from ...results.run_facts import read_cards, read_run, read_runs


def plot(
    tables: Path,
    figure: Sequence[str] | None,
    output: Sequence[Path] | None,
    output_folder: Path | None,
    formats: Sequence[str],
    epoch_axis: str,
    width: str,
    shared_y_axis: str,
    **more: Any,
) -> None:
    """Draw one figure into the given files, or several into a folder."""
    names = [figure_entry(name).name for name in figure or NAMES]
    if output and (len(names) > 1 or output_folder):
        raise UserError("--output: needs exactly one --figure; use --output-folder for several")
    if not output and not output_folder:
        raise UserError("--output or --output-folder: give one of them")
    files = {names[0]: output}
    if output_folder:
        files = {
            name: [
                output_folder / f"{name}.{format}"
                for format in formats
                if format not in MOVING or name == "figure_1"
            ]
            for name in names
        }
    plot_figures(tables, files, Look(epoch_axis, width, shared_y_axis), **more)


def report(
    tables_folder: Path,
    figures_folder: Path,
    output: Path,
    runs: Sequence[Path],
    cards: Sequence[Path],
    reference_folder: Path | None,
    config_json: Any,
    **layout: Any,
) -> None:
    """Build the report page."""
    if not isinstance(config_json, dict) or not isinstance(config_json.get("experiment"), str):
        raise UserError("--config-json: is not a config with an experiment name")
    given = config_json.get("figures") or {}
    look = Look(**{key: given[key] for key in Look.__annotations__ if key in given})
    shipped_runs = shipped_cards = []
    if reference_folder is not None:
        shipped_runs, shipped_cards = read_runs(reference_folder), read_cards(reference_folder)
    build_report(
        tables_folder,
        figures_folder,
        output,
        [*map(read_run, runs), *shipped_runs],
        [*(read_json(card, "a data card") for card in cards), *shipped_cards],
        yaml.safe_dump(config_json, sort_keys=False, allow_unicode=True),
        f"Neural collapse: {config_json['experiment']}",
        look,
        **layout,
    )
