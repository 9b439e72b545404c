"""The statistics of neural collapse: pure functions of tensors, all in float64.

Shape suffixes: N examples, C classes, d (written D) feature dimension.

    mu_c        mean of the features of class c                         class_means_CD, row c
    mu_G        unweighted mean of the mu_c
    M           [mu_c - mu_G]; here its transpose                       centred_CD, row c
    W, b        last layer                                              weight_CD, bias_C
    Sigma_W     average over all N examples of (h - mu_c)(h - mu_c)^T
    Sigma_B     average over the C classes of (mu_c - mu_G)(mu_c - mu_G)^T = M M^T / C

"The paper" is Papyan, Han and Donoho, PNAS 117 (40), 2020, doi:10.1073/pnas.2015509117; figures
are its figures. All statistics are pure numbers (no unit). Standard deviations are numpy's (ddof
0), as in the paper's formulas; the authors' notebook has torch.std (ddof 1), larger by
sqrt(C / (C - 1)) in figure 2.

Degenerate input. A statistic that its formula does not define (a division by a norm that is zero)
is NaN, with one warning that names it and the reason, and the others keep their values. Two
thresholds say what counts as zero, both far below anything a float32 feature can resolve:

* a centred mean, or a distance of two class means, of at most 64 eps max_c |mu_c| (1.4e-14
  relative, eps = 2.2e-16) is the rounding error of float64 means, and is zero;
* NC1 needs all C - 1 eigenvalues of M^T M above max(C, d, 64) eps times the largest. Below that
  an eigenvalue computed from the Gram matrix is mostly rounding error. In lengths it means that
  in some direction the class means spread less than sqrt(max(C, d, 64) eps), 3e-7 at d = 512, of
  their largest spread: two means equal to within float32. Collapsed features are the opposite
  case: their C - 1 eigenvalues are all alike.

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
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..io.errors import UserError
from .moments import Moments, compute_moments

_EPS = torch.finfo(torch.float64).eps


class UndefinedStatistic(ArithmeticError):
    """The input leaves a statistic without a value; its text says why."""


class UndefinedStatisticWarning(RuntimeWarning):
    """Names a statistic that was given as NaN, and the reason."""


# ------------------------------------------------------------------------- formulas, on tensors


def centred_class_means(class_means_CD: Tensor) -> Tensor:
    """M^T, (C, d): the rows mu_c - mu_G, with mu_G the unweighted mean of the class means.

    A row no longer than the rounding error of the means is set to exactly zero.
    """
    centred_CD = class_means_CD - class_means_CD.mean(0)
    is_rounding = centred_CD.norm(dim=1) <= _rounding_error(class_means_CD)
    return centred_CD.masked_fill(is_rounding[:, None], 0.0)


def within_class_variability(centred_CD: Tensor, scatter_projected_CC: Tensor) -> float:
    """NC1, figure 6: Tr(Sigma_W Sigma_B^+) / C, from M^T Sigma_W M (C, C).

    M^T M = V diag(lambda) V^T, its C - 1 nonzero eigenpairs, gives Sigma_B^+ =
    C M V diag(lambda)^-2 V^T M^T. The two factors of C cancel, and the trace becomes
    sum_k v_k^T (M^T Sigma_W M) v_k / lambda_k^2.
    """
    classes, dim = centred_CD.shape
    _need_two_classes(classes)
    if dim < classes - 1:
        raise UndefinedStatistic(
            f"{dim} features cannot give the centred class means rank C - 1 = {classes - 1}"
        )
    eigenvalues, eigenvectors = torch.linalg.eigh(centred_CD @ centred_CD.T)
    tolerance = max(classes, dim, 64) * _EPS * eigenvalues[-1]
    rank = int((eigenvalues > tolerance).sum())
    if rank < classes - 1:
        raise UndefinedStatistic(
            f"the centred class means have rank {rank}, less than C - 1 = {classes - 1} "
            "(class means that coincide or depend linearly on each other)"
        )
    kept, V = eigenvalues[1:], eigenvectors[:, 1:]  # in ascending order; the first is the null one
    return float(((V.T @ scatter_projected_CC @ V).diagonal() / kept.square()).sum())


def equinorm(vectors_CD: Tensor) -> float:
    """Figure 2: std_c |v_c| / mean_c |v_c|."""
    norms_C = vectors_CD.norm(dim=1)
    if not norms_C.any():
        raise UndefinedStatistic("all vectors are zero")
    return float(norms_C.std(correction=0) / norms_C.mean())


def equiangularity(vectors_CD: Tensor) -> float:
    """Figure 3: std over the pairs c != c' of cos(v_c, v_c')."""
    return float(_cosines_of_pairs(vectors_CD).std(correction=0))


def maximal_angle(vectors_CD: Tensor) -> float:
    """Figure 4: mean over the pairs c != c' of |cos(v_c, v_c') + 1 / (C - 1)|."""
    classes = vectors_CD.shape[0]
    return float((_cosines_of_pairs(vectors_CD) + 1 / (classes - 1)).abs().mean())


def self_duality(weight_CD: Tensor, centred_CD: Tensor) -> float:
    """NC3, figure 5: squared Frobenius norm of W^T / |W|_F - M / |M|_F."""
    difference = _over_frobenius(weight_CD, "the classifier") - _over_frobenius(
        centred_CD, "M (all class means coincide)"
    )
    return float(difference.square().sum())


def ncc_mismatch(decisions_network_N: Tensor, decisions_ncc_N: Tensor) -> float:
    """NC4, figure 7: share of examples that network and nearest class centre decide otherwise."""
    return float((decisions_network_N != decisions_ncc_N).to(torch.float64).mean())


def accuracy(decisions_N: Tensor, labels_N: Tensor) -> float:
    """Share of examples decided as labelled."""
    return float((decisions_N == labels_N).to(torch.float64).mean())


def trace_ratio(counts_C: Tensor, variances_C: Tensor, centred_CD: Tensor) -> float:
    """Tr Sigma_W / Tr Sigma_B (Tirer, Huang and Niles-Weed 2023)."""
    within = (counts_C * variances_C).sum() / counts_C.sum()
    between = centred_CD.square().sum(1).mean()
    if between == 0:
        raise UndefinedStatistic("all class means coincide")
    return float(within / between)


def class_distance_normalized_variance(class_means_CD: Tensor, variances_C: Tensor) -> float:
    """CDNV (Galanti, Gyorgy and Hutter 2021): mean over c < c' of
    (v_c + v_c') / (2 |mu_c - mu_c'|^2), v_c the mean squared distance to mu_c.
    """
    classes = class_means_CD.shape[0]
    _need_two_classes(classes)
    distances_P = torch.pdist(class_means_CD)  # from differences: no cancellation of squares
    if distances_P.min() <= _rounding_error(class_means_CD):
        raise UndefinedStatistic("two class means coincide")
    first, second = torch.triu_indices(classes, classes, offset=1)  # in pdist's order
    variances_P = (variances_C[first] + variances_C[second]) / 2
    return float((variances_P / distances_P.square()).mean())


def etf_error(gram_CC: Tensor) -> float:
    """Distance of a C x C matrix G from the simplex ETF's Gram matrix (Zhu et al. 2021):
    | G / |G|_F - (I - 1 1^T / C) / sqrt(C - 1) |_F.
    """
    classes = gram_CC.shape[0]
    _need_two_classes(classes)
    etf_CC = torch.eye(classes, dtype=gram_CC.dtype) - 1 / classes
    return float((_over_frobenius(gram_CC, "G") - etf_CC / math.sqrt(classes - 1)).norm())


def bias_collapse(weight_CD: Tensor, bias_C: Tensor, global_mean_D: Tensor) -> float:
    """|W mu_G + b|_2 (Zhu et al. 2021), in units of the logits."""
    return float((weight_CD @ global_mean_D + bias_C).norm())


def hyperspherical_uniformity(vectors_CD: Tensor) -> float:
    """GNC2 (Liu et al. 2023, arXiv:2303.06484): the hyperspherical energy of s = 0, a pair.

    Mean over the pairs c != c' of log(1 / |u_c - u_c'|) with u_c = v_c / |v_c|, the logarithmic
    (s = 0) kernel, independent of d. Lower is more uniform. For C <= d + 1 the least value is
    the simplex ETF's, -log(2 C / (C - 1)) / 2; for more classes there is no closed form. (Wu and
    Papyan 2024 report the coefficient of variation of the same kernel instead of its mean.)
    """
    _need_two_classes(vectors_CD.shape[0])
    distances_P = torch.pdist(_directions(vectors_CD))
    if distances_P.min() <= 64 * _EPS:
        raise UndefinedStatistic("two vectors have the same direction")
    return float(-distances_P.log().mean())


def cosine_duality(weight_CD: Tensor, centred_CD: Tensor) -> float:
    """GNC3 (Jiang et al. 2024): mean over c of 1 - cos(w_c, mu_c - mu_G)."""
    # |u - v|^2 / 2 = 1 - cos for unit vectors, and keeps its digits where cos is almost 1.
    difference_CD = _directions(weight_CD) - _directions(centred_CD)
    return float(difference_CD.square().sum(1).mean() / 2)


def _cosines_of_pairs(vectors_CD: Tensor) -> Tensor:
    """(C (C - 1),) cosines of all ordered pairs c != c'."""
    classes = vectors_CD.shape[0]
    _need_two_classes(classes)
    unit_CD = _directions(vectors_CD)
    return (unit_CD @ unit_CD.T)[~torch.eye(classes, dtype=torch.bool)]


def _directions(vectors_CD: Tensor) -> Tensor:
    norms_C1 = vectors_CD.norm(dim=1, keepdim=True)
    zero = (norms_C1 == 0).flatten().nonzero().flatten().tolist()
    if zero:
        raise UndefinedStatistic(f"the vector of class {zero[0]} is zero and has no direction")
    return vectors_CD / norms_C1


def _over_frobenius(matrix: Tensor, name: str) -> Tensor:
    norm = matrix.norm()
    if norm == 0:
        raise UndefinedStatistic(f"{name} is zero")
    return matrix / norm


def _need_two_classes(classes: int) -> None:
    if classes < 2:
        raise UndefinedStatistic("one class has no pairs")


def _rounding_error(class_means_CD: Tensor) -> float:
    return 64 * _EPS * float(class_means_CD.norm(dim=1).max())


# ----------------------------------------------------------------------- statistics, on moments


# Many statistics begin with them; moments never change.
_CENTRED: WeakKeyDictionary[Moments, Tensor] = WeakKeyDictionary()


def _centred(m: Moments) -> Tensor:
    if m not in _CENTRED:
        _CENTRED[m] = centred_class_means(m.class_means)
    return _CENTRED[m]


def _etf_error_product(m: Moments) -> float:
    centred_CD = _centred(m)
    product_CC = m.weight @ centred_CD.T
    rounding = m.feature_dim * _EPS * m.weight.norm() * centred_CD.norm()
    if product_CC.norm() <= rounding:
        raise UndefinedStatistic("W M is zero")
    return etf_error(product_CC)


PAPER_STATISTICS: dict[str, Callable[[Moments], float]] = {
    "nc1_within_class_variability": lambda m: within_class_variability(
        _centred(m), m.scatter_projected
    ),
    "nc2_equinorm_means": lambda m: equinorm(_centred(m)),
    "nc2_equinorm_classifier": lambda m: equinorm(m.weight),
    "nc2_equiangularity_means": lambda m: equiangularity(_centred(m)),
    "nc2_equiangularity_classifier": lambda m: equiangularity(m.weight),
    "nc2_maximal_angle_means": lambda m: maximal_angle(_centred(m)),
    "nc2_maximal_angle_classifier": lambda m: maximal_angle(m.weight),
    "nc3_self_duality": lambda m: self_duality(m.weight, _centred(m)),
    "nc4_ncc_mismatch": lambda m: ncc_mismatch(m.decisions_network, m.decisions_ncc),
}
"""Name -> function of one split's moments, for the paper's figures 2 to 7."""

FURTHER_STATISTICS: dict[str, Callable[[Moments], float]] = {
    "within_between_trace_ratio": lambda m: trace_ratio(m.counts, m.class_variances, _centred(m)),
    "cdnv": lambda m: class_distance_normalized_variance(m.class_means, m.class_variances),
    "etf_error_means": lambda m: etf_error(_centred(m) @ _centred(m).T),
    "etf_error_classifier": lambda m: etf_error(m.weight @ m.weight.T),
    "etf_error_product": _etf_error_product,
    "bias_collapse": lambda m: bias_collapse(m.weight, m.bias, m.class_means.mean(0)),
    "gnc2_hyperspherical_uniformity_means": lambda m: hyperspherical_uniformity(_centred(m)),
    "gnc2_hyperspherical_uniformity_classifier": lambda m: hyperspherical_uniformity(m.weight),
    "gnc3_cosine_duality": lambda m: cosine_duality(m.weight, _centred(m)),
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
    if np.ndim(weight) != 2:
        raise UserError(f"weight has {np.ndim(weight)} dimensions; the shape (C, d) is needed.")
    return compute_statistics(
        compute_moments(
            features, labels, len(weight), weight, bias, reference_means=train_class_means
        )
    )
