"""The formulas of neural collapse: pure functions of tensors, computed in float64.

Shape suffixes: N examples, C classes, d (written D) feature dimension.

    mu_c        mean of the features of class c                         class_means_CD, row c
    mu_G        unweighted mean of the mu_c
    M           [mu_c - mu_G]; here its transpose                       centred_CD, row c
    W, b        last layer                                              weight_CD, bias_C
    Sigma_W     average over all N examples of (h - mu_c)(h - mu_c)^T
    Sigma_B     average over the C classes of (mu_c - mu_G)(mu_c - mu_G)^T = M M^T / C

"The paper" is Papyan, Han and Donoho, PNAS 117 (40), 2020, doi:10.1073/pnas.2015509117; figures
are its figures. All statistics are pure numbers (no unit) unless stated. Standard deviations have
ddof 0, as in the paper's formulas; the authors' notebook has torch.std (ddof 1), larger by
sqrt(C / (C - 1)) in figure 2.

Degenerate input. A statistic that its formula does not define (a division by a norm that is zero)
raises `UndefinedStatistic`. Two thresholds say what counts as zero:

* a centred mean, or a distance of two class means, of at most 64 eps max_c |mu_c| (1.4e-14
  relative, eps = 2.2e-16) is the rounding error of float64 means, and is zero;
* NC1 divides by the singular values of M, min(d, C - 1) of them. One that is at most 1e-9 of the
  largest, or of max_c |mu_c|, is zero: two class means coincide, or one lies in the span of the
  others. Above that NC1's relative error is about eps / (smallest / largest): 1e-9 at 1e-7.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps
_SMALLEST_SINGULAR_VALUE = 1e-9


class UndefinedStatistic(ArithmeticError):
    """The input leaves a statistic without a value; its text says why."""


class ReducedRankWarning(UserWarning):
    """There are fewer dimensions than C - 1, so NC1 sums over d directions instead."""


def centred_class_means(class_means_CD: Tensor) -> Tensor:
    """M^T, (C, d): the rows mu_c - mu_G, with mu_G the unweighted mean of the class means.

    A row no longer than the rounding error of the means is set to exactly zero.
    """
    centred_CD = class_means_CD - class_means_CD.mean(0)
    is_rounding = centred_CD.norm(dim=1) <= _rounding_error(class_means_CD)
    return centred_CD.masked_fill(is_rounding[:, None], 0.0)


class SpanOfMeans(NamedTuple):
    """M = U diag(s) V^T, at most K = min(d, C - 1) singular values, in descending order.

    Attributes:
        singular_values: (K,), all of them, also those that count as zero.
        rank: how many are not zero.
        vectors_CK: (C, K), V.
        basis_CD: (C, d), Q^T = V U^T over the `rank` directions that count. Its rows span what the
            centred class means do; Q is the nearest matrix to M with singular values 0 and 1.
    """

    singular_values: Tensor
    rank: int
    vectors_CK: Tensor
    basis_CD: Tensor


def span_of_means(class_means_CD: Tensor) -> SpanOfMeans:
    """The directions in which the class means differ; on the CPU, whatever the device."""
    means_CD = class_means_CD.cpu()
    centred_CD = centred_class_means(means_CD)
    V, s, Uh = torch.linalg.svd(centred_CD, full_matrices=False)
    kept = min(centred_CD.shape[1], centred_CD.shape[0] - 1)
    V, s, Uh = V[:, :kept], s[:kept], Uh[:kept]
    largest = max(float(means_CD.norm(dim=1).max()), float(s[0]) if kept else 0.0)
    rank = int((s > _SMALLEST_SINGULAR_VALUE * largest).sum())
    return SpanOfMeans(s, rank, V, V[:, :rank] @ Uh[:rank])


def within_class_variability(class_means_CD: Tensor, scatter_projected_CC: Tensor) -> float:
    """NC1, figure 6: Tr(Sigma_W Sigma_B^+) / C.

    scatter_projected_CC: Q^T Sigma_W Q, with Q^T the `basis_CD` of `span_of_means`.

    With M = U diag(s) V^T, Sigma_B^+ = C U diag(s)^-2 U^T, so the trace is
    sum_k v_k^T (Q^T Sigma_W Q) v_k / s_k^2. The pseudo-inverse has rank min(d, C - 1); where that
    is d, a `ReducedRankWarning` says so.
    """
    classes, dim = class_means_CD.shape
    _need_two_classes(classes)
    span = span_of_means(class_means_CD)
    needed = min(dim, classes - 1)
    if span.rank < needed:
        raise UndefinedStatistic(
            f"the centred class means have rank {span.rank}, less than min(d, C - 1) = {needed} "
            "(class means that coincide or depend linearly on each other)"
        )
    if dim < classes - 1:
        warnings.warn(
            f"{classes} classes in {dim} dimensions: NC1's pseudo-inverse has rank {dim} instead "
            f"of C - 1 = {classes - 1}.",
            ReducedRankWarning,
            stacklevel=2,
        )
    V = span.vectors_CK
    return float(
        ((V.T @ scatter_projected_CC @ V).diagonal() / span.singular_values.square()).sum()
    )


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
