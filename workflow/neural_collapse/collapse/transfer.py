"""Accuracy of a network's frozen features on the classes of another dataset.

After Hui, Belkin and Nakkiran (2022, arXiv:2202.08384). Needs scikit-learn. Shape suffixes: N
examples, d (D) feature dimension.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike

PROBE_ITERATIONS = 1000
PROBE_EXAMPLES = 20_000
"""Train images of the other dataset that a probe learns from, at most."""


def linear_probe_accuracy(
    train_features_ND: ArrayLike,
    train_labels_N: ArrayLike,
    test_features_ND: ArrayLike,
    test_labels_N: ArrayLike,
) -> float:
    """Accuracy (0 to 1) on test features of a linear classifier trained on train features.

    scikit-learn's LogisticRegression with its defaults (L2 penalty, C = 1, lbfgs), at most 1000
    iterations, in float64, on features of which each has mean 0 and variance 1 over the train set;
    one that does not vary is left out by that. Nothing is random in it. NaN where it does not
    converge.

    Args:
        train_features_ND: (N, d); train_labels_N: (N,), of at least two classes.
        test_features_ND: (N', d); test_labels_N: (N',).

    >>> linear_probe_accuracy([[0.0], [1.0], [5.0], [6.0]], [0, 0, 1, 1], [[-1.0], [7.0]], [0, 1])
    1.0
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=PROBE_ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            probe.fit(np.asarray(train_features_ND, np.float64), np.asarray(train_labels_N))
        except ConvergenceWarning:
            return math.nan
    return float(probe.score(np.asarray(test_features_ND, np.float64), np.asarray(test_labels_N)))
