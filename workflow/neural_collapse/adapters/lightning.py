"""A Lightning callback that measures neural collapse during training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ..collapse.arrays import whole_number
from ..collapse.curve import CollapseCurve
from ..collapse.model import measure_model


class NeuralCollapse(Callback):
    """Measures the module after training epochs, with `neural_collapse.measure_model`.

    The statistics of the train set are logged to the trainer's loggers as `collapse/<name>`. Every
    process measures all batches of its loaders; results of several processes are not merged.

    Args:
        every: epochs between measurements; the last epoch is always measured.
        train_loader: the loader to measure. Default: the trainer's train loader.
        test_loader: also measured, if given; its statistics are only in `curve`.
        measure: keyword arguments of `measure_model`: layer, labels_key, pool, ...

    Attributes:
        curve: `neural_collapse.CollapseCurve` of the most recent training; epochs start at 1.

    Raises:
        UserError: from the callback's methods, in all cases of `measure_model`.
    """

    def __init__(
        self,
        every: int = 1,
        train_loader: Iterable[Any] | None = None,
        test_loader: Iterable[Any] | None = None,
        **measure: Any,
    ) -> None:
        every = whole_number(every, "every")
        self.every, self.train_loader, self.test_loader = every, train_loader, test_loader
        self.measure = measure
        self.curve = CollapseCurve()
        self._unmeasured: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.curve, self._unmeasured = CollapseCurve(), None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        self._unmeasured = epoch if epoch % self.every else None
        if self._unmeasured is None:
            pl_module.log_dict(self._measured(epoch, trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._unmeasured is not None:
            values = self._measured(self._unmeasured, trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step)

    def _measured(
        self, epoch: int, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, float]:
        train: Any = trainer.train_dataloader if self.train_loader is None else self.train_loader
        result = measure_model(pl_module, train, self.test_loader, **self.measure)
        self.curve.log(epoch, result)
        return {f"collapse/{name}": value for name, value in result.items()}
