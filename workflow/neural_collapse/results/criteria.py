"""The kinds of claims, and how each is evaluated on the runs of one cell.

A `Change` is about the terminal phase of training (TPT), a `Bound` about one value, a `Contrast`
about two cells whose recipes differ in one choice. A difference within the noise, half the width
of a 95 % confidence interval, decides nothing: the verdict is "cannot say".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from .studies import (
    MINORITY_ACCURACY,
    MINORITY_COSINE,
    NC4,
    OPTIMISERS,
    last_values,
    optimiser_of,
    shared_values,
)
from .table1 import DASH
from .tables import CANNOT_SAY, DOES_NOT, HOLDS, RUN_KEY, run_recipe, where

LEAST_ATTACKED = 50
"""Attacked images below which robustness is not judged: its noise was measured with so many."""

ONE_SEED = 0.05
"""Assumed standard error of a single seed's value in a `Contrast`, relative to the value; for a
cosine, which may be near zero, absolute. Chosen by this project: in the study of imbalance the
root mean square of the seeds' standard deviation of a cosine is .042."""

STANDARD_ERRORS = 1.96
"""Half the width of a 95 % confidence interval, in known standard errors."""


def verdict_of(margin: float, noise: float) -> str:
    """The verdict on a claim that holds if `margin` is above zero."""
    if margin < -noise:
        return DOES_NOT
    return HOLDS if margin > noise else CANNOT_SAY


def noise_of_mean(values: np.ndarray) -> float:
    """Noise of the mean of two or more independent values, by Student's t: t s / sqrt(n)."""
    from scipy.special import stdtrit

    n = len(values)
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))


def noise_of_shares(shares: Sequence[float], examples: float) -> float:
    """Noise of a difference of proportions p of N examples: 1.96 sqrt(sum of p (1 - p) / N)."""
    return STANDARD_ERRORS * math.sqrt(sum(max(p * (1 - p), 0.0) for p in shares) / examples)


@dataclass(frozen=True)
class Cell:
    """The runs and measurements of one dataset, architecture and origin."""

    runs: pd.DataFrame
    measurements: pd.DataFrame
    dataset_runs: pd.DataFrame
    """All runs of the same dataset and origin."""
    dataset_measurements: pd.DataFrame

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe of its runs; empty if there are none."""
        return {} if self.runs.empty else run_recipe(self.runs.iloc[0])

    @cached_property
    def dataset_recipes(self) -> list[dict[str, Any]]:
        """The recipes of `dataset_runs`."""
        return [run_recipe({"recipe": recipe}) for recipe in self.dataset_runs["recipe"]]

    @cached_property
    def measured(self) -> set[str]:
        """Names of its statistics."""
        return set(self.measurements["statistic"])


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Base class of all kinds. `judge` returns the columns of the table `claims` from `seeds` to
    `reason`, or None if nothing is claimed about a cell."""

    name: str
    statistic: str
    split: str = "train"
    paper: str
    """What the authors found, and where."""
    applies: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether anything is claimed about a recipe; None for all."""
    needs: tuple[str, ...] = ()
    """Statistics that have to be measured for anything to be claimed."""
    shown_as: str = ""
    """What its values are, if they are not those of the statistic."""

    @property
    def quantity(self) -> str:
        """What its values are."""
        return self.shown_as or self.statistic

    def concerns(self, cell: Cell) -> bool:
        """Whether anything is claimed about a cell."""
        applies = self.applies is None or self.applies(cell.recipe)
        return applies and cell.measured.issuperset(self.needs)

    def rows(self, measurements: pd.DataFrame, statistic: str | None = None) -> pd.DataFrame:
        """Its statistic's rows, or another one's of the same split."""
        return where(measurements, statistic=statistic or self.statistic, split=self.split)


def _columns(
    seeds: int, values: tuple[float, float], change: float, last: Any, noise: float = np.nan
) -> dict[str, Any]:
    """Columns of every kind; values: at epoch 0 and at the last epoch."""
    return {
        "seeds": seeds,
        "epoch_at_start": DASH,
        "epoch_at_end": str(last),
        "at_epoch_0": float(values[0]),
        "at_start": np.nan,
        "at_end": float(values[1]),
        "change": float(change),
        "noise": noise,
        "holds": CANNOT_SAY,
    }


@dataclass(frozen=True, kw_only=True)
class Change(Claim):
    """A statistic rises or falls from the start of the TPT to the last epoch."""

    rises: bool = False
    factor: float | None = None
    """How many times lower than at epoch 0 it must end; None does not compare with epoch 0."""
    spread: float = np.nan
    """Standard deviation of the change over seeds, relative to the value at the start of the TPT
    or, if `counted`, to the counting error; nan if unknown."""
    counted: bool = False
    """Whether the statistic is a share of the test images."""
    zero_holds: bool = False
    """Whether it holds if a statistic that falls ends at zero, whatever the noise."""
    over_train: bool = False
    """Whether the values are divided by those of the train split."""
    least_classes: int = 2
    """Number of classes below which its statistic is zero by definition, whatever the network."""
    most_mismatch: float | None = None
    """NC4's mismatch of the train split must end below it; None allows any."""
    remark: str = ""
    """Added to the criterion."""
    short_name: str = ""
    """Its name in a narrow column."""

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        way, zero = "higher" if self.rises else "lower", ", or zero" if self.zero_holds else ""
        text = f"{way} at the last epoch than at the start of the TPT{zero}"
        if self.factor is not None:
            times = f"at least {self.factor:g} times lower" if self.factor > 1 else "lower"
            text += f"; and {times} than at epoch 0"
        if self.most_mismatch is not None:
            text += f"; and {NC4} of the train split below {self.most_mismatch:g} at the last epoch"
        return text + self.remark

    def judge(self, cell: Cell) -> dict[str, Any] | None:
        """Values, verdict and its reason."""
        if not self.concerns(cell):
            return None
        runs = cell.runs
        reached = runs[runs["terminal_phase_epoch"].notna() & ~runs["diverged"].astype(bool)]
        # If no run reached the terminal phase, the first and last values are still worth reading.
        considered = reached if len(reached) else runs
        curves = self._curves(cell.measurements)
        unmeasured = [seed for seed in considered["seed"] if seed not in curves]
        begun = zip(considered["seed"], considered["terminal_phase_epoch"], strict=True)
        rows = [] if unmeasured else [_points(curves[seed], epoch) for seed, epoch in begun]
        points = np.array(rows, dtype=float).reshape(-1, 5)
        values = points[:, :3]
        zero, start, end = values.mean(axis=0) if len(points) else (np.nan,) * 3
        noise = self._noise(values, runs)
        row = _columns(len(points), (zero, end), end - start, _span(points[:, 4]), noise)
        row |= {"at_start": float(start), "epoch_at_start": _span(points[:, 3])}
        reason = self._undecided(cell, reached, unmeasured)
        if reason is not None:
            return row | {"reason": reason}
        partly = f"; {len(reached)} of {len(runs)} seeds reached TPT"
        partly = partly if len(reached) < len(runs) else ""
        reason = self._incomparable(points, noise)
        if reason is not None:
            return row | {"reason": reason + partly}
        holds = self._verdict(zero, start, end, noise)
        reason = (
            f"epoch 0: {zero:.4g}; start of TPT: {start:.4g}; end: {end:.4g}; noise: {noise:.2g}"
        )
        if self.most_mismatch is not None and holds == HOLDS:
            last_mismatch = last_values(cell.measurements, NC4).set_index("seed")["value"]
            mismatch = last_mismatch.reindex(reached["seed"]).mean()
            holds = HOLDS if mismatch < self.most_mismatch else DOES_NOT
            holds = CANNOT_SAY if np.isnan(mismatch) else holds
            partly += f"; mismatch: {mismatch:.2g}"
        return row | {"holds": holds, "reason": reason + partly}

    def _undecided(self, cell: Cell, reached: pd.DataFrame, unmeasured: list[int]) -> str | None:
        """Why the runs of a cell cannot be judged; None if they can be."""
        if cell.runs.empty:
            return "not run"
        if unmeasured:
            return f"{self.statistic} was not measured (seed {unmeasured[0]})"
        if (classes := int(cell.runs["num_classes"].iloc[0])) < self.least_classes:
            return f"zero by definition with {classes} classes"
        asked = cell.recipe.get("robustness", {}).get("images", LEAST_ATTACKED)
        attacked = min(asked, int(cell.runs["test_examples"].min()))
        if self.statistic == "robustness" and attacked < LEAST_ATTACKED:
            return f"{attacked} images attacked; {LEAST_ATTACKED} are needed"
        if reached.empty and cell.runs["diverged"].all():
            return "the training diverged"
        return "the terminal phase was not reached" if reached.empty else None

    def _incomparable(self, points: np.ndarray, noise: float) -> str | None:
        """Why values of runs that reached the TPT cannot be compared; None if they can be."""
        first, last = points[:, 3:].T
        if np.isnan(first).any():
            return "nothing was measured in the terminal phase"
        if (first >= last).any():
            return "the terminal phase starts at the last measured epoch: nothing to compare"
        if not np.isfinite(points).all():
            return "a value is missing or not finite"
        if np.isnan(noise):
            return f"the noise of one seed is unknown: {points[0, 1]:.4g} to {points[0, 2]:.4g}"
        return None

    def _curves(self, measurements: pd.DataFrame) -> dict[int, pd.Series]:
        """Values by epoch, of each seed."""
        rows = self.rows(measurements)
        if self.over_train:
            key = [*RUN_KEY, "epoch"]
            train = where(measurements, statistic=self.statistic, split="train")
            rows = rows.merge(train[[*key, "value"]], on=key, suffixes=("", "_train"))
            rows = rows.assign(value=rows["value"] / rows["value_train"])
        if self.statistic == "error":
            rows = rows.assign(value=1 - rows["value"])
        return dict(iter(rows.sort_values("epoch").set_index("epoch").groupby("seed")["value"]))

    def _noise(self, values: np.ndarray, runs: pd.DataFrame) -> float:
        """Noise of the change within the TPT; values: (seeds, 3); nan if it is unknown."""
        if len(values) == 0:
            return np.nan
        if len(values) > 1:
            return noise_of_mean(values[:, 2] - values[:, 1])
        start, end = map(float, values[0, 1:])
        if self.counted:
            return self.spread * noise_of_shares((start, end), runs["test_examples"].iloc[0])
        return STANDARD_ERRORS * self.spread * abs(start)

    def _verdict(self, zero: float, start: float, end: float, noise: float) -> str:
        if self.rises:
            return verdict_of(end - start, noise)
        if self.zero_holds and end == 0:
            return HOLDS
        margin = start - end
        if self.factor is not None:
            margin = min(margin, zero / self.factor - end)
        return verdict_of(margin, noise)


def _points(curve: pd.Series, begun: Any) -> tuple[float, ...]:
    """Values at epoch 0, at the start of the TPT and at the end; the latter two's epochs."""
    later = curve[curve.index >= begun] if pd.notna(begun) else curve.iloc[:0]
    start, first = (np.nan, np.nan) if later.empty else (later.iloc[0], later.index[0])
    return curve.get(0, np.nan), start, curve.iloc[-1], first, curve.index[-1]


def _span(epochs: np.ndarray) -> str:
    known = sorted({int(epoch) for epoch in epochs[~np.isnan(epochs)]})
    return " to ".join(map(str, dict.fromkeys([known[0], known[-1]]))) if known else DASH


@dataclass(frozen=True, kw_only=True)
class Bound(Claim):
    """A statistic is below a bound at an epoch, or is not."""

    bound: float
    below: bool
    """Whether it is to lie below the bound."""
    before: bool = False
    """Whether it is that of epoch 0, before training; otherwise of the last measured epoch."""
    parts: tuple[str, ...] = ()
    """Statistics whose sum it is divided by."""
    exact: bool = False
    """Whether it has no noise, so that one seed decides."""

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        when = "before training" if self.before else "at the last epoch"
        seeds = "" if self.exact else ", in every seed (two or more)"
        return f"{'below' if self.below else 'not below'} {self.bound:g} {when}{seeds}"

    def judge(self, cell: Cell) -> dict[str, Any] | None:
        """Values, verdict and its reason."""
        if cell.runs.empty or self.statistic not in cell.measured or not self.concerns(cell):
            return None
        table = self._by_epoch(cell, self.statistic)
        if self.parts:
            table = table / sum(self._by_epoch(cell, part) for part in self.parts)
        last = int(table.index.max())
        zero, end = (table.reindex([epoch]).to_numpy(float)[0] for epoch in (0, last))
        values = zero if self.before else end
        means = zero.mean(), end.mean()
        row = _columns(len(values), means, means[1] - means[0], last)
        missing = int((~np.isfinite(values)).sum())
        if missing:
            return row | {"reason": f"not defined for {missing} of {len(values)} seeds"}
        reason = f"seeds: {', '.join(f'{value:.4g}' for value in values)}"
        reached = int(cell.runs["terminal_phase_epoch"].notna().sum())
        if not self.before and not self.exact and reached < len(cell.runs):
            reason += f"; {reached} of {len(cell.runs)} seeds reached TPT"
        right = (values < self.bound) == self.below
        holds = HOLDS if right.all() else CANNOT_SAY if right.any() else DOES_NOT
        if len(values) == 1 and not self.exact:
            holds = CANNOT_SAY
        return row | {"holds": holds, "reason": reason}

    def _by_epoch(self, cell: Cell, statistic: str) -> pd.DataFrame:
        rows = self.rows(cell.measurements, statistic)
        return rows.pivot(index="epoch", columns="seed", values="value")


Choice = str | float | None
"""What a recipe has chosen; None if a claim says nothing about it."""


def choice_in_words(choice: Choice) -> str:
    """The choice in a sentence; a number is a weight decay."""
    if isinstance(choice, str):
        return OPTIMISERS.get(choice, choice.replace("_", " "))
    return f"weight decay {choice:g}"


@dataclass(frozen=True, kw_only=True)
class Contrast(Claim):
    """A statistic is larger or smaller with one choice than with another, or alike with both."""

    above: bool = False
    """Whether it is to be larger than with the other choice."""
    within: float | None = None
    """The largest difference that counts as alike, if that is what is claimed."""
    choice: Callable[[Mapping[str, Any]], Choice]
    against: Mapping[str, str] | None = None
    """By choice, the one that it is compared with; None compares a number with the next smaller."""
    varies: frozenset[str]
    """Keys of a recipe that make the choice, such as training.loss. The learning rate may differ
    as well, the rest of the recipe must not."""

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        side = "larger" if self.above else "smaller"
        if self.within is not None:
            side = f"at most {self.within:g} larger or smaller"
        if self.against is None:
            pairs = "than with the next smaller weight decay"
        else:
            named = [[choice_in_words(c) for c in pair] for pair in self.against.items()]
            pairs = ", and ".join(f"with {one} than with {other}" for one, other in named)
        return f"{side} at the last epoch {pairs}; the rest of the recipe is the same"

    def judge(self, cell: Cell) -> dict[str, Any] | None:
        """Values, verdict and its reason."""
        compared = self._others(cell)
        if compared is None:
            return None
        other, others = compared
        chosen = self.rows(cell.dataset_measurements)
        last = last_values(chosen, self.statistic, self.split)
        zero, own, theirs = (
            runs[RUN_KEY].merge(of, how="left")["value"].to_numpy(float)
            for runs, of in [
                (cell.runs, chosen.loc[chosen["epoch"] == 0, [*RUN_KEY, "value"]]),
                (cell.runs, last),
                (others, last),
            ]
        )
        if np.isnan(own).all() and self.rows(cell.measurements).empty:
            return None
        noise = float(np.hypot(self._noise(own, cell.runs), self._noise(theirs, others)))
        means = zero.mean(), own.mean()
        last_epochs = self.rows(cell.measurements).groupby("seed")["epoch"].max()
        row = _columns(len(own), means, means[1] - means[0], _span(last_epochs), noise)
        if pd.concat([cell.runs, others])["diverged"].any():
            return row | {"reason": f"a training diverged, here or with {other}"}
        if not np.isfinite([*own, *theirs]).all():
            return row | {"reason": f"not defined for every seed, here or with {other}"}
        margin = (own.mean() - theirs.mean()) * (1 if self.above else -1)
        if self.within is not None:
            margin = self.within - abs(margin)
        reason = f"{own.mean():.4g} against {theirs.mean():.4g} with {other}; noise: {noise:.2g}"
        reached = [int(runs["terminal_phase_epoch"].notna().sum()) for runs in (cell.runs, others)]
        if reached != [len(own), len(theirs)]:
            reason += f"; {reached[0]} of {len(own)} seeds reached TPT"
            reason += f", {reached[1]} of {len(theirs)} with {other}"
        return row | {"holds": verdict_of(margin, noise), "reason": reason}

    def _others(self, cell: Cell) -> tuple[str, pd.DataFrame] | None:
        """The choice to compare with, in words, and its runs; None if there are none."""
        own = None if cell.runs.empty else self.choice(cell.recipe)
        if own is None or (self.against is not None and own not in self.against):
            return None
        wanted = self._rest(cell.recipe)
        choices = [
            self.choice(r) if self._rest(r) == wanted else None for r in cell.dataset_recipes
        ]
        if self.against is not None:
            other = self.against[own]
        else:
            other = max((c for c in choices if c is not None and c < own), default=None)
        if other is None or other not in choices:
            return None
        return choice_in_words(other), cell.dataset_runs[[c == other for c in choices]]

    def _rest(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """What the recipes of both choices share."""
        kept = shared_values(recipe, self.varies)
        if optimiser_of(recipe) in {"adam", "adamw"}:  # the others do not read its numbers
            optimizer = recipe["training"]["optimizer"].items()
            kept["adam"] = {k: v for k, v in optimizer if k != "name"}
        return kept

    def _noise(self, values: np.ndarray, runs: pd.DataFrame) -> float:
        """Noise of the mean over seeds; of a single one by counting test images or `ONE_SEED`."""
        if len(values) > 1:
            return noise_of_mean(values)
        value, run = abs(float(values[0])), runs.iloc[0]
        if self.statistic == MINORITY_COSINE:
            return STANDARD_ERRORS * ONE_SEED
        if self.statistic not in ("error", MINORITY_ACCURACY):
            return STANDARD_ERRORS * ONE_SEED * value
        counted = run["test_examples"]
        if self.statistic == MINORITY_ACCURACY:  # as if all classes had as many test images
            minority = run_recipe(run)["data"]["imbalance"]["minority_classes"]
            counted *= len(minority) / run["num_classes"]
        return noise_of_shares([value], counted)
