"""Several learning rates trained in one process, on one device, over one copy of the data.

They see the same batches, so each is loaded and normalised once. Very small networks are trained
as one, their convolutions in groups; others side by side, on a GPU each on a stream of its own.
Which is faster a short probe says, unless the recipe does.

Side by side every member has the bits of a training by itself. In one network its numbers are those
but for float32 rounding, which training then makes grow as it does between two machines.
"""

from __future__ import annotations

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..data.prepared import PreparedDataset
from ..experiment.config import Recipe, TrainingRecipe, learning_rate_name
from ..io.progress import Progress, say
from ..networks.arithmetic import arithmetic
from ..networks.folding import fold_batch_norms
from ..networks.grouped import GroupedNetwork, can_be_grouped
from .loop import History, said, training_fingerprint
from .optimisers import GroupedSGD
from .state import BackgroundWriter, StateFolder, fingerprint
from .trainer import (
    Batch,
    DeviceData,
    EpochRecord,
    StepTooLarge,
    Trainer,
    build,
    cross_entropy,
    evaluation,
    logits_of,
    out_of_memory_explained,
    restore,
    state_of,
)

PROBE_STEPS = 3
PROBE_ROUNDS = 3


class _Together(ABC):
    """What both ways share. rates: (K,) of the members; data, seed, training: theirs in common."""

    data: DeviceData
    seed: int
    training: TrainingRecipe
    rates: list[float]

    def train_epoch(self, epoch: int) -> torch.Tensor:
        """One pass of all over the train set; their mean losses in it, (K,), float64."""
        for network in self.networks():
            network.train()
        totals = torch.zeros(len(self.rates), dtype=torch.float64, device=self.data.device)
        with (
            arithmetic(self.training.precision),
            contextlib.closing(self.data.batches(self.seed, epoch)) as batches,
        ):
            for batch in batches:
                self.step(batch, epoch, totals)
        return totals / self.data.steps

    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """What is trained."""

    @abstractmethod
    def step(self, batch: Batch, epoch: int, totals: torch.Tensor) -> None:
        """One step of each; adds their losses to `totals` (K,)."""


class SideBySide(_Together):
    """Trainings that take turns at every batch; on a GPU, each on a stream of its own."""

    method = "side_by_side"

    def __init__(self, recipe: Recipe, data: DeviceData, rates: Sequence[float], seed: int) -> None:
        self.data, self.seed, self.rates = data, seed, list(rates)
        self.trainers = [Trainer(recipe, data, rate, seed, data.device) for rate in rates]
        self.training = recipe.training
        on_gpu = data.device.type == "cuda"
        self.streams = [torch.cuda.Stream(data.device) if on_gpu else None for _ in rates]

    def networks(self) -> list[nn.Module]:
        """One a member."""
        return [trainer.network for trainer in self.trainers]

    def step(self, batch: Batch, epoch: int, totals: torch.Tensor) -> None:
        """One step of each; adds their losses to `totals` (K,)."""
        for trainer, stream, total in zip(self.trainers, self.streams, totals, strict=True):
            rate = self.training.learning_rate_at(trainer.learning_rate, epoch)
            if stream is None:
                total += trainer.step(batch, rate)
                continue
            stream.wait_stream(torch.cuda.current_stream(stream.device))
            with torch.cuda.stream(stream):
                total += trainer.step(batch, rate)
        for stream in filter(None, self.streams):
            # The next batch may take this one's memory.
            torch.cuda.current_stream(stream.device).wait_stream(stream)

    def evaluate(self, epoch: int) -> list[EpochRecord]:
        """Loss and error of each over both whole sets, in one pass over them."""
        networks = [fold_batch_norms(network) for network in self.networks()]
        return evaluation(_Several(networks), self.data, self.training, epoch)

    def state(self) -> dict[str, torch.Tensor]:
        """Weights, buffers and momentum of all."""
        return {
            f"{number}.{name}": value
            for number, trainer in enumerate(self.trainers)
            for name, value in trainer.state().items()
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up a state that :meth:`state` gave."""
        for number, trainer in enumerate(self.trainers):
            own = f"{number}."
            trainer.restore(
                {name.removeprefix(own): v for name, v in state.items() if name.startswith(own)}
            )

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone."""
        self.rates = [self.rates[member] for member in members]
        self.trainers = [self.trainers[member] for member in members]
        self.streams = [self.streams[member] for member in members]


class _Several(nn.Module):
    """The logits of several networks, (B, K, classes)."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = networks  # no children: evaluation must not set them to train again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([network(x) for network in self.networks], 1)


class Grouped(_Together):
    """Trainings as one network, whose convolutions are in groups."""

    method = "one_network"

    def __init__(self, recipe: Recipe, data: DeviceData, rates: Sequence[float], seed: int) -> None:
        self.recipe, self.data, self.seed, self.rates = recipe, data, seed, list(rates)
        self.training = recipe.training
        self.bfloat16 = recipe.training.precision == "bfloat16"
        alike = build(recipe, data.prepared, seed, data.device)
        self._take([alike] * len(self.rates))

    def _take(self, networks: Sequence[torch.nn.Module]) -> None:
        self.network = GroupedNetwork(networks).to(memory_format=torch.channels_last)
        self.sgd = GroupedSGD(
            self.network, self.training.momentum, self.training.weight_decay, len(self.rates)
        )

    def networks(self) -> list[nn.Module]:
        """The one network."""
        return [self.network]

    def step(self, batch: Batch, epoch: int, totals: torch.Tensor) -> None:
        """One step of each; adds their losses to `totals` (K,)."""
        with out_of_memory_explained(batch.examples):
            # Member by member along the classes' axis: (B, K * C).
            logits = logits_of(self.network, batch.inputs, self.bfloat16)
            logits_BKC = logits.unflatten(1, (len(self.rates), -1))
            labels_BK = batch.labels[:, None].expand(-1, len(self.rates))
            losses = cross_entropy(logits_BKC.flatten(0, 1), labels_BK.flatten(), "none")
            losses_K = losses.view(labels_BK.shape).mean(0)
            losses_K.sum().backward()
        rates = [self.training.learning_rate_at(rate, epoch) for rate in self.rates]
        self.sgd.step(torch.tensor(rates).to(batch.inputs.device, non_blocking=True))
        totals += losses_K.detach()

    def evaluate(self, epoch: int) -> list[EpochRecord]:
        """Loss and error of each over both whole sets."""
        return evaluation(self.network, self.data, self.training, epoch)

    def state(self) -> dict[str, torch.Tensor]:
        """Weights, buffers and momentum of all."""
        return state_of(self.network, self.sgd)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up a state that :meth:`state` gave."""
        restore(self.network, self.sgd, state)

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone."""
        apart = self.apart()
        apart.keep(members)
        self.take(apart)

    def take(self, apart: SideBySide) -> None:
        """Go on with the members of `apart`, as they are there."""
        self.rates = [trainer.learning_rate for trainer in apart.trainers]
        self._take(apart.networks())
        for name, buffer in self.sgd.momentum_buffers.items():
            own = name.removeprefix("body.")
            parts = [trainer.sgd.momentum_buffers[own] for trainer in apart.trainers]
            buffer.copy_(torch.cat([part.view(-1, *buffer.shape[1:]) for part in parts]))

    def apart(self) -> SideBySide:
        """The members as they are now, side by side."""
        apart = SideBySide(self.recipe, self.data, self.rates, self.seed)
        count = len(self.rates)
        for number, trainer in enumerate(apart.trainers):
            trainer.network.load_state_dict(self.network.member(number))
            for name, buffer in trainer.sgd.momentum_buffers.items():
                part = self.sgd.momentum_buffers[f"body.{name}"].chunk(count)[number]
                buffer.copy_(part.view(buffer.shape))
        return apart


Together = SideBySide | Grouped


def together_fingerprint(
    recipe: Recipe,
    data_hash: str,
    learning_rates: Sequence[float],
    seed: int,
    evaluated_epochs: Collection[int] | None = None,
    method: str | None = None,
) -> str:
    """What a resume state of these trainings must agree on."""
    halvings = recipe.sweep.halving_epochs
    evaluated = None if evaluated_epochs is None else {*evaluated_epochs, *halvings}
    keys = [
        training_fingerprint(recipe, data_hash, rate, seed, (), evaluated)
        for rate in learning_rates
    ]
    method = method or recipe.sweep.together_as
    return fingerprint(together=keys, halving=halvings, method=method)


def train_together(
    recipe: Recipe,
    data: PreparedDataset,
    *,
    learning_rates: Sequence[float],
    seed: int,
    device: torch.device,
    state_root: str | Path,
    evaluated_epochs: Collection[int] | None = None,
    method: str | None = None,
    keep_state: bool = False,
) -> tuple[list[History], str]:
    """The learning curves of several rates, trained to the last epoch in this process.

    Continues where an earlier try stopped. evaluated_epochs: as of ``loop.train``. method:
    "side_by_side" or "one_network"; by default the recipe's, or what a probe finds faster. At each
    of the recipe's `sweep.halving_epochs` the worse half, by its error on the test split, stops.
    keep_state: as of ``loop.train``.
    Returns the curves in the order of the rates, and the method.
    Raises UserError where another process works on the same rates.
    """
    last = recipe.training.epochs
    halvings = recipe.sweep.halving_epochs
    evaluated = None if evaluated_epochs is None else {*evaluated_epochs, 0, last, *halvings}
    label = (
        f"{recipe.dataset} x {recipe.architecture}  {len(learning_rates)} learning rates, "
        f"{learning_rate_name(learning_rates[0])} to {learning_rate_name(learning_rates[-1])}"
    )
    method = method or recipe.sweep.together_as
    key = together_fingerprint(
        recipe, data.data_hash, learning_rates, seed, evaluated_epochs, method
    )
    with StateFolder(state_root, key) as folder, BackgroundWriter() as writer:
        placed = DeviceData(recipe, data, device)
        found = _resume(folder, recipe, placed, learning_rates, seed, label)
        if found is None:
            kind = METHODS.get(method) or choose_method(recipe, placed, learning_rates, seed)
            histories = [History(rate) for rate in learning_rates]
            found = kind(recipe, placed, learning_rates, seed), histories, [*range(len(histories))]
            finished = None
            say(f"{label}  trained {kind.method}")
        else:
            finished = found[1][0].resumed_after
        together, histories, members = found
        progress = Progress(label, "epoch", last, done=finished or 0)
        for epoch in range(last + 1) if finished is None else range(finished + 1, last + 1):
            if not members:
                break
            judged = evaluated is None or epoch in evaluated
            for member, record in zip(members, _epoch(together, epoch, judged), strict=True):
                if record is not None:
                    histories[member].add(record)
            kept = [member for member in members if not histories[member].diverged]
            if epoch in halvings:
                kept = _better_half(histories, kept)
            if kept and kept != members:
                together.keep([members.index(member) for member in kept])
            members = kept
            facts = {
                "method": together.method,
                "members": members,
                "curves": [[[vars(r) for r in h.records], h.diverged] for h in histories],
            }
            tensors = writer.snapshot(together.state())
            writer.submit(folder.write, epoch, tensors, facts)
            lasts = [histories[member].records[-1] for member in members]
            best = min(lasts, key=lambda record: record.test_error, default=None)
            progress.step(epoch, **(said(best, epoch) if best else {}))
        writer.finish()
        folder.finish() if keep_state else folder.clear()
    for history in histories:
        if history.diverged:
            name = learning_rate_name(history.learning_rate)
            say(f"{label}  {name} diverged in epoch {history.records[-1].epoch}")
    return histories, together.method


def _epoch(together: Together, epoch: int, judged: bool) -> list[EpochRecord | None]:
    """Train an epoch (0: none) and evaluate where it is judged: a record of each member, None where
    there is nothing to say. A loss that is not finite is always said."""

    def run(trainings: Together) -> list[EpochRecord | None]:
        count = len(trainings.rates)
        losses = trainings.train_epoch(epoch).tolist() if epoch else [0.0] * count
        records = trainings.evaluate(epoch) if judged else [None] * count
        return [
            record if math.isfinite(loss) else EpochRecord(epoch, loss, 1.0, loss, 1.0)
            for loss, record in zip(losses, records, strict=True)
        ]

    if not isinstance(together, Grouped):
        return run(together)
    before = {name: value.clone() for name, value in together.state().items()}
    records = run(together)
    if all(record is None or math.isfinite(record.train_loss) for record in records):
        return records
    # A kernel may multiply another member's NaN by zero. The epoch is run again with the members
    # apart, and those that are well go on in a group.
    together.restore(before)
    apart = together.apart()
    records = run(apart)
    together.take(apart)
    return records


def _better_half(histories: Sequence[History], members: Sequence[int]) -> list[int]:
    """The half of the members, rounded up, whose last error (then loss) is lower."""
    ranked = sorted(
        members,
        key=lambda m: (histories[m].records[-1].test_error, histories[m].records[-1].test_loss),
    )
    return sorted(ranked[: (len(members) + 1) // 2])


def _resume(
    folder: StateFolder,
    recipe: Recipe,
    data: DeviceData,
    rates: Sequence[float],
    seed: int,
    label: str,
) -> tuple[Together, list[History], list[int]] | None:
    found = folder.read()
    if found is None:
        return None
    epoch, tensors, facts = found
    try:
        curves, members = facts["curves"], [int(member) for member in facts["members"]]
        kept = [rates[member] for member in members] or rates[:1]
        together = METHODS[facts["method"]](recipe, data, kept, seed)
        if members:
            together.restore(tensors)
        histories = [
            History(rate, [EpochRecord(**record) for record in records], diverged, epoch)
            for rate, (records, diverged) in zip(rates, curves, strict=True)
        ]
    except torch.OutOfMemoryError:  # of the card, not of the state
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError):
        say(f"{label}  the state of epoch {epoch} is not whole; begins anew")
        return None
    say(f"{label}  continues after epoch {epoch}")
    return together, histories, members


METHODS: dict[str, type[SideBySide] | type[Grouped]] = {
    kind.method: kind for kind in (SideBySide, Grouped)
}


@dataclass
class _Clock:
    device: torch.device

    def seconds(self, work: Callable[[], None]) -> float:
        self.wait()
        begin = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose_method(
    recipe: Recipe, data: DeviceData, rates: Sequence[float], seed: int
) -> type[SideBySide] | type[Grouped]:
    """The faster way to train these rates together, by a few steps of each in turn.

    A group must win by a tenth: side by side, members keep the bits of a training by itself.
    """
    network = build(recipe, data.prepared, seed, data.device)
    if len(rates) == 1 or not can_be_grouped(network):
        return SideBySide
    kinds, best = (SideBySide, Grouped), {}
    try:
        trials = [kind(recipe, data, rates, seed) for kind in kinds]
        totals = torch.zeros(len(rates), dtype=torch.float64, device=data.device)
        with (
            contextlib.closing(data.batches(seed, 0)) as batches,
            arithmetic(recipe.training.precision),
        ):
            batch = next(batches)
            for _ in range(PROBE_ROUNDS):
                for kind, trial in zip(kinds, trials, strict=True):

                    def work(trial: Together = trial) -> None:
                        for _ in range(PROBE_STEPS):
                            trial.step(batch, 1, totals)

                    seconds = _Clock(data.device).seconds(work)
                    best[kind] = min(seconds, best.get(kind, seconds))
    except (torch.OutOfMemoryError, StepTooLarge):
        # The trials' streams may still write where the next networks will lie.
        _Clock(data.device).wait()
        return SideBySide  # which may fit: there was room for both ways at once
    return Grouped if best[Grouped] < 0.9 * best[SideBySide] else SideBySide
