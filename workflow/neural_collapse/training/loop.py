"""Training far past zero training error; an interrupted training resumes bit-identically.

The resume state of an epoch contains weights, buffers, optimiser state (momentum, or Adam's moments
and steps) and the number of the epoch; see ``trainer``. It is written after epochs with a
checkpoint, after the last one, and often enough that a kill loses at most one minute or one epoch,
whichever is longer. With several processes, each computes a part of every batch.
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
from ..io.tensors import from_bytes, keep_if_whole, to_bytes
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
    """A hash of all that the result depends on: recipe, data, learning rate, seed, checkpoint
    epochs, evaluated epochs (the first and last always are), code version."""
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
    """Train to the last epoch of the recipe, or resume the same training after an interruption.

    Args:
        recipe: `experiment.recipe.Recipe`, of which `network` and `training` are used.
        data: the prepared dataset.
        device: where the training runs.
        processes: number of processes, each of which computes a part of every batch; on "cuda"
            each uses its own GPU.
        **options: keyword arguments, of which the first three are required:

            - learning_rate: the initial learning rate.
            - seed: seed of the initial weights and of the order of the images.
            - state_root: folder of the resume states.
            - checkpoint_folder: the weights of checkpoint_epochs are written there at the end of
              the training. Default: none are written.
            - checkpoint_epochs: epochs whose weights are kept, 0 for the initial ones. Default:
              none.
            - evaluated_epochs: epochs after which both splits are evaluated, in addition to epoch
              0 and the last one. Default: all.
            - stream: whether images are streamed from the memory map. Default: if they do not fit
              into memory.
            - tensorboard_folder: folder for TensorBoard event files. Default: none are written.
            - keep_state: whether to keep the last resume state, from which the results can be
              written again without training. Default: False.

    Returns:
        The learning curve (`History`) and the trained network. If the loss is not finite, training
        stops, the last record has error 1, and the curve's attribute `diverged` is True.

    Raises:
        UserError: another process works on the same training, the images are too small for the
            network, the batch size does not fit the data or the number of processes, or a training
            step does not fit into GPU memory.
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
    """:func:`train` in one of its processes. Only the first process reads and writes files."""
    last, rate = recipe.training.epochs, learning_rate_name(learning_rate)
    label = f"{recipe.dataset} x {recipe.architecture}  seed {seed}  learning rate {rate}"
    decides = data.data_hash, learning_rate, seed, checkpoint_epochs, evaluated_epochs
    key = training_fingerprint(recipe, *decides)
    own = (
        StateFolder(state_root, key, device, ranks.size)
        if ranks.first
        else contextlib.nullcontext()
    )
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
    """Print progress, with losses and errors if the record is of this epoch."""
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
    """Restore the newest complete state in the trainer; returns the learning curve up to it."""
    found = None if folder is None else folder.read()
    if folder is not None and found is not None:
        epoch, tensors, facts = found
        history = History.of_state(facts, trainer.learning_rate, epoch)
        due = [kept for kept in checkpoint_epochs if kept <= epoch]
        if history is not None and history.diverged:
            due = []
        whole = history is not None and all(map(keep_if_whole, _checkpoints(folder, due)))
        found = tensors, history
        # The code of a user-defined network may have changed.
        if not whole or shapes(tensors) != shapes(trainer.state()):
            say(
                f"{label}  the state of epoch {epoch} is incomplete or from another network; "
                "starts again"
            )
            if not whole:
                folder.restart()
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
    """Write the checkpoint, if a recipe is given, and then the state, which implies that the
    checkpoint exists."""
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
