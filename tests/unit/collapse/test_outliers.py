"""Scores of outliers, NC5, detection and the linear probe against loops, SciPy and PCA."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from numpy.testing import assert_allclose
from sklearn.decomposition import PCA

from neural_collapse import simplex_etf
from neural_collapse.collapse import transfer
from neural_collapse.collapse.measure import compute_moments
from neural_collapse.collapse.outliers import (
    detection,
    energy,
    max_softmax,
    nc5,
    nci,
    neco,
    outlier_statistics,
    principal_directions,
)
from neural_collapse.collapse.registry import OF_OTHER_DATASET
from neural_collapse.collapse.statistics import UndefinedStatistic
from neural_collapse.collapse.transfer import linear_probe_accuracy


@pytest.fixture
def random():
    return np.random.default_rng(0)


def cloud(random, counts=(9, 20, 14), dim=7):
    """Features of unequal classes, each about its own mean."""
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = 3 * random.normal(size=(len(counts), dim))
    return centres[labels] + random.normal(size=(len(labels), dim)) * [*range(1, dim + 1)], labels


def rotation(random, dim):
    return np.linalg.qr(random.normal(size=(dim, dim)))[0]


@pytest.mark.parametrize("scale", [1, 1e3])
def test_scores_of_logits_equal_scipys_however_large_they_are(random, scale):
    logits = scale * random.normal(size=(50, 4))
    assert_allclose(max_softmax(logits), scipy.special.softmax(logits, 1).max(1), rtol=1e-12)
    assert_allclose(energy(logits), scipy.special.logsumexp(logits, 1), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_principal_directions_of_moments_are_those_of_scikit_learns_pca(random, count):
    features, labels = cloud(random)
    moments = compute_moments(features, labels, 3, None, None, scatter="full")
    found = principal_directions(moments.counts, moments.class_means, moments.scatter, count)
    assert_allclose(found @ found.T, np.eye(count), atol=1e-12)
    expected = PCA(count).fit(features).components_
    # A direction's sign is free.
    assert_allclose(np.abs((found * expected).sum(1)), 1, rtol=1e-9)


def test_principal_directions_are_at_most_as_many_as_dimensions():
    assert principal_directions([1, 1], [[1.0, 0], [0, 1]], np.eye(2), 9).shape == (2, 2)


def test_neco_is_the_share_of_length_that_scikit_learns_pca_keeps(random):
    features, _ = cloud(random)
    pca, mean = PCA(2).fit(features), features.mean(0)
    others = random.normal(size=(30, 7)) * 4
    expected = np.linalg.norm(pca.transform(others), axis=1) / np.linalg.norm(others - mean, axis=1)
    found = neco(others, mean, pca.components_)
    assert_allclose(found, expected, rtol=1e-10)
    assert (found > 0).all() and (found < 1).all()
    turn = rotation(random, 7)
    moved = neco(5 * others @ turn + 2, 5 * mean @ turn + 2, pca.components_ @ turn)
    assert_allclose(moved, expected, rtol=1e-10)
    assert neco(mean[None], mean, pca.components_).tolist() == [0]


def test_nci_equals_a_loop_over_examples(random):
    features, _ = cloud(random)
    weight, bias = random.normal(size=(3, 7)), 9 * random.normal(size=3)
    mean, logits = features.mean(0), features @ weight.T + bias
    expected = []
    for row, scores in zip(features, logits, strict=True):
        towards = row - mean
        decided = weight[list(scores).index(max(scores))]
        expected.append(decided @ towards / np.sqrt(towards @ towards) + 0.3 * sum(map(abs, row)))
    assert_allclose(nci(features, logits, mean, weight, alpha=0.3), expected, rtol=1e-12)
    without = nci(features, logits, mean, weight, alpha=0)
    assert (np.abs(without) <= np.linalg.norm(weight, axis=1).max()).all()


def test_nc5_equals_a_loop_and_does_not_change_with_a_rotation_or_scale(random):
    means, outlier, centre = random.normal(size=(4, 6)), random.normal(size=6), np.full(6, 0.2)
    cosines = []
    for mean in means:
        a, b = mean - centre, outlier - centre
        cosines.append(abs(a @ b) / (np.sqrt(a @ a) * np.sqrt(b @ b)))
    assert nc5(means, outlier, centre) == pytest.approx(sum(cosines) / 4, rel=1e-12)
    turn = 7 * rotation(random, 6)
    assert nc5(means @ turn, outlier @ turn, centre @ turn) == pytest.approx(np.mean(cosines))
    assert nc5(means[:, :3] @ np.eye(3, 6), np.eye(6)[4]) == 0


@pytest.mark.parametrize("outlier", [[0.5, 0.5], [9.0, 9.0]])
def test_nc5_without_a_direction_is_undefined(outlier):
    means = [[0.5, 0.5], [1.0, 0.0]] if outlier[0] > 1 else [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(UndefinedStatistic, match="no direction"):
        nc5(means, outlier, [0.5, 0.5])


def test_nc5_of_rounding_error_is_undefined(random):
    features = random.normal(size=(30, 6))
    outlier = random.permutation(features).mean(0)  # the same mean, rounded otherwise
    assert not np.array_equal(outlier, features.mean(0))
    with pytest.raises(UndefinedStatistic, match="no direction"):
        nc5(random.normal(size=(4, 6)), outlier, features.mean(0))
    assert nc5(np.eye(6)[:3], outlier * 1e-6) > 0


def test_detection_equals_counting_pairs_and_thresholds(random):
    own, outliers = random.integers(3, 20, 40) / 2, random.integers(0, 12, 30) / 2
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(own, outliers)]
    found = detection(own, outliers)
    assert found.auroc == pytest.approx(np.mean(pairs), rel=1e-12)
    # The strictest threshold at which 95 % of the outliers lie at or below it.
    threshold = min(t for t in outliers if np.mean(outliers <= t) >= 0.95)
    assert found.fpr95 == np.mean(own <= threshold)
    # A score decides by its order alone.
    assert detection(np.exp(own), np.exp(outliers)) == pytest.approx(found)
    assert detection(outliers, own).auroc == pytest.approx(1 - found.auroc)


def test_detection_of_separated_and_of_equal_scores():
    assert detection([3, 4], [1, 2]) == (1, 0)
    assert detection([1, 1], [1, 1, 1]) == (0.5, 1)


def test_outliers_orthogonal_to_a_collapsed_network_are_all_detected(random):
    """What NC5 says: with features at a simplex and outliers beside its span, NECO is 1 and 0."""
    classes, dim = 4, 8
    simplex = simplex_etf(classes, dim, generator=torch.Generator().manual_seed(0)).numpy()
    labels = np.arange(40) % classes
    features = 2 + simplex[labels] + 1e-6 * random.normal(size=(40, dim))
    # Beside the span of the simplex and at its centre.
    aside = np.linalg.svd(simplex)[2][classes - 1 :]
    outliers = 2 + random.normal(size=(30, len(aside))) @ aside
    bias = -simplex @ np.full(dim, 2.0)
    train = compute_moments(features, labels, classes, simplex, bias, scatter="full")
    found = outlier_statistics(train, features, outliers)
    assert found["outlier_auroc_neco"] == 1 and found["outlier_fpr95_neco"] == 0
    assert found["outlier_auroc_nci"] == 1
    assert found["nc5_outlier_orthogonality"] == pytest.approx(0, abs=1e-5)
    assert found["nc5_outlier_orthogonality_uncentred"] > 0.9
    measured = {name for name in OF_OTHER_DATASET if name.startswith(("nc5", "outlier"))}
    assert set(found) == measured
    same = outlier_statistics(train, features, features)
    aurocs = [value for name, value in same.items() if name.startswith("outlier_auroc")]
    assert aurocs == pytest.approx([0.5] * 4)


def test_outliers_whose_mean_is_the_centre_leave_nc5_alone_undefined():
    features, labels = np.array([[1.0, 0], [-1, 0]] * 2), np.array([0, 1] * 2)
    train = compute_moments(features, labels, 2, np.eye(2), None, scatter="full")
    found = outlier_statistics(train, features, np.array([[0.0, 1], [0, -1]]))
    undefined = [name for name, value in found.items() if np.isnan(value)]
    assert undefined == ["nc5_outlier_orthogonality", "nc5_outlier_orthogonality_uncentred"]


# ---------------------------------------------------------------------------------------- transfer


def test_a_linear_probe_that_does_not_converge_has_no_accuracy(random, monkeypatch):
    features, labels = cloud(random, (20, 30, 25), 4)
    monkeypatch.setattr(transfer, "PROBE_ITERATIONS", 1)
    assert np.isnan(linear_probe_accuracy(features, labels, features, labels))


def test_the_linear_probe_does_not_see_scale_shift_or_features_that_do_not_vary(random):
    features, labels = cloud(random, (20, 30, 25), 4)
    test, truth = cloud(random, (40, 40, 40), 4)
    expected = linear_probe_accuracy(features, labels, test, truth)
    scale = 10.0 ** np.array([-6, 0, 3, 6])
    moved = [
        np.hstack([rows * scale + 5, np.full((len(rows), 1), 7.0)]) for rows in (features, test)
    ]
    found = linear_probe_accuracy(moved[0], labels, moved[1], truth)
    assert found == pytest.approx(expected, abs=0.01)
