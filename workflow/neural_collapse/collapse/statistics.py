"""The statistics of one split's moments, by name: the registry, and computing all of it.

A statistic that its formula does not define is NaN, with one warning that names it and the reason,
and the others keep their values.

Left out: the variability collapse index 1 - Tr(Sigma_T^+ Sigma_B) / min(d, C - 1) of Xu and Liu
(2023). In an orthonormal basis that begins with span(M), let Sigma_W have the blocks A (on the
span, C - 1 square), X (across) and Z (off it). The index needs the first block of Sigma_T^+, which
is (A + Sigma_B - X^T Z^+ X)^+. The projected moments fix A alone: two sets of features with the
same moments can differ in X and Z, hence in the index, so no function of the moments can give it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .arrays import real_array
from .functional import (
    UndefinedStatistic,
    accuracy,
    bias_collapse,
    class_distance_normalized_variance,
    cosine_duality,
    equiangularity,
    equinorm,
    etf_error,
    hyperspherical_uniformity,
    maximal_angle,
    ncc_mismatch,
    self_duality,
    trace_ratio,
    within_class_variability,
)
from .moments import Moments, compute_moments

_EPS = torch.finfo(torch.float64).eps


class UndefinedStatisticWarning(RuntimeWarning):
    """Names a statistic that was given as NaN, and the reason."""


def _etf_error_product(m: Moments) -> float:
    centred_CD = m.centred_means
    product_CC = m.weight @ centred_CD.T
    rounding = m.feature_dim * _EPS * m.weight.norm() * centred_CD.norm()
    if product_CC.norm() <= rounding:
        raise UndefinedStatistic("W M is zero")
    return etf_error(product_CC)


PAPER_STATISTICS: dict[str, Callable[[Moments], float]] = {
    "nc1_within_class_variability": lambda m: within_class_variability(
        m.class_means, m.scatter_projected
    ),
    "nc2_equinorm_means": lambda m: equinorm(m.centred_means),
    "nc2_equinorm_classifier": lambda m: equinorm(m.weight),
    "nc2_equiangularity_means": lambda m: equiangularity(m.centred_means),
    "nc2_equiangularity_classifier": lambda m: equiangularity(m.weight),
    "nc2_maximal_angle_means": lambda m: maximal_angle(m.centred_means),
    "nc2_maximal_angle_classifier": lambda m: maximal_angle(m.weight),
    "nc3_self_duality": lambda m: self_duality(m.weight, m.centred_means),
    "nc4_ncc_mismatch": lambda m: ncc_mismatch(m.decisions_network, m.decisions_ncc),
}
"""Name -> function of one split's moments, for the paper's figures 2 to 7."""

FURTHER_STATISTICS: dict[str, Callable[[Moments], float]] = {
    "within_between_trace_ratio": lambda m: trace_ratio(
        m.counts, m.class_variances, m.centred_means
    ),
    "cdnv": lambda m: class_distance_normalized_variance(m.class_means, m.class_variances),
    "etf_error_means": lambda m: etf_error(m.centred_means @ m.centred_means.T),
    "etf_error_classifier": lambda m: etf_error(m.weight @ m.weight.T),
    "etf_error_product": _etf_error_product,
    "bias_collapse": lambda m: bias_collapse(m.weight, m.bias, m.class_means.mean(0)),
    "gnc2_hyperspherical_uniformity_means": lambda m: hyperspherical_uniformity(m.centred_means),
    "gnc2_hyperspherical_uniformity_classifier": lambda m: hyperspherical_uniformity(m.weight),
    "gnc3_cosine_duality": lambda m: cosine_duality(m.weight, m.centred_means),
    "ncc_accuracy": lambda m: accuracy(m.decisions_ncc, m.labels),
    "network_accuracy": lambda m: accuracy(m.decisions_network, m.labels),
}
"""Name -> function of one split's moments, for what is beyond the paper."""

STATISTICS = {**PAPER_STATISTICS, **FURTHER_STATISTICS}


def compute_statistic(name: str, moments: Moments) -> float:
    """One statistic of one split; NaN with an `UndefinedStatisticWarning` where undefined."""
    try:
        value = STATISTICS[name](moments)
        if not math.isfinite(value):
            raise UndefinedStatistic(f"its formula gives {value} in float64")
    except UndefinedStatistic as reason:
        message = f"{name} is undefined and given as NaN: {reason}."
        warnings.warn(message, UndefinedStatisticWarning, stacklevel=2)
        return math.nan
    return value


def compute_statistics(moments: Moments) -> dict[str, float]:
    """All statistics of one split, by name, in the order of `STATISTICS`.

    A statistic that these moments leave undefined is NaN, with one warning for each.
    """
    return {name: compute_statistic(name, moments) for name in STATISTICS}


def statistics_of(
    features: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    weight: np.ndarray | Tensor,
    bias: np.ndarray | Tensor | None,
    *,
    train_class_means: np.ndarray | Tensor | None = None,
) -> dict[str, float]:
    """All statistics of a model of one's own: features (N, d), labels (N,), the last layer's
    weight (C, d) and bias (C,) or None.

    For the features of a test set, `train_class_means` (C, d) are the centres that NC4 decides by.
    """
    weight = real_array(weight, "values of weight")
    classes = len(weight) if weight.ndim else 0
    return compute_statistics(
        compute_moments(features, labels, classes, weight, bias, reference_means=train_class_means)
    )
