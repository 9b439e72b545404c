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
from .checkpoints import checkpoint_name, save_checkpoint, shapes
from .distributed import launch
from .history import EpochRecord, History
from .ranks import ALONE, Ranks
from .schedule import learning_rate_name
from .state import BackgroundWriter, StateFolder, fingerprint, state_interval_seconds
from .trainer import Trainer, build, network_weights

if TYPE_CHECKING:
    from ..experiment.recipe import Recipe

CHECKPOINTS = "checkpoints"  # within a run's state: the weights of the measured epochs so far


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
        recipe: its network and training.
        data: the prepared dataset.
        device: where it is computed.
        processes: how many share the training, each a part of every batch; on "cuda" each has a
            GPU.
        **options: these keywords, of which the first three must be given:

            - learning_rate: the initial one.
            - seed: decides initial weights and order.
            - state_root: folder where resume states of interrupted trainings lie.
            - checkpoint_folder: receives the weights of checkpoint_epochs once the training is
              complete.
            - checkpoint_epochs: by default none.
            - evaluated_epochs: when both sets are evaluated, besides the first and the last epoch;
              by default after each.
            - stream: whether images are streamed from the memory map; by default where they do not
              fit.
            - tensorboard_folder: receives event files for TensorBoard; by default none are written.
            - keep_state: leave the last state, from which results can be made again at once, to
              ``locks.clear_finished``.

    Returns:
        The learning curve and the network. A loss that is not finite ends the training with error
        1 in its last record and `diverged`.

    Raises:
        UserError: another process works on the same training.
    """
    if processes == 1:
        return _train(ALONE, device, recipe, data, **options)
    history, weights = launch(processes, device, _train_in_rank, recipe, data, **options)
    network = build(recipe, data, options["seed"], device)
    network.load_state_dict(from_bytes(weights)[0])
    return history, network


def _train_in_rank(ranks: Ranks, *args: Any, **options: Any) -> tuple[History, bytes]:
    history, network = _train(ranks, *args, **options)
    return history, to_bytes(network.state_dict(), {}) if ranks.first else b""


def _train(
    ranks: Ranks,
    device: torch.device,
    recipe: Recipe,
    data: PreparedDataset,
    *,
    learning_rate: float,
    seed: int,
    state_root: str | Path,
    checkpoint_folder: str | Path | None = None,
    checkpoint_epochs: Collection[int] = (),
    evaluated_epochs: Collection[int] | None = None,
    stream: bool | None = None,
    tensorboard_folder: str | Path | None = None,
    keep_state: bool = False,
) -> tuple[History, nn.Module]:
    """What :func:`train` does, in one of its processes. Only the first one touches files."""
    last, rate = recipe.training.epochs, learning_rate_name(learning_rate)
    label = f"{recipe.dataset} x {recipe.architecture}  seed {seed}  learning rate {rate}"
    decides = data.data_hash, learning_rate, seed, checkpoint_epochs, evaluated_epochs
    key = training_fingerprint(recipe, *decides)
    own = StateFolder(state_root, key, device) if ranks.first else contextlib.nullcontext()
    events = Events(tensorboard_folder if ranks.first else None)
    interval, written = state_interval_seconds(), monotonic()
    with own as folder, BackgroundWriter() as writer, events:
        trainer = Trainer(recipe, data, learning_rate, seed, device, ranks, stream)
        history = _resume(trainer, folder, checkpoint_epochs, label)
        progress = Progress(label, "epoch", last, done=history.resumed_after)
        for epoch in range(history.resumed_after + 1 if history.records else 0, last + 1):
            if history.diverged:
                break
            begun = monotonic()
            loss = 0.0 if epoch == 0 else ranks.sum(trainer.train_epoch(epoch)).item()
            if not math.isfinite(loss):
                history.add(EpochRecord(epoch, loss, 1.0, loss, 1.0))
            elif evaluated_epochs is None or epoch in {0, last, *evaluated_epochs}:
                history.add(trainer.evaluate(epoch))
            if folder is None:
                continue
            _report(epoch, history.records[-1], events, progress)
            keep, now = epoch in checkpoint_epochs and not history.diverged, monotonic()
            # The next epoch, as long as this one, would end too long after the last state.
            due = now - written + now - begun >= interval
            if keep or due or epoch == last or history.diverged:
                state = writer.snapshot(trainer.state())
                kept = recipe if keep else None
                writer.submit(_write, folder, epoch, state, history.facts(), kept)
                written = monotonic()
        writer.finish()
        if folder is not None:
            if history.diverged:
                say(f"{label}  diverged in epoch {history.records[-1].epoch}")
            elif checkpoint_folder is not None:
                files = _checkpoints(folder, checkpoint_epochs)
                deliver({file.name: file for file in files}, checkpoint_folder)
            folder.finish() if keep_state else folder.clear()
    return history, trainer.network


def _checkpoints(folder: StateFolder, epochs: Collection[int]) -> list[Path]:
    return [folder.folder / CHECKPOINTS / checkpoint_name(epoch) for epoch in epochs]


def _report(epoch: int, record: EpochRecord, events: Events, progress: Progress) -> None:
    """Say how far the training is; with losses and errors if the record is of this epoch."""
    said = {}
    if record.epoch == epoch:
        values = {
            "loss/train": record.train_loss,
            "loss/test": record.test_loss,
            "error/train": record.train_error,
            "error/test": record.test_error,
        }
        events.write(epoch, values)
        said = {
            "train_loss": f"{record.train_loss:.2e}",
            "train_error": f"{100 * record.train_error:.2f} %",
            "test_error": f"{100 * record.test_error:.2f} %",
        }
    progress.step(epoch, **said)


def _resume(
    trainer: Trainer, folder: StateFolder | None, checkpoint_epochs: Collection[int], label: str
) -> History:
    """The learning curve up to the newest complete state, which the trainer takes up."""
    found = None if folder is None else folder.read()
    if folder is not None and found is not None:
        epoch, tensors, facts = found
        history = History.of_state(facts, trainer.learning_rate, epoch)
        due = [kept for kept in checkpoint_epochs if kept <= epoch]
        if history is not None and history.diverged:
            due = []
        whole = history is not None and all(path.exists() for path in _checkpoints(folder, due))
        found = tensors, history
        # The code of a user-defined network may have changed.
        if not whole or shapes(tensors) != shapes(trainer.state()):
            say(
                f"{label}  the state of epoch {epoch} is incomplete or from another network; "
                "starts again"
            )
            found = None
    found = trainer.ranks.from_first(found)
    if found is None:
        return History(trainer.learning_rate)
    tensors, history = found
    trainer.restore(tensors)
    say(f"{label}  continues after epoch {history.resumed_after}")
    return history


def _write(
    folder: StateFolder,
    epoch: int,
    state: Mapping[str, torch.Tensor],
    facts: Any,
    recipe: Recipe | None,
) -> None:
    """Write the checkpoint of a recipe, if one is given, and then the state, which says that the
    checkpoint is there."""
    if recipe is not None:
        metadata = {
            "epoch": str(epoch),
            "dataset": recipe.dataset,
            "architecture": recipe.architecture,
            "network": recipe.network.model_dump_json(),
        }
        (path,) = _checkpoints(folder, [epoch])
        save_checkpoint(path, network_weights(state), metadata)
    folder.write(epoch, state, facts)
