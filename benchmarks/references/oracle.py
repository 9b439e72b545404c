"""NC1 of given features to many more digits than float64 has, to judge all others by."""

from __future__ import annotations

import mpmath
import numpy as np


def nc1(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Tr(Sigma_W Sigma_B^+) / C.

    Sums in longdouble (64 bits of mantissa on x86), two passes; the C x C inverse with 60 digits:
    with G = M^T M and J = 1 1^T / C, G^+ = (G + J)^-1 - J, and NC1 = Tr(G^+ M^T Sigma_W M G^+).
    """
    h = features.astype(np.longdouble)
    means = np.stack([h[labels == c].mean(0) for c in range(classes)])
    centred = means - means.mean(0)
    projected = (h - means[labels]) @ centred.T
    with mpmath.workdps(60):
        gram, scatter = (_exact(a) for a in (centred @ centred.T, projected.T @ projected))
        ones = mpmath.ones(classes) / classes
        inverse = (gram + ones) ** -1 - ones
        product = inverse * scatter * inverse
        return float(mpmath.fsum(product[c, c] for c in range(classes)) / len(h))


def _exact(matrix: np.ndarray) -> mpmath.matrix:
    """Every bit of a longdouble, as the sum of two float64."""
    high = matrix.astype(np.float64)
    low = (matrix - high).astype(np.float64)
    return mpmath.matrix(high.tolist()) + mpmath.matrix(low.tolist())
