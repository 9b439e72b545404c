"""Measure neural collapse; reproduce Papyan, Han and Donoho (PNAS 2020).

    >>> import neural_collapse as nc
    >>> result = nc.measure([[1.0, 0.0], [-1.0, 0.0]], labels=[0, 1])
    >>> result.nc1
    0.0

Names are imported on first use: `import neural_collapse` alone does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collapse import statistics as functional
    from .collapse.attacks import DeepFoolResult, deepfool
    from .collapse.curve import CollapseCurve
    from .collapse.measure import measure
    from .collapse.metric import CollapseMetric
    from .collapse.model import LayerInput, measure_model, watch
    from .collapse.registry import REGISTRY, Statistic
    from .collapse.result import CollapseResult, UndefinedStatisticWarning
    from .collapse.statistics import ReducedRankWarning, UndefinedStatistic, simplex_etf
    from .io.errors import UserError

__version__ = "0.1.0"

_MODULE_OF = {
    "CollapseCurve": ".collapse.curve",
    "CollapseMetric": ".collapse.metric",
    "CollapseResult": ".collapse.result",
    "DeepFoolResult": ".collapse.attacks",
    "LayerInput": ".collapse.model",
    "REGISTRY": ".collapse.registry",
    "ReducedRankWarning": ".collapse.statistics",
    "Statistic": ".collapse.registry",
    "UndefinedStatistic": ".collapse.statistics",
    "UndefinedStatisticWarning": ".collapse.result",
    "UserError": ".io.errors",
    "deepfool": ".collapse.attacks",
    "functional": ".collapse.statistics",
    "measure": ".collapse.measure",
    "measure_model": ".collapse.model",
    "simplex_etf": ".collapse.statistics",
    "watch": ".collapse.model",
}

__all__ = [
    "REGISTRY",
    "CollapseCurve",
    "CollapseMetric",
    "CollapseResult",
    "DeepFoolResult",
    "LayerInput",
    "ReducedRankWarning",
    "Statistic",
    "UndefinedStatistic",
    "UndefinedStatisticWarning",
    "UserError",
    "deepfool",
    "functional",
    "measure",
    "measure_model",
    "simplex_etf",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULE_OF[name], __name__)
    value = module if name == "functional" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
