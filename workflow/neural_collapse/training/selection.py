"""Selection of the learning rate of a sweep."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from ..data.prepared import PreparedDataset
from ..io.errors import UserError
from .state import fingerprint


def held_out(data: PreparedDataset, fraction: float, seed: int) -> PreparedDataset:
    """The data with held-out train images in place of the test set.

    Args:
        data: the prepared dataset.
        fraction: fraction of each class's train images, rounded; at least one image, never all.
        seed: seed that selects the images. Images keep their order.

    Raises:
        UserError: a class has fewer than two train images.
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
    """The data hash of the result of :func:`held_out`, given that of its input."""
    return fingerprint(data=data_hash, fraction=fraction, seed=seed)


def choose(curves: pd.DataFrame, epochs: int, split: str) -> float:
    """The learning rate with the lowest error on `split` at the last epoch.

    Ties are broken by the smaller loss, then by the smaller rate. Diverged candidates are never
    selected.

    Args:
        curves: a `history` table of all candidates.
        epochs: the last epoch.
        split: split whose error is compared.

    Raises:
        UserError: all candidates diverged.
    """
    final = curves[
        (curves["split"] == split) & ~curves["diverged"] & (curves["epoch"] == epochs)
    ].pivot(index="learning_rate", columns="statistic", values="value")
    if final.empty:
        cell = " x ".join(curves[["dataset", "architecture"]].iloc[0])
        raise UserError(
            f"{cell}: every learning rate of the sweep diverged; "
            "lower sweep.learning_rate_min or sweep.learning_rate_max"
        )
    ranked = final.reset_index().sort_values(["error", "loss", "learning_rate"])
    return float(ranked["learning_rate"].iloc[0])
