"""Neural collapse after the epochs of a Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..collapse.curve import CollapseCurve
from ..collapse.model import measure_model


class NeuralCollapse(TrainerCallback):
    """Measures the model on the Trainer's train set after every epoch, and where it is stopped.

    `trainer.add_callback(NeuralCollapse(log=trainer.log))` once the Trainer is made.

    Args:
        log: the Trainer's `log`, to pass the statistics on to its loggers as `collapse/...`.
        every: epochs between measurements.
        test_loader: measured as well, by the train set's means.
        measure: of `neural_collapse.measure_model`: layer, labels_key, ignore_index, ...

    Attributes:
        curve: `neural_collapse.CollapseCurve` of the newest training.
    """

    def __init__(
        self,
        log: Callable[[dict[str, float]], None] | None = None,
        every: int = 1,
        test_loader: Iterable[Any] | None = None,
        **measure: Any,
    ) -> None:
        self.write, self.every, self.test_loader = log, every, test_loader
        self.measure = measure
        self.curve = CollapseCurve()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.curve = CollapseCurve()

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        epoch = round(state.epoch or 0, 6)
        # A fraction: the training was stopped within an epoch and ends here.
        if epoch == int(epoch) and int(epoch) % self.every:
            return
        result = measure_model(model, train_dataloader, self.test_loader, **self.measure)
        self.curve.log(epoch, result)
        if self.write is not None:
            self.write({f"collapse/{name}": value for name, value in result.items()})
