"""Selection of the learning rate of a sweep."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from ..data.prepared import PreparedDataset
from ..io.errors import UserError
from .state import fingerprint


def held_out(data: PreparedDataset, fraction: float, seed: int) -> PreparedDataset:
    """The data with a share of each class's train images in place of the test set.

    fraction: of each class, rounded, at least one image and never all; seed: draws them. Train
    and test images keep their order. Raises UserError where a class has a single image.
    """
    labels = np.asarray(data.train_labels)
    kept_out = np.zeros(len(labels), dtype=bool)
    for c in range(data.num_classes):
        rows = np.flatnonzero(labels == c)
        if len(rows) < 2:
            raise UserError(
                f"{data.name}: class {c} has {len(rows)} train image, too few to hold one out; "
                "set sweep.selection to test_error"
            )
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        kept_out[np.random.default_rng([seed, c]).permutation(rows)[:count]] = True
    return dataclasses.replace(
        data,
        train_images=data.train_images[~kept_out],
        train_labels=labels[~kept_out],
        test_images=data.train_images[kept_out],
        test_labels=labels[kept_out],
        data_hash=held_out_hash(data.data_hash, fraction, seed),
    )


def held_out_hash(data_hash: str, fraction: float, seed: int) -> str:
    """The hash of what :func:`held_out` makes of data with this hash."""
    return fingerprint(data=data_hash, fraction=fraction, seed=seed)


def choose(curves: pd.DataFrame, epochs: int, split: str) -> float:
    """The learning rate with the lowest error on `split` at the last epoch.

    curves: a `history` table of all candidates. Of equal errors the smaller loss wins, then the
    smaller rate. Divergent candidates never win; raises UserError where there is no other.
    """
    final = curves[
        (curves["split"] == split) & ~curves["diverged"] & (curves["epoch"] == epochs)
    ].pivot_table(index="learning_rate", columns="statistic", values="value")
    if final.empty:
        cell = " x ".join(curves[["dataset", "architecture"]].iloc[0])
        raise UserError(
            f"{cell}: every learning rate of the sweep diverged; "
            "lower sweep.learning_rate_min or sweep.learning_rate_max"
        )
    ranked = final.reset_index().sort_values(["error", "loss", "learning_rate"])
    return float(ranked["learning_rate"].iloc[0])
