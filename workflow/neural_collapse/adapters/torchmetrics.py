"""`CollapseMetric` as a torchmetrics Metric."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ..collapse.metric import CollapseMetric
from ..collapse.model import last_layer_of


class NeuralCollapse(Metric):
    """The statistics that one pass over the features gives, as a dict of tensors by name.

    Processes are joined as by `CollapseMetric.merge`, exact up to float64 rounding. NC4 needs a
    second pass and is absent: see `neural_collapse.CollapseMetric.second_pass`.

    Args:
        num_classes: C.
        dim: d.
        scatter: as in `CollapseMetric`; likewise:
        ignore_index: as there.
        pool: as there.
        classifier: the last layer, read by `compute`; without it NC3 is absent.
        kwargs: torchmetrics' own.
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
        # In a tuple, so that its parameters do not become the metric's.
        self._classifier = (classifier,)
        for name, value in self._new().state_dict().items():
            self.add_state(name, value, dist_reduce_fx=None)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take a batch: features (B, d), labels (B,)."""
        metric = self._joined()
        metric.update(features, labels)
        for name, value in metric.state_dict().items():
            setattr(self, name, value)

    def compute(self) -> dict[str, Tensor]:
        """Name of each statistic -> its value, float64."""
        layer = self._classifier[0]
        weight, bias = (None, None) if layer is None else last_layer_of(layer)
        result = self._joined().compute(weight, bias)
        values = torch.tensor(list(result.values()), dtype=torch.float64, device=self.device)
        return dict(zip(result, values, strict=True))

    def _joined(self) -> CollapseMetric:
        """The states as one metric; torchmetrics stacks those of several processes."""
        state = {name: getattr(self, name) for name in self._defaults}
        together = state["counts"].dim() > 1
        joined = self._new(device=state["counts"].device)
        for rank in range(len(state["counts"]) if together else 1):
            part = self._new(device=joined.device)
            part.load_state_dict({n: v[rank] if together else v for n, v in state.items()})
            joined.merge(part)
        return joined
