"""Training far past zero error: SGD as in the paper, resumable after any epoch with the same bits.

The state after an epoch is the weights, the buffers, the momentum and the epoch's number, and
nothing else; ``trainer`` says why. Several processes share each batch of the same order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.prepared import PreparedDataset
from ..io import versions
from ..io.files import deliver
from ..io.progress import Progress, say
from ..io.tensors import from_bytes, to_bytes
from .checkpoints import checkpoint_name, save_checkpoint
from .distributed import launch
from .ranks import ALONE, Ranks
from .recipe import CHANGES_NO_RESULT
from .schedule import learning_rate_name
from .state import BackgroundWriter, StateFolder, fingerprint
from .trainer import EpochRecord, Trainer, build

if TYPE_CHECKING:
    from ..experiment.recipe import Recipe

KEPT = "checkpoints"  # within a run's state: the weights of the measured epochs so far


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
        training=recipe.training.model_dump(exclude=CHANGES_NO_RESULT),
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
    learning_rate: float,
    seed: int,
    device: torch.device,
    state_root: str | Path,
    checkpoint_folder: str | Path | None = None,
    checkpoint_epochs: Collection[int] = (),
    evaluated_epochs: Collection[int] | None = None,
    label: str | None = None,
    processes: int = 1,
    stream: bool | None = None,
    keep_state: bool = False,
) -> tuple[History, nn.Module]:
    """Train to the last epoch, continuing where an earlier try of the same run stopped.

    learning_rate: the initial one. seed: decides initial weights and order.
    state_root: where states of interrupted runs lie; checkpoint_folder: receives the weights of
    `checkpoint_epochs` once the run is complete. Returns the learning curve and the network. A
    loss that is not finite ends the run with error 1 in its last record and `diverged`.
    evaluated_epochs: when both sets are evaluated, besides the first and the last epoch; by default
    after each.
    processes: how many share the training, each a part of every batch; on "cuda" each has a GPU.
    stream: whether images are streamed from the memory map; by default where they do not fit.
    keep_state: leave the last state, from which the run's results can be made again at once, to
    ``locks.clear_finished``.
    Raises UserError where another process works on the same run.
    """
    more = {
        "learning_rate": learning_rate,
        "seed": seed,
        "state_root": state_root,
        "checkpoint_folder": checkpoint_folder,
        "checkpoint_epochs": tuple(checkpoint_epochs),
        "evaluated_epochs": (
            None if evaluated_epochs is None else {*evaluated_epochs, 0, recipe.training.epochs}
        ),
        "label": label,
        "stream": stream,
        "keep_state": keep_state,
    }
    if processes == 1:
        return _train(ALONE, device, recipe, data, **more)
    history, weights = launch(processes, device, _train_together, recipe, data, **more)
    network = build(recipe, data, seed, device)
    network.load_state_dict(from_bytes(weights)[0])
    return history, network


def _train_together(ranks: Ranks, *args: Any, **kwargs: Any) -> tuple[History, bytes]:
    history, network = _train(ranks, *args, **kwargs)
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
    checkpoint_folder: str | Path | None,
    checkpoint_epochs: Collection[int],
    evaluated_epochs: Collection[int] | None,
    label: str | None,
    stream: bool | None,
    keep_state: bool,
) -> tuple[History, nn.Module]:
    """What :func:`train` does, in one of its processes. Only the first one touches files."""
    label = label or (
        f"{recipe.dataset} x {recipe.architecture}  seed {seed}  "
        f"learning rate {learning_rate_name(learning_rate)}"
    )
    key = training_fingerprint(
        recipe, data.data_hash, learning_rate, seed, checkpoint_epochs, evaluated_epochs
    )
    own = StateFolder(state_root, key) if ranks.first else contextlib.nullcontext()
    with own as folder, BackgroundWriter() as writer:
        trainer = Trainer(recipe, data, learning_rate, seed, device, ranks, stream)
        history, finished = _resume(trainer, folder, learning_rate, label, checkpoint_epochs)
        last = trainer.training.epochs
        progress = Progress(label, "epoch", last, done=finished)
        for epoch in range(finished + 1, last + 1) if history.records else range(last + 1):
            if history.diverged:
                break
            loss = 0.0 if epoch == 0 else ranks.sum(trainer.train_epoch(epoch)).item()
            if not math.isfinite(loss):
                history.add(EpochRecord(epoch, loss, 1.0, loss, 1.0))
            elif evaluated_epochs is None or epoch in evaluated_epochs:
                history.add(trainer.evaluate(epoch))
            if folder is None:
                continue
            tensors = writer.snapshot(trainer.state())
            facts = [[vars(r) for r in history.records], history.diverged]
            keep = epoch in checkpoint_epochs and not history.diverged
            kept = folder.folder / KEPT if keep else None
            writer.submit(_write, folder, epoch, tensors, facts, kept, recipe)
            progress.step(epoch, **said(history.records[-1], epoch))
        writer.finish()
        if folder is None:
            return history, trainer.network
        if history.diverged:
            say(f"{label}  diverged in epoch {history.records[-1].epoch}")
        elif checkpoint_folder is not None:
            names = map(checkpoint_name, checkpoint_epochs)
            deliver({name: folder.folder / KEPT / name for name in names}, checkpoint_folder)
        folder.finish() if keep_state else folder.clear()
    return history, trainer.network


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
    trainer: Trainer,
    folder: StateFolder | None,
    learning_rate: float,
    label: str,
    checkpoint_epochs: Collection[int],
) -> tuple[History, int]:
    history = History(learning_rate)
    found = None if folder is None else _found(trainer, folder, label, checkpoint_epochs)
    found = trainer.ranks.from_first(found)
    if found is None:
        return history, 0
    epoch, tensors, history.records, history.diverged = found
    trainer.restore(tensors)
    history.resumed_after = epoch
    say(f"{label}  continues after epoch {epoch}")
    return history, epoch


def _found(
    trainer: Trainer, folder: StateFolder, label: str, checkpoint_epochs: Collection[int]
) -> tuple[int, dict[str, torch.Tensor], list[EpochRecord], bool] | None:
    """A whole state of this run: epoch, tensors, records, whether it diverged."""
    found = folder.read()
    if found is None:
        return None
    epoch, tensors, facts = found
    try:
        records, diverged = facts
        records = [EpochRecord(**record) for record in records]
    except (TypeError, ValueError):
        records, diverged = [], False
    due = [kept for kept in checkpoint_epochs if kept <= epoch and not diverged]
    whole = all((folder.folder / KEPT / checkpoint_name(kept)).exists() for kept in due)
    if not (records and whole and _form(tensors) == _form(trainer.state())):
        say(f"{label}  the state of epoch {epoch} is not whole or another network's; begins anew")
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
