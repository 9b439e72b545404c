"""The paper's claims, judged on our tables: one row a network x dataset x phenomenon.

There is no absolute threshold for collapse.  A value is compared with the same network's value
before training (epoch 0) and at the start of its terminal phase of training (TPT); if the
difference is within the noise of one training, the verdict is "cannot say".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..collapse.registry import REGISTRY
from ..io.files import write_text_atomically
from . import noise, paper
from .contrasts import CONTRASTS, Contrast, judge_contrast
from .layout import Layout, of_origin, rows_of
from .separation import LINEARITY
from .studies import MSE_PARTS, NC0_ERROR, NC1, NC4, last_values, optimiser_of
from .table1 import DASH, cells_to_judge, markdown_table, origin_note
from .tables import (
    CANNOT_SAY,
    DOES_NOT,
    HOLDS,
    VERDICTS,
    check_frame,
    run_recipe,
    verdict_of,
    write_table,
)
from .trends import TRENDS, Trend, trends_of

NC1_FACTOR = 10
"""NC1 must end at least this many times below its value before training."""

LEAST_ATTACKED = 50
"""Attacked images below which robustness is not judged: what its floor was measured with."""

FELL = "falls during the TPT"


@dataclass(frozen=True)
class Phenomenon:
    """One of the paper's claims and the criterion by which it is judged."""

    statistic: str
    split: str = "train"
    rises: bool = False
    """Whether it is to rise from the start of the TPT to the end; otherwise it is to fall."""
    factor: float | None = 1
    """How many times the value at the end must be below that at epoch 0; None compares neither."""
    floor: float | None = None
    """Standard error of one seed's change, as a share of the value at the start of the TPT; None
    for a share of test examples, whose noise is that of counting."""
    paper: str = FELL

    @property
    def name(self) -> str:
        """How the tables call it."""
        return "test accuracy" if self.statistic == "error" else REGISTRY[self.statistic].label

    @property
    def short_name(self) -> str:
        """The same in a column's width."""
        return "accuracy" if self.statistic == "error" else REGISTRY[self.statistic].short_label

    @property
    def quantity(self) -> str:
        """What the values of its rows are."""
        return "1 - error" if self.statistic == "error" else self.statistic

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        way = "higher" if self.rises else "lower"
        text = f"at the last epoch {way} than at the start of the TPT"
        if self.rises:
            return text
        if self.factor is None:
            return text + (
                " (not compared with epoch 0: freshly drawn classifier weights are nearly equinorm "
                "and equiangular by chance)"
            )
        times = f"at least {self.factor} times lower" if self.factor > 1 else "lower"
        return f"{text} and {times} than at epoch 0, or zero"

    def rows(self, cell: pd.DataFrame) -> pd.DataFrame:
        """Its values among the measurements of a cell."""
        return cell[(cell["statistic"] == self.statistic) & (cell["split"] == self.split)]

    def verdict(self, zero: float, start: float, end: float, noise: float) -> str:
        """Of its values at epoch 0, at the start of the TPT and at the end."""
        margins = [end - start if self.rises else start - end]
        if not self.rises and self.factor is not None:
            margins.append(zero / self.factor - end)
        if not self.rises and end == 0:
            return HOLDS
        return verdict_of(min(margins), noise)


NOISE = (
    "Two values decide where they differ by more than the noise, half the width of a 95 % "
    f"confidence interval; within it the verdict is “{CANNOT_SAY}”. With several seeds it is "
    "Student's, of the mean change from the start of the TPT to the end (with two seeds 9 standard "
    "deviations, with three 2.5). With one seed it is, for mismatch and accuracy, which are shares "
    "p of N test images, that of counting, 1.96 √(Σ p (1 − p) / N); for the others 1.96 times a "
    "share of the value at the start: the standard deviation of the change over seeds 0 to 2 of "
    "config/quickstart.yaml, its rates all pinned, in the median of its six cells. The comparison "
    "with epoch 0 allows the same noise. Robustness is judged from "
    f"{LEAST_ATTACKED} attacked images on. The shares: "
)


def _pair(statistic: str, means: float, classifiers: float) -> tuple[Phenomenon, ...]:
    return (
        Phenomenon(f"{statistic}_means", floor=means),
        Phenomenon(f"{statistic}_classifier", factor=None, floor=classifiers),
    )


PHENOMENA: tuple[Phenomenon, ...] = (
    Phenomenon("nc1_within_class_variability", factor=NC1_FACTOR, floor=0.11),
    *_pair("nc2_equinorm", 0.3, 0.037),
    *_pair("nc2_equiangularity", 0.016, 0.008),
    *_pair("nc2_maximal_angle", 0.025, 0.011),
    Phenomenon("nc3_self_duality", floor=0.023),
    Phenomenon("nc4_ncc_mismatch", "test"),
    Phenomenon(
        "robustness",
        "test",
        rises=True,
        floor=0.039,
        paper=f"median gain {paper.ROBUSTNESS_GAIN_MEDIAN}, mean {paper.ROBUSTNESS_GAIN_MEAN}",
    ),
    Phenomenon("error", "test", rises=True),
)


@dataclass(frozen=True)
class Bound:
    """A study's claim: a statistic lies below a bound, or does not.

    It is judged where the statistic was measured and `applies` is true of the run's recipe.
    """

    name: str
    statistic: str
    bound: float
    below: bool
    """Whether it is to lie below the bound."""
    before: bool
    """Whether it is of epoch 0, before training; otherwise of the last measured epoch."""
    paper: str
    """What the study's authors found, and where."""
    applies: Callable[[Mapping[str, Any]], bool]
    split: str = "train"
    parts: tuple[str, ...] = ()
    """Statistics of whose sum the value is a share; none for the statistic itself."""
    exact: bool = False
    """Whether it has no noise, so that one seed decides."""

    @property
    def quantity(self) -> str:
        """What the values of its rows are."""
        return f"{self.statistic} / sum of its parts" if self.parts else self.statistic

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        when = "before training" if self.before else "at the last epoch"
        seeds = "" if self.exact else ", in every one of two or more seeds"
        return f"{when} {'below' if self.below else 'not below'} {self.bound:g}{seeds}"

    def verdict(self, values: np.ndarray) -> str:
        """Of the values of all seeds."""
        right = (values < self.bound) == self.below
        if len(values) == 1 and not self.exact:
            return CANNOT_SAY
        return HOLDS if right.all() else CANNOT_SAY if right.any() else DOES_NOT


def _normed_relu(recipe: Mapping[str, Any]) -> bool:
    network = recipe.get("network", {})
    return network.get("batch_norm", True) and network.get("activation", "relu") == "relu"


_HE_SU = "He and Su 2023"
STUDY_CLAIMS: tuple[Bound, ...] = (
    Bound(
        "law of data separation",
        LINEARITY,
        -0.98,
        below=True,
        before=False,
        paper=f"a straight line ({_HE_SU}, figure 1); the bound is this project's",
        applies=_normed_relu,
    ),
    Bound(
        "no law of data separation before training",
        LINEARITY,
        -0.98,
        below=False,
        before=True,
        paper=f"no line ({_HE_SU}); the bound is this project's",
        applies=_normed_relu,
    ),
    Bound(
        "no law of data separation without batch norm or non-linearity",
        LINEARITY,
        -0.98,
        below=False,
        before=False,
        paper=f"no line ({_HE_SU}, their code's README); the bound is this project's",
        applies=lambda recipe: not _normed_relu(recipe),
    ),
    Bound(
        "closed form of NC0",
        NC0_ERROR,
        1e-3,
        below=True,
        before=False,
        paper="exact, for any data (derived after Zhao et al. 2026); the bound is this "
        "project's: rounding to float32 adds up to 1e-4 in 136,500 steps",
        # SGDW's factor 1 - learning rate x decay is rounded to float32 in every step alike, so that
        # its deviation grows with the steps and says nothing of the training.
        applies=lambda recipe: optimiser_of(recipe) == "sgd",
        exact=True,
    ),
    Bound(
        "MSE: the last layer is the least-squares one of its features",
        MSE_PARTS[-1],
        0.1,
        below=True,
        before=False,
        paper="negligible late (Han, Papyan and Donoho 2022, recalled); the bound is this "
        "project's",
        applies=lambda recipe: True,
        parts=MSE_PARTS,
    ),
)
"""Claims of studies beyond the paper, of one cell each."""


@dataclass(frozen=True)
class RandomLabels(Trend):
    """The claim that a network collapses onto labels that are all random."""

    most_mismatch: float = 0.01

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        own = f"and the train split's {NC4} below {self.most_mismatch:g} there"
        return f"{super().criterion}, {own}"


RANDOM_LABELS = RandomLabels(
    "collapse under random labels",
    NC1,
    rises=False,
    split="train",
    paper="collapse under random labels too (Zhu et al. 2021, recalled); the criterion is this "
    "project's",
)


NOISE += "; ".join(f"{p.name} {100 * p.floor:.2g} %" for p in PHENOMENA if p.floor) + "."
"""When values differ enough for a verdict, in words."""


def check_claims(
    measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout | None = None
) -> pd.DataFrame:
    """The `claims` table: every phenomenon in every cell of the layout.

    Values are means over the seeds that reached the terminal phase; test accuracy is 1 - error.
    Its start is the epoch in `runs` where the statistic was measured then, otherwise the first
    measured epoch after it, as column epoch_at_start says.  "cannot say" where the values differ
    by less than the noise, no seed reached the terminal phase, a value is missing or nan, or
    nothing was measured after the start.
    """
    layout = layout or Layout.of(runs)
    rows = []
    for facts in cells_to_judge(layout, runs):
        dataset, architecture, origin = (facts[k] for k in ("dataset", "architecture", "origin"))
        cell_runs = rows_of(runs, dataset, architecture, origin)
        cell = rows_of(measurements, dataset, architecture, origin)
        judged: list[tuple[Phenomenon | Study, str, dict]] = [
            (p, _paper(p, dataset, architecture), _judge(p, cell, cell_runs)) for p in PHENOMENA
        ]
        judged += [(t, t.paper, _judge(t, cell, cell_runs)) for t in trends_of(cell)]
        if NC1 in set(cell["statistic"]) and _shuffled(cell_runs):
            judged.append((RANDOM_LABELS, RANDOM_LABELS.paper, _judge_random(cell, cell_runs)))
        judged += [(b, b.paper, _judge_bound(b, cell, cell_runs)) for b in _bounds(cell, cell_runs)]
        beside = [
            of_origin(frame[frame["dataset"] == dataset], origin) for frame in (measurements, runs)
        ]
        for contrast in CONTRASTS:
            verdict = judge_contrast(contrast, beside[0], cell_runs, beside[1])
            judged += [] if verdict is None else [(contrast, contrast.paper, verdict)]
        for claim, published, verdict in judged:
            rows.append(
                {
                    **facts,
                    "phenomenon": claim.name,
                    "statistic": claim.quantity,
                    "split": claim.split,
                    "criterion": claim.criterion,
                    "paper": published,
                    **verdict,
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


def _judge(phenomenon: Phenomenon | Trend, cell: pd.DataFrame, runs: pd.DataFrame) -> dict:
    """Values, verdict and its reason."""
    reached = runs[runs["terminal_phase_epoch"].notna() & ~runs["diverged"].astype(bool)]
    # Without a terminal phase the ends are still worth reading.
    considered = reached if len(reached) else runs
    chosen = phenomenon.rows(cell)
    curves = {run.Index: _curve(chosen, phenomenon, run.seed) for run in considered.itertuples()}
    unmeasured = [runs.loc[index, "seed"] for index, curve in curves.items() if curve.empty]
    points = [_points(curves[run.Index], run) for run in considered.itertuples()]
    if runs.empty or unmeasured:
        points = []
    values = np.array([values for values, _ in points]).reshape(-1, 3)
    starts = [start for _, (start, _) in points if start is not None]
    ends = [end for _, (_, end) in points]
    zero, start, end = map(float, values.mean(axis=0)) if points else (np.nan,) * 3
    allowed = _noise(phenomenon, values, 0 if runs.empty else runs["test_examples"].iloc[0])
    row = {
        "seeds": len(points),
        "epoch_at_start": _epochs(starts),
        "epoch_at_end": _epochs(ends),
        "at_epoch_0": zero,
        "at_start": start,
        "at_end": end,
        "change": end - start,
        "noise": allowed,
        "holds": CANNOT_SAY,
    }
    some = f"; {len(reached)} of {len(runs)} seeds reached TPT" * (0 < len(reached) < len(runs))
    if runs.empty:
        return row | {"reason": "not run"}
    if unmeasured:
        return row | {"reason": f"{phenomenon.statistic} was not measured (seed {unmeasured[0]})"}
    if phenomenon.statistic == "robustness" and 0 < (attacked := _attacked(runs)) < LEAST_ATTACKED:
        return row | {"reason": f"{attacked} images attacked; {LEAST_ATTACKED} are needed"}
    if reached.empty:
        diverged = bool(runs["diverged"].all())
        why = "the training diverged" if diverged else "the terminal phase was not reached"
        return row | {"reason": why}
    if len(starts) < len(reached):
        return row | {"reason": f"nothing was measured in the terminal phase{some}"}
    if any(first >= last for first, last in zip(starts, ends, strict=True)):
        reason = "the terminal phase starts at the last measured epoch: nothing to compare"
        return row | {"reason": reason + some}
    if not np.isfinite([zero, start, end]).all():
        return row | {"reason": f"a value is missing or not finite{some}"}
    if np.isnan(allowed):
        return row | {"reason": f"one seed does not tell the noise: {start:.4g} to {end:.4g}"}
    reason = f"epoch 0: {zero:.4g}; start of TPT: {start:.4g}; end: {end:.4g}; noise: {allowed:.2g}"
    holds = phenomenon.verdict(zero, start, end, allowed)
    return row | {"holds": holds, "reason": reason + some}


def _recipe(runs: pd.DataFrame) -> dict[str, Any]:
    """The recipe of a cell's runs; empty where the table says nothing of it."""
    return {} if runs.empty else run_recipe(runs.iloc[0])


def _attacked(runs: pd.DataFrame) -> int:
    """How many images are attacked for the robustness; 0 where it is not known."""
    return _recipe(runs).get("robustness", {}).get("images", 0)


def _shuffled(runs: pd.DataFrame) -> bool:
    """Whether all labels of a cell are random."""
    return _recipe(runs).get("data", {}).get("random_labels") == 1


def _judge_random(cell: pd.DataFrame, runs: pd.DataFrame) -> dict:
    """Values, verdict and its reason."""
    row = _judge(RANDOM_LABELS, cell, runs)
    if row["holds"] != HOLDS:
        return row
    reached = runs.loc[
        runs["terminal_phase_epoch"].notna() & ~runs["diverged"].astype(bool), "seed"
    ]
    last = last_values(cell, NC4)
    mismatch = float(last.loc[last["seed"].isin(reached), "value"].mean())
    holds = HOLDS if mismatch < RANDOM_LABELS.most_mismatch else DOES_NOT
    reason = f"{row['reason']}; mismatch: {mismatch:.2g}"
    return row | {"holds": CANNOT_SAY if np.isnan(mismatch) else holds, "reason": reason}


Study = Bound | Contrast | Trend
OF_STUDIES: tuple[Study, ...] = (*STUDY_CLAIMS, RANDOM_LABELS, *CONTRASTS, *TRENDS)
"""Claims of studies beyond the paper, of every kind."""


def _made(claims: pd.DataFrame) -> list[Study]:
    """The studies' claims that a table of claims holds."""
    return [c for c in OF_STUDIES if c.name in set(claims["phenomenon"])]


def _bounds(cell: pd.DataFrame, runs: pd.DataFrame) -> list[Bound]:
    """The studies' claims that apply to a cell."""
    if runs.empty:
        return []
    recipe, measured = _recipe(runs), set(cell["statistic"])
    return [b for b in STUDY_CLAIMS if b.statistic in measured and b.applies(recipe)]


def _judge_bound(claim: Bound, cell: pd.DataFrame, runs: pd.DataFrame) -> dict:
    """Values, verdict and its reason."""
    table = _by_epoch(cell, claim.statistic, claim.split)
    if claim.parts:
        table = table / sum(_by_epoch(cell, part, claim.split) for part in claim.parts)
    last = int(table.index.max())
    values = {epoch: table.reindex([epoch]).to_numpy(float)[0] for epoch in (0, last)}
    own = values[0 if claim.before else last]
    zero, end = (float(each.mean()) for each in values.values())
    row = {
        "seeds": len(own),
        "epoch_at_start": DASH,
        "epoch_at_end": str(last),
        "at_epoch_0": zero,
        "at_start": np.nan,
        "at_end": end,
        "change": end - zero,
        "noise": np.nan,
        "holds": CANNOT_SAY,
    }
    if not np.isfinite(own).all():
        missing = int((~np.isfinite(own)).sum())
        return row | {"reason": f"not defined for {missing} of {len(own)} seeds"}
    reason = f"seeds: {', '.join(f'{value:.4g}' for value in own)}"
    reached = int(runs["terminal_phase_epoch"].notna().sum())
    if not claim.before and not claim.exact and reached < len(runs):
        reason += f"; {reached} of {len(runs)} seeds reached TPT"
    return row | {"holds": claim.verdict(own), "reason": reason}


def _by_epoch(cell: pd.DataFrame, statistic: str, split: str) -> pd.DataFrame:
    """A statistic by epoch and seed."""
    chosen = cell[(cell["statistic"] == statistic) & (cell["split"] == split)]
    return chosen.pivot(index="epoch", columns="seed", values="value")


def _curve(chosen: pd.DataFrame, phenomenon: Phenomenon | Trend, seed: int) -> pd.Series:
    """One seed's values by epoch."""
    own = chosen[chosen["seed"] == seed].set_index("epoch")["value"].sort_index()
    return 1 - own if phenomenon.statistic == "error" else own


def _points(curve: pd.Series, run) -> tuple[tuple[float, float, float], tuple[int | None, int]]:
    """Values at epoch 0, at the start of the TPT and at the end; and the latter two's epochs."""
    if curve.empty:
        return (np.nan,) * 3, (None, 0)
    begun = run.terminal_phase_epoch
    later = [] if pd.isna(begun) else curve.index[curve.index >= begun]
    start = int(later[0]) if len(later) else None
    values = curve.get(0, np.nan), np.nan if start is None else curve[start], curve.iloc[-1]
    return values, (start, int(curve.index[-1]))


def _noise(phenomenon: Phenomenon | Trend, values: np.ndarray, examples: int) -> float:
    """The noise of a change within the TPT, from (seeds, 3) values on `examples` test examples;
    nan if it is unknown. See :data:`NOISE`."""
    if len(values) == 0:
        return np.nan
    if len(values) > 1:
        return noise.of_mean(values[:, 2] - values[:, 1])
    if isinstance(phenomenon, Trend):
        return np.nan
    start, end = map(float, values[0, 1:])
    if phenomenon.floor is None:
        return noise.of_shares((start, end), examples)
    return noise.STANDARD_ERRORS * phenomenon.floor * abs(start)


def _epochs(epochs: list[int]) -> str:
    if not epochs:
        return DASH
    low, high = min(epochs), max(epochs)
    return str(low) if low == high else f"{low} to {high}"


def summary(claims: pd.DataFrame) -> pd.DataFrame:
    """How often each phenomenon holds: phenomenon, holds, does not, cannot say.

    Reference runs have rows of their own, so that no count mixes them with own runs.
    """
    named = claims["phenomenon"] + [origin_note(row) for row in claims.itertuples()]
    counts = pd.crosstab(named, claims["holds"])
    notes = list(dict.fromkeys(origin_note(row) for row in claims.itertuples()))
    counts = counts.reindex(
        index=[
            claim.name + note
            for note in notes
            for claim in (*PHENOMENA, *OF_STUDIES)
            if claim.name + note in set(named)
        ],
        columns=VERDICTS,
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
    "Noise",
    "Epochs (TPT, end)",
    "Seeds",
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
            number(row.noise),
            f"{row.epoch_at_start}, {row.epoch_at_end}",
            str(row.seeds),
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
        markdown_table(("Phenomenon", *VERDICTS), counts.values.tolist(), "lrrr"),
        "Criteria, each on the mean over seeds:",
        "",
        *[
            f"- {p.name} (`{p.quantity}`, {p.split}): {p.criterion}."
            for p in (*PHENOMENA, *_made(claims))
        ],
        "",
        NOISE,
        "",
        markdown_table(CLAIM_HEADINGS, display_rows(claims), "llllrrrrrlrll"),
        paper.RECALLED + "\n",
    ]
    return "\n".join(parts)


def write_claims(claims: pd.DataFrame, output_base: str | Path) -> list[Path]:
    """Write `<output_base>.parquet`, `.csv` and `.md`; their paths."""
    paths = [Path(f"{output_base}.{suffix}") for suffix in ("parquet", "csv", "md")]
    write_table(claims, paths[0], "claims")
    write_text_atomically(paths[1], claims.to_csv(index=False, lineterminator="\n"))
    write_text_atomically(paths[2], render_claims(claims))
    return paths
