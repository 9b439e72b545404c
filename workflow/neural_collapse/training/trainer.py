"""One training on its device: a pass over the train set, and its evaluation.

Within an epoch nothing waits for the device: losses and errors stay on it until the epoch ends.
The order of an epoch depends on (seed, epoch), the learning rate on the epoch.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, cuda, nn

from ..data.images import CPU_BATCH, Normalisation, place_images
from ..data.prepared import PreparedDataset
from ..io.errors import UserError
from ..io.progress import say
from ..networks.arithmetic import arithmetic, is_out_of_memory
from ..networks.build import build_network
from ..networks.folding import fold_batch_norms
from ..networks.randomness import isolated_randomness
from .history import EpochRecord
from .losses import loss_of
from .optimisers import Optimiser
from .ranks import ALONE, Ranks
from .recipe import TrainingRecipe

if TYPE_CHECKING:
    from ..experiment.recipe import Recipe

WARM_UP_STEPS = 3  # before a CUDA graph is recorded


class StepTooLarge(UserError):
    """A batch that does not fit into the GPU's memory."""


class Batch(NamedTuple):
    """A rank's part of a batch. inputs: (B, C, P, P), normalised; labels: (B,); examples: of the
    whole batch."""

    inputs: Tensor
    labels: Tensor
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
        data: PreparedDataset,
        learning_rate: float,
        seed: int,
        device: torch.device,
        ranks: Ranks = ALONE,
        stream: bool | None = None,
    ):
        self.data = DeviceData(recipe, data, device, ranks, stream)
        self.ranks, self.device = ranks, device
        self.training: TrainingRecipe = recipe.training
        self.learning_rate, self.seed, self.epoch = learning_rate, seed, 0
        self.network = build(recipe, data, seed, device)
        self.loss = loss_of(self.training)
        self.optimiser = Optimiser(self.training, self.network)
        logits: nn.Module = _Logits(self.network, self.training.precision == "bfloat16")
        if self.training.compile:
            logits.compile()
        black = torch.zeros((1, *data.train_images.shape[1:]), dtype=torch.uint8, device=device)
        self.logits = ranks.parallel(logits, self.data.normalise(black))
        # Ranks exchange gradients within a step, which is not recorded.
        self.graphed = self.training.cuda_graphs and device.type == "cuda" and ranks.size == 1
        self.graph: GraphedStep | None = None
        self.evaluation_batch_size = self.training.evaluation_batch_size
        if device.type == "cpu":
            self.evaluation_batch_size = min(self.evaluation_batch_size, CPU_BATCH)

    def train_epoch(self, epoch: int) -> Tensor:
        """One pass over the train set; its mean loss, this rank's part of it, in float64."""
        learning_rate = self.training.learning_rate_at(self.learning_rate, epoch)
        self.network.train()
        self.epoch = epoch
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with (
            isolated_randomness(0),  # seeded below, by epoch and rank
            arithmetic(self.training.precision),
            contextlib.closing(self.data.batches(self.seed, epoch)) as batches,
        ):
            self._seed_generators()
            for batch in batches:
                total += self.step(batch, learning_rate)
        return total / self.data.steps

    def _seed_generators(self) -> None:
        """Seed what a user-defined network draws from, as for dropout or stochastic depth: the same
        in a resumed epoch."""
        entropy = self.seed, self.epoch, self.ranks.rank, 1  # 1: not the stream of epoch_order
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def step(self, batch: Batch, learning_rate: float) -> Tensor:
        """One step of the optimiser; this rank's part of the batch's mean loss.

        Raises:
            UserError: the step does not fit into memory, or cannot be recorded as a CUDA graph.
        """
        inputs, labels, examples = batch
        try:
            if self.graphed and self.graph is None:
                self.graph = GraphedStep(self._step, self.state, inputs, labels)
                self._seed_generators()  # the recorded steps drew as well
            if self.graph is not None and self.graph.inputs.shape == inputs.shape:
                return self.graph(inputs, labels, learning_rate)
            return self._step(inputs, labels, learning_rate, examples)
        except RuntimeError as error:
            # To end a recording fails as well, and hides why it failed.
            causes: list[BaseException] = [error]
            while causes[-1].__context__ is not None:
                causes.append(causes[-1].__context__)
            if any(map(is_out_of_memory, causes)):
                raise StepTooLarge(
                    f"training.batch_size: {examples} examples a step are more than the GPU's "
                    "memory holds; lower it (the results change with it), set "
                    "network.memory_efficient for a DenseNet, or stop other programs on the GPU"
                ) from None
            if not self.graphed or self.graph is not None:
                raise
            reason = str(error.__context__ or error).splitlines()[0]
            raise UserError(
                f"training.cuda_graphs: this network's step cannot be recorded ({reason}); "
                "set it to false"
            ) from None

    def _step(
        self, inputs: Tensor, labels: Tensor, learning_rate: float | Tensor, examples: int = 0
    ) -> Tensor:
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
        """Loss and error over both whole sets, of the network with folded batch norms."""
        # After bfloat16 steps, true float32 would take most of the time.
        precision = "float32" if self.training.precision == "float32" else "tf32"
        with torch.inference_mode(), arithmetic(precision):
            folded = fold_batch_norms(self.network)
            sums = {split: self._sums(folded, split) for split in self.data.labels}
        self.network.train()
        means = [
            (self.ranks.sum(found) / len(self.data.labels[split])).tolist()
            for split, found in sums.items()
        ]
        return EpochRecord(epoch, *means[0], *means[1])

    def _sums(self, network: nn.Module, split: str) -> Tensor:
        """(summed loss, wrong decisions) of this rank's share of a set, in float64.

        Where the device's memory runs out, the batch is halved. Losses are added up at the end, so
        that how the set is cut into batches does not decide how the sum is rounded.
        """
        images, labels = self.data.images[split], self.data.labels[split]
        share = self.ranks.share(len(labels))
        found = torch.zeros(2, len(labels), dtype=torch.float64, device=self.device)
        start = share.start
        while True:
            rest = images.in_order(range(start, share.stop), self.evaluation_batch_size)
            with contextlib.closing(rest) as batches:
                try:
                    for batch in batches:
                        part = slice(start, start + len(batch))
                        logits = network(self.data.normalise(batch))
                        found[0, part] = self.loss(logits, labels[part], "none")
                        found[1, part] = logits.argmax(1) != labels[part]
                        start += len(batch)
                    return found.sum(1)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if self.evaluation_batch_size == 1:
                        raise UserError(
                            "training.evaluation_batch_size: not even one example fits into the "
                            "GPU's memory; stop other programs on it or use a smaller network"
                        ) from None
            self.evaluation_batch_size //= 2
            say(f"out of GPU memory: continues with {self.evaluation_batch_size} examples per step")
            # Here, where no traceback holds the failed batch's tensors any more.
            batch = logits = None
            if self.device.type == "cuda":
                cuda.empty_cache()

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers and what the optimiser keeps, by name."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return state | self.optimiser.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state returned by :meth:`state`."""
        self.network.load_state_dict(network_weights(state))
        for name, kept in self.optimiser.state().items():
            kept.copy_(state[name])


def network_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's part of a :meth:`Trainer.state`."""
    own = "network."
    return {name.removeprefix(own): value for name, value in state.items() if name.startswith(own)}


def build(recipe: Recipe, data: PreparedDataset, seed: int, device: torch.device) -> nn.Module:
    """The recipe's network with its initial weights, on the device, in its fastest layout."""
    network = build_network(
        recipe.network,
        channels=data.channels,
        num_classes=data.num_classes,
        image_size_px=data.image_size_px,
        seed=seed,
    )
    return network.to(device, memory_format=network.memory_format)


class _Logits(nn.Module):
    """A network's logits, as a module that several processes can share.

    The last layer stays in float32 under autocast: bfloat16 logits carry three digits, and the
    terminal phase lies far below that.
    """

    def __init__(self, network: nn.Module, bfloat16: bool):
        super().__init__()
        self.network, self.bfloat16 = network, bfloat16

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.bfloat16:
            return self.network.classifier(self.network.features(inputs))
        with torch.autocast(inputs.device.type, torch.bfloat16):
            features = self.network.features(inputs)
        return self.network.classifier(features.float())


class GraphedStep:
    """A training step as one CUDA graph, recorded once and replayed for batches of the same shape.

    It launches hundreds of kernels at once, which helps where a GPU waits for the CPU to launch
    them: images of few pixels, narrow networks.

    step: `step(inputs, labels, learning_rate)` -> loss; all its tensors on one GPU, the learning
    rate a tensor (). It must leave no gradients. state: what it changes, which recording leaves as
    it was.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor, Tensor], Tensor],
        state: Callable[[], dict[str, Tensor]],
        inputs: Tensor,
        labels: Tensor,
    ):
        self.inputs, self.labels = inputs.clone(), labels.clone()
        self.learning_rate = torch.zeros((), device=inputs.device)
        before = {name: value.clone() for name, value in state().items()}
        # Libraries choose their kernels and set up their memory before anything is recorded.
        stream = cuda.Stream(inputs.device)
        stream.wait_stream(cuda.current_stream(inputs.device))
        with cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step(self.inputs, self.labels, self.learning_rate)
            self.graph, pool = cuda.CUDAGraph(), cuda.graph_pool_handle()
            try:
                # On the stream that warmed up, whose workspaces no other graph shares; other
                # threads, which read images, may go on. A recording that fails does not leave the
                # stream itself.
                with cuda.graph(
                    self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                ):
                    self.loss = step(self.inputs, self.labels, self.learning_rate)
            except RuntimeError:
                # Otherwise torch's allocator (2.11 to 2.15) would go on recording: it would free
                # no memory and record no other step. It is private: a later torch may lack it.
                with contextlib.suppress(AttributeError, RuntimeError):
                    torch._C._cuda_endAllocateToPool(inputs.device.index, pool)
                raise
        cuda.current_stream(inputs.device).wait_stream(stream)
        for name, value in state().items():
            value.copy_(before[name])

    def __call__(self, inputs: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """Take the step; its loss, good until the next call."""
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        self.learning_rate.fill_(learning_rate)
        self.graph.replay()
        return self.loss


class DeviceData:
    """A prepared dataset on its device: images and labels by split, and the batches of an epoch.

    Raises:
        UserError: the batch size does not fit the train set or the number of processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: PreparedDataset,
        device: torch.device,
        ranks: Ranks,
        stream: bool | None,
    ):
        self.device, self.ranks = device, ranks
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
        self.batch_size, self.steps = training.batch_size, training.steps(self.examples)
        if self.steps == 0:
            raise UserError(
                f"training.batch_size: {self.batch_size} is more than the {self.examples} train "
                f"examples of {recipe.dataset}; lower it or set training.keep_incomplete_batch"
            )
        left = self.examples % self.batch_size if training.keep_incomplete_batch else 0
        if left == 1:
            raise UserError(
                f"training.batch_size: {self.batch_size} leaves a last batch of one example, which "
                "batch normalisation cannot take; choose another"
            )
        smallest = left or self.batch_size
        if smallest < ranks.size:
            raise UserError(
                f"resources.gpu: {ranks.size} processes cannot share a batch of {smallest} "
                "examples; give fewer GPUs or choose another batch_size"
            )

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        """This rank's parts of an epoch's batches, in order. Close it when done."""
        order = epoch_order(self.examples, seed, epoch)
        if self.repeated is not None:
            order = self.repeated[order]
        batches = order.split(self.batch_size)[: self.steps]
        parts = [self.ranks.part(batch) for batch in batches]
        rows, sizes = torch.cat(parts), [len(part) for part in parts]
        truths = self.labels["train"][rows.to(self.device)].split(sizes)
        with contextlib.closing(self.images["train"].batches(rows, sizes)) as found:
            for part, truth, batch in zip(found, truths, batches, strict=True):
                yield Batch(self.normalise(part), truth, len(batch))


def epoch_order(examples: int, seed: int, epoch: int) -> Tensor:
    """The order of the train set in an epoch: a permutation that (seed, epoch) alone decides."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
    return torch.randperm(examples, generator=generator)


def oversampled(labels: np.ndarray) -> Tensor:
    """The rows of an epoch in which every class has as many as the largest one, ordered by class;
    rows of smaller classes are repeated."""
    counts = np.bincount(labels)
    rows = [np.resize(np.flatnonzero(labels == c), counts.max()) for c in counts.nonzero()[0]]
    return torch.from_numpy(np.concatenate(rows))
