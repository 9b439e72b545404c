"""Moments and statistics of features in memory or in a memory map.

Shape suffixes: N examples, C classes, d (written D) feature dimension, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..io.errors import UserError
from .arrays import (
    centres,
    check_weight,
    classes_of,
    feature_rows,
    label_array,
    native,
    parameter,
    real_array,
    whole_number,
)
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
    """Compute every statistic of given features, in float64.

    Args:
        features: (N, d) array or tensor of any real dtype, on any device; tokens (N, T, d); or
            feature maps (N, d, height, width), see `pool`.
        labels: (N,), (N, 1), or (N, T) for tokens; integers from 0, of any dtype.
        weight: (C, d), weight of the last layer. Without it, NC3, NC4 and all other statistics of
            the classifier are absent.
        bias: (C,), bias of the last layer; None if it has none.
        train_means: (C, d), class means of the train set, if `features` are those of a test set:
            the centres of the nearest-class-centre decision (NC4), such as `moments.centres` of
            the train set's result; a row of NaN stands for a class without examples. Default: the
            class means of `features`.
        num_classes: C. Default: the rows of `weight`, else of `train_means`, else the largest
            label + 1.
        scatter: what is stored of the within-class covariance. "projected": its projection on the
            span of the class means (C x C), enough for NC1; "full": all of it (d x d), needed for
            the variability collapse index; "none": nothing, for very many classes: NC1 is absent.
        ignore_index: a label, such as -100 for padding tokens, whose rows are left out.
        pool: how feature maps become rows: "mean" over the map, or "flatten".

    Returns:
        A `CollapseResult`. Statistics that need the mean of a class without examples are NaN, with
        one `UndefinedStatisticWarning`.

    Raises:
        UserError: shapes or dtypes that do not fit together, labels outside 0..C - 1, and
            features that are NaN, infinite or larger than 1e140.

    >>> import torch
    >>> features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> result = measure(features, labels=[0, 0, 1, 1])
    >>> round(result["cdnv"], 6), result.nc1
    (0.0025, 0.0)
    """
    features_ND, labels_N = feature_rows(features, labels, ignore_index, pool)
    options = {"train_means": train_means, "num_classes": num_classes, "scatter": scatter}
    return CollapseResult.of(moments_of_rows(features_ND, labels_N, weight, bias, **options))


def moments_of_rows(
    features_ND: np.ndarray | Tensor,
    labels_N: np.ndarray | Tensor,
    weight: Any,
    bias: Any,
    *,
    train_means: Any = None,
    num_classes: int | None,
    scatter: str,
    split: str = "given",
) -> Moments:
    """Moments for `measure`, with its defaults: C, and the device of the features if a GPU."""
    if num_classes is None:
        num_classes = classes_of(labels_N, weight, train_means)
    else:
        num_classes = whole_number(num_classes, "num_classes")
    on_gpu = isinstance(features_ND, Tensor) and features_ND.device.type == "cuda"
    return compute_moments(
        features_ND,
        labels_N,
        num_classes,
        weight,
        bias,
        train_means=train_means,
        scatter=scatter,
        allow_empty=True,
        split=split,
        device=features_ND.device if on_gpu else "cpu",
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

    Features are read in class order and in blocks of fixed size, so results do not depend on the
    batches in which they were computed; only one block at a time is converted to float64.

    Args:
        features_ND: (N, d). Fastest if the rows of each class are contiguous.
        labels_N, weight, bias, train_means, scatter: as in `measure`.
        rows_N: (N,), the row of each example's features; None: in the order of the examples.
        allow_empty: whether a class may have no examples.
        split: name of the split, for error messages.
        device: where the float64 arithmetic runs; it must support float64.

    Raises:
        UserError: as in `measure`, and a class without examples unless `allow_empty`.
    """
    features_ND = real_array(features_ND, f"features of the {split} split")
    if features_ND.ndim != 2 or 0 in features_ND.shape:
        raise UserError(
            f"The features of the {split} split have shape {tuple(features_ND.shape)}, not (N, d)."
        )
    examples, dim = features_ND.shape
    if weight is not None:
        check_weight(weight, dim, split)
    labels = label_array(labels_N, examples, num_classes, split)
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
    bad = sum(int((~torch.isfinite(h_BD).all(dim=1)).sum()) for _, h_BD in blocks)
    if bad:
        raise UserError(
            f"{bad} of the {examples} examples of the {split} split have NaN "
            "or infinite features; the training has probably diverged: lower its learning rate."
        )
    raise UserError(
        f"The features of the {split} split are larger than {LARGEST_FEATURE:.0e}, so their "
        "squares overflow float64; divide features and class means by a constant."
    )


def _blocks(
    features_ND: np.ndarray | Tensor, rows_N: np.ndarray, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of `rows_N`, and the features of those rows: (B, d) float64 on the device, in one
    buffer that each block overwrites."""
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
