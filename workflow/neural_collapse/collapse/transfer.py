"""Transfer: accuracy of the frozen features of a network on the classes of another dataset.

Source: Hui, Belkin and Nakkiran (2022, arXiv:2202.08384). Needs scikit-learn. Shape suffixes: N
examples, d (D) feature dimension.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike

PROBE_ITERATIONS = 1000
PROBE_EXAMPLES = 20_000
"""Maximum number of train images of the other dataset that the probe is trained on."""


def linear_probe_accuracy(
    train_features_ND: ArrayLike,
    train_labels_N: ArrayLike,
    test_features_ND: ArrayLike,
    test_labels_N: ArrayLike,
) -> float:
    """Accuracy on test features of a linear classifier trained on train features.

    scikit-learn's LogisticRegression with its defaults (L2 penalty, C = 1, lbfgs), at most 1000
    iterations, in float64, on features standardised over the train set. It is deterministic.

    Args:
        train_features_ND: (N, d).
        train_labels_N: (N,), of at least two classes.
        test_features_ND: (N', d).
        test_labels_N: (N',).

    Returns:
        The accuracy, 0 to 1; NaN if the fit does not converge.

    Raises:
        ValueError: from scikit-learn, for shapes that do not fit, NaN, or fewer than two classes.

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
