"""The statistics of one measurement, to read, print and store."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ..io.text import did_you_mean
from . import statistics
from .moments import Moments
from .registry import ALIASES, OF_MOMENTS
from .statistics import UndefinedStatistic

_WHY_ABSENT = {
    "weight": "it needs the last layer's weight, one row per class, and logits W h + b",
    "scatter_projected": 'it needs scatter="full", or a second pass with scatter="projected"',
    "scatter_balanced": "it needs a second pass over the features",
    "scatter": 'it needs scatter="full"',
    "calibration": "it needs a second pass over the features with the last layer's weight",
    "decisions": "it needs a second pass over the features",
}


class UndefinedStatisticWarning(RuntimeWarning):
    """Some statistics are NaN; its text names them and the reason."""


class CollapseResult(Mapping[str, float]):
    """Statistics by name, as a mapping, as attributes, and as a printed table.

    `result["nc1_within_class_variability"]`, `result["nc1"]` and `result.nc1` are the same number.
    A statistic is absent if its input was not given (KeyError or AttributeError, with the reason),
    and NaN if its formula is undefined for the input. Iteration is over full names, in the order
    of `REGISTRY`.

    Attributes:
        moments: the `Moments` from which the statistics were computed.
        absent: dict from the name of each absent statistic to the reason.
        test: the `CollapseResult` of the test set, or None.

    >>> from neural_collapse import measure
    >>> result = measure([[1.0, 0.0], [-1.0, 0.0]], [0, 1], weight=[[1.0, 0.0], [-1.0, 0.0]])
    >>> result.nc1, result["nc3_self_duality"], result.absent
    (0.0, 0.0, {'vci': 'it needs scatter="full"'})
    """

    def __init__(self, values: Mapping[str, float], absent: Mapping[str, str], moments: Moments):
        self._values, self.absent, self.moments = dict(values), dict(absent), moments
        self.test: CollapseResult | None = None

    @classmethod
    def of(cls, moments: Moments, split: str | None = None) -> CollapseResult:
        """All statistics that can be computed from the moments; warnings name the split."""
        where = f" on the {split} split" if split else ""
        values: dict[str, float] = {}
        absent: dict[str, str] = {}
        undefined: dict[str, list[str]] = {}
        for name, entry in OF_MOMENTS.items():
            if entry.unbalanced and moments.balanced:
                continue
            missing = [field for field in entry.needs if getattr(moments, field) is None]
            if missing:
                absent[name] = _WHY_ABSENT[missing[-1]]
                continue
            try:
                values[name] = _value(name, moments)
            except UndefinedStatistic as reason:
                values[name] = math.nan
                undefined.setdefault(str(reason), []).append(name)
        for why, names in undefined.items():
            verb = "is" if len(names) == 1 else "are"
            warnings.warn(
                f"{', '.join(names)} {verb} undefined{where} and given as NaN: {why}.",
                UndefinedStatisticWarning,
                stacklevel=3,
            )
        return cls(values, absent, moments)

    def __getitem__(self, name: str) -> float:
        name = ALIASES.get(name, name)
        if name in self.absent:
            raise KeyError(f"{name} is absent: {self.absent[name]}")
        if name not in self._values:
            longer = ", ".join(full for full in self if full.startswith(str(name)))
            hint = f"there are {longer}" if longer else did_you_mean(str(name), [*ALIASES, *self])
            raise KeyError(f"no statistic {name!r}; {hint}")
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            try:
                return self[name]
            except KeyError as error:
                raise AttributeError(error.args[0]) from None
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *ALIASES, *self._values]

    def to_dict(self) -> dict[str, float]:
        """A dict from full name to value."""
        return dict(self._values)

    def __repr__(self) -> str:
        m = self.moments
        shape = f"C = {m.num_classes}, d = {m.feature_dim}"
        short = [f"{a} = {self[a]:.4g}" for a in ("nc1", "nc3", "nc4") if ALIASES[a] in self]
        return f"<CollapseResult of {m.num_examples} examples, {', '.join([shape, *short])}>"

    def __str__(self) -> str:
        """A table: name, value on each split, limit at neural collapse, description."""
        splits = {"value": self} if self.test is None else {"train": self, "test": self.test}
        # One split may be unbalanced and the other not.
        names = [name for name in OF_MOMENTS if any(name in split for split in splits.values())]
        width = max(map(len, names))
        limit = max(len(OF_MOMENTS[name].tends_to) for name in names)
        lines = [f"{'statistic':{width}}" + "".join(f"{c:>12}" for c in splits) + "  tends to"]
        for name in names:
            numbers = "".join(
                f"{split[name]:>12.4g}" if name in split else f"{'-':>12}"
                for split in splits.values()
            )
            entry = OF_MOMENTS[name]
            lines.append(f"{name:{width}}{numbers}  {entry.tends_to:{limit}}  {entry.what}")
        lines += [f"{name:{width}}{'absent':>12}  {why}" for name, why in self.absent.items()]
        return "\n".join(lines)


def compute_statistics(moments: Moments) -> dict[str, float]:
    """All statistics that can be computed from the moments of a split, by name, in the order of
    `REGISTRY`.

    NaN, with one `UndefinedStatisticWarning` per reason, if a formula is undefined.
    """
    return CollapseResult.of(moments).to_dict()


def _value(name: str, moments: Moments) -> float:
    entry = OF_MOMENTS[name]
    if moments.empty_classes and "class_means" in entry.needs:
        named = ", ".join(map(str, moments.empty_classes[:10]))
        raise UndefinedStatistic(
            f"there is no example of class {named}{', ...' * (len(moments.empty_classes) > 10)}"
        )
    assert entry.compute is not None
    value = entry.compute(statistics, moments)
    if not math.isfinite(value):
        raise UndefinedStatistic(f"its formula gives {value} in float64")
    return value
