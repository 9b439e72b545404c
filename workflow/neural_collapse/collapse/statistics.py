"""The formulas of neural collapse: pure functions of arrays or tensors, in float64.

Shape suffixes: N examples, C classes, d (written D) feature dimension, P pairs of classes.

    mu_c        mean of the features of class c                         class_means_CD, row c
    mu_G        unweighted mean of the mu_c
    M           [mu_c - mu_G]; here its transpose                       centred_CD, row c
    W, b        last layer                                              weight_CD, bias_C
    Sigma_W     average over all N examples of (h - mu_c)(h - mu_c)^T   scatter_DD
    Sigma_B     average over the C classes of (mu_c - mu_G)(mu_c - mu_G)^T = M M^T / C

The paper is Papyan, Han and Donoho, PNAS 117 (40), 2020, doi:10.1073/pnas.2015509117; figure
numbers refer to it. All statistics are dimensionless unless stated. Standard deviations have ddof
0, as in the paper's formulas; the authors' notebook uses torch.std (ddof 1), which is larger by
the factor sqrt(C / (C - 1)) in Figure 2.

Arguments may be arrays, tensors or nested lists of any real dtype and are converted to float64;
statistics are returned as Python floats. Pairs of classes are processed in tiles, so 50,000
classes need no C x C matrix.

Errors. Input that is not an array of real numbers raises `UserError`. If the formula of a
statistic is undefined (a division by a norm that is zero), `UndefinedStatistic` is raised. Two
thresholds decide what is zero:

* a centred mean, or a distance between two class means, of at most 64 eps max_c |mu_c| (1.4e-14
  relative, eps = 2.2e-16), the rounding error of float64 means;
* for NC1, which divides by the min(d, C - 1) singular values of M: a singular value of at most
  1e-9 times the largest one, or times max_c |mu_c|. Then two class means coincide, or the centred
  means depend linearly on each other. Otherwise NC1 has a relative error of about
  eps / (smallest / largest singular value): 1e-9 at a ratio of 1e-7.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..io.errors import UserError
from .arrays import float64_tensor, rounding_error

_EPS = torch.finfo(torch.float64).eps
_SMALLEST_SINGULAR_VALUE = 1e-9
_TILE_ELEMENTS = 2**22

Result = TypeVar("Result")


class UndefinedStatistic(ArithmeticError):
    """The formula of a statistic is undefined for the input; the message gives the reason."""


class ReducedRankWarning(UserWarning):
    """The feature dimension d is less than C - 1, so the pseudo-inverse in NC1 has rank d."""


def _of_arrays(function: Callable[..., Result]) -> Callable[..., Result]:
    """Widen all arguments to float64 tensors."""

    @functools.wraps(function)
    def widened(*arguments: Any, **named: Any) -> Result:
        return function(
            *(value if value is None else float64_tensor(value) for value in arguments),
            **{k: value if value is None else float64_tensor(value) for k, value in named.items()},
        )

    return widened


# --------------------------------------------------------------------------- the class means' span


@_of_arrays
def centred_class_means(class_means_CD: Tensor, counts_C: Tensor | None = None) -> Tensor:
    """M^T, (C, d): rows mu_c - mu_G, with mu_G the unweighted mean of the class means.

    Rows whose norm is at most the rounding error of the means are exactly zero.

    Args:
        class_means_CD: (C, d), mu_c.
        counts_C: (C,), examples of each class; if given, the mean of all examples,
            sum_c n_c mu_c / N, is subtracted instead of mu_G.

    >>> centred_class_means([[1.0, 0.0], [0.0, 1.0]]).tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    if counts_C is None:
        mean_D = class_means_CD.mean(0)
    else:
        mean_D = counts_C @ class_means_CD / counts_C.sum()
    centred_CD = class_means_CD - mean_D
    is_rounding = centred_CD.norm(dim=1) <= rounding_error(class_means_CD)
    return centred_CD.masked_fill(is_rounding[:, None], 0.0)


class SpanOfMeans(NamedTuple):
    """The singular value decomposition M = U diag(s) V^T with K = min(d, C - 1) singular values.

    Attributes:
        singular_values: (K,), in descending order, including those treated as zero.
        rank: number of singular values that are not treated as zero.
        vectors_CK: (C, K), V.
        basis_CD: (C, d), Q^T = V U^T over the first `rank` directions. Its rows span the same
            space as the centred class means; Q is the matrix nearest to M with singular values 0
            and 1.
    """

    singular_values: Tensor
    rank: int
    vectors_CK: Tensor
    basis_CD: Tensor


@_of_arrays
def span_of_means(class_means_CD: Tensor) -> SpanOfMeans:
    """The `SpanOfMeans` of class means (C, d), computed on the CPU.

    >>> span_of_means([[1.0, 0.0], [-1.0, 0.0]]).rank
    1
    """
    means_CD = class_means_CD.cpu()
    centred_CD = centred_class_means(means_CD)
    V, s, Uh = torch.linalg.svd(centred_CD, full_matrices=False)
    kept = min(centred_CD.shape[1], centred_CD.shape[0] - 1)
    V, s, Uh = V[:, :kept], s[:kept], Uh[:kept]
    largest = max(float(means_CD.norm(dim=1).max()), float(s[0]) if kept else 0.0)
    rank = int((s > _SMALLEST_SINGULAR_VALUE * largest).sum())
    return SpanOfMeans(s, rank, V, V[:, :rank] @ Uh[:rank])


@_of_arrays
def project_scatter(scatter_DD: Tensor, class_means_CD: Tensor) -> Tensor:
    """Q^T Sigma_W Q, (C, C), the input of `within_class_variability`; for Q see `SpanOfMeans`.

    Args:
        scatter_DD: (d, d), Sigma_W.
        class_means_CD: (C, d), mu_c.

    >>> project_scatter([[4.0, 0.0], [0.0, 9.0]], [[1.0, 0.0], [-1.0, 0.0]]).round(decimals=9)
    tensor([[ 2., -2.],
            [-2.,  2.]], dtype=torch.float64)
    """
    basis_CD = span_of_means(class_means_CD).basis_CD.to(scatter_DD.device)
    return basis_CD @ scatter_DD @ basis_CD.T


def simplex_etf(classes: int, dim: int, *, generator: torch.Generator | None = None) -> Tensor:
    """The vertices (C, d) of a simplex equiangular tight frame (ETF), float64: unit vectors with
    pairwise cosines -1 / (C - 1), the limit of the normalised centred class means and rows of W.

    Args:
        classes: C >= 2.
        dim: d >= C - 1.
        generator: for a random rotation. Default: no rotation; only the first C - 1 coordinates
            are not zero.

    Raises:
        UserError: C < 2 or d < C - 1.

    >>> (simplex_etf(3, 5) @ simplex_etf(3, 5).T).round(decimals=6)
    tensor([[ 1.0000, -0.5000, -0.5000],
            [-0.5000,  1.0000, -0.5000],
            [-0.5000, -0.5000,  1.0000]], dtype=torch.float64)
    """
    if classes < 2 or dim < classes - 1:
        raise UserError(
            f"A simplex ETF of {classes} vertices in {dim} dimensions does not exist; "
            "classes >= 2 and dim >= classes - 1 are needed."
        )
    # Helmert's orthonormal basis of what is orthogonal to (1, ..., 1).
    k = torch.arange(1, classes, dtype=torch.float64)
    rows = torch.arange(classes)[:, None]
    basis_CK = torch.where(rows < k, 1.0, torch.where(rows == k, -k, 0.0)) / (k * (k + 1)).sqrt()
    vertices_CD = torch.zeros(classes, dim, dtype=torch.float64)
    vertices_CD[:, : classes - 1] = basis_CK * math.sqrt(classes / (classes - 1))
    if generator is None:
        return vertices_CD
    noise_DD = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    Q, R = torch.linalg.qr(noise_DD)
    return vertices_CD @ (Q * R.diagonal().sign())


# -------------------------------------------------------------------------------- the paper's NC1-4


@_of_arrays
def within_class_variability(class_means_CD: Tensor, scatter_projected_CC: Tensor) -> float:
    """NC1 (Figure 6): Tr(Sigma_W Sigma_B^+) / C.

    Args:
        class_means_CD: (C, d), mu_c.
        scatter_projected_CC: (C, C), Q^T Sigma_W Q, from `project_scatter`.

    Raises:
        UndefinedStatistic: the centred class means have rank less than min(d, C - 1).

    With M = U diag(s) V^T, Sigma_B^+ = C U diag(s)^-2 U^T, so the statistic is
    sum_k v_k^T (Q^T Sigma_W Q) v_k / s_k^2. The pseudo-inverse has rank min(d, C - 1); if d <
    C - 1, a `ReducedRankWarning` is issued. Dead features, equal in all class means, do not count
    in d.

    >>> means = [[1.0, 0.0], [-1.0, 0.0]]
    >>> scatter = project_scatter([[4.0, 0.0], [0.0, 9.0]], means)
    >>> round(within_class_variability(means, scatter), 12)
    2.0
    """
    classes = len(class_means_CD)
    span = _full_span(class_means_CD)
    if span.rank < classes - 1:
        warnings.warn(
            f"{classes} classes in {span.rank} dimensions: NC1's pseudo-inverse has rank "
            f"{span.rank} instead of C - 1 = {classes - 1}.",
            ReducedRankWarning,
            stacklevel=3,
        )
    V = span.vectors_CK[:, : span.rank]
    scatter_KK = V.T @ scatter_projected_CC.cpu() @ V
    return float((scatter_KK.diagonal() / span.singular_values[: span.rank].square()).sum())


@_of_arrays
def equinorm(vectors_CD: Tensor) -> float:
    """NC2 (Figure 2): std_c |v_c| / mean_c |v_c| of vectors (C, d): centred class means, or W.

    >>> equinorm([[1.0, 0.0], [0.0, 3.0]])
    0.5
    """
    norms_C = vectors_CD.norm(dim=1)
    if not norms_C.any():
        raise UndefinedStatistic("all vectors are zero")
    return float(norms_C.std(correction=0) / norms_C.mean())


@_of_arrays
def equiangularity(vectors_CD: Tensor) -> float:
    """NC2 (Figure 3): std over pairs c != c' of cos(v_c, v_c') of vectors (C, d): centred class
    means, or W.

    >>> round(equiangularity([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), 12)
    0.471404520791
    """
    pairs = 0
    mean, squares = vectors_CD.new_zeros(2)
    for cosines_P in _cosines_of_pairs(vectors_CD):
        count, tile_mean = len(cosines_P), cosines_P.mean()
        # Chan's update, since near collapse all cosines are almost alike.
        delta = tile_mean - mean
        within = (cosines_P - tile_mean).square().sum()
        squares = squares + within + delta**2 * (pairs * count / (pairs + count))
        pairs += count
        mean = mean + delta * (count / pairs)
    return math.sqrt(float(squares) / pairs)


@_of_arrays
def maximal_angle(vectors_CD: Tensor) -> float:
    """NC2 (Figure 4): mean over pairs c != c' of |cos(v_c, v_c') + 1 / (C - 1)| of vectors (C, d):
    centred class means, or W.

    >>> maximal_angle([[1.0, 0.0], [-1.0, 0.0]])
    0.0
    """
    classes = len(vectors_CD)
    tiles = _cosines_of_pairs(vectors_CD)
    return _mean_over_pairs(((cosines_P + 1 / (classes - 1)).abs() for cosines_P in tiles), classes)


@_of_arrays
def mean_cosine(vectors_CD: Tensor) -> float:
    """Mean over pairs c != c' of cos(v_c, v_c') of vectors (C, d): 1 if all have one direction
    (minority collapse, Fang et al. 2021), -1 / (C - 1) for a simplex ETF.

    >>> mean_cosine([[1.0, 0.0], [0.0, 2.0]])
    0.0
    """
    return _mean_over_pairs(_cosines_of_pairs(vectors_CD), len(vectors_CD))


@_of_arrays
def self_duality(weight_CD: Tensor, centred_CD: Tensor) -> float:
    """NC3 (Figure 5): squared Frobenius norm of W^T / |W|_F - M / |M|_F.

    Args:
        weight_CD: (C, d), W.
        centred_CD: (C, d), M^T, from `centred_class_means`.

    >>> round(self_duality([[2.0, 0.0], [0.0, 2.0]], [[0.5, -0.5], [-0.5, 0.5]]), 12)
    0.585786437627
    """
    difference = _over_frobenius(weight_CD, "the classifier") - _over_frobenius(
        centred_CD, "M (all class means coincide)"
    )
    return float(difference.square().sum())


def mismatch(decisions_N: Any, others_N: Any) -> float:
    """NC4 (Figure 7): fraction of examples on which two decisions (N,), class indices, differ.

    Raises UserError if their shapes differ.

    >>> mismatch([0, 1, 1, 2], [0, 1, 2, 2])
    0.25
    """
    decisions_N, others_N = torch.as_tensor(decisions_N), torch.as_tensor(others_N)
    if decisions_N.shape != others_N.shape:
        raise UserError(
            f"The decisions have shapes {tuple(decisions_N.shape)} and {tuple(others_N.shape)}; "
            "equal ones are needed."
        )
    return float((decisions_N != others_N).double().mean())


# -------------------------------------------------------------------------------- beyond the paper


@_of_arrays
def trace_ratio(counts_C: Tensor, variances_C: Tensor, centred_CD: Tensor) -> float:
    """Tr Sigma_W / Tr Sigma_B (Tirer, Huang and Niles-Weed 2023).

    Args:
        counts_C: (C,), examples of each class.
        variances_C: (C,), mean squared distance of each class's features from mu_c.
        centred_CD: (C, d), M^T.

    >>> trace_ratio([5, 5], [1.0, 3.0], [[1.0, 0.0], [-1.0, 0.0]])
    2.0
    """
    within = (counts_C * variances_C).sum() / counts_C.sum()
    between = centred_CD.square().sum(1).mean()
    if between == 0:
        raise UndefinedStatistic("all class means coincide")
    return float(within / between)


@_of_arrays
def separation_fuzziness(
    counts_C: Tensor, class_means_CD: Tensor, scatter_projected_CC: Tensor
) -> float:
    """Separation fuzziness D = Tr(SS_w SS_b^+) of the outputs of a layer (He and Su 2023).

    SS_w = (1/N) sum_i (h_i - mu_c(i)) (h_i - mu_c(i))^T and
    SS_b = sum_c (n_c / N) (mu_c - mu) (mu_c - mu)^T, with mu the mean of all N examples. For
    balanced classes it is C times NC1.

    Args:
        counts_C: (C,), examples of each class, n_c.
        class_means_CD: (C, d), mu_c.
        scatter_projected_CC: (C, C), Q^T Sigma_W Q, from `project_scatter`.

    Unlike NC1, it is defined for class means of a rank below min(d, C - 1): the pseudo-inverse
    has that rank.

    >>> means = [[1.0, 0.0], [-1.0, 0.0]]
    >>> scatter = project_scatter([[4.0, 0.0], [0.0, 9.0]], means)
    >>> round(separation_fuzziness([5, 5], means, scatter), 12)
    4.0
    """
    _need_two_classes(len(class_means_CD))
    span = span_of_means(class_means_CD)
    if span.rank == 0:
        raise UndefinedStatistic("all class means coincide")
    V, s = span.vectors_CK[:, : span.rank], span.singular_values[: span.rank]
    # Both in the coordinates U^T h / s, in which the class means are the rows of V.
    within_KK = V.T @ scatter_projected_CC.cpu() @ V / (s[:, None] * s)
    shares_C = (counts_C / counts_C.sum()).cpu()
    centred_CK = V - shares_C @ V
    between_KK = centred_CK.T @ (shares_C[:, None] * centred_CK)
    return float(torch.linalg.solve(between_KK, within_KK).trace())


@_of_arrays
def class_distance_normalized_variance(class_means_CD: Tensor, variances_C: Tensor) -> float:
    """CDNV (Galanti, György and Hutter 2022): mean over pairs c < c' of
    (v_c + v_c') / (2 |mu_c - mu_c'|^2).

    Args:
        class_means_CD: (C, d), mu_c.
        variances_C: (C,), v_c, mean squared distance of the features of class c from mu_c.

    >>> class_distance_normalized_variance([[1.0, 0.0], [-1.0, 0.0]], [1.0, 3.0])
    0.5
    """
    smallest = rounding_error(class_means_CD)
    tiles = _squared_distances(class_means_CD, smallest, "two class means coincide")
    return _mean_over_pairs(
        ((variances_C[c] + variances_C[other]) / (2 * squares_P) for c, other, squares_P in tiles),
        len(class_means_CD),
    )


@_of_arrays
def etf_error(left_CD: Tensor, right_CD: Tensor) -> float:
    """Distance of G = left right^T (C, C) from the Gram matrix of a simplex ETF (Zhu et al. 2021):
    | G / |G|_F - (I - 1 1^T / C) / sqrt(C - 1) |_F.

    For the class means, pass M^T twice; for the classifier, W twice; for W M, W and M^T, all
    (C, d).

    >>> round(etf_error([[1.0, 0.0], [-1.0, 0.0]], [[2.0, 0.0], [-2.0, 0.0]]), 12)
    0.0
    """
    classes, dim = left_CD.shape
    _need_two_classes(classes)
    left_CD, right_CD = _near_one(left_CD), _near_one(right_CD)
    rows = _tile_rows(classes)
    tiles = range(0, classes, rows)
    norm = torch.stack([(left_CD[i : i + rows] @ right_CD.T).square().sum() for i in tiles]).sum()
    norm = norm.sqrt()
    if norm <= dim * _EPS * left_CD.norm() * right_CD.norm():
        raise UndefinedStatistic("the Gram matrix is zero")
    squares = 0.0
    for start in tiles:
        block = left_CD[start : start + rows] @ (right_CD.T / norm)
        block += 1 / classes / math.sqrt(classes - 1)
        block.diagonal(start).sub_(1 / math.sqrt(classes - 1))
        squares += float(block.square().sum())
    return math.sqrt(squares)


@_of_arrays
def bias_collapse(weight_CD: Tensor, bias_C: Tensor, global_mean_D: Tensor) -> float:
    """|W mu_G + b|_2 (Zhu et al. 2021), in units of the logits; W (C, d), b (C,), mu_G (d,).

    >>> bias_collapse([[1.0, 0.0], [0.0, 1.0]], [-1.0, -2.0], [1.0, 5.0])
    3.0
    """
    return float((weight_CD @ global_mean_D + bias_C).norm())


@_of_arrays
def sum_of_rows(weight_CD: Tensor) -> float:
    """NC0 (Zhao et al. 2026, arXiv:2602.16642): |W^T 1|_2, the norm of the sum of the rows of W
    (C, d), in units of the weights, as in their code; their theorem uses its square divided by C.

    >>> sum_of_rows([[1.0, 0.0], [2.0, 4.0]])
    5.0
    """
    return float(weight_CD.sum(0).norm())


@_of_arrays
def expected_calibration_error(calibration_B3: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): mean over bins, weighted by
    their examples, of |accuracy - mean confidence|. Confidence is the largest softmax probability.

    Args:
        calibration_B3: (bins, 3), for each bin of confidence the number of examples, the sum of
            their confidences, and the number classified correctly (`Moments.calibration`).

    >>> expected_calibration_error([[0.0, 0.0, 0.0], [10.0, 9.0, 8.0]])
    0.1
    """
    examples, confidence, right = calibration_B3.unbind(1)
    if not examples.any():
        raise UndefinedStatistic("there are no examples")
    return float((right - confidence).abs().sum() / examples.sum())


@_of_arrays
def hyperspherical_uniformity(vectors_CD: Tensor) -> float:
    """GNC2 (Liu et al. 2023, arXiv:2303.06484): hyperspherical energy with the logarithmic kernel
    (s = 0), per pair.

    Mean over pairs c != c' of log(1 / |u_c - u_c'|), with u_c = v_c / |v_c| of vectors (C, d):
    centred class means, or W. Lower is more uniform. For C <= d + 1 the minimum is that of the
    simplex ETF, -log(2 C / (C - 1)) / 2; for more classes there is no closed form. (Wu and Papyan
    2024 report the coefficient of variation of the same kernel instead of its mean.)

    >>> round(hyperspherical_uniformity([[1.0, 0.0], [-3.0, 0.0]]), 12)  # -log 2
    -0.69314718056
    """
    _need_two_classes(len(vectors_CD))
    tiles = _squared_distances(
        _directions(vectors_CD), 64 * _EPS, "two vectors have the same direction"
    )
    return _mean_over_pairs((-squares_P.log() / 2 for *_, squares_P in tiles), len(vectors_CD))


@_of_arrays
def cosine_duality(weight_CD: Tensor, centred_CD: Tensor) -> float:
    """GNC3 (Jiang et al. 2024): mean over c of 1 - cos(w_c, mu_c - mu_G); W and M^T are (C, d).

    >>> cosine_duality([[1.0, 0.0], [0.0, 1.0]], [[5.0, 0.0], [0.0, -5.0]])
    1.0
    """
    # |u - v|^2 / 2 = 1 - cos for unit vectors, and keeps its digits where cos is almost 1.
    difference_CD = _directions(weight_CD) - _directions(centred_CD)
    return float(difference_CD.square().sum(1).mean() / 2)


@_of_arrays
def variability_collapse_index(class_means_CD: Tensor, scatter_DD: Tensor) -> float:
    """VCI (Xu and Liu 2023): 1 - Tr((Sigma_W + Sigma_B)^+ Sigma_B) / min(d, C - 1).

    Args:
        class_means_CD: (C, d), mu_c.
        scatter_DD: (d, d), Sigma_W.

    Raises:
        UndefinedStatistic: the centred class means have rank less than K = min(d, C - 1), where
            dead features, equal in all class means, do not count in d.

    In an orthonormal basis that begins with span(M), Sigma_W has the blocks A, X, X^T, Z. With
    G = A - X Z^+ X^T and D = diag(s^2) / C, the index is Tr((D + G)^-1 G) / K, which avoids the
    difference of two almost equal numbers.

    Up to d + 1 examples in general position have the index 0, collapsed or not: the ranges of
    Sigma_W and Sigma_B then share no direction. Measure many more examples than dimensions.

    >>> means = [[1.0, 0.0], [-1.0, 0.0]]
    >>> round(variability_collapse_index(means, [[1.0, 0.0], [0.0, 9.0]]), 12)  # 1 - 1 / (1 + 1)
    0.5
    """
    # Rounding would turn dead features into directions of tiny variance, which Z^+ divides by.
    alive_D = _vary(class_means_CD) | (scatter_DD.diagonal() > 0).to(class_means_CD.device)
    means_CD, alive_D = class_means_CD[:, alive_D].cpu(), alive_D.cpu()
    span = _full_span(means_CD)
    (classes, dim), needed = means_CD.shape, span.rank
    basis_DD = torch.linalg.svd(centred_class_means(means_CD))[2]
    scatter_DD = basis_DD @ scatter_DD.cpu()[alive_D][:, alive_D] @ basis_DD.T
    A, X = scatter_DD[:needed, :needed], scatter_DD[:needed, needed:]
    Z = scatter_DD[needed:, needed:]
    if dim > needed:
        A = A - X @ torch.linalg.pinv(Z, hermitian=True, rtol=dim * _EPS) @ X.T
    total = A + (span.singular_values[:needed].square() / classes).diag()
    return float(torch.linalg.solve(total, A).trace()) / needed


class MSEParts(NamedTuple):
    """The three parts of the regularised mean squared error; see `mse_decomposition`."""

    nc1: float
    nc23: float
    perpendicular: float


@_of_arrays
def mse_decomposition(
    class_means_CD: Tensor,
    scatter_DD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor,
    weight_decay: Tensor | float,
) -> MSEParts:
    """Decompose the regularised MSE of balanced classes into three parts that sum to it (Han,
    Papyan and Donoho 2022, arXiv:2106.02073).

    The MSE is sum_i |W h_i + b - y_i|^2 / (2 N) + weight_decay (|W|^2 + |b|^2) / 2, with one-hot
    labels y_i.

    Args:
        class_means_CD: (C, d), mu_c, not centred.
        scatter_DD: (d, d), Sigma_W.
        weight_CD: (C, d), W.
        bias_C: (C,), b.
        weight_decay: positive, of the last layer. torch.nn.MSELoss also averages over classes and
            has no factor 1/2, so it is 2 / C times this error: training with it and weight decay
            w corresponds to weight_decay = C w / 2.

    Returns:
        `nc1` and `nc23`, the MSE of the least-squares classifier of the same features, due to the
        variability within classes and due to the class means; `perpendicular`, the rest, due to
        the difference of W and b from that classifier.

    >>> identity, scatter = [[1.0, 0.0], [0.0, 1.0]], [[0.1, 0.0], [0.0, 0.1]]
    >>> parts = mse_decomposition(identity, scatter, identity, [0.0, 0.0], 0.1)
    >>> round(sum(parts), 12)  # 0.1 / 2 * 2 within classes, 0.1 / 2 * 2 of the decay
    0.2
    """
    classes, dim = class_means_CD.shape
    decay = float(weight_decay)
    mean_D = class_means_CD.mean(0)
    centred_CD = class_means_CD - mean_D
    identity_DD = torch.eye(dim, dtype=torch.float64, device=mean_D.device)
    second_DD = scatter_DD + centred_CD.T @ centred_CD / classes + decay * identity_DD
    outer_DD = torch.outer(mean_D, mean_D)
    right_CD = (class_means_CD - mean_D / (1 + decay)) / classes
    fitted_CD = torch.linalg.solve(second_DD + decay / (1 + decay) * outer_DD, right_CD.T).T
    fitted_C = (1 / classes - fitted_CD @ mean_D) / (1 + decay)
    within_DD = scatter_DD + decay * identity_DD
    nc1 = torch.trace(fitted_CD @ within_DD @ fitted_CD.T) / 2 + decay * fitted_C.square().sum() / 2
    errors_CC = class_means_CD @ fitted_CD.T + fitted_C - torch.eye(classes, device=mean_D.device)
    W, b = weight_CD - fitted_CD, bias_C - fitted_C
    perpendicular = torch.trace(W @ (second_DD + outer_DD) @ W.T) / 2
    perpendicular = perpendicular + (W @ mean_D) @ b + (1 + decay) * b.square().sum() / 2
    return MSEParts(
        float(nc1), float(errors_CC.square().sum() / (2 * classes)), float(perpendicular)
    )


# ------------------------------------------------------------------------------------------ pairs


def _tile_rows(classes: int) -> int:
    return max(1, _TILE_ELEMENTS // classes)


def _pairs(classes: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of the upper triangle: rows, columns, and which of the tile's elements are pairs."""
    rows = _tile_rows(classes)
    for start in range(0, classes - 1, rows):
        stop = min(start + rows, classes)
        mask = torch.ones(stop - start, classes - start, dtype=torch.bool).triu(1)
        yield slice(start, stop), slice(start, classes), mask


def _mean_over_pairs(tiles: Iterator[Tensor], classes: int) -> float:
    return sum(float(values_P.sum()) for values_P in tiles) / math.comb(classes, 2)


def _cosines_of_pairs(vectors_CD: Tensor) -> Iterator[Tensor]:
    """The cosines of all pairs c < c', in tiles."""
    _need_two_classes(len(vectors_CD))
    unit_CD = _directions(vectors_CD)
    for rows, columns, mask in _pairs(len(vectors_CD)):
        yield (unit_CD[rows] @ unit_CD[columns].T)[mask.to(unit_CD.device)]


def _squared_distances(
    vectors_CD: Tensor, smallest: float, coincide: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Indices c (P,), c' (P,) and |v_c - v_c'|^2 (P,) of all pairs c < c', in tiles.

    From |v|^2 + |v'|^2 - 2 <v, v'>, and again from the difference where that has lost digits.
    A distance of at most `smallest` is undefined, and `coincide` says why.
    """
    _need_two_classes(len(vectors_CD))
    centred_CD = vectors_CD - vectors_CD.mean(0)
    squares_C = centred_CD.square().sum(1)
    for rows, columns, mask in _pairs(len(vectors_CD)):
        first, second = mask.to(vectors_CD.device).nonzero(as_tuple=True)
        sums = (squares_C[rows, None] + squares_C[columns])[first, second]
        found_P = sums - 2 * (centred_CD[rows] @ centred_CD[columns].T)[first, second]
        first, second = first + rows.start, second + columns.start
        for close in (found_P < 0.1 * sums).nonzero().flatten().split(_TILE_ELEMENTS // 1024):
            difference = vectors_CD[first[close]] - vectors_CD[second[close]]
            found_P[close] = difference.square().sum(1)
        if found_P.min() <= smallest**2:
            raise UndefinedStatistic(coincide)
        yield first, second, found_P


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


def _near_one(matrix: Tensor) -> Tensor:
    """The matrix divided by a power of two, which rounds nothing, so that its largest entry lies
    between 1 and 2 and fourth powers neither overflow nor vanish."""
    return matrix / 2.0 ** (int(torch.frexp(matrix.abs().max()).exponent) - 1)


def _full_span(class_means_CD: Tensor) -> SpanOfMeans:
    """The means' span, of min(d, C - 1) dimensions; d without dead features."""
    classes = len(class_means_CD)
    _need_two_classes(classes)
    span = span_of_means(class_means_CD)
    needed = min(max(int(_vary(class_means_CD).sum()), 1), classes - 1)
    if span.rank < needed:
        raise UndefinedStatistic(
            f"the centred class means have rank {span.rank}, less than min(d, C - 1) = {needed} "
            "(class means that coincide or depend linearly on each other)"
        )
    return span


def _vary(class_means_CD: Tensor) -> Tensor:
    """(d,) bool, which features differ between class means by more than rounding."""
    ranges_D = class_means_CD.amax(0) - class_means_CD.amin(0)
    return ranges_D > rounding_error(class_means_CD)


def _need_two_classes(classes: int) -> None:
    if classes < 2:
        raise UndefinedStatistic("one class has no pairs")
