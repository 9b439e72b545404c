"""Neural collapse after the epochs of a Lightning training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ..collapse.curve import CollapseCurve
from ..collapse.model import measure_model


class NeuralCollapse(Callback):
    """Measures the module on its train set and logs to the trainer's loggers, as `collapse/...`.

    Every process measures the whole of the loaders that it is given.

    Args:
        every: epochs between measurements; the last one is always measured.
        train_loader: what is measured; by default the trainer's own train loader.
        test_loader: measured as well, by the train set's means.
        measure: of `neural_collapse.measure_model`: layer, labels_key, pool, ...

    Attributes:
        curve: `neural_collapse.CollapseCurve` of what has been measured, epochs from 1.
    """

    def __init__(
        self,
        every: int = 1,
        train_loader: Iterable[Any] | None = None,
        test_loader: Iterable[Any] | None = None,
        **measure: Any,
    ) -> None:
        self.every, self.train_loader, self.test_loader = every, train_loader, test_loader
        self.measure = measure
        self.curve = CollapseCurve()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every and epoch != trainer.max_epochs:
            return
        train: Any = trainer.train_dataloader if self.train_loader is None else self.train_loader
        result = measure_model(pl_module, train, self.test_loader, **self.measure)
        self.curve.log(epoch, result)
        pl_module.log_dict({f"collapse/{name}": value for name, value in result.items()})
