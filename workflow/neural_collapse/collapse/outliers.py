"""Outlier detection from the features of a trained network: scores, NC5, AUROC and FPR.

Shape suffixes: N examples, M outliers, C classes, K directions, d (D) feature dimension. h are
features, the input of the last layer; z = W h + b are logits; mu is the mean of all train
features. Scores are larger for in-distribution examples than for outliers. Arrays are NumPy
arrays, computed in float64; `detection` needs scikit-learn.

Sources: maximum softmax probability, Hendrycks and Gimpel (ICLR 2017, arXiv:1610.02136); energy,
Liu et al. (NeurIPS 2020, arXiv:2010.03759); NC5 and NECO, Ben Ammar et al. (ICLR 2024,
arXiv:2310.06823); NCI, Liu and Qin (CVPR 2025, arXiv:2311.01479).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from .arrays import rounding_error
from .moments import Moments
from .statistics import UndefinedStatistic

NCI_ALPHA = 1e-4
"""The weight of |h|_1 in NCI: OpenOOD's default; its sweep goes up to 0.1."""
RECALL = 0.95
"""True positive rate at which the false positive rate is read."""


def max_softmax(logits_NC: ArrayLike) -> np.ndarray:
    """The largest softmax probability of each example (Hendrycks and Gimpel 2017).

    Args:
        logits_NC: (N, C).

    Returns:
        (N,), from 1 / C to 1.

    >>> max_softmax([[0.0, 0.0], [0.0, 800.0]]).tolist()
    [0.5, 1.0]
    """
    logits = np.asarray(logits_NC, np.float64)
    return 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)


def energy(logits_NC: ArrayLike) -> np.ndarray:
    """log sum_c exp(z_c): the negative free energy at temperature 1 (Liu et al. 2020).

    Args:
        logits_NC: (N, C).

    Returns:
        (N,).

    >>> energy([[0.0, 0.0], [0.0, 800.0]]).round(6).tolist()
    [0.693147, 800.0]
    """
    logits = np.asarray(logits_NC, np.float64)
    largest = logits.max(1)
    return largest + np.log(np.exp(logits - largest[:, None]).sum(1))


def principal_directions(
    counts_C: ArrayLike, class_means_CD: ArrayLike, scatter_DD: ArrayLike, count: int
) -> np.ndarray:
    """The leading principal directions of features, computed from their moments.

    Args:
        counts_C: (C,), examples of each class.
        class_means_CD: (C, d), mu_c.
        scatter_DD: (d, d), Sigma_W, the within-class covariance over all examples.
        count: number of directions.

    Returns:
        (min(count, d), d), orthonormal rows: eigenvectors of the total covariance, in descending
        order of the eigenvalue.

    >>> principal_directions([1, 1], [[3.0, 0.0], [-3.0, 0.0]], [[0, 0], [0, 1.0]], 1).round(6) ** 2
    array([[1., 0.]])
    """
    counts, means, scatter = (
        np.asarray(values, np.float64) for values in (counts_C, class_means_CD, scatter_DD)
    )
    shares = counts / counts.sum()
    centred = means - shares @ means
    _, vectors = np.linalg.eigh(scatter + (centred.T * shares) @ centred)
    return vectors[:, ::-1][:, :count].T


def neco(features_ND: ArrayLike, mean_D: ArrayLike, directions_KD: ArrayLike) -> np.ndarray:
    """NECO score |P (h - mu)| / |h - mu| (Ben Ammar et al. 2024).

    Args:
        features_ND: (N, d), h.
        mean_D: (d,), mu.
        directions_KD: (K, d), P, orthonormal rows; see `principal_directions`.

    Returns:
        (N,), from 0 to 1; 0 for h = mu.

    The authors' code standardises each feature by the mean and standard deviation of the train set
    before the principal component analysis. Here features are only centred, because scaling
    changes the geometry of the class means; the authors recommend the same if NC1 holds.

    >>> neco([[3.0, 4.0], [0.0, 0.0]], [0.0, 0.0], [[1.0, 0.0]]).round(6).tolist()
    [0.6, 0.0]
    """
    centred = np.asarray(features_ND, np.float64) - np.asarray(mean_D, np.float64)
    inside = np.linalg.norm(centred @ np.asarray(directions_KD, np.float64).T, axis=1)
    return _quotient(inside, np.linalg.norm(centred, axis=1))


def nci(
    features_ND: ArrayLike,
    logits_NC: ArrayLike,
    mean_D: ArrayLike,
    weight_CD: ArrayLike,
    alpha: float = NCI_ALPHA,
) -> np.ndarray:
    """NCI score w_y . (h - mu) / |h - mu| + alpha |h|_1 (Liu and Qin 2025), with y the class that
    the network predicts.

    Args:
        features_ND: (N, d), h.
        logits_NC: (N, C), of the same examples.
        mean_D: (d,), mu.
        weight_CD: (C, d), rows w_c of the last layer.
        alpha: weight of the second term.

    Returns:
        (N,). For h = mu, the first term is 0.

    >>> nci([[3.0, 4.0]], [[0.0, 1.0]], [0.0, 0.0], [[1.0, 0.0], [0.0, 2.0]], alpha=0.1).round(6)
    array([2.3])
    """
    features = np.asarray(features_ND, np.float64)
    centred = features - np.asarray(mean_D, np.float64)
    decided = np.asarray(weight_CD, np.float64)[np.argmax(logits_NC, axis=1)]
    towards = _quotient((decided * centred).sum(1), np.linalg.norm(centred, axis=1))
    return towards + alpha * np.abs(features).sum(1)


def _quotient(above_N: np.ndarray, below_N: np.ndarray) -> np.ndarray:
    return np.divide(above_N, below_N, out=np.zeros_like(below_N), where=below_N > 0)


def nc5(class_means_CD: ArrayLike, outlier_mean_D: ArrayLike, centre_D: ArrayLike = 0) -> float:
    """NC5 (Ben Ammar et al. 2024): mean over c of |cos(mu_c - centre, mu_out - centre)|; 0 if the
    outliers' mean is orthogonal to the class means.

    Args:
        class_means_CD: (C, d), mu_c of the train set.
        outlier_mean_D: (d,), mu_out, the mean of the features of all outliers.
        centre_D: (d,), such as mu_G. Default: 0, no centring.

    Raises:
        UndefinedStatistic: one of the vectors is zero or rounding error (64 eps of the longest
            mean), so its cosine is undefined.

    >>> nc5([[1.0, 0.0], [0.0, 1.0]], [0.0, 5.0])
    0.5
    """
    centre = np.asarray(centre_D, np.float64)
    means, outlier = np.asarray(class_means_CD, np.float64), np.asarray(outlier_mean_D, np.float64)
    smallest = rounding_error(torch.from_numpy(np.vstack([means, outlier])))
    means, outlier = means - centre, outlier - centre
    lengths, length = np.linalg.norm(means, axis=1), np.linalg.norm(outlier)
    if min(lengths.min(), length) <= smallest:
        raise UndefinedStatistic("a mean is at the centre and has no direction")
    return float(np.abs(means @ outlier / (lengths * length)).mean())


class Detection(NamedTuple):
    """How well a score separates outliers from in-distribution examples."""

    auroc: float
    """Area under the receiver operating characteristic: the probability that a random outlier has
    a smaller score than a random in-distribution example; 1/2 is chance."""
    fpr95: float
    """False positive rate at a true positive rate of 95 %: the fraction of in-distribution
    examples that are detected as outliers."""


def detection(scores_N: ArrayLike, outlier_scores_M: ArrayLike) -> Detection:
    """AUROC and FPR at 95 % TPR of a score, with outliers as the positive class. Needs
    scikit-learn.

    Args:
        scores_N: (N,), of in-distribution examples.
        outlier_scores_M: (M,), of outliers, which should have smaller scores.

    >>> detection([0.9, 0.8, 0.7, 0.2], [0.1, 0.3])
    Detection(auroc=0.875, fpr95=0.25)
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    scores = -np.concatenate([scores_N, outlier_scores_M]).astype(np.float64)
    is_outlier = np.repeat([0, 1], [len(np.asarray(scores_N)), len(np.asarray(outlier_scores_M))])
    false_positive, true_positive, _ = roc_curve(is_outlier, scores, drop_intermediate=False)
    reached = np.argmax(true_positive >= RECALL)
    return Detection(float(roc_auc_score(is_outlier, scores)), float(false_positive[reached]))


def outlier_statistics(
    train: Moments, test_features_ND: np.ndarray, outlier_features_MD: np.ndarray
) -> dict[str, float]:
    """NC5, and AUROC and FPR of every score, by their names in `REGISTRY`.

    NC5 is centred at mu_G and, as `..._uncentred`, at 0; NECO uses C - 1 principal directions, the
    dimension of a simplex. Needs scikit-learn.

    Args:
        train: moments of the train features, with weight, bias and the full scatter.
        test_features_ND: (N, d), of the test set of the same dataset.
        outlier_features_MD: (M, d), of the outliers.

    Returns:
        A dict from name to value; NaN if a formula is undefined.
    """
    assert train.scatter is not None and train.weight is not None and train.bias is not None
    counts, means, scatter, weight, bias = (
        tensor.numpy()
        for tensor in (train.counts, train.class_means, train.scatter, train.weight, train.bias)
    )
    mean = counts @ means / counts.sum()
    directions = principal_directions(counts, means, scatter, len(means) - 1)

    def scores(rows: np.ndarray) -> dict[str, np.ndarray]:
        logits = rows @ weight.T + bias
        return {
            "max_softmax": max_softmax(logits),
            "energy": energy(logits),
            "neco": neco(rows, mean, directions),
            "nci": nci(rows, logits, mean, weight),
        }

    own, outliers = scores(test_features_ND), scores(outlier_features_MD)
    values: dict[str, float] = {}
    for name in own:
        found = detection(own[name], outliers[name])
        values |= {f"outlier_{measure}_{name}": v for measure, v in found._asdict().items()}
    outlier_mean = np.mean(outlier_features_MD, axis=0, dtype=np.float64)
    for ending, centre in (("", means.mean(0)), ("_uncentred", 0)):
        try:
            value = nc5(means, outlier_mean, centre)
        except UndefinedStatistic:
            value = math.nan
        values[f"nc5_outlier_orthogonality{ending}"] = value
    return values
