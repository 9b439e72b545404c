"""The law of data separation: how separation fuzziness falls from layer to layer.

He and Su, "A law of data separation in deep learning", PNAS 120 (36), 2023,
doi:10.1073/pnas.2221704120.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class SeparationLaw(NamedTuple):
    """The least-squares line log D_l = a + l log rho over layers l = 0, 1, ..."""

    rate: float
    """rho, by which the fuzziness falls from one layer to the next."""
    linearity: float
    """r, Pearson's correlation of l and log D_l; -1 for a perfect fall."""


LEAST_LAYERS = 3
"""Through two points there is always a line."""


def separation_law(fuzziness: Sequence[float]) -> SeparationLaw:
    """The law of fuzziness D_l at layers l = 0, 1, ...

    All NaN where there are fewer than three layers or a D_l is not finite or not positive; the
    linearity alone where all are equal.

    >>> law = separation_law([8.0, 4.0, 2.0, 1.0])
    >>> round(law.rate, 9), round(law.linearity, 9)
    (0.5, -1.0)
    """
    values = np.asarray(fuzziness, np.float64)
    if len(values) < LEAST_LAYERS or not (np.isfinite(values) & (values > 0)).all():
        return SeparationLaw(math.nan, math.nan)
    logs, layers = np.log(values), np.arange(len(values), dtype=np.float64)
    dl, dy = layers - layers.mean(), logs - logs.mean()
    slope = float(dl @ dy / (dl @ dl))
    spread = float(np.sqrt((dl @ dl) * (dy @ dy)))
    linearity = float(dl @ dy) / spread if spread > 0 else math.nan
    return SeparationLaw(math.exp(slope), linearity)
