"""The pieces of work that are timed in processes of their own, each by this project or a reference.

A piece is a function of (variant, subject, amount, mirror) that prepares everything and returns
what to time and how many units of work that is. What it returns, where it returns a number, goes
back to the case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neural_collapse.collapse.attacks import robustness as our_robustness
from neural_collapse.collapse.measure import measure
from neural_collapse.data.images import Normalisation

from . import data
from .harness import cores
from .networks import OURS, measurement_of, notebook_epochs, our_epochs, sized, trainer
from .references import deepfool
from .references.accumulators import accumulated_statistics
from .references.statistics import batches_of, notebook_statistics, per_class_nc1

NC1 = "nc1_within_class_variability"
NOTEBOOK = "notebook"
ACCUMULATORS = "accumulators"
BY_CLASS = "by class"
ONE_BY_ONE = "one by one"
REFERENCES = (NOTEBOOK, ACCUMULATORS, BY_CLASS, ONE_BY_ONE)


@dataclass(frozen=True)
class Job:
    """piece: one of `PIECES`; variant: of `REFERENCES`, or this project's; subject: what of;
    amount: images or examples; threads: 0 leaves torch's own number."""

    piece: str
    variant: str
    subject: str
    amount: int
    threads: int = 1

    @property
    def ours(self) -> bool:
        return self.variant not in REFERENCES


def whole_machine(piece: str, subject: str, amounts: Mapping[str, int]) -> dict[str, list[Job]]:
    """What keeps every core busy: a reference with torch's own threads; ours as the pipeline runs,
    one thread a job and a job a core."""
    return {
        variant: [Job(piece, variant, subject, amount, threads=0)]
        if variant in REFERENCES
        else [Job(piece, variant, subject, amount)] * cores()
        for variant, amount in amounts.items()
    }


def one_thread(piece: str, subject: str, amounts: Mapping[str, int]) -> dict[str, list[Job]]:
    """A process of one thread each."""
    return {v: [Job(piece, v, subject, amount)] for v, amount in amounts.items()}


Piece = tuple[Callable[[], Any], float]


def training(variant: str, network: str, images: int, mirror: str | None) -> Piece:
    """An epoch; variant: the notebook's, or a precision of ours."""
    raw = data.subset(data.mnist(mirror), images, images // 4)
    if variant == NOTEBOOK:
        return notebook_epochs(network, raw), images
    return our_epochs(trainer(network, raw, variant)), images


def measurement(
    variant: str, network: str, images: int, mirror: str | None, device: str = "cpu"
) -> Piece:
    """A checkpoint's, of so many train images and a quarter as many of the test set."""
    raw = data.subset(data.mnist(mirror), images, images // 4)
    return measurement_of(variant, network, raw, device), images + images // 4


def statistics(variant: str, shape: str, examples: int, mirror: str | None) -> Piece:
    """All statistics of made-up features; shape: "d x C". `BY_CLASS` computes NC1 alone."""
    dim, classes = map(int, shape.split("x"))
    features, labels = features_near_collapse(examples, dim, classes, 1e-3)
    weight, bias = last_layer(dim, classes)
    if variant == BY_CLASS:
        return lambda: per_class_nc1(features, labels, classes), examples
    if variant == OURS:
        order = np.argsort(labels, kind="stable")  # as the extraction writes them
        features, labels = features[order], labels[order]
        return lambda: measure(features, labels, weight, bias)[NC1], examples
    batches = batches_of(torch.from_numpy(features), torch.from_numpy(labels), weight, bias)
    if variant == ACCUMULATORS:
        return lambda: accumulated_statistics(batches, weight)[NC1], examples
    return lambda: notebook_statistics(batches, weight)[0][NC1], examples


def robustness(variant: str, network: str, count: int, mirror: str | None) -> Piece:
    """The mean over so many test images, of a network trained for three epochs."""
    return attacks(network, count, mirror)[variant], count


def attacks(
    network: str, count: int, mirror: str | None, device: str = "cpu"
) -> dict[str, Callable[[], float]]:
    """The mean robustness of one trained network, by either way."""
    raw = data.subset(data.mnist(mirror), 2560, 500)
    trained = trainer(network, raw, "float32", device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # another number would train another network
    for epoch in (1, 2, 3):
        trained.train_epoch(epoch)
    torch.set_num_threads(threads)
    images = sized(network, raw)
    chosen = images.test_images[:count]
    normalise = Normalisation(images.mean, images.std, device)
    inputs = normalise(torch.from_numpy(chosen).to(device))

    def one_by_one() -> float:
        return deepfool.robustness(trained.network.eval(), inputs).mean().item()

    def batched() -> float:
        ratios = our_robustness(
            trained.network, chosen, images.mean, images.std, batch_size=count, device=device
        )
        return float(np.nanmean(ratios))

    return {ONE_BY_ONE: one_by_one, OURS: batched}


PIECES: dict[str, Callable[[str, str, int, str | None], Piece]] = {
    function.__name__: function for function in (training, measurement, statistics, robustness)
}


def features_near_collapse(
    examples: int,
    dim: int,
    classes: int,
    nc1: float,
    condition: float = 1.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Features of about this NC1 whose Sigma_B has about this condition number, and labels."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dim, classes - 1)))[0]
    # The simplex's C - 1 directions, of singular values from 1 down to condition^-1/2.
    simplex = np.linalg.qr(np.eye(classes)[:, :-1] - 1 / classes)[0]
    singular = np.geomspace(1, condition**-0.5, classes - 1)
    means = (simplex * singular) @ axes.T
    labels = np.arange(examples) % classes
    # Sigma_B has the eigenvalues singular^2 / C, so that noise of equal size in all directions
    # gives NC1 = within^2 sum(singular^-2).
    within = np.sqrt(nc1 / (singular**-2).sum())
    features = rng.standard_normal((examples, dim), dtype=np.float32)
    features *= within
    features += (means + 1.0)[labels]  # as after a ReLU, the mean of all is not near zero
    return features, labels


def last_layer(dim: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(classes, dim, generator=generator),
        torch.randn(classes, generator=generator),
    )
