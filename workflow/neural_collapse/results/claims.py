"""The paper's claims, checked on our tables: one row a network x dataset x phenomenon.

No absolute threshold says "collapsed".  A value is compared with the same network's value before
training (epoch 0) and at the start of its terminal phase of training (TPT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..io.files import write_text_atomically
from . import paper
from .layout import Layout, rows_of
from .table1 import DASH, cells_to_judge, markdown_table, origin_note
from .tables import check_frame, write_table

HOLDS, DOES_NOT, CANNOT_SAY = "holds", "does not", "cannot say"
NC1_FACTOR = 10
"""NC1 must end at least this many times below its value before training."""


@dataclass(frozen=True)
class Phenomenon:
    """One of the paper's claims and the criterion by which it is judged."""

    name: str
    statistic: str
    split: str
    criterion: str
    test: Callable[[float, float, float], bool]
    """Whether it holds, of the values at epoch 0, at the start of the TPT and at the end."""
    paper: str = DASH

    @property
    def quantity(self) -> str:
        """What the values of its rows are."""
        return "1 - error" if self.statistic == "error" else self.statistic


def _falls(name: str, statistic: str) -> Phenomenon:
    return Phenomenon(
        name,
        statistic,
        "train",
        "at the last epoch lower than at the start of the TPT and lower than at epoch 0",
        lambda zero, start, end: end < start and end < zero,
        "falls during the TPT",
    )


def _falls_in_terminal_phase(name: str, statistic: str) -> Phenomenon:
    return Phenomenon(
        name,
        statistic,
        "train",
        "at the last epoch lower than at the start of the TPT (not compared with epoch 0: freshly "
        "drawn classifier weights are nearly equinorm and equiangular by chance)",
        lambda zero, start, end: end < start,
        "falls during the TPT",
    )


PHENOMENA: tuple[Phenomenon, ...] = (
    Phenomenon(
        "NC1 within-class variability",
        "nc1_within_class_variability",
        "train",
        "at the last epoch lower than at the start of the TPT and at least "
        f"{NC1_FACTOR} times lower than at epoch 0",
        lambda zero, start, end: end < start and NC1_FACTOR * end <= zero,
        "falls during the TPT",
    ),
    _falls("NC2 equinorm: class means", "nc2_equinorm_means"),
    _falls_in_terminal_phase("NC2 equinorm: classifiers", "nc2_equinorm_classifier"),
    _falls("NC2 equiangularity: class means", "nc2_equiangularity_means"),
    _falls_in_terminal_phase("NC2 equiangularity: classifiers", "nc2_equiangularity_classifier"),
    _falls("NC2 maximal angle: class means", "nc2_maximal_angle_means"),
    _falls_in_terminal_phase("NC2 maximal angle: classifiers", "nc2_maximal_angle_classifier"),
    _falls("NC3 self-duality", "nc3_self_duality"),
    Phenomenon(
        "NC4 nearest class-centre decision",
        "nc4_ncc_mismatch",
        "test",
        "at the last epoch not higher than at the start of the TPT, and lower than at epoch 0 (or "
        "zero)",
        lambda zero, start, end: end <= start and (end < zero or end == 0),
        "falls during the TPT",
    ),
    Phenomenon(
        "robustness",
        "robustness",
        "test",
        "at the last epoch not lower than at the start of the TPT",
        lambda zero, start, end: end >= start,
        f"median gain {paper.ROBUSTNESS_GAIN_MEDIAN}, mean {paper.ROBUSTNESS_GAIN_MEAN}",
    ),
    Phenomenon(
        "test accuracy",
        "error",
        "test",
        "accuracy (1 - error) at the last epoch not lower than at the start of the TPT",
        lambda zero, start, end: end >= start,
    ),
)


def check_claims(
    measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout | None = None
) -> pd.DataFrame:
    """The `claims` table: every phenomenon in every cell of the layout.

    Values are means over the seeds that reached the terminal phase; test accuracy is 1 - error.
    Its start is the epoch in `runs` where the statistic was measured then, otherwise the first
    measured epoch after it, as column epoch_at_start says.  "cannot say" where no seed reached the
    terminal phase, a value is missing or nan, or nothing was measured after the start.
    """
    layout = layout or Layout.of(runs)
    rows = []
    for dataset, architecture, origin in cells_to_judge(layout, runs):
        cell_runs = rows_of(runs, dataset, architecture, origin)
        cell = rows_of(measurements, dataset, architecture, origin)
        for phenomenon in PHENOMENA:
            rows.append(
                {
                    "dataset": dataset,
                    "architecture": architecture,
                    "origin": origin,
                    "dataset_label": dict(layout.datasets)[dataset],
                    "architecture_label": dict(layout.architectures)[architecture],
                    "phenomenon": phenomenon.name,
                    "statistic": phenomenon.quantity,
                    "split": phenomenon.split,
                    "criterion": phenomenon.criterion,
                    "paper": _paper(phenomenon, dataset, architecture),
                    **_judge(phenomenon, cell, cell_runs),
                }
            )
    return check_frame(pd.DataFrame(rows), "claims", "claims")


def _paper(phenomenon: Phenomenon, dataset: str, architecture: str) -> str:
    if phenomenon.statistic != "error":
        return phenomenon.paper
    theirs = paper.TABLE_1.get((dataset, architecture))
    if theirs is None:
        return DASH
    return f"{theirs[0]:.2f} % to {theirs[1]:.2f} % (recalled)"


def _judge(phenomenon: Phenomenon, cell: pd.DataFrame, runs: pd.DataFrame) -> dict:
    """Values, verdict and its reason."""
    verdict = {
        "seeds": 0,
        "epoch_at_start": DASH,
        "epoch_at_end": DASH,
        "at_epoch_0": np.nan,
        "at_start": np.nan,
        "at_end": np.nan,
        "change": np.nan,
        "holds": CANNOT_SAY,
    }
    if runs.empty:
        return verdict | {"reason": "not run"}
    reached = runs[runs["terminal_phase_epoch"].notna() & ~runs["diverged"].astype(bool)]
    # Without a terminal phase the ends are still worth reading.
    considered = reached if len(reached) else runs
    chosen = cell[(cell["statistic"] == phenomenon.statistic) & (cell["split"] == phenomenon.split)]
    values, starts, ends = [], [], []
    for run in considered.itertuples():
        own = chosen[chosen["seed"] == run.seed].set_index("epoch")["value"].sort_index()
        if phenomenon.statistic == "error":
            own = 1 - own
        if own.empty:
            return verdict | {
                "reason": f"{phenomenon.statistic} was not measured (seed {run.seed})"
            }
        start = np.nan
        if len(reached):
            later = own.index[own.index >= run.terminal_phase_epoch]
            if len(later):
                start = own[later[0]]
                starts.append(int(later[0]))
        ends.append(int(own.index[-1]))
        values.append((own.get(0, np.nan), start, own.iloc[-1]))
    zero, start, end = map(float, np.mean(values, axis=0))
    verdict |= {
        "seeds": len(considered),
        "epoch_at_start": _epochs(starts),
        "epoch_at_end": _epochs(ends),
        "at_epoch_0": zero,
        "at_start": start,
        "at_end": end,
        "change": end - start,
    }
    if not len(reached):
        diverged = bool(runs["diverged"].all())
        why = "the training diverged" if diverged else "the terminal phase was not reached"
        return verdict | {"reason": why}
    some = "" if len(reached) == len(runs) else f"; {len(reached)} of {len(runs)} seeds reached TPT"
    if len(starts) < len(reached):
        return verdict | {"reason": f"nothing was measured in the terminal phase{some}"}
    if any(first >= last for first, last in zip(starts, ends, strict=True)):
        reason = "the terminal phase starts at the last measured epoch: nothing to compare"
        return verdict | {"reason": reason + some}
    if not np.isfinite([zero, start, end]).all():
        return verdict | {"reason": f"a value is missing or not finite{some}"}
    holds = HOLDS if phenomenon.test(zero, start, end) else DOES_NOT
    reason = f"epoch 0: {zero:.4g}; start of TPT: {start:.4g}; end: {end:.4g}{some}"
    return verdict | {"holds": holds, "reason": reason}


def _epochs(epochs: list[int]) -> str:
    if not epochs:
        return DASH
    low, high = min(epochs), max(epochs)
    return str(low) if low == high else f"{low} to {high}"


def summary(claims: pd.DataFrame) -> pd.DataFrame:
    """How often each phenomenon holds: phenomenon, holds, does not, cannot say.

    Reference runs have rows of their own, so that no count mixes them with one's own.
    """
    named = claims["phenomenon"] + [origin_note(row) for row in claims.itertuples()]
    counts = pd.crosstab(named, claims["holds"])
    notes = list(dict.fromkeys(origin_note(row) for row in claims.itertuples()))
    counts = counts.reindex(
        index=[p.name + note for note in notes for p in PHENOMENA if p.name + note in set(named)],
        columns=[HOLDS, DOES_NOT, CANNOT_SAY],
        fill_value=0,
    )
    counts.columns.name = None
    return counts.rename_axis("phenomenon").reset_index()


CLAIM_HEADINGS = (
    "Dataset",
    "Network",
    "Phenomenon",
    "Holds",
    "Epoch 0",
    "Start of TPT",
    "End",
    "Change",
    "Epochs (TPT, end)",
    "Seeds",
    "Criterion",
    "Reason",
    "Paper",
)


def display_rows(claims: pd.DataFrame) -> list[list[str]]:
    """The claims as text under :data:`CLAIM_HEADINGS`."""

    def number(value: float, sign: str = "") -> str:
        return DASH if np.isnan(value) else format(value, f"{sign}.3g").replace("-", "−")

    return [
        [
            row.dataset_label,
            row.architecture_label + origin_note(row),
            row.phenomenon,
            row.holds,
            number(row.at_epoch_0),
            number(row.at_start),
            number(row.at_end),
            number(row.change, "+"),
            f"{row.epoch_at_start}, {row.epoch_at_end}",
            str(row.seeds),
            row.criterion,
            row.reason,
            row.paper,
        ]
        for row in claims.itertuples()
    ]


def render_claims(claims: pd.DataFrame) -> str:
    """The claims as Markdown: a summary, the criteria, then a row a cell and phenomenon."""
    counts = summary(claims)
    parts = [
        "# The paper's claims on these runs",
        "",
        "How often each holds, over datasets and networks:",
        "",
        markdown_table(
            ("Phenomenon", "holds", "does not", "cannot say"), counts.values.tolist(), "lrrr"
        ),
        "Criteria, each on the mean over seeds:",
        "",
        *[f"- {p.name} (`{p.quantity}`, {p.split}): {p.criterion}." for p in PHENOMENA],
        "",
    ]
    keep = [i for i, heading in enumerate(CLAIM_HEADINGS) if heading != "Criterion"]
    rows = [[row[i] for i in keep] for row in display_rows(claims)]
    headings = [CLAIM_HEADINGS[i] for i in keep]
    parts.append(markdown_table(headings, rows, "llllrrrrrrll"))
    parts.append(paper.RECALLED + "\n")
    return "\n".join(parts)


def write_claims(claims: pd.DataFrame, output_base: str | Path) -> list[Path]:
    """Write `<output_base>.parquet`, `.csv` and `.md`; their paths."""
    paths = [Path(f"{output_base}.{suffix}") for suffix in ("parquet", "csv", "md")]
    write_table(claims, paths[0], "claims")
    write_text_atomically(paths[1], claims.to_csv(index=False, lineterminator="\n"))
    write_text_atomically(paths[2], render_claims(claims))
    return paths
