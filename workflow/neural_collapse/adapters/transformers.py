"""A Hugging Face Trainer callback that measures neural collapse during training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..collapse.arrays import whole_number
from ..collapse.curve import CollapseCurve
from ..collapse.model import measure_model


class NeuralCollapse(TrainerCallback):
    """Measures the model on the Trainer's train set, with `neural_collapse.measure_model`.

    Add it after the Trainer is constructed:
    `trainer.add_callback(NeuralCollapse(log=trainer.log))`.

    Args:
        log: `trainer.log`, to log the statistics of the train set as `collapse/<name>`. Default:
            not logged.
        every: epochs between measurements. A training that stops within an epoch is also measured.
        test_loader: also measured, if given; its statistics are only in `curve`.
        measure: keyword arguments of `measure_model`: layer, labels_key, ignore_index, ...

    Attributes:
        curve: `neural_collapse.CollapseCurve` of the most recent training.

    Raises:
        UserError: from the callback's methods, in all cases of `measure_model`.
    """

    def __init__(
        self,
        log: Callable[[dict[str, float]], None] | None = None,
        every: int = 1,
        test_loader: Iterable[Any] | None = None,
        **measure: Any,
    ) -> None:
        every = whole_number(every, "every")
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
