"""Measurement on a dataset that a network was not trained on: outliers, transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...collapse.features import Splits, Watched, extract_splits
from ...collapse.measure import compute_moments
from ...collapse.outliers import outlier_statistics
from ...collapse.registry import OF_OTHER_DATASET
from ...collapse.transfer import PROBE_EXAMPLES, linear_probe_accuracy
from ...data.prepared import PreparedDataset
from ...io.errors import UserError
from ..cost import DataSize
from ..layers import check_other
from ..recipe import Recipe

PREFIX = "other_dataset."
"""Of the names under which the statistics are stored beside a checkpoint's moments."""


def open_other(
    recipe: Recipe, data: PreparedDataset, cards: Sequence[Path]
) -> PreparedDataset | None:
    """The prepared dataset that `measurement.other_dataset` names; None where it names none.

    Raises UserError where its card is not given, or its images do not fit the network.
    """
    name = recipe.measurement.other_dataset
    if name is None:
        return None
    if len(cards) != 1:
        raise UserError(f"--other-card: give the one card of the prepared {name}")
    other = PreparedDataset.open(cards[0].parent)
    if other.name != name:
        raise UserError(f"{cards[0]}: is of {other.name}, but the recipe names {name}")
    check_other(recipe, *(DataSize.of(prepared) for prepared in (data, other)))
    return other


def other_statistics(
    network, data: PreparedDataset, other: PreparedDataset, splits: Splits, recipe: Recipe, device
) -> dict[str, Tensor]:
    """The statistics of `OF_OTHER_DATASET` of a checkpoint, as they are stored; those that their
    formulas do not define are left out.

    splits: of the network's own data, with the full scatter and the test split's raw features.
    """
    count = len(other.train_labels)
    spread = np.linspace(0, count - 1, min(count, PROBE_EXAMPLES)).round().astype(int)
    found = extract_splits(
        network,
        other,
        trained_on=data,
        batch_size=recipe.training.evaluation_batch_size,
        device=device,
        keep_rows=spread,
        keep_test=True,
        watched=Watched(batch_norm_examples=recipe.measurement.batch_norm_examples),
    )
    layer = splits.test.weight, splits.test.bias
    by_test_means = compute_moments(
        splits.test_rows, data.test_labels, data.num_classes, *layer, allow_empty=True
    )
    values = outlier_statistics(splits.train, splits.test_rows, found.test_rows) | {
        "transfer_ncc_accuracy": found.test.share(lambda d: d.ncc_correct),
        "transfer_probe_accuracy": linear_probe_accuracy(
            found.kept, other.train_labels[spread], found.test_rows, other.test_labels
        ),
        "nc4_ncc_mismatch_test_means": by_test_means.share(lambda d: d.counted - d.agreeing),
    }
    defined = {name: value for name, value in values.items() if math.isfinite(value)}
    return {PREFIX + n: torch.tensor(v, dtype=torch.float64) for n, v in defined.items()}


def is_other(name: str) -> bool:
    """Whether a stored tensor is one of :func:`other_statistics`."""
    return name.startswith(PREFIX)


def stored_other_statistics(recipe: Recipe, extra: Mapping[str, Tensor]) -> dict[str, float]:
    """What :func:`other_statistics` stored, NaN where it is not defined; nothing where the recipe
    names no other dataset."""
    if recipe.measurement.other_dataset is None:
        return {}
    stored = {name.removeprefix(PREFIX): extra[name].item() for name in filter(is_other, extra)}
    return {name: stored.get(name, math.nan) for name in OF_OTHER_DATASET}
