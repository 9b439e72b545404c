"""Claims of studies on the trend of a cell's statistic during training."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from .studies import NC1
from .tables import RUN_KEY, verdict_of

SCORES = {
    "max_softmax": "maximum softmax",
    "energy": "energy",
    "neco": "NECO",
    "nci": "NCI",
}
"""By which outliers are detected, as the registry calls them, and how they are called."""


@dataclass(frozen=True)
class Trend:
    """A claim that a statistic rises, or falls, from the start of the TPT to the last epoch."""

    name: str
    statistic: str
    rises: bool
    paper: str
    """What the study's authors found, and where."""
    split: str = "test"
    over_train: bool = False
    """Whether it is of the ratio of the value to that of the train set."""
    needs: str = "transfer_ncc_accuracy"
    """The statistic where which was measured the claim is made."""

    @property
    def quantity(self) -> str:
        """What the values of its rows are."""
        return f"{self.statistic}, {self.split} / train" if self.over_train else self.statistic

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        way = "higher" if self.rises else "lower"
        return f"at the last epoch {way} than at the start of the TPT"

    def rows(self, cell: pd.DataFrame) -> pd.DataFrame:
        """Its values among the measurements of a cell."""
        of = cell[cell["statistic"] == self.statistic]
        own = of[of["split"] == self.split]
        if not self.over_train:
            return own
        key = [*RUN_KEY, "epoch"]
        train = of.loc[of["split"] == "train", [*key, "value"]]
        both = own.merge(train, on=key, suffixes=("", "_train"))
        return both.assign(value=both["value"] / both["value_train"])

    def verdict(self, zero: float, start: float, end: float, noise: float) -> str:
        """Of its values at epoch 0, at the start of the TPT and at the end."""
        return verdict_of(end - start if self.rises else start - end, noise)


_HUI = "(Hui, Belkin and Nakkiran 2022, abstract)"
_NC5 = "goes towards 0 (Ben Ammar et al. 2024, recalled)"
_DETECTION = "better with stronger collapse, r = .77 over networks (arXiv:2502.10691, abstract)"

TRENDS: tuple[Trend, ...] = (
    Trend(
        "the test set collapses less than the train set",
        NC1,
        rises=True,
        paper=f"collapse on the train set, not on the test set {_HUI}",
        over_train=True,
    ),
    Trend(
        "nearest class centres transfer worse",
        "transfer_ncc_accuracy",
        rises=False,
        paper=f"training longer leads to worse features for transfer {_HUI}",
    ),
    Trend(
        "a linear probe transfers worse",
        "transfer_probe_accuracy",
        rises=False,
        paper=f"training longer leads to worse features for transfer {_HUI}",
    ),
    Trend(
        "outliers become orthogonal to the class means (NC5 about 0, as published)",
        "nc5_outlier_orthogonality_uncentred",
        rises=False,
        paper=_NC5,
    ),
    Trend(
        "outliers become orthogonal to the class means (NC5 about their mean)",
        "nc5_outlier_orthogonality",
        rises=False,
        paper=_NC5,
    ),
    *(
        Trend(
            f"outliers are detected better: {label}",
            f"outlier_auroc_{score}",
            rises=True,
            paper=_DETECTION,
        )
        for score, label in SCORES.items()
    ),
)
"""Claims of studies beyond the paper, of one cell each, where another dataset was measured."""


def trends_of(cell: pd.DataFrame) -> list[Trend]:
    """The claims that a cell's measurements say something of."""
    measured = set(cell["statistic"])
    return [trend for trend in TRENDS if {trend.statistic, trend.needs} <= measured]
