"""Measuring neural collapse: features -> moments -> statistics, and DeepFool robustness.

Imported on first use: a caller that only names this package does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attacks import DeepFoolResult, deepfool, robustness
    from .features import extract, extract_rows, extract_splits
    from .functional import ReducedRankWarning
    from .moments import Moments, StoredMoments, compute_moments, load_moments, save_moments
    from .statistics import (
        FURTHER_STATISTICS,
        PAPER_STATISTICS,
        STATISTICS,
        UndefinedStatisticWarning,
        compute_statistic,
        compute_statistics,
        statistics_of,
    )

__all__ = [
    "FURTHER_STATISTICS",
    "PAPER_STATISTICS",
    "STATISTICS",
    "DeepFoolResult",
    "Moments",
    "ReducedRankWarning",
    "StoredMoments",
    "UndefinedStatisticWarning",
    "compute_moments",
    "compute_statistic",
    "compute_statistics",
    "deepfool",
    "extract",
    "extract_rows",
    "extract_splits",
    "load_moments",
    "robustness",
    "save_moments",
    "statistics_of",
]

_MODULES = {
    "attacks": ("DeepFoolResult", "deepfool", "robustness"),
    "features": ("extract", "extract_rows", "extract_splits"),
    "functional": ("ReducedRankWarning",),
    "moments": (
        "Moments",
        "StoredMoments",
        "compute_moments",
        "load_moments",
        "save_moments",
    ),
    "statistics": (
        "FURTHER_STATISTICS",
        "PAPER_STATISTICS",
        "STATISTICS",
        "UndefinedStatisticWarning",
        "compute_statistic",
        "compute_statistics",
        "statistics_of",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
