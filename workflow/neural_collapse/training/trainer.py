"""One training on its device: a pass over the train set, and its evaluation.

Within an epoch nothing waits for the device: losses and errors stay on it until the epoch ends.
The order of an epoch depends on (seed, epoch), the learning rate on the epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from ..data.images import CPU_BATCH, Images, Normalisation, place_images
from ..data.prepared import PreparedDataset
from ..io.errors import UserError
from ..io.progress import say
from ..networks.arithmetic import arithmetic, is_out_of_memory
from ..networks.build import build_network
from ..networks.folding import fold_batch_norms
from .graphs import GraphedStep
from .losses import Loss, loss_of
from .optimisers import optimiser_of
from .ranks import ALONE, Ranks
from .recipe import TrainingRecipe

if TYPE_CHECKING:
    from ..experiment.recipe import Recipe


@dataclass(frozen=True)
class EpochRecord:
    """Losses (the mean of the recipe's loss) and errors (share, 0..1) over the whole sets after an
    epoch, in eval mode; epoch 0 is the network before training."""

    epoch: int
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float


def epoch_order(examples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the train set in an epoch: a permutation that (seed, epoch) alone decides."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
    return torch.randperm(examples, generator=generator)


def oversampled(labels: np.ndarray) -> torch.Tensor:
    """The rows of an epoch in which every class has as many as the largest; by class, those of a
    smaller one over and over."""
    counts = np.bincount(labels)
    rows = [np.resize(np.flatnonzero(labels == c), counts.max()) for c in counts.nonzero()[0]]
    return torch.from_numpy(np.concatenate(rows))


def logits_of(network: nn.Module, inputs: torch.Tensor, bfloat16: bool) -> torch.Tensor:
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
        return logits_of(self.network, inputs, self.bfloat16)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    images: Images,
    labels: torch.Tensor,
    normalise: Normalisation,
    batch_size: int,
    rows: range,
    precision: str,
    loss: Loss,
) -> tuple[torch.Tensor, int]:
    """(summed loss, wrong decisions) over these rows of a set in eval mode, as float64 on its
    device, and the batch size with which it fits.

    Batch norms are folded. Where the device's memory runs out, the batch is halved. Losses are
    added up at the end, so that how the set is cut into batches does not decide how the sum is
    rounded.
    """
    was_training = network.training
    folded = fold_batch_norms(network)
    if labels.device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    found = torch.zeros(2, len(labels), dtype=torch.float64, device=labels.device)
    start = rows.start
    with arithmetic(precision):
        while start < rows.stop:
            batches = images.in_order(range(start, rows.stop), batch_size)
            try:
                for batch in batches:
                    part = slice(start, start + len(batch))
                    logits = folded(normalise(batch))
                    found[0, part] = loss(logits, labels[part], "none")
                    found[1, part] = logits.argmax(1) != labels[part]
                    start += len(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if batch_size == 1:
                    raise UserError(
                        "training.evaluation_batch_size: not even one example fits into the GPU's "
                        "memory; stop other programs on it or use a smaller network"
                    ) from None
                batch_size //= 2
                say(f"out of GPU memory: continues with {batch_size} examples per step")
            else:
                break
            finally:
                batches.close()
            # Here, where no traceback holds the failed batch's tensors any more.
            batch = logits = None
            if labels.is_cuda:
                torch.cuda.empty_cache()
    network.train(was_training)
    return found.sum(1), batch_size


class StepTooLarge(UserError):
    """A batch that does not fit into the GPU's memory."""


class DeviceData:
    """A prepared dataset where networks train on it: images, labels, the steps of an epoch.

    Several trainings of one process share it. images, labels: by split.
    Raises UserError where a batch does not fit the train set or the processes that share it.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: PreparedDataset,
        device: torch.device,
        ranks: Ranks = ALONE,
        stream: bool | None = None,
    ):
        self.prepared, self.device, self.ranks = data, device, ranks
        splits = {"train": data.train_images, "test": data.test_images}
        self.images = place_images(splits, device, stream, ranks.size)
        self.labels = {
            split: torch.from_numpy(np.array(labels, dtype=np.int64)).to(device)
            for split, labels in [("train", data.train_labels), ("test", data.test_labels)]
        }
        self.normalise = Normalisation(data.mean, data.std, device)
        training = recipe.training
        self.repeated = oversampled(np.asarray(data.train_labels)) if training.oversample else None
        self.examples = len(data.train_labels if self.repeated is None else self.repeated)
        examples, size = self.examples, training.batch_size
        self.batch_size = size
        self.steps = training.steps(examples)
        if self.steps == 0:
            raise UserError(
                f"training.batch_size: {size} is more than the {examples} train examples of "
                f"{recipe.dataset}; lower it or set training.keep_incomplete_batch"
            )
        if training.keep_incomplete_batch and examples % size == 1:
            raise UserError(
                f"training.batch_size: {size} leaves a last batch of one example, which batch "
                f"normalisation cannot take; choose another"
            )
        smallest = examples % size if training.keep_incomplete_batch else 0
        if (smallest or size) < ranks.size:
            raise UserError(
                f"resources.gpu: {ranks.size} processes cannot share a batch of "
                f"{smallest or size} examples; give fewer GPUs or choose another batch_size"
            )

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        """This rank's parts of an epoch's batches, in order. Close it when done."""
        images, labels = self.images["train"], self.labels["train"]
        order = epoch_order(self.examples, seed, epoch)
        if self.repeated is not None:
            order = self.repeated[order]
        batches = order.split(self.batch_size)[: self.steps]
        parts = [self.ranks.part(batch) for batch in batches]
        rows, sizes = torch.cat(parts), [len(part) for part in parts]
        truths = labels[rows.to(self.device)].split(sizes)
        with contextlib.closing(images.batches(rows, sizes)) as found:
            for part, truth, batch in zip(found, truths, batches, strict=True):
                yield Batch(self.normalise(part), truth, len(batch))

    def example(self) -> torch.Tensor:
        """A black image as networks see it, (1, C, P, P)."""
        shape = (1, *self.prepared.train_images.shape[1:])
        return self.normalise(torch.zeros(shape, dtype=torch.uint8, device=self.device))


class Batch(NamedTuple):
    """A rank's part of a batch. inputs: (B, C, P, P), normalised; labels: (B,); examples: of the
    whole batch."""

    inputs: torch.Tensor
    labels: torch.Tensor
    examples: int


class Trainer:
    """One training: a network, its optimiser, the data on the device.

    recipe: gives network and training; data: the prepared dataset; seed: initial weights and
    order; ranks: which of the processes that share the training this is; stream: whether images
    are streamed, by default where they do not fit.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: PreparedDataset | DeviceData,
        learning_rate: float,
        seed: int,
        device: torch.device,
        ranks: Ranks = ALONE,
        stream: bool | None = None,
    ):
        if isinstance(data, PreparedDataset):
            data = DeviceData(recipe, data, device, ranks, stream)
        self.data, self.ranks, self.device = data, ranks, device
        self.training: TrainingRecipe = recipe.training
        self.learning_rate, self.seed = learning_rate, seed
        self.network = build(recipe, data.prepared, seed, device)
        self.loss = loss_of(self.training)
        self.optimiser = optimiser_of(self.training, self.network)
        logits: nn.Module = _Logits(self.network, self.training.precision == "bfloat16")
        if self.training.compile:
            logits.compile()
        self.logits = ranks.parallel(logits, data.example())
        # Ranks exchange gradients within a step, which is not recorded.
        self.graphed = self.training.cuda_graphs and device.type == "cuda" and ranks.size == 1
        self.graph: GraphedStep | None = None
        self.evaluation_batch_size = self.training.evaluation_batch_size

    def train_epoch(self, epoch: int) -> torch.Tensor:
        """One pass over the train set; its mean loss, this rank's part of it, in float64."""
        learning_rate = self.training.learning_rate_at(self.learning_rate, epoch)
        self.network.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with (
            arithmetic(self.training.precision),
            contextlib.closing(self.data.batches(self.seed, epoch)) as batches,
        ):
            for batch in batches:
                total += self.step(batch, learning_rate)
        return total / self.data.steps

    def step(self, batch: Batch, learning_rate: float) -> torch.Tensor:
        """One step of the optimiser; this rank's part of the batch's mean loss."""
        with out_of_memory_explained(batch.examples):
            if self.graphed and self.graph is None:
                try:
                    self.graph = GraphedStep(self._step, self.state, batch.inputs, batch.labels)
                except RuntimeError as error:
                    # To end the recording fails as well, and hides why.
                    cause: BaseException | None = error
                    while cause is not None:
                        if is_out_of_memory(cause):
                            raise cause from None
                        cause = cause.__context__
                    reason = str(error.__context__ or error).splitlines()[0]
                    raise UserError(
                        f"training.cuda_graphs: this network's step cannot be recorded ({reason}); "
                        "set it to false"
                    ) from None
            if self.graph is not None and self.graph.fits(batch.inputs):
                return self.graph(batch.inputs, batch.labels, learning_rate)
            return self._step(batch.inputs, batch.labels, learning_rate, batch.examples)

    def _step(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        learning_rate: float | torch.Tensor,
        examples: int = 0,
    ) -> torch.Tensor:
        logits = self.logits(inputs)
        if self.ranks.size == 1:
            loss = self.loss(logits, labels)
        else:
            # Gradients become the mean over the ranks, whose parts may be of unequal sizes.
            loss = self.loss(logits, labels, "sum") * (self.ranks.size / examples)
        loss.backward()
        self.optimiser.step(learning_rate)
        return loss.detach() / self.ranks.size

    def evaluate(self, epoch: int) -> EpochRecord:
        """Loss and error over both whole sets."""
        # After bfloat16 steps, true float32 would take most of the time.
        precision = "float32" if self.training.precision == "float32" else "tf32"
        means = []
        for split in ("train", "test"):
            labels = self.data.labels[split]
            totals, self.evaluation_batch_size = evaluate(
                self.network,
                self.data.images[split],
                labels,
                self.data.normalise,
                self.evaluation_batch_size,
                self.ranks.share(len(labels)),
                precision,
                self.loss,
            )
            means += (self.ranks.sum(totals) / len(labels)).tolist()
        return EpochRecord(epoch, *means)

    def state(self) -> dict[str, torch.Tensor]:
        """Weights, buffers and what the optimiser keeps, by name."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return state | self.optimiser.state()

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up a state that :meth:`state` gave."""
        own = "network."
        self.network.load_state_dict(
            {name.removeprefix(own): value for name, value in state.items() if name.startswith(own)}
        )
        for name, kept in self.optimiser.state().items():
            kept.copy_(state[name])


@contextlib.contextmanager
def out_of_memory_explained(examples: int) -> Iterator[None]:
    """Add advice to the error if a step of this size does not fit into memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise StepTooLarge(
            f"training.batch_size: {examples} examples a step are more than the GPU's memory "
            "holds; lower it (the results change with it), set network.memory_efficient for a "
            "DenseNet, or stop other programs on the GPU"
        ) from None


def build(recipe: Recipe, data: PreparedDataset, seed: int, device: torch.device) -> nn.Module:
    """The recipe's network with its initial weights, laid out as it trains fastest."""
    return build_network(
        recipe.network,
        channels=data.channels,
        num_classes=data.num_classes,
        image_size_px=data.image_size_px,
        seed=seed,
    ).to(device, memory_format=torch.channels_last)
