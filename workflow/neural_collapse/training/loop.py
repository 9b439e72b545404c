"""Training far past zero error, resumable with the same bits.

The state after an epoch consists of weights, buffers, optimiser state (momentum, or Adam's moments
and steps) and the number of the epoch; see ``trainer``. It is written after kept epochs, after the
last one, and often enough that a kill loses at most one minute or one epoch, whichever is longer.
Several processes share each batch of the same order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.prepared import PreparedDataset
from ..io import versions
from ..io.files import deliver
from ..io.progress import Progress, say
from ..io.tensorboard import Events
from ..io.tensors import from_bytes, to_bytes
from .checkpoints import checkpoint_name, save_checkpoint
from .distributed import launch
from .ranks import ALONE, Ranks
from .schedule import learning_rate_name
from .state import BackgroundWriter, StateFolder, fingerprint, state_interval_seconds
from .trainer import EpochRecord, Trainer, build

if TYPE_CHECKING:
    from ..experiment.recipe import Recipe

CHECKPOINTS = "checkpoints"  # within a run's state: the weights of the measured epochs so far


@dataclass
class History:
    """The learning curve of one training."""

    learning_rate: float
    records: list[EpochRecord] = field(default_factory=list)
    diverged: bool = False
    resumed_after: int = 0
    """The epoch after which this process took up the training; 0 where it began it."""

    def add(self, record: EpochRecord) -> None:
        """One more record; a loss that is not finite ends the curve, with all decisions wrong."""
        self.diverged = not math.isfinite(record.train_loss)
        if self.diverged:
            record = EpochRecord(record.epoch, record.train_loss, 1.0, record.test_loss, 1.0)
        self.records.append(record)


def training_fingerprint(
    recipe: Recipe,
    data_hash: str,
    learning_rate: float,
    seed: int,
    checkpoint_epochs: Collection[int],
    evaluated_epochs: Collection[int] | None = None,
) -> str:
    """What a resume state must agree on: recipe, data, rate, seed, kept and evaluated epochs (the
    first and the last always are), code version."""
    always = {0, recipe.training.epochs}
    return fingerprint(
        version=versions.TRAINING,
        network=recipe.network.model_dump(),
        training=recipe.training.model_dump(exclude=versions.CHANGES_NO_RESULT),
        data=data_hash,
        learning_rate=learning_rate,
        seed=seed,
        checkpoints=sorted(checkpoint_epochs),
        evaluated=None if evaluated_epochs is None else sorted({*evaluated_epochs, *always}),
    )


@dataclass(frozen=True)
class Training:
    """What one training is, but for where it is computed."""

    recipe: Recipe
    data: PreparedDataset
    learning_rate: float
    """The initial one."""
    seed: int
    """Decides initial weights and order."""
    state_root: str | Path
    """Where resume states of interrupted trainings lie."""
    checkpoint_folder: str | Path | None = None
    """Receives the weights of `checkpoint_epochs` once the training is complete."""
    checkpoint_epochs: Collection[int] = ()
    evaluated_epochs: Collection[int] | None = None
    """When both sets are evaluated, besides the first and the last epoch; by default after each."""
    stream: bool | None = None
    """Whether images are streamed from the memory map; by default where they do not fit."""
    tensorboard_folder: str | Path | None = None
    """Receives event files for TensorBoard; by default none are written."""
    keep_state: bool = False
    """Leave the last state, from which results can be made again at once, to
    ``locks.clear_finished``."""

    @property
    def label(self) -> str:
        """What progress calls it."""
        return (
            f"{self.recipe.dataset} x {self.recipe.architecture}  seed {self.seed}  "
            f"learning rate {learning_rate_name(self.learning_rate)}"
        )

    def evaluates(self, epoch: int) -> bool:
        """Whether both sets are evaluated after an epoch."""
        always = epoch in (0, self.recipe.training.epochs)
        return always or self.evaluated_epochs is None or epoch in self.evaluated_epochs


def train(
    recipe: Recipe,
    data: PreparedDataset,
    *,
    device: torch.device,
    processes: int = 1,
    **options: Any,
) -> tuple[History, nn.Module]:
    """Train to the last epoch, continuing where an earlier try of the same training stopped.

    Args:
        recipe: as :class:`Training` has it.
        data: the prepared dataset.
        **options: the other fields of :class:`Training`; learning_rate, seed and state_root must
            be given.
        device: where it is computed.
        processes: how many share the training, each a part of every batch; on "cuda" each has a
            GPU.

    Returns:
        The learning curve and the network. A loss that is not finite ends the training with error
        1 in its last record and `diverged`.

    Raises:
        UserError: another process works on the same training.
    """
    training = Training(recipe, data, **options)
    if processes == 1:
        return _train(ALONE, device, training)
    history, weights = launch(processes, device, _train_in_rank, training)
    network = build(recipe, data, training.seed, device)
    network.load_state_dict(from_bytes(weights)[0])
    return history, network


def _train_in_rank(ranks: Ranks, device: torch.device, training: Training) -> tuple[History, bytes]:
    history, network = _train(ranks, device, training)
    return history, to_bytes(network.state_dict(), {}) if ranks.first else b""


def _train(ranks: Ranks, device: torch.device, training: Training) -> tuple[History, nn.Module]:
    """What :func:`train` does, in one of its processes. Only the first one touches files."""
    label, last = training.label, training.recipe.training.epochs
    key = training_fingerprint(
        training.recipe,
        training.data.data_hash,
        training.learning_rate,
        training.seed,
        training.checkpoint_epochs,
        training.evaluated_epochs,
    )
    own = StateFolder(training.state_root, key, device) if ranks.first else contextlib.nullcontext()
    interval, written = state_interval_seconds(), monotonic()
    events = Events(training.tensorboard_folder if ranks.first else None)
    with own as folder, BackgroundWriter() as writer, events:
        trainer = Trainer(
            training.recipe,
            training.data,
            training.learning_rate,
            training.seed,
            device,
            ranks,
            training.stream,
        )
        history, finished = _resume(trainer, folder, training)
        progress = Progress(label, "epoch", last, done=finished)
        for epoch in range(finished + 1, last + 1) if history.records else range(last + 1):
            if history.diverged:
                break
            begun = monotonic()
            loss = 0.0 if epoch == 0 else ranks.sum(trainer.train_epoch(epoch)).item()
            if not math.isfinite(loss):
                history.add(EpochRecord(epoch, loss, 1.0, loss, 1.0))
            elif training.evaluates(epoch):
                history.add(trainer.evaluate(epoch))
            if folder is None:
                continue
            if history.records[-1].epoch == epoch:
                events.write(epoch, curve_values(history.records[-1]))
            keep = epoch in training.checkpoint_epochs and not history.diverged
            ends = epoch == last or history.diverged
            now = monotonic()
            # The next epoch, as long as this one, would end too long after the last state.
            if keep or ends or now - written + now - begun >= interval:
                tensors = writer.snapshot(trainer.state())
                facts = [[vars(r) for r in history.records], history.diverged]
                kept = folder.folder / CHECKPOINTS if keep else None
                writer.submit(_write, folder, epoch, tensors, facts, kept, training.recipe)
                written = monotonic()
            progress.step(epoch, **said(history.records[-1], epoch))
        writer.finish()
        if folder is not None:
            _finish(training, history, folder)
    return history, trainer.network


def _finish(training: Training, history: History, folder: StateFolder) -> None:
    """Hand over what a training leaves."""
    if history.diverged:
        say(f"{training.label}  diverged in epoch {history.records[-1].epoch}")
    elif training.checkpoint_folder is not None:
        names = map(checkpoint_name, training.checkpoint_epochs)
        files = {name: folder.folder / CHECKPOINTS / name for name in names}
        deliver(files, training.checkpoint_folder)
    folder.finish() if training.keep_state else folder.clear()


def curve_values(record: EpochRecord) -> dict[str, float]:
    """The values of an epoch, by the names that TensorBoard groups them by: `loss/train`."""
    return {
        f"{statistic}/{split}": getattr(record, f"{split}_{statistic}")
        for statistic in ("loss", "error")
        for split in ("train", "test")
    }


def said(record: EpochRecord, epoch: int) -> dict[str, str]:
    """What the progress line says of an epoch, if the record is its own."""
    if record.epoch != epoch:
        return {}
    return {
        "train_loss": f"{record.train_loss:.2e}",
        "train_error": f"{100 * record.train_error:.2f} %",
        "test_error": f"{100 * record.test_error:.2f} %",
    }


def _form(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _resume(
    trainer: Trainer, folder: StateFolder | None, training: Training
) -> tuple[History, int]:
    history = History(training.learning_rate)
    found = None if folder is None else _found(trainer, folder, training)
    found = trainer.ranks.from_first(found)
    if found is None:
        return history, 0
    epoch, tensors, history.records, history.diverged = found
    trainer.restore(tensors)
    history.resumed_after = epoch
    say(f"{training.label}  continues after epoch {epoch}")
    return history, epoch


def _found(
    trainer: Trainer, folder: StateFolder, training: Training
) -> tuple[int, dict[str, torch.Tensor], list[EpochRecord], bool] | None:
    """A complete state of this training: epoch, tensors, records, whether it diverged."""
    found = folder.read()
    if found is None:
        return None
    epoch, tensors, facts = found
    try:
        records, diverged = facts
        records = [EpochRecord(**record) for record in records]
    except (TypeError, ValueError):
        records, diverged = [], False
    due = [kept for kept in training.checkpoint_epochs if kept <= epoch and not diverged]
    complete = all((folder.folder / CHECKPOINTS / checkpoint_name(kept)).exists() for kept in due)
    if not (records and complete and _form(tensors) == _form(trainer.state())):
        say(
            f"{training.label}  the state of epoch {epoch} is incomplete or from another network; "
            "starts again"
        )
        return None
    return epoch, tensors, records, diverged


def _write(
    folder: StateFolder,
    epoch: int,
    tensors: Mapping[str, torch.Tensor],
    facts: Any,
    kept: Path | None,
    recipe: Recipe,
) -> None:
    # The checkpoint first: a state of this epoch says that its checkpoint is there.
    if kept is not None:
        weights = {
            name.removeprefix("network."): tensor
            for name, tensor in tensors.items()
            if name.startswith("network.")
        }
        metadata = {
            "epoch": str(epoch),
            "dataset": recipe.dataset,
            "architecture": recipe.architecture,
            "network": recipe.network.model_dump_json(),
        }
        save_checkpoint(kept / checkpoint_name(epoch), weights, metadata)
    folder.write(epoch, tensors, facts)
