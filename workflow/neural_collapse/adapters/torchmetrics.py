"""`CollapseMetric` as a torchmetrics Metric."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ..collapse.metric import CollapseMetric
from ..collapse.model import last_layer_of


class _Shared:
    """A module that a copy shares, unless the copy is of a whole that has a copy of it; and whose
    parameters do not become the metric's."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return _Shared(memo.get(id(self.module), self.module))


class NeuralCollapse(Metric):
    """The statistics of one pass over the features, as a dict of tensors by name.

    torchmetrics synchronises the processes; they are merged as in `CollapseMetric.merge`, exact up
    to float64 rounding. NC4 needs a second pass and is absent: see
    `neural_collapse.CollapseMetric.second_pass`.

    Args:
        num_classes: C.
        dim: d, the feature dimension.
        scatter: as in `CollapseMetric`.
        classifier: the last layer, whose weight and bias `compute` reads; without it NC3 and all
            other statistics of the classifier are absent. A copy of the metric shares it; a copy of
            a model with both has its own, if the model registered it before the metric.
        ignore_index: as in `CollapseMetric`.
        pool: as in `CollapseMetric`.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        UserError: in all cases of `CollapseMetric`.
    """

    is_differentiable = False
    full_state_update = True

    def __init__(
        self,
        num_classes: int,
        dim: int,
        scatter: str = "full",
        *,
        classifier: nn.Module | None = None,
        ignore_index: int | None = None,
        pool: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._new = partial(
            CollapseMetric, num_classes, dim, scatter, ignore_index=ignore_index, pool=pool
        )
        self._classifier = _Shared(classifier)
        for name, value in self._new().state_dict().items():
            self.add_state(name, value, dist_reduce_fx=None)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch: features (B, d) and labels (B,), or other shapes of
        `CollapseMetric.update`."""
        metric = self._joined()
        metric.update(features, labels)
        for name, value in metric.state_dict().items():
            setattr(self, name, value)

    def compute(self) -> dict[str, Tensor]:
        """A dict from the full name of each statistic to its value, a float64 tensor ()."""
        layer = self._classifier.module
        weight, bias = (None, None) if layer is None else last_layer_of(layer)
        result = self._joined().compute(weight, bias)
        values = torch.tensor(list(result.values()), dtype=torch.float64, device=self.device)
        return dict(zip(result, values, strict=True))

    def _joined(self) -> CollapseMetric:
        """One metric of all states; torchmetrics stacks those of several processes."""
        state = {name: getattr(self, name) for name in self._defaults}
        joined = self._new(device=state["counts"].device)
        if state["counts"].dim() == 1:
            joined.load_state_dict(state)
            return joined
        for rank in range(len(state["counts"])):
            part = self._new(device=joined.device)
            part.load_state_dict({name: value[rank] for name, value in state.items()})
            joined.merge(part)
        return joined
