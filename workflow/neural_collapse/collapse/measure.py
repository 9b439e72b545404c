"""Moments and statistics of complete features, in memory or in a memory map.

Shape suffixes: N examples, C classes, d (written D) feature dimension, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..io.errors import UserError
from .arrays import centres, check_weight, feature_rows, label_array, native, parameter, real_array
from .metric import CollapseMetric
from .moments import Moments
from .result import CollapseResult

BLOCK_ROWS = {"cpu": 1024, "cuda": 8192}
"""Rows held in float64 at a time; memory is O(rows (d + C) + C (C + d))."""
LARGEST_FEATURE = 1e140


def measure(
    features: Any,
    labels: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    train_means: Any = None,
    num_classes: int | None = None,
    scatter: str = "projected",
    ignore_index: int | None = None,
    pool: str | None = None,
) -> CollapseResult:
    """Neural collapse of given features: every statistic, exact to float64 rounding.

    Args:
        features: (N, d) array or tensor on any device, of any real dtype; tokens (N, T, d); or
            maps (N, d, height, width), see `pool`.
        labels: (N,), (N, 1) or (N, T), whole numbers from 0.
        weight: (C, d) of the last layer; without it NC3, NC4 and all else of the classifier is
            absent.
        bias: (C,), or None for a layer without one.
        train_means: (C, d) class means of the train set, where these are a test set's features:
            the centres that NC4 decides by.
        num_classes: C; by default the rows of `weight`, else of `train_means`, else the largest
            label + 1.
        scatter: "projected", or "full" for the variability collapse index as well (d x d), or
            "none" for very many classes, without NC1.
        ignore_index: a label whose rows are left out.
        pool: how maps become rows: "mean" or "flatten".

    Raises:
        UserError: input that does not fit, NaN or infinite features.

    A class without examples makes what needs its mean NaN, with one warning.

    >>> import torch
    >>> features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> result = measure(features, labels=[0, 0, 1, 1])
    >>> round(result["cdnv"], 6), result.nc1
    (0.0025, 0.0)
    """
    features_ND, labels_N = feature_rows(features, labels, ignore_index, pool)
    if num_classes is None:
        known = [len(v) for v in (weight, train_means) if v is not None and np.ndim(v)]
        largest = int(labels_N.max()) if len(labels_N) else -1
        num_classes = known[0] if known else largest + 1
    on_gpu = isinstance(features_ND, Tensor) and features_ND.device.type == "cuda"
    return CollapseResult.of(
        compute_moments(
            features_ND,
            labels_N,
            num_classes,
            weight,
            bias,
            train_means=train_means,
            scatter=scatter,
            allow_empty=True,
            device=features_ND.device if on_gpu else "cpu",
        )
    )


def compute_moments(
    features_ND: Any,
    labels_N: Any,
    num_classes: int,
    weight: Any,
    bias: Any,
    *,
    rows_N: np.ndarray | None = None,
    train_means: Any = None,
    scatter: str = "projected",
    allow_empty: bool = False,
    split: str = "given",
    device: str | torch.device = "cpu",
) -> Moments:
    """Moments of features in memory or in a memory map, by both passes of `CollapseMetric`.

    Features are visited in class order and fixed blocks, so the batches in which they were made
    leave no trace; they are never held in float64 as a whole.

    Args:
        features_ND: (N, d). Fastest where each class's rows lie together.
        labels_N, weight, bias, train_means, scatter: as of `measure`.
        rows_N: the row of each example's features; None: they lie in the order of the examples.
        allow_empty: whether classes may have no example.
        split: its name, for error messages.
        device: where the float64 arithmetic runs (a device that has float64).
    """
    features_ND = real_array(features_ND, f"features of the {split} split")
    if features_ND.ndim != 2 or 0 in features_ND.shape:
        raise UserError(
            f"The features of the {split} split have shape {tuple(features_ND.shape)}, not (N, d)."
        )
    examples, dim = features_ND.shape
    labels = label_array(labels_N, examples, num_classes, split)
    if weight is not None:
        check_weight(weight, dim, split)
    weight = parameter(weight, (num_classes, dim), "weight")
    bias = parameter(bias, (num_classes,), "bias")
    train_means = centres(train_means, (num_classes, dim))
    if not allow_empty:
        _require_all_classes(labels, num_classes, split)
    order_N = np.argsort(labels, kind="stable")
    rows_N = order_N if rows_N is None else rows_N[order_N]
    metric = CollapseMetric(num_classes, dim, scatter, device=device)
    classes_N = torch.from_numpy(labels[order_N])

    def feed() -> None:
        for block, h_BD in _blocks(features_ND, rows_N, metric.device):
            metric.add_sorted(h_BD, classes_N[block].to(metric.device))

    feed()
    if not metric.class_means.abs().max() <= LARGEST_FEATURE:  # or NaN
        _refuse(features_ND, metric.device, split)
    metric.second_pass(weight, bias, train_means=train_means)
    feed()
    return metric.moments()


def _require_all_classes(labels: np.ndarray, num_classes: int, split: str) -> None:
    empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(empty):
        named = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise UserError(
            f"The {split} split has no example of class {named}; "
            "every class needs at least one to have a mean."
        )


def _refuse(features_ND: np.ndarray | Tensor, device: torch.device, split: str) -> None:
    """Say what is wrong with features whose means are not finite or too large."""
    examples = len(features_ND)
    blocks = _blocks(features_ND, np.arange(examples), device)
    spoiled = sum(int((~torch.isfinite(h_BD).all(dim=1)).sum()) for _, h_BD in blocks)
    if spoiled:
        raise UserError(
            f"{spoiled} of the {examples} examples of the {split} split have NaN "
            "or infinite features; the training has probably diverged: lower its learning rate."
        )
    raise UserError(
        f"The features of the {split} split are larger than {LARGEST_FEATURE:.0e}, so their "
        "squares overflow float64; divide features and class means by a constant."
    )


def _blocks(
    features_ND: np.ndarray | Tensor, rows_N: np.ndarray, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of `rows_N`, and the features of those rows, (B, d) float64 on the device that
    computes, each in the place of those before."""
    size = BLOCK_ROWS.get(device.type, BLOCK_ROWS["cpu"])
    shape = min(size, len(rows_N)), features_ND.shape[1]
    buffer_BD = torch.empty(shape, dtype=torch.float64, device=device)
    for start in range(0, len(rows_N), size):
        rows = rows_N[start : start + size]
        together = bool((np.diff(rows) == 1).all())
        chosen = slice(rows[0], rows[-1] + 1) if together else rows
        if isinstance(features_ND, Tensor) and not together:
            h_BD = features_ND.index_select(0, torch.from_numpy(rows).to(features_ND.device))
        else:
            h_BD = torch.as_tensor(native(features_ND[chosen]))
        # Widened where it is computed with: float32 is half to copy to a GPU.
        yield slice(start, start + size), buffer_BD[: len(rows)].copy_(h_BD.to(device))
