"""Training far past zero error: SGD as in the paper, resumable after any epoch with the same bits.

The whole dataset lies on the device as bytes and is normalised there; one that does not fit is
streamed. Within an epoch nothing waits for the device: losses and errors stay there until the
epoch ends. The order of an epoch comes from (seed, epoch) and the learning rate from the epoch, so
the state after an epoch is the weights, the buffers, the momentum and the epoch's number, and
nothing else. Several processes share each batch of that same order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .. import versions
from ..architectures.build import build_network
from ..config import Recipe, TrainingRecipe, learning_rate_name
from ..datasets.prepared import PreparedDataset
from ..errors import UserError
from ..files import deliver
from ..images import Images, Normalisation, ResidentImages, place_images
from ..progress import Progress, say
from ..tensors import from_bytes, to_bytes
from .checkpoints import checkpoint_name, save_checkpoint
from .devices import arithmetic
from .distributed import launch
from .ranks import ALONE, Ranks
from .sgd import SGD
from .state import StateFolder, fingerprint

KEPT = "checkpoints"  # within a run's state: the weights of the measured epochs so far


@dataclass(frozen=True)
class EpochRecord:
    """Losses (mean cross-entropy, nats) and errors (share, 0..1) over the whole sets after an
    epoch, in eval mode; epoch 0 is the network before training."""

    epoch: int
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float


@dataclass
class History:
    """The learning curve of one training."""

    learning_rate: float
    records: list[EpochRecord] = field(default_factory=list)
    diverged: bool = False
    resumed_after: int = 0
    """The epoch after which this process took up the training; 0 where it began it."""

    def terminal_phase_epoch(self, accuracy: float) -> int | None:
        """The first epoch whose train accuracy is at least `accuracy`; None where none is."""
        reached = (r.epoch for r in self.records if 1 - r.train_error >= accuracy)
        return next(reached, None)


def epoch_order(examples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the train set in an epoch: a permutation that (seed, epoch) alone decides."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
    return torch.randperm(examples, generator=generator)


def training_fingerprint(
    recipe: Recipe,
    data_hash: str,
    learning_rate: float,
    seed: int,
    checkpoint_epochs: Collection[int],
) -> str:
    """What a resume state must agree on: recipe, data, rate, seed, kept epochs, code version."""
    return fingerprint(
        version=versions.TRAINING,
        network=recipe.network.model_dump(),
        training=recipe.training.model_dump(exclude={"evaluation_batch_size"}),
        data=data_hash,
        learning_rate=learning_rate,
        seed=seed,
        checkpoints=sorted(checkpoint_epochs),
    )


def _logits(network: nn.Module, inputs: torch.Tensor, bfloat16: bool) -> torch.Tensor:
    """Logits; the last layer stays in float32 under autocast, since bfloat16 logits carry three
    digits and the terminal phase lives far below that."""
    if not bfloat16:
        return network.classifier(network.features(inputs))
    with torch.autocast(inputs.device.type, torch.bfloat16):
        features = network.features(inputs)
    return network.classifier(features.float())


class _Logits(nn.Module):
    """A network and how its logits are computed, as a module that several processes can share."""

    def __init__(self, network: nn.Module, bfloat16: bool):
        super().__init__()
        self.network, self.bfloat16 = network, bfloat16

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return _logits(self.network, inputs, self.bfloat16)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"):
    """Cross-entropy in float64: float32 is 5 % off at 7e-7 and exactly 0 below 4e-8."""
    return functional.cross_entropy(logits.double(), labels, reduction=reduction)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    images_u8: torch.Tensor | Images,
    labels: torch.Tensor,
    normalise: Normalisation,
    batch_size: int,
    rows: range | None = None,
) -> torch.Tensor:
    """(summed loss, wrong decisions) over a whole set in eval mode, as float64 on its device;
    over a part of it where `rows` says so.

    Where the device's memory runs out, the batch is halved. Losses are added up at the end, so
    that how the set is cut into batches does not decide how the sum is rounded.
    """
    was_training = network.training
    network.eval()
    images = ResidentImages(images_u8) if isinstance(images_u8, torch.Tensor) else images_u8
    rows = range(len(labels)) if rows is None else rows
    found = torch.zeros(2, len(labels), dtype=torch.float64, device=labels.device)
    start = rows.start
    with arithmetic("float32"):
        while start < rows.stop:
            batches = images.in_order(range(start, rows.stop), batch_size)
            try:
                for batch in batches:
                    part = slice(start, start + len(batch))
                    logits = network(normalise(batch))
                    found[0, part] = cross_entropy(logits, labels[part], "none")
                    found[1, part] = logits.argmax(1) != labels[part]
                    start += len(batch)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise UserError(
                        "training.evaluation_batch_size: not even one example fits into the GPU's "
                        "memory; end what else runs there, or take a smaller network"
                    ) from None
                batch_size //= 2
                say(f"out of GPU memory: goes on with {batch_size} examples a step")
            finally:
                batches.close()
    network.train(was_training)
    return found.sum(1)


class _Writer:
    """Writes snapshots from another thread, one at a time, so that the device does not wait."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: Future | None = None
        self._buffers: dict[str, torch.Tensor] = {}

    def snapshot(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies in reused host memory; waits for the write before, whose memory it takes."""
        self.finish()
        for name, tensor in tensors.items():
            if name not in self._buffers:
                self._buffers[name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                )
            self._buffers[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return {name: self._buffers[name] for name in tensors}

    def submit(self, work, *arguments: Any) -> None:
        self._pending = self._pool.submit(work, *arguments)

    def finish(self) -> None:
        """Wait for the last write and raise what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class Trainer:
    """One training: a network, its optimiser, the data on the device.

    recipe: gives network and training; data: the prepared dataset; seed: initial weights and
    order; ranks: which of the processes that share the training this is; stream: whether images
    are streamed, by default where they do not fit.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: PreparedDataset,
        learning_rate: float,
        seed: int,
        device: torch.device,
        ranks: Ranks = ALONE,
        stream: bool | None = None,
    ):
        self.ranks = ranks
        self.training: TrainingRecipe = recipe.training
        self.learning_rate, self.seed, self.device = learning_rate, seed, device
        splits = {"train": data.train_images, "test": data.test_images}
        self.images = place_images(splits, device, stream, ranks.size)
        self.labels = {
            split: torch.from_numpy(np.array(labels, dtype=np.int64)).to(device)
            for split, labels in [("train", data.train_labels), ("test", data.test_labels)]
        }
        self.normalise = Normalisation(data.mean, data.std, device)
        self.network = _build(recipe, data, seed, device)
        self.sgd = SGD(self.network, self.training.momentum, self.training.weight_decay)
        examples = len(self.labels["train"])
        size = self.training.batch_size
        self.steps = (
            math.ceil(examples / size) if self.training.keep_incomplete_batch else examples // size
        )
        if self.steps == 0:
            raise UserError(
                f"training.batch_size: {size} is more than the {examples} train examples of "
                f"{recipe.dataset}; lower it or set training.keep_incomplete_batch"
            )
        if self.training.keep_incomplete_batch and examples % size == 1:
            raise UserError(
                f"training.batch_size: {size} leaves a last batch of one example, which batch "
                f"normalisation cannot take; choose another"
            )
        smallest = examples % size if self.training.keep_incomplete_batch else 0
        if (smallest or size) < ranks.size:
            raise UserError(
                f"resources.gpu: {ranks.size} processes cannot share a batch of "
                f"{smallest or size} examples; give fewer GPUs or choose another batch_size"
            )
        self.logits = ranks.parallel(
            _Logits(self.network, self.training.precision == "bfloat16"),
            self.normalise(
                torch.zeros(1, *data.train_images.shape[1:], dtype=torch.uint8, device=device)
            ),
        )

    def train_epoch(self, epoch: int) -> None:
        """One pass over the train set."""
        learning_rate = self.training.learning_rate_at(self.learning_rate, epoch)
        self.network.train()
        images, labels = self.images["train"], self.labels["train"]
        order = epoch_order(len(labels), self.seed, epoch)
        batches = order.split(self.training.batch_size)[: self.steps]
        parts = [self.ranks.part(batch) for batch in batches]
        rows, sizes = torch.cat(parts), [len(part) for part in parts]
        truths = labels[rows.to(self.device)].split(sizes)
        with (
            arithmetic(self.training.precision),
            contextlib.closing(images.batches(rows, sizes)) as inputs,
        ):
            for part, truth, batch in zip(inputs, truths, batches, strict=True):
                try:
                    logits = self.logits(self.normalise(part))
                    self._loss(logits, truth, len(batch)).backward()
                except torch.OutOfMemoryError:
                    raise UserError(
                        f"training.batch_size: {len(batch)} examples a step are more than the "
                        "GPU's memory holds; lower it (the results change with it), set "
                        "network.memory_efficient for a DenseNet, or end what else runs there"
                    ) from None
                self.sgd.step(learning_rate)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, examples: int) -> torch.Tensor:
        """This rank's part of the mean over a batch of `examples`."""
        if self.ranks.size == 1:
            return cross_entropy(logits, labels)
        # Gradients become the mean over the ranks, whose parts may be of unequal sizes.
        return cross_entropy(logits, labels, "sum") * (self.ranks.size / examples)

    def evaluate(self, epoch: int) -> EpochRecord:
        """Loss and error over both whole sets."""
        totals = {
            split: self.ranks.sum(
                evaluate(
                    self.network,
                    self.images[split],
                    self.labels[split],
                    self.normalise,
                    self.training.evaluation_batch_size,
                    self.ranks.share(len(self.labels[split])),
                )
            )
            for split in ("train", "test")
        }
        values = {
            split: (total / len(self.labels[split])).tolist() for split, total in totals.items()
        }
        return EpochRecord(epoch, *values["train"], *values["test"])

    def state(self) -> dict[str, torch.Tensor]:
        """Weights, buffers and momentum, by name."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        buffers = self.sgd.momentum_buffers
        return state | {f"momentum.{name}": buffer for name, buffer in buffers.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up a state that :meth:`state` gave."""
        self.network.load_state_dict(
            {
                name.removeprefix("network."): value
                for name, value in state.items()
                if name.startswith("network.")
            }
        )
        for name, buffer in self.sgd.momentum_buffers.items():
            buffer.copy_(state[f"momentum.{name}"])


def _build(recipe: Recipe, data: PreparedDataset, seed: int, device: torch.device) -> nn.Module:
    return build_network(
        recipe.network,
        channels=data.channels,
        num_classes=data.num_classes,
        image_size_px=data.image_size_px,
        seed=seed,
    ).to(device, memory_format=torch.channels_last)


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
    label: str | None = None,
    processes: int = 1,
    stream: bool | None = None,
) -> tuple[History, nn.Module]:
    """Train to the last epoch, continuing where an earlier try of the same run stopped.

    learning_rate: the initial one. seed: decides initial weights and order.
    state_root: where states of interrupted runs lie; checkpoint_folder: receives the weights of
    `checkpoint_epochs` once the run is complete. Returns the learning curve and the network. A
    loss that is not finite ends the run with error 1 in its last record and `diverged`.
    processes: how many share the training, each a part of every batch; on "cuda" each has a GPU.
    stream: whether images are streamed from the memory map; by default where they do not fit.
    Raises UserError where another process works on the same run.
    """
    more = {
        "learning_rate": learning_rate,
        "seed": seed,
        "state_root": state_root,
        "checkpoint_folder": checkpoint_folder,
        "checkpoint_epochs": tuple(checkpoint_epochs),
        "label": label,
        "stream": stream,
    }
    if processes == 1:
        return _train(ALONE, device, recipe, data, **more)
    history, weights = launch(processes, device, _train_together, recipe, data, **more)
    network = _build(recipe, data, seed, device)
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
    label: str | None,
    stream: bool | None,
) -> tuple[History, nn.Module]:
    """What :func:`train` does, in one of its processes. Only the first one touches files."""
    label = label or (
        f"{recipe.dataset} x {recipe.architecture}  seed {seed}  "
        f"learning rate {learning_rate_name(learning_rate)}"
    )
    key = training_fingerprint(recipe, data.data_hash, learning_rate, seed, checkpoint_epochs)
    own = StateFolder(state_root, key) if ranks.first else contextlib.nullcontext()
    with own as folder, _writer() as writer:
        trainer = Trainer(recipe, data, learning_rate, seed, device, ranks, stream)
        history, finished = _resume(trainer, folder, learning_rate, label, checkpoint_epochs)
        last = trainer.training.epochs
        progress = Progress(label, "epoch", last, done=finished)
        for epoch in range(finished + 1, last + 1) if history.records else range(last + 1):
            if history.diverged:
                break
            if epoch > 0:
                trainer.train_epoch(epoch)
            record = trainer.evaluate(epoch)
            history.diverged = not math.isfinite(record.train_loss)
            if history.diverged:
                record = EpochRecord(epoch, record.train_loss, 1.0, record.test_loss, 1.0)
            history.records.append(record)
            if folder is None:
                continue
            tensors = writer.snapshot(trainer.state())
            facts = [[vars(r) for r in history.records], history.diverged]
            keep = epoch in checkpoint_epochs and not history.diverged
            kept = folder.folder / KEPT if keep else None
            writer.submit(_write, folder, epoch, tensors, facts, kept, recipe)
            progress.step(
                epoch,
                train_loss=f"{record.train_loss:.2e}",
                train_error=f"{100 * record.train_error:.2f} %",
                test_error=f"{100 * record.test_error:.2f} %",
            )
        writer.finish()
        if folder is None:
            return history, trainer.network
        if history.diverged:
            say(f"{label}  diverged in epoch {history.records[-1].epoch}")
        elif checkpoint_folder is not None:
            names = map(checkpoint_name, checkpoint_epochs)
            deliver({name: folder.folder / KEPT / name for name in names}, checkpoint_folder)
        folder.clear()
    return history, trainer.network


@contextlib.contextmanager
def _writer() -> Iterator[_Writer]:
    writer = _Writer()
    try:
        yield writer
    finally:
        writer.close()


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
