"""How far a value may be off by chance: half the widths of 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

STANDARD_ERRORS = 1.96
"""Half the width of the interval in standard errors, where these are known."""


def of_mean(values: Sequence[float] | np.ndarray) -> float:
    """Of the mean of two or more independent values, by Student's t: t s / sqrt(n)."""
    from scipy.special import stdtrit

    n = len(values)
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))


def of_shares(shares: Sequence[float], examples: float) -> float:
    """Of the difference of shares p of so many examples each: 1.96 sqrt(sum of p (1 - p) / N)."""
    return STANDARD_ERRORS * math.sqrt(sum(max(p * (1 - p), 0.0) for p in shares) / examples)
