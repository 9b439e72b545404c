"""Separation fuzziness against numpy's pseudo-inverse, and the line through it against scipy's."""

import math

import numpy as np
import pytest
import scipy.stats

from neural_collapse import measure
from neural_collapse.collapse.separation import separation_law


def direct(features, labels):
    """Tr(SS_w SS_b^+) from the features themselves."""
    mean = features.mean(0)
    within = between = 0
    for c in np.unique(labels):
        own = features[labels == c]
        centred = own - own.mean(0)
        within = within + centred.T @ centred
        between = between + len(own) * np.outer(own.mean(0) - mean, own.mean(0) - mean)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)))


def cloud(counts, dim):
    random = np.random.default_rng(0)
    means = random.normal(size=(len(counts), dim))
    labels = np.repeat(np.arange(len(counts)), counts)
    return means[labels] + 0.3 * random.normal(size=(len(labels), dim)), labels


@pytest.mark.parametrize("counts", [[20] * 4, [5, 40, 11, 3]])
@pytest.mark.parametrize("dim", [2, 3, 12])
@pytest.mark.filterwarnings("ignore:4 classes in 2 dimensions")
def test_fuzziness_equals_numpys(counts, dim):
    features, labels = cloud(counts, dim)
    result = measure(features, labels)
    assert result["separation_fuzziness"] == pytest.approx(direct(features, labels), rel=1e-9)
    if len(set(counts)) == 1:
        assert result["separation_fuzziness"] == pytest.approx(4 * result.nc1, rel=1e-9)


def test_fuzziness_of_means_that_lost_a_direction_is_of_those_that_are_left():
    """Two of four classes with the same mean: rank 2 instead of 3."""
    features, labels = cloud([20] * 4, 12)
    for c in (2, 3):
        features[labels == c] -= features[labels == c].mean(0)
    with pytest.warns(match="nc1_within_class_variability"):
        found = measure(features, labels)
    assert math.isnan(found.nc1)
    assert found["separation_fuzziness"] == pytest.approx(direct(features, labels), rel=1e-8)


def test_law_equals_scipys_regression():
    values = np.exp(np.random.default_rng(1).normal(size=7))
    expected = scipy.stats.linregress(np.arange(7), np.log(values))
    law = separation_law(values)
    assert law.rate == pytest.approx(math.exp(expected.slope), rel=1e-12)
    assert law.linearity == pytest.approx(expected.rvalue, rel=1e-12)


@pytest.mark.parametrize("values", [[], [2.0, 1.0], [2.0, 0.0, 1.0], [2.0, math.nan, 1.0]])
def test_law_of_what_has_no_line_is_nan(values):
    assert all(map(math.isnan, separation_law(values)))


def test_law_of_equal_values_has_a_rate_and_no_linearity():
    law = separation_law([3.0, 3.0, 3.0])
    assert law.rate == 1 and math.isnan(law.linearity)
