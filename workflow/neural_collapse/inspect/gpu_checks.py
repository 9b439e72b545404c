"""Short checks that a device agrees with the CPU and that its results are repeatable."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from ..collapse.attacks import deepfool
from ..collapse.features import extract
from ..collapse.result import compute_statistics
from ..data.prepared import PreparedDataset
from ..experiment.recipe import Recipe
from ..networks.arithmetic import arithmetic
from ..networks.registry import resolve_network
from ..training.trainer import StepTooLarge, Trainer

CPU = torch.device("cpu")
PRECISIONS = ("float32", "tf32", "bfloat16")
FAMILIES = {
    "VGG": {"name": "vgg11", "convolutions": [1, 2], "width": 16, "hidden_width": 32},
    "ResNet": {"name": "resnet18", "blocks": [1, 1], "width": 16},
    "DenseNet": {"name": "densenet250", "blocks": [2, 2], "growth": 8},
}
FIRST_STEPS = {"float32": 1e-4, "tf32": 5e-2, "bfloat16": 0.2}
"""How far the losses of the first steps may be from the CPU's in float32, relatively."""
EXACTNESS = {"float32": 1e-5, "tf32": 2e-3}
"""How far products may be from float64's, relatively. Float32 errs by 1e-7, as Winograd's
convolution by some 1e-6, TF32 by 3e-4."""
MIB = 2**20


@dataclass(frozen=True)
class Check:
    """A comparison: what was compared, how far it is off, how far it may be."""

    name: str
    difference: float
    tolerance: float
    failure: str = ""
    """What was raised instead."""

    @property
    def passed(self) -> bool:
        """Whether it is near enough."""
        return not self.failure and self.difference <= self.tolerance


def made_up_data(examples: int, channels: int, side_px: int, num_classes: int) -> PreparedDataset:
    """Noisy images of each class's own pattern, an eighth as many in the test set."""
    random = np.random.default_rng(0)
    patterns = random.integers(40, 216, (num_classes, channels, side_px, side_px), np.int16)
    arrays = {}
    for split, count in (("train", examples), ("test", max(8, examples // 8))):
        labels = np.arange(count) % num_classes
        noise = random.integers(-40, 40, (count, channels, side_px, side_px), np.int16)
        arrays[f"{split}_images"] = (patterns[labels] + noise).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    return PreparedDataset(
        name="made up",
        label="made up",
        num_classes=num_classes,
        class_names=tuple(map(str, range(num_classes))),
        channels=channels,
        image_size_px=side_px,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        data_hash="made up",
        card={},
        **arrays,
    )


Checks = Iterator[tuple[str, float, Callable[[], float]]]
"""(name, tolerance, what computes the difference)."""


def run_checks(device: torch.device) -> list[Check]:
    """Every check of products, and of every family of networks. One that raises has failed."""
    data, found = made_up_data(96, 1, 8, 3), []
    listed = {"": _product_checks(device)}
    listed |= {f"{name}, ": _checks(network, data, device) for name, network in FAMILIES.items()}
    for family, checks in listed.items():
        for name, tolerance, difference in checks:
            try:
                check = Check(f"{family}{name}", difference(), tolerance)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                check = Check(f"{family}{name}", 0.0, tolerance, reason)
            found.append(check)
    return found


def _product_checks(device: torch.device) -> Checks:
    generator = torch.Generator().manual_seed(0)
    for name, layer, window in (
        ("products", functional.linear, ()),
        ("convolutions", functional.conv2d, (3, 3)),
    ):
        inputs = torch.randn(8, 128, *(4 * side for side in window), generator=generator)
        weight = torch.randn(64, 128, *window, generator=generator)

        def error(precision: str, layer=layer, inputs=inputs, weight=weight) -> float:
            exact = layer(inputs.double(), weight.double())
            with arithmetic(precision):
                found = layer(inputs.to(device), weight.to(device)).cpu()
            return ((found - exact).norm() / exact.norm()).item()

        for precision, tolerance in EXACTNESS.items():
            yield f"{name} in {precision} as in float64", tolerance, partial(error, precision)


def _checks(network: dict, data: PreparedDataset, device: torch.device) -> Checks:
    def of(precision: str = "float32", **training) -> Recipe:
        training = {"epochs": 2, "batch_size": 16, "precision": precision} | training
        return Recipe(
            dataset="made up",
            architecture="network",
            network=resolve_network(network),
            training=training,
            sweep={"learning_rate": 0.02},
            measurement={"epochs": [1], "activation_epochs": 1},
        )

    def steps(recipe: Recipe, where: torch.device) -> torch.Tensor:
        return first_losses(Trainer(recipe, data, 0.02, 0, where))

    for precision, tolerance in FIRST_STEPS.items():
        yield (
            f"first steps in {precision} as on the CPU", tolerance,
            lambda p=precision: _apart(steps(of(p), device), steps(of(), CPU)),
        )  # fmt: skip
        yield (
            f"two epochs in {precision} again, bits", 0.0,
            lambda p=precision: _bits(_epochs(of(p), data, device), _epochs(of(p), data, device)),
        )  # fmt: skip
    yield "two epochs as on the CPU", 1e-2, lambda: _losses_apart(of(), data, device)
    resident = lambda: _epochs(of(), data, device)  # noqa: E731
    yield "streamed, bits", 0.0, lambda: _bits(resident(), _epochs(of(), data, device, True))
    yield "resumed, bits", 0.0, lambda: _bits(resident(), _epochs(of(), data, device, cut=True))
    yield "features and statistics as on the CPU", 1e-3, lambda: _measured(of(), data, device)
    yield "attack as on the CPU, share of images", 0.1, lambda: _attacked(of(), data, device)
    if device.type == "cuda":
        for precision in ("float32", "tf32"):
            yield (
                f"CUDA graph in {precision} as without", 1e-5,
                lambda p=precision: _apart(
                    steps(of(p, cuda_graphs=True), device), steps(of(p), device)
                ),
            )  # fmt: skip
        yield "half a batch where memory runs out", 1e-5, lambda: _limited(of(), data, device)


def first_losses(trainer: Trainer, count: int = 4) -> torch.Tensor:
    """The losses of the first steps, on the CPU."""
    trainer.network.train()
    with (
        arithmetic(trainer.training.precision),
        closing(trainer.data.batches(0, 1)) as batches,
    ):
        losses = [trainer.step(b, 0.02).clone() for b in itertools.islice(batches, count)]
    return torch.stack(losses).cpu()


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """How many tensors differ."""
    return float(sum(not torch.equal(value, other[name]) for name, value in one.items()))


def _epochs(
    recipe: Recipe,
    data: PreparedDataset,
    device: torch.device,
    stream: bool | None = None,
    cut: bool = False,
) -> dict[str, torch.Tensor]:
    """The state after two epochs; `cut`: the second in a trainer that takes up the first's."""
    trainer = Trainer(recipe, data, 0.02, 0, device, stream=stream)
    trainer.train_epoch(1)
    if cut:
        before = {name: value.cpu() for name, value in trainer.state().items()}
        trainer = Trainer(recipe, data, 0.02, 0, device)
        trainer.restore(before)
    trainer.train_epoch(2)
    return {name: value.cpu() for name, value in trainer.state().items()}


def _losses_apart(recipe: Recipe, data: PreparedDataset, device: torch.device) -> float:
    losses = []
    for where in (device, CPU):
        trainer = Trainer(recipe, data, 0.02, 0, where)
        for epoch in (1, 2):
            trainer.train_epoch(epoch)
        record = trainer.evaluate(2)
        losses.append(torch.tensor([record.train_loss, record.test_loss]))
    return _apart(*losses)


def _measured(recipe: Recipe, data: PreparedDataset, device: torch.device) -> float:
    rows, statistics = [], []
    for where in (device, CPU):
        (moments,), features = extract(
            Trainer(recipe, data, 0.02, 0, CPU).network,
            data.train_images,
            data.train_labels,
            data.mean,
            data.std,
            batch_size=32,
            device=where,
            num_classes=data.num_classes,
            keep_rows=range(20),
        )
        rows.append(torch.from_numpy(features))
        values = [value for value in compute_statistics(moments).values() if np.isfinite(value)]
        statistics.append(torch.tensor(values))
    return max(_apart(*rows), _apart(*statistics))


def _attacked(recipe: Recipe, data: PreparedDataset, device: torch.device) -> float:
    lengths = []
    for where in (device, CPU):
        trainer = Trainer(recipe, data, 0.02, 0, where)
        inputs = trainer.data.normalise(torch.from_numpy(data.test_images).to(where))
        found = deepfool(trainer.network.eval(), inputs).perturbation
        lengths.append(found.detach().cpu().double().flatten(1).norm(dim=1))
    # A path may fork where two boundaries are as near.
    return 1 - torch.isclose(*lengths, rtol=1e-2, atol=1e-5).double().mean().item()


def _limited(recipe: Recipe, data: PreparedDataset, device: torch.device) -> float:
    """An evaluation in little memory, against one in much; a training must say what it lacks."""
    examples = 2048
    large = made_up_data(examples, 1, 16, 3)
    training = {"batch_size": examples, "evaluation_batch_size": examples}
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})
    trainer = Trainer(recipe, large, 0.02, 0, device)
    expected = trainer.evaluate(0)
    torch.cuda.empty_cache()
    # A layer's output is 32 MiB.
    limit = torch.cuda.memory_reserved(device) + 48 * MIB
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info(device)[1])
    try:
        found = trainer.evaluate(0)
        if trainer.evaluation_batch_size == examples:
            raise ValueError("the memory's limit was not noticed")
        try:
            trainer.train_epoch(1)
            raise ValueError("a step was computed beyond the memory's limit")
        except StepTooLarge:
            pass
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    return abs(found.train_loss - expected.train_loss) / expected.train_loss
