"""Table 1: test accuracy at the start of the terminal phase and at the end, paper and ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..io.files import write_text_atomically
from . import paper
from .layout import Layout, origins_of, rows_of
from .studies import OPTIMISERS
from .tables import REFERENCE, check_frame, recipe_values, run_recipe, where, write_table

DASH = "–"
NONE_FOUND = "none found"
SUFFIXES = ("parquet", "csv", "md", "tex")
HEADINGS = (
    "Dataset",
    "Network",
    "Paper, start of TPT",
    "Paper, end",
    "Ours, start of TPT",
    "Ours, end",
    "Difference, start",
    "Difference, end",
    "Seeds",
    "Deviations",
)


def _accuracy(rows: pd.DataFrame, seed: int, epoch: float) -> float:
    """Test accuracy (0 to 1) of one run at an epoch, nan if it is not there; inf: the last one."""
    errors = where(rows, seed=seed, statistic="error", split="test").set_index("epoch")["value"]
    return 1 - errors.get(min(epoch, errors.index.max()), np.nan)


# What a recipe may have otherwise, and how that is said: {0} is ours, {1} the paper's. Left out is
# what changes last digits at most, what is drawn at random, and what columns of the table say.
_WORDS = {
    "network.stem": "{0} stem instead of {1}",
    "network.pooled_size_px": "maps pooled to {0} for {1} px",
    "data.test_examples_per_class": "{0} for {1} test images a class",
    "training.batch_size": "batch size {0} for {1}",
    "training.keep_incomplete_batch": "incomplete batches kept",
    "training.loss": "loss {0} for {1}",
    "training.optimizer": "{0} for {1}",
    "training.momentum": "momentum {0} for {1}",
    "training.weight_decay": "weight decay {0} for {1}",
    "training.learning_rate_milestones": "rate lowered at {0} for {1}",
    "training.oversample": "images of smaller classes repeated",
    "data.imbalance": "{0}",
    "data.random_labels": "share {0} of the labels shuffled",
    "training.learning_rate_factor": "rate lowered by {0} for {1}",
    "training.precision": "{0} for {1}",
    "sweep.learning_rate_min": "sweep from {0} for {1}",
    "sweep.learning_rate_max": "sweep to {0} for {1}",
    "sweep.count": "{0} for {1} learning rates",
    "sweep.additional_learning_rates": "additional learning rates {0}",
    "sweep.selection": "selection by {0} for {1}",
    "measurement.epochs": "{0} for {1} measured epochs",
    "measurement.batch_norm_examples": "measured with the batch normalisation of {0} images",
    "robustness.images": "{0} for {1} attacked images",
    "robustness.overshoot": "overshoot {0} for {1}",
    "robustness.max_steps": "{0} for {1} DeepFool steps",
    "robustness.candidate_classes": "{0} for {1} DeepFool classes",
}

_DEFAULTS: Mapping[str, Any] = {
    "training.optimizer": {"name": "sgd"},
    "training.oversample": False,
    "data.imbalance": None,
    "data.random_labels": 0.0,
    "measurement.batch_norm_examples": None,
}


def deviations(run: pd.Series) -> list[str]:
    """Differences between a run's recipe and the paper's, as far as the table contains them."""
    protocol = paper.PROTOCOL.get((run["dataset"], run["architecture"]))
    if protocol is None:
        return []
    found = []
    if run["network"] != protocol.network:
        found.append(f"{run['network']} for {protocol.network}")
    recipe = run_recipe(run)
    # A recipe does not name the default.
    ours, theirs = ({**_DEFAULTS, **recipe_values(r)} for r in (recipe, protocol.recipe))
    for column, unit, expected in [
        ("train_examples", "train images", protocol.train_examples),
        ("epochs", "epochs", theirs["training.epochs"]),
    ]:
        if run[column] != expected:
            found.append(f"{run[column]:,} for {expected:,} {unit}")
    own, accuracy = run["terminal_phase_accuracy"], theirs["measurement.terminal_phase_accuracy"]
    if not np.isclose(own, accuracy):
        found.append(f"TPT from {100 * own:.4g} % for {100 * accuracy:.4g} %")
    side = protocol.side_px(recipe.get("data", {}))
    if side != protocol.image_size_px:
        found.append(f"{side} for {protocol.image_size_px} px")
    words = _WORDS
    if run["learning_rate_origin"] == "pinned":
        found.append("learning rate pinned")
        words = {key: text for key, text in words.items() if not key.startswith("sweep.")}
    for key, text in words.items():
        if key in ours and key in theirs:
            said = [_said(key, values[key]) for values in (ours, theirs)]
            if said[0] != said[1]:
                found.append(text.format(*said))
    return found


def _said(key: str, value: Any) -> str:
    """A recipe's value in words."""
    if key == "training.precision" and value == "tf32":
        return "TF32"
    if key == "measurement.epochs" and isinstance(value, list):
        return str(len(value))
    if key == "training.optimizer":
        return OPTIMISERS[value["name"]]
    if key == "data.imbalance" and value is not None:
        classes = len(value["minority_classes"])
        whose = f"{classes} minority class" + "es" * (classes > 1)
        return f"{value['ratio']:g} : 1 {value['kind']} imbalance of {whose}"
    if value is None:
        return "all"
    if isinstance(value, list):
        return ", ".join(_said("", item) for item in value)
    return f"{value:,.6g}" if isinstance(value, (int, float)) else str(value).replace("_", " ")


def cells_to_judge(layout: Layout, runs: pd.DataFrame) -> list[dict[str, str]]:
    """Dataset, architecture, origin and titles of every row: each cell once, also without runs, or
    twice if it has own and reference runs."""
    cells = []
    for dataset, architecture in layout.cells():
        present = rows_of(runs, dataset, architecture)
        for origin in origins_of(present) if len(present) else origins_of(runs)[:1]:
            facts = {"dataset": dataset, "architecture": architecture, "origin": origin}
            facts["dataset_label"] = layout.datasets[dataset]
            facts["architecture_label"] = layout.architectures[architecture]
            cells.append(facts)
    return cells


def origin_note(row) -> str:
    """The suffix of the network of a reference run; empty for an own run."""
    return " (reference)" if row.origin == REFERENCE else ""


def build_table_1(
    measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout | None = None
) -> pd.DataFrame:
    """The `table_1` table: a row for every cell of the layout, also those that were not run.

    Ours is the mean over seeds of the test accuracy in %: at the epoch in which each reached the
    terminal phase (only seeds that did), and at the last one (all seeds).  A run that diverged
    makes its cell's mean nan.
    """
    layout = layout or Layout.of(runs)
    rows = []
    for facts in cells_to_judge(layout, runs):
        dataset, architecture, origin = (facts[k] for k in ("dataset", "architecture", "origin"))
        cell_runs = rows_of(runs, dataset, architecture, origin)
        cell = rows_of(measurements, dataset, architecture, origin)
        starts, ends = [], []
        for run in cell_runs.itertuples():
            if not pd.isna(run.terminal_phase_epoch):
                starts.append(_accuracy(cell, run.seed, run.terminal_phase_epoch))
            ends.append(np.nan if run.diverged else _accuracy(cell, run.seed, np.inf))
        theirs = paper.TABLE_1.get((dataset, architecture), (np.nan, np.nan))
        ours = [100 * float(np.mean(v)) if v else np.nan for v in (starts, ends)]
        found = [part for _, run in cell_runs.iterrows() for part in deviations(run)]
        rows.append(
            {
                **facts,
                "network": ", ".join(sorted(set(cell_runs["network"]))),
                "paper_start": theirs[0],
                "paper_end": theirs[1],
                "ours_start": ours[0],
                "ours_end": ours[1],
                "difference_start": ours[0] - theirs[0],
                "difference_end": ours[1] - theirs[1],
                "seeds": len(cell_runs),
                "seeds_terminal": len(starts),
                "deviations": "; ".join(dict.fromkeys(found)),
            }
        )
    return check_frame(pd.DataFrame(rows), "table_1", "Table 1")


def number_text(value: float, format: str) -> str:
    """A number in this format; a dash for nan."""
    return DASH if np.isnan(value) else f"{value:{format}}".replace("-", "−")


def display_rows(table: pd.DataFrame) -> list[list[str]]:
    """Table 1's cells as text, in the order of :data:`HEADINGS`; a dash for a missing value."""
    rows = []
    for row in table.itertuples():
        seeds = str(row.seeds)
        if row.seeds and row.seeds_terminal < row.seeds:
            seeds += f" ({row.seeds_terminal} reached TPT)"
        rows.append(
            [
                row.dataset_label,
                _network_name(row) + (origin_note(row) if row.seeds else ""),
                number_text(row.paper_start, ".2f"),
                number_text(row.paper_end, ".2f"),
                number_text(row.ours_start, ".2f"),
                number_text(row.ours_end, ".2f"),
                number_text(row.difference_start, "+.2f"),
                number_text(row.difference_end, "+.2f"),
                seeds if row.seeds else "not run",
                row.deviations
                or (DASH if np.isnan(row.paper_end) or not row.seeds else NONE_FOUND),
            ]
        )
    return rows


def _network_name(row) -> str:
    """The name of a row's network; of a user-defined one, `module:function`, its label."""
    if row.network and ":" not in row.network:
        return row.network
    protocol = paper.PROTOCOL.get((row.dataset, row.architecture))
    return protocol.network if protocol and not row.network else row.architecture_label


def notes(table: pd.DataFrame) -> str:
    """The text under the table."""
    text = (
        "Test accuracy in %, ours as mean over seeds; differences are ours minus the paper's, in "
        f"percentage points. {paper.RECALLED}"
    )
    if (table["deviations"] != "").any():
        text += (
            " Where deviations are named, our recipe is not the paper's, and its numbers need not "
            "agree."
        )
    if (table["origin"] == REFERENCE).any():
        text += " (reference): a run shipped in results/reference, not one of this experiment."
    return text


def render_table_1(table: pd.DataFrame, format: str = "md") -> str:
    """Table 1 as text: `md` (Markdown), `csv` (raw numbers) or `tex` (LaTeX, booktabs)."""
    if format == "csv":
        return table.to_csv(index=False, lineterminator="\n")
    if format == "md":
        return markdown_table(HEADINGS, display_rows(table), "llrrrrrrll") + f"\n{notes(table)}\n"
    return _latex(table)


def write_table_1(table: pd.DataFrame, output_base: str | Path) -> list[Path]:
    """Write `<output_base>.parquet`, `.csv`, `.md` and `.tex`; returns their paths."""
    paths = [Path(f"{output_base}.{suffix}") for suffix in SUFFIXES]
    write_table(table, paths[0], "table_1")
    for path, format in zip(paths[1:], SUFFIXES[1:], strict=True):
        write_text_atomically(path, render_table_1(table, format))
    return paths


def markdown_table(headings, rows, alignment: str) -> str:
    """A Markdown table; `alignment` has one of l, r for each column."""
    rule = ["---:" if side == "r" else "---" for side in alignment]
    text = ""
    for cells in (headings, rule, *rows):
        escaped = [str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells]
        text += f"| {' | '.join(escaped)} |\n"
    return text


_LATEX_COLUMNS = [
    ("", "Dataset"),
    ("", "Network"),
    *((whose, when) for whose in ("Paper", "Ours", "Difference") for when in ("TPT", "end")),
    (" ", "Seeds"),
]
_LATEX_SIGNS = {"−": "$-$", DASH: "--", "×": r"$\times$"}


def _latex(table: pd.DataFrame) -> str:
    """A tabular of booktabs; an asterisk marks networks whose deviations are listed below it."""
    rows, lines, above = display_rows(table), [], ""
    for dataset, network, *numbers, deviations in rows:
        mark = "" if deviations in (DASH, NONE_FOUND) else "*"
        lines.append(["" if dataset == above else dataset, network + mark, *numbers])
        above = dataset
    frame = pd.DataFrame(lines, columns=pd.MultiIndex.from_tuples(_LATEX_COLUMNS))
    text = (
        frame.style.hide(axis="index")
        .format(escape="latex")
        .to_latex(hrules=True, column_format="llrrrrrrl", multicol_align="c")
    )
    for sign, command in _LATEX_SIGNS.items():
        text = text.replace(sign, command)
    marked = [row for row in rows if row[-1] not in (DASH, NONE_FOUND)]
    comments = [notes(table), *(f"*: {row[0]}, {row[1]}: {row[-1]}" for row in marked)]
    return "".join(
        [r"% \usepackage{booktabs,multirow}", "\n", text, *(f"% {c}\n" for c in comments)]
    )
