"""Claims of studies that compare two cells whose recipes differ in one choice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from . import noise
from .studies import (
    MINORITY_ACCURACY,
    MINORITY_COSINE,
    NC0,
    NC2,
    NC3,
    OPTIMISERS,
    last_values,
    optimiser_of,
    shared_values,
)
from .table1 import DASH
from .tables import CANNOT_SAY, RUN_KEY, verdict_of

ONE_SEED = 0.05
"""The standard error of a value of which there is one seed: so large a share of it, and of a
cosine, which may be near zero, so much itself; this project's choice. In the study of imbalance the
seeds' standard deviation of a cosine is .042 in root mean square."""
_OPTIMISER = frozenset({"training.optimizer"})
_LOSS = frozenset(f"training.{k}" for k in ("loss", "smoothing", "focal_gamma", "mse_reduction"))


@dataclass(frozen=True)
class Contrast:
    """A claim that a statistic is larger, smaller or alike with one choice and with another."""

    name: str
    statistic: str
    split: str
    above: bool
    """Whether it is to be larger than with the other choice; not read where `within` is given."""
    choice: Callable[[Mapping[str, Any]], str]
    """Which choice a recipe has made."""
    against: Mapping[str, str]
    """By choice, the one that it is compared with; others make no claim."""
    varies: frozenset[str]
    """Keys of a recipe, as training.loss, that make the choice; the learning rate goes with
    them."""
    paper: str
    """What the study's authors found, and where."""
    within: float | None = None
    """A difference of at most so much is alike, which is then what is claimed."""

    @property
    def quantity(self) -> str:
        """What the values of its rows are."""
        return self.statistic

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        pairs = ", ".join(f"{_called(a)} than {_called(b)}" for a, b in self.against.items())
        if self.within is not None:
            pairs = pairs.replace(" than ", " and ")
            return (
                f"at the last epoch within {self.within:g} of each other with {pairs}, of the same "
                "recipe otherwise"
            )
        side = "larger" if self.above else "smaller"
        return f"at the last epoch {side} with {pairs}, of the same recipe otherwise"

    def others(self, cell: pd.DataFrame, runs: pd.DataFrame) -> tuple[str, pd.DataFrame] | None:
        """The choice that a cell's runs are compared with, and its runs; None where there is none.

        runs: all runs of the same origin and dataset.
        """
        if "recipe" not in runs:
            return None
        own = json.loads(cell.iloc[0]["recipe"])
        if self.choice(own) == "none":
            return None
        wanted, recipes = self._common(own), runs["recipe"].map(json.loads)
        alike = np.array([self._common(recipe) == wanted for recipe in recipes], dtype=bool)
        other = self._other(own, recipes[alike])
        found = runs[alike & np.array([self.choice(r) == other for r in recipes], dtype=bool)]
        return None if found.empty else (_called(other), found)

    def _other(self, own: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> str | None:
        """The choice that a recipe's is compared with; alike: recipes that share the rest."""
        return self.against.get(self.choice(own))

    def _common(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """What two recipes of the contrast share."""
        kept = shared_values(recipe, self.varies)
        if optimiser_of(recipe) in {"adam", "adamw"}:  # the others do not read its numbers
            optimizer = recipe["training"]["optimizer"].items()
            kept["adam"] = {k: v for k, v in optimizer if k != "name"}
        return kept


@dataclass(frozen=True)
class LargerDecay(Contrast):
    """A claim that compares a weight decay with the next smaller one."""

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        side = "larger" if self.above else "smaller"
        return (
            f"at the last epoch {side} with a larger weight decay than with the next smaller one, "
            "of the same recipe otherwise"
        )

    def _other(self, own: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> str | None:
        decays = [r["training"]["weight_decay"] for r in alike if self.choice(r) != "none"]
        smaller = [decay for decay in decays if decay < own["training"]["weight_decay"]]
        return _decay(max(smaller)) if smaller else None


def _decay(value: float) -> str:
    return f"weight decay {value:g}"


def _called(choice: str) -> str:
    return OPTIMISERS.get(choice, choice.replace("_", " "))


def _loss(recipe: Mapping[str, Any]) -> str:
    return recipe.get("training", {}).get("loss", "cross_entropy")


def _sampling(recipe: Mapping[str, Any]) -> str:
    imbalance = recipe.get("data", {}).get("imbalance")
    if imbalance is None or recipe["training"].get("oversample"):
        return "none" if imbalance is None else "oversampling"
    return "imbalance" if imbalance["ratio"] > 1 else "balance"


def _imbalanced_decay(recipe: Mapping[str, Any]) -> str:
    imbalanced = _sampling(recipe) == "imbalance"
    return _decay(recipe["training"]["weight_decay"]) if imbalanced else "none"


def _classifier(recipe: Mapping[str, Any]) -> str:
    if recipe.get("data", {}).get("random_labels"):
        return "none"  # nothing is to be learned from them
    classifier = recipe.get("network", {}).get("classifier", "learned")
    return f"{'fixed ETF' if classifier == 'etf' else classifier} classifier"


_RATIO = frozenset({"data.imbalance.ratio"})
_FANG = "Fang et al. 2021"
_ZHAO = "Zhao et al. 2026, table 2"
CONTRASTS: tuple[Contrast, ...] = (
    Contrast(
        "NC0 stays larger under decoupled weight decay",
        # Of SGD and SGDW the closed form knows it before training.
        *(NC0, "train", True, optimiser_of, {"adamw": "adam"}, _OPTIMISER),
        paper=f"AdamW 5.33, Adam 0.34, SGD 0.0002 ({_ZHAO})",
    ),
    Contrast(
        "NC2 stays larger under decoupled weight decay",
        *(NC2, "train", True, optimiser_of, {"sgdw": "sgd", "adamw": "adam"}, _OPTIMISER),
        paper=f"AdamW 0.54, Adam 0.29, SGD 0.29 ({_ZHAO}; one number, here of the class means)",
    ),
    Contrast(
        "NC3 stays larger under decoupled weight decay",
        *(NC3, "train", True, optimiser_of, {"sgdw": "sgd", "adamw": "adam"}, _OPTIMISER),
        paper=f"AdamW 0.78, Adam 0.29, SGD 0.35 ({_ZHAO}; their NC3 may not be the squared norm)",
    ),
    Contrast(
        "label smoothing collapses further than cross-entropy",
        *("nc1_within_class_variability", "train", False, _loss),
        {"label_smoothing": "cross_entropy"},
        _LOSS,
        paper="collapses faster and further (arXiv:2402.03979, abstract)",
    ),
    Contrast(
        "label smoothing is better calibrated than cross-entropy",
        *("expected_calibration_error", "test", False, _loss),
        {"label_smoothing": "cross_entropy"},
        _LOSS,
        paper="better calibrated (arXiv:2402.03979, abstract)",
    ),
    Contrast(
        "minority classifiers come closer under imbalance",
        *(MINORITY_COSINE, "train", True, _sampling, {"imbalance": "balance"}, _RATIO),
        paper=f"their cosine rises from -1 / (C - 1) to 1 with the ratio ({_FANG}; notes)",
    ),
    Contrast(
        "minority accuracy falls under imbalance",
        *(MINORITY_ACCURACY, "test", False, _sampling, {"imbalance": "balance"}, _RATIO),
        paper=f"falls with the ratio ({_FANG}; notes)",
    ),
    LargerDecay(
        "minority classifiers come closer under larger weight decay",
        *(MINORITY_COSINE, "train", True, _imbalanced_decay, {}),
        frozenset({"training.weight_decay"}),
        paper=f"collapse at a lower ratio ({_FANG}; notes)",
    ),
    Contrast(
        "oversampling parts minority classifiers",
        *(MINORITY_COSINE, "train", False, _sampling, {"oversampling": "imbalance"}),
        frozenset({"training.oversample"}),
        paper=f"restores their angle, at ratio 1000 ({_FANG}, read in their code)",
    ),
    Contrast(
        "a fixed ETF classifier is as accurate as a learned one",
        *("error", "test", False, _classifier),
        {"fixed ETF classifier": "learned classifier"},
        frozenset({"network.classifier"}),
        paper="the same accuracy (Zhu et al. 2021, abstract); what is alike is this project's",
        within=0.02,
    ),
)
"""Claims of studies beyond the paper, of two cells each."""


def _noise(claim: Contrast, values: np.ndarray, runs: pd.DataFrame) -> float:
    """Half the width of the mean's 95 % confidence interval: Student's over seeds; of a single one,
    which tells nothing of it, by counting test images or by `ONE_SEED`."""
    if len(values) > 1:
        return noise.of_mean(values)
    value, run = abs(float(values[0])), runs.iloc[0]
    if claim.statistic == MINORITY_COSINE:
        return noise.STANDARD_ERRORS * ONE_SEED
    if claim.statistic not in ("error", MINORITY_ACCURACY):
        return noise.STANDARD_ERRORS * ONE_SEED * value
    counted = run["test_examples"]
    if claim.statistic == MINORITY_ACCURACY:  # as if all classes had as many test images
        minority = json.loads(run["recipe"])["data"]["imbalance"]["minority_classes"]
        counted *= len(minority) / run["num_classes"]
    return noise.of_shares([value], counted)


def _not_terminal(own: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """Says of cells of which runs have not reached the terminal phase how many have."""
    reached = [int(runs["terminal_phase_epoch"].notna().sum()) for runs in (own, theirs)]
    if reached == [len(own), len(theirs)]:
        return ""
    return f"; {reached[0]} of {len(own)} seeds reached TPT, {reached[1]} of {len(theirs)} there"


def judge_contrast(
    claim: Contrast, measurements: pd.DataFrame, cell: pd.DataFrame, runs: pd.DataFrame
) -> dict[str, Any] | None:
    """Values, verdict and its reason; None if the claim does not apply to a cell.

    cell: its runs; runs: all of the same origin and dataset; measurements: of these. A difference
    within the noise of both together decides nothing.
    """
    compared = claim.others(cell, runs) if len(cell) else None
    if compared is None:
        return None
    other, others = compared
    chosen = measurements[
        (measurements["statistic"] == claim.statistic) & (measurements["split"] == claim.split)
    ]
    first = chosen[chosen["epoch"] == 0]
    zero, own, theirs = (
        runs[RUN_KEY].merge(of, how="left")["value"].to_numpy(float)
        for runs, of in [
            (cell, first[[*RUN_KEY, "value"]]),
            (cell, last_values(chosen, claim.statistic, claim.split)),
            (others, last_values(chosen, claim.statistic, claim.split)),
        ]
    )
    if np.isnan(own).all() and not chosen["architecture"].isin(cell["architecture"]).any():
        return None
    noises = [_noise(claim, own, cell), _noise(claim, theirs, others)]
    allowed = float(np.hypot(*noises))
    row = {
        "seeds": len(own),
        "epoch_at_start": DASH,
        "epoch_at_end": str(int(chosen["epoch"].max())),
        "at_epoch_0": float(zero.mean()),
        "at_start": np.nan,
        "at_end": float(own.mean()),
        "change": float(own.mean() - zero.mean()),
        "noise": allowed,
        "holds": CANNOT_SAY,
    }
    if pd.concat([cell, others])["diverged"].any():
        return row | {"reason": f"a training diverged, of its own or of those with {other}"}
    if not np.isfinite([*own, *theirs]).all():
        return row | {"reason": f"not defined for every seed, its own or those of {other}"}
    difference = (own.mean() - theirs.mean()) * (1 if claim.above else -1)
    if claim.within is not None:
        difference = claim.within - abs(difference)
    reason = f"{own.mean():.4g} against {theirs.mean():.4g} with {other}; noise: {allowed:.2g}"
    reason += _not_terminal(cell, others)
    return row | {"holds": verdict_of(difference, allowed), "reason": reason}
