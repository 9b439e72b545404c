"""The formulas of neural collapse: pure functions of arrays or tensors, computed in float64.

Shape suffixes: N examples, C classes, d (written D) feature dimension, P pairs of classes.

    mu_c        mean of the features of class c                         class_means_CD, row c
    mu_G        unweighted mean of the mu_c
    M           [mu_c - mu_G]; here its transpose                       centred_CD, row c
    W, b        last layer                                              weight_CD, bias_C
    Sigma_W     average over all N examples of (h - mu_c)(h - mu_c)^T   scatter_DD
    Sigma_B     average over the C classes of (mu_c - mu_G)(mu_c - mu_G)^T = M M^T / C

"The paper" is Papyan, Han and Donoho, PNAS 117 (40), 2020, doi:10.1073/pnas.2015509117; figures
are its figures. All statistics are pure numbers (no unit) unless stated. Standard deviations have
ddof 0, as in the paper's formulas; the authors' notebook has torch.std (ddof 1), larger by
sqrt(C / (C - 1)) in figure 2.

Arguments of any real dtype are widened to float64, and results are Python floats. Pairs of classes
are visited in tiles, so that C = 50,000 classes need no C x C matrix.

Degenerate input. A statistic that its formula does not define (a division by a norm that is zero)
raises `UndefinedStatistic`. Two thresholds say what counts as zero:

* a centred mean, or a distance of two class means, of at most 64 eps max_c |mu_c| (1.4e-14
  relative, eps = 2.2e-16) is the rounding error of float64 means, and is zero;
* NC1 divides by the singular values of M, min(d, C - 1) of them. One that is at most 1e-9 of the
  largest, or of max_c |mu_c|, is zero: two class means coincide, or one is in the span of the
  others. Above that NC1's relative error is about eps / (smallest / largest): 1e-9 at 1e-7.
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
from .arrays import float64_tensor

_EPS = torch.finfo(torch.float64).eps
_SMALLEST_SINGULAR_VALUE = 1e-9
_TILE_ELEMENTS = 2**22

Result = TypeVar("Result")


class UndefinedStatistic(ArithmeticError):
    """The input leaves a statistic without a value; its text says why."""


class ReducedRankWarning(UserWarning):
    """There are fewer dimensions than C - 1, so NC1 sums over d directions instead."""


def _of_arrays(function: Callable[..., Result]) -> Callable[..., Result]:
    """Widen all arguments to float64 tensors."""

    @functools.wraps(function)
    def widened(*arguments: Any, **named: Any) -> Result:
        return function(
            *map(float64_tensor, arguments),
            **{name: float64_tensor(value) for name, value in named.items()},
        )

    return widened


# --------------------------------------------------------------------------- the class means' span


@_of_arrays
def centred_class_means(class_means_CD: Tensor, counts_C: Tensor | None = None) -> Tensor:
    """M^T, (C, d): the rows mu_c - mu_G, with mu_G the unweighted mean of the class means.

    With counts_C, examples a class, the origin is the mean of all examples instead,
    sum_c n_c mu_c / N. A row no longer than the rounding error of the means is set to exactly zero.

    >>> centred_class_means([[1.0, 0.0], [0.0, 1.0]]).tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    if counts_C is None:
        mean_D = class_means_CD.mean(0)
    else:
        mean_D = counts_C @ class_means_CD / counts_C.sum()
    centred_CD = class_means_CD - mean_D
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


@_of_arrays
def span_of_means(class_means_CD: Tensor) -> SpanOfMeans:
    """The directions in which the class means (C, d) differ; always computed on the CPU.

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
    """Q^T Sigma_W Q, (C, C), which `within_class_variability` takes; Q: see `SpanOfMeans`.

    >>> project_scatter([[4.0, 0.0], [0.0, 9.0]], [[1.0, 0.0], [-1.0, 0.0]]).round(decimals=9)
    tensor([[ 2., -2.],
            [-2.,  2.]], dtype=torch.float64)
    """
    basis_CD = span_of_means(class_means_CD).basis_CD.to(scatter_DD.device)
    return basis_CD @ scatter_DD @ basis_CD.T


def simplex_etf(classes: int, dim: int, *, generator: torch.Generator | None = None) -> Tensor:
    """The vertices (C, d) of a simplex equiangular tight frame, float64: unit vectors whose
    cosines are all -1 / (C - 1), which is what centred class means and W tend to.

    Args:
        classes: C >= 2.
        dim: d >= C - 1.
        generator: rotates it at random; without one it uses the first C - 1 coordinates.

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
    """NC1, figure 6: Tr(Sigma_W Sigma_B^+) / C.

    Args:
        class_means_CD: (C, d), mu_c.
        scatter_projected_CC: (C, C), Q^T Sigma_W Q as `project_scatter` gives it.

    With M = U diag(s) V^T, Sigma_B^+ = C U diag(s)^-2 U^T, so the trace is
    sum_k v_k^T (Q^T Sigma_W Q) v_k / s_k^2. The pseudo-inverse has rank min(d, C - 1); where that
    is d < C - 1, a `ReducedRankWarning` says so.

    >>> means = [[1.0, 0.0], [-1.0, 0.0]]
    >>> scatter = project_scatter([[4.0, 0.0], [0.0, 9.0]], means)
    >>> round(within_class_variability(means, scatter), 12)
    2.0
    """
    classes, dim = class_means_CD.shape
    span = _full_span(class_means_CD)
    if dim < classes - 1:
        warnings.warn(
            f"{classes} classes in {dim} dimensions: NC1's pseudo-inverse has rank {dim} instead "
            f"of C - 1 = {classes - 1}.",
            ReducedRankWarning,
            stacklevel=3,
        )
    V = span.vectors_CK
    scatter_KK = V.T @ scatter_projected_CC.cpu() @ V
    return float((scatter_KK.diagonal() / span.singular_values.square()).sum())


@_of_arrays
def equinorm(vectors_CD: Tensor) -> float:
    """NC2, figure 2: std_c |v_c| / mean_c |v_c|, of centred class means or of the rows of W.

    >>> equinorm([[1.0, 0.0], [0.0, 3.0]])
    0.5
    """
    norms_C = vectors_CD.norm(dim=1)
    if not norms_C.any():
        raise UndefinedStatistic("all vectors are zero")
    return float(norms_C.std(correction=0) / norms_C.mean())


@_of_arrays
def equiangularity(vectors_CD: Tensor) -> float:
    """NC2, figure 3: std over the pairs c != c' of cos(v_c, v_c').

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
    """NC2, figure 4: mean over the pairs c != c' of |cos(v_c, v_c') + 1 / (C - 1)|.

    >>> maximal_angle([[1.0, 0.0], [-1.0, 0.0]])
    0.0
    """
    classes = len(vectors_CD)
    tiles = _cosines_of_pairs(vectors_CD)
    return _mean_over_pairs(((cosines_P + 1 / (classes - 1)).abs() for cosines_P in tiles), classes)


@_of_arrays
def mean_cosine(vectors_CD: Tensor) -> float:
    """Mean over the pairs c != c' of cos(v_c, v_c'); 1 where all have one direction (minority
    collapse, Fang et al. 2021), -1 / (C - 1) for a simplex ETF of C vectors.

    >>> mean_cosine([[1.0, 0.0], [0.0, 2.0]])
    0.0
    """
    return _mean_over_pairs(_cosines_of_pairs(vectors_CD), len(vectors_CD))


@_of_arrays
def self_duality(weight_CD: Tensor, centred_CD: Tensor) -> float:
    """NC3, figure 5: squared Frobenius norm of W^T / |W|_F - M / |M|_F.

    >>> round(self_duality([[2.0, 0.0], [0.0, 2.0]], [[0.5, -0.5], [-0.5, 0.5]]), 12)
    0.585786437627
    """
    difference = _over_frobenius(weight_CD, "the classifier") - _over_frobenius(
        centred_CD, "M (all class means coincide)"
    )
    return float(difference.square().sum())


def mismatch(decisions_N: Any, others_N: Any) -> float:
    """NC4, figure 7: share of examples on which two decisions (N,) differ.

    >>> mismatch([0, 1, 1, 2], [0, 1, 2, 2])
    0.25
    """
    return float((torch.as_tensor(decisions_N) != torch.as_tensor(others_N)).double().mean())


# -------------------------------------------------------------------------------- beyond the paper


@_of_arrays
def trace_ratio(counts_C: Tensor, variances_C: Tensor, centred_CD: Tensor) -> float:
    """Tr Sigma_W / Tr Sigma_B (Tirer, Huang and Niles-Weed 2023).

    variances_C: mean squared distance of each class's features to mu_c.

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
    """Separation fuzziness D = Tr(SS_w SS_b^+) (He and Su 2023), of a layer's outputs.

    SS_w = (1/N) sum_i (h_i - mu_c(i)) (h_i - mu_c(i))^T and
    SS_b = sum_c (n_c / N) (mu_c - mu) (mu_c - mu)^T, with mu the mean of all N examples. With as
    many examples of every class it is C times NC1.

    Args:
        counts_C: examples a class, n_c.
        class_means_CD: (C, d), mu_c.
        scatter_projected_CC: (C, C), Q^T Sigma_W Q as `project_scatter` gives it.

    The pseudo-inverse is at the rank of the means: that of fewer than C - 1 directions, in a layer
    that has lost some, is no error.

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
    """CDNV (Galanti, György and Hutter 2022): mean over c < c' of
    (v_c + v_c') / (2 |mu_c - mu_c'|^2), v_c the mean squared distance to mu_c.

    >>> class_distance_normalized_variance([[1.0, 0.0], [-1.0, 0.0]], [1.0, 3.0])
    0.5
    """
    smallest = _rounding_error(class_means_CD)
    tiles = _squared_distances(class_means_CD, smallest, "two class means coincide")
    return _mean_over_pairs(
        ((variances_C[c] + variances_C[other]) / (2 * squares_P) for c, other, squares_P in tiles),
        len(class_means_CD),
    )


@_of_arrays
def etf_error(left_CD: Tensor, right_CD: Tensor) -> float:
    """Distance of G = left right^T (C, C) from the simplex ETF's Gram matrix (Zhu et al. 2021):
    | G / |G|_F - (I - 1 1^T / C) / sqrt(C - 1) |_F.

    Of the means: both arguments M^T; of the classifier: both W; of W M: W and M^T.

    >>> round(etf_error([[1.0, 0.0], [-1.0, 0.0]], [[2.0, 0.0], [-2.0, 0.0]]), 12)
    0.0
    """
    classes, dim = left_CD.shape
    _need_two_classes(classes)
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
    """|W mu_G + b|_2 (Zhu et al. 2021), in units of the logits.

    >>> bias_collapse([[1.0, 0.0], [0.0, 1.0]], [-1.0, -2.0], [1.0, 5.0])
    3.0
    """
    return float((weight_CD @ global_mean_D + bias_C).norm())


@_of_arrays
def sum_of_rows(weight_CD: Tensor) -> float:
    """NC0 (Zhao et al. 2026, arXiv:2602.16642): |W^T 1|_2, the norm of the sum of the classifier's
    rows, in units of the weights, as their code has it; their theorem has its square over C.

    >>> sum_of_rows([[1.0, 0.0], [2.0, 4.0]])
    5.0
    """
    return float(weight_CD.sum(0).norm())


@_of_arrays
def expected_calibration_error(calibration_B3: Tensor) -> float:
    """ECE (Guo et al. 2017, arXiv:1706.04599): sum over bins of confidence, weighted by their
    examples, of |accuracy - mean confidence|; confidence is the largest softmax probability.

    calibration_B3: of each bin examples, their summed confidence, and how many are right
        (`Moments.calibration`: 15 equal bins).

    >>> expected_calibration_error([[0.0, 0.0, 0.0], [10.0, 9.0, 8.0]])
    0.1
    """
    examples, confidence, right = calibration_B3.unbind(1)
    if not examples.any():
        raise UndefinedStatistic("there are no examples")
    return float((right - confidence).abs().sum() / examples.sum())


@_of_arrays
def hyperspherical_uniformity(vectors_CD: Tensor) -> float:
    """GNC2 (Liu et al. 2023, arXiv:2303.06484): the hyperspherical energy of s = 0, a pair.

    Mean over the pairs c != c' of log(1 / |u_c - u_c'|) with u_c = v_c / |v_c|, the logarithmic
    (s = 0) kernel, independent of d. Lower is more uniform. For C <= d + 1 the least value is
    the simplex ETF's, -log(2 C / (C - 1)) / 2; for more classes there is no closed form. (Wu and
    Papyan 2024 report the coefficient of variation of the same kernel instead of its mean.)

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
    """GNC3 (Jiang et al. 2024): mean over c of 1 - cos(w_c, mu_c - mu_G).

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

    In an orthonormal basis that begins with span(M), Sigma_W has the blocks A, X, X^T, Z, and
    with G = A - X Z^+ X^T and D = diag(s^2) / C the index is Tr((D + G)^-1 G) / K: no
    difference of two almost equal traces.

    >>> means = [[1.0, 0.0], [-1.0, 0.0]]
    >>> round(variability_collapse_index(means, [[1.0, 0.0], [0.0, 9.0]]), 12)  # 1 - 1 / (1 + 1)
    0.5
    """
    classes, dim = class_means_CD.shape
    span = _full_span(class_means_CD)
    needed = span.rank
    basis_DD = torch.linalg.svd(centred_class_means(class_means_CD).cpu())[2]
    scatter_DD = basis_DD @ scatter_DD.cpu() @ basis_DD.T
    A, X = scatter_DD[:needed, :needed], scatter_DD[:needed, needed:]
    Z = scatter_DD[needed:, needed:]
    if dim > needed:
        A = A - X @ torch.linalg.pinv(Z, hermitian=True, rtol=dim * _EPS) @ X.T
    total = A + (span.singular_values.square() / classes).diag()
    return float(torch.linalg.solve(total, A).trace()) / needed


class MSEParts(NamedTuple):
    """The regularised mean squared error as a sum: see `mse_decomposition`."""

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
    """The loss sum_i |W h_i + b - y_i|^2 / (2 N) + weight_decay (|W|^2 + |b|^2) / 2 in three parts
    (Han, Papyan and Donoho 2022, arXiv:2106.02073), y_i the one-hot label, for balanced classes.

    Args:
        class_means_CD: (C, d), mu_c, not centred.
        scatter_DD: (d, d), Sigma_W.
        weight_CD: (C, d); bias_C: (C,).
        weight_decay: > 0, of the last layer. torch.nn.MSELoss averages over classes as well and
            has no 1/2: it is 2 / C times this error, so that training with it and a decay w, whose
            gradient is w W, is this with C w / 2.

    Returns:
        `nc1` and `nc23`, which the least-squares classifier of these features leaves, by the
        variability within classes and by the class means; `perpendicular`, by how far W and b are
        from that classifier.

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


def _full_span(class_means_CD: Tensor) -> SpanOfMeans:
    """The means' span, of min(d, C - 1) dimensions."""
    classes, dim = class_means_CD.shape
    _need_two_classes(classes)
    span, needed = span_of_means(class_means_CD), min(dim, classes - 1)
    if span.rank < needed:
        raise UndefinedStatistic(
            f"the centred class means have rank {span.rank}, less than min(d, C - 1) = {needed} "
            "(class means that coincide or depend linearly on each other)"
        )
    return span


def _need_two_classes(classes: int) -> None:
    if classes < 2:
        raise UndefinedStatistic("one class has no pairs")


def _rounding_error(class_means_CD: Tensor) -> float:
    return 64 * _EPS * float(class_means_CD.norm(dim=1).max())
