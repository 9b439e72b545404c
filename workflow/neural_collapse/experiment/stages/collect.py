"""The tables of all runs put together, and compared with the paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ...io.errors import UserError
from ...results.claims import check_claims, write_claims
from ...results.layout import Layout
from ...results.run_facts import read_run, read_tables, recipe_of
from ...results.table1 import build_table_1, write_table_1
from ...results.tables import (
    OWN,
    RUN_KEY,
    SCHEMAS,
    concat_files,
    concat_tables,
    read_table,
    terminal_phase_epoch,
    write_table,
)
from ...training.closed_form import sum_of_rows_factors
from ..recipe import Recipe, read_recipe

Cells = dict[tuple[str, str], Recipe]
"""Recipes by (dataset, architecture)."""


def collect_tables(
    histories: Sequence[Path],
    statistics: Sequence[Path],
    robustness: Sequence[Path],
    activations: Sequence[Path],
    runs: Sequence[Path],
    sweeps: Sequence[Path],
    recipes: Sequence[Path],
    labels: dict[str, str],
    output_folder: Path,
    reference_folder: Path | None = None,
) -> None:
    """Put the tables of all runs together: everything that a figure reads.

    recipes: of the runs' cells; they say at which accuracy the terminal phase starts.
    labels: how each dataset's column and each architecture's row is titled.
    reference_folder: a set of reference results whose runs of these datasets and architectures
        are put beside them; their origin is `reference`.
    """
    curves = concat_files(histories, "history").drop(columns=["learning_rate", "diverged"])
    measured = concat_files([*statistics, *robustness], "measurements")
    cells = {(r.dataset, r.architecture): r for r in map(read_recipe, recipes)}
    frame = _runs_frame(runs, cells, curves, labels)
    _require_agreement(cells, curves, measured)
    predicted = _predicted(runs, cells, measured)
    tables = {
        "measurements": [curves, measured, predicted],
        "runs": [frame],
        "sweep": [concat_files(sweeps, "sweep")],
        "activations": [concat_files(activations, "activations")],
    }
    reference = {} if reference_folder is None else read_tables(reference_folder)
    for name, parts in tables.items():
        if name in reference:
            shipped = reference[name]
            known = shipped["dataset"].isin(labels) & shipped["architecture"].isin(labels)
            parts = [*parts, shipped[known]]
        write_table(concat_tables(parts, name), output_folder / f"{name}.parquet", name)


def _require_agreement(cells: Cells, curves, measured) -> None:
    """Raise UserError where a trained network was measured that decides as if it were another."""
    errors = curves[(curves["statistic"] == "error") & (curves["split"] == "train")]
    accuracies = measured[measured["statistic"] == "network_accuracy"]
    both = errors.merge(accuracies, on=[*RUN_KEY, "epoch", "split"], suffixes=("", "_measured"))
    # Further apart than any rounding puts them.
    apart = both[(both["value"] < 0.01) & (both["value_measured"] < 0.5)]
    for row in apart.itertuples():
        recipe = cells[row.dataset, row.architecture]
        if recipe.measurement.batch_norm_examples is None:  # a batch's statistics may decide so
            raise UserError(
                f"{row.dataset} x {row.architecture}, seed {row.seed}: the network measured at "
                f"epoch {row.epoch} is not the one that was trained; if it is user-defined, keep "
                "all that its forward uses in parameters and persistent buffers, delete the run "
                "and train again"
            )


def _predicted(runs: Sequence[Path], cells: Cells, measured):
    """NC0 of every measured epoch as the closed form has it, where there is one, and its error."""
    found = measured[(measured["statistic"] == "nc0_sum_of_rows") & (measured["split"] == "train")]
    frames = []
    for run in map(read_run, runs):
        key = [run[name] for name in RUN_KEY]
        recipe = cells[run["dataset"], run["architecture"]]
        examples = run.get("examples_per_epoch", run["train_examples"])
        factors = sum_of_rows_factors(recipe.training, run["learning_rate"], examples)
        own = found[(found[RUN_KEY] == key).all(axis=1)]
        start = own.loc[own["epoch"] == 0, "value"]
        # A fixed classifier's rows sum to zero, which no training changes.
        learned = recipe.network.classifier == "learned" and run.get("learned_classifier", True)
        if factors is None or start.empty or not learned:
            continue
        values = own["epoch"].map(lambda epoch, of=factors: abs(of[epoch])) * start.item()
        errors = (own["value"] - values).abs() / start.item()
        frames.append(own.assign(statistic="nc0_predicted", value=values))
        frames.append(own.assign(statistic="nc0_prediction_error", value=errors))
    return pd.concat(frames, ignore_index=True) if frames else found.iloc[:0]


def _runs_frame(runs: Sequence[Path], cells: Cells, curves, labels: dict[str, str]):
    """The table `runs`: what each run said of itself, its titles, and its terminal phase."""
    rows = []
    for path in runs:
        run = read_run(path)
        dataset, architecture = run["dataset"], run["architecture"]
        if (dataset, architecture) not in cells:
            raise UserError(f"--recipes: none is of {dataset} x {architecture}, as {path} is")
        recipe = cells[dataset, architecture]
        accuracy = recipe.measurement.terminal_phase_accuracy
        # What it was trained with, as it says itself, and what it was then measured with.
        parts = recipe.model_dump(mode="json", exclude={"resources"})
        parts |= recipe_of(run)
        own = curves[(curves[RUN_KEY] == [dataset, architecture, run["seed"]]).all(axis=1)]
        rows.append(
            {
                "origin": OWN,
                **run,
                "dataset_label": labels.get(dataset, run["dataset_label"]),
                "architecture_label": labels.get(architecture, architecture),
                "terminal_phase_accuracy": accuracy,
                "terminal_phase_epoch": terminal_phase_epoch(own, accuracy),
                "recipe": json.dumps(parts, sort_keys=True),
            }
        )
    frame = pd.DataFrame(rows, columns=SCHEMAS["runs"].names)
    return frame.astype({"terminal_phase_epoch": "Int64"})


def compare(tables_folder: Path, output_folder: Path, **layout: Any) -> None:
    """Write Table 1, and judge the paper's claims."""
    measurements, runs = (
        read_table(tables_folder / f"{name}.parquet", name) for name in ("measurements", "runs")
    )
    table_1 = build_table_1(measurements, runs, Layout.of(runs, **layout))
    claims = check_claims(measurements, runs)
    write_table_1(table_1, output_folder / "table_1")
    write_claims(claims, output_folder / "claims")
