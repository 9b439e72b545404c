"""The networks that cases share, and what trains and measures them: ours and the notebook's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from neural_collapse.collapse.features import extract_splits
from neural_collapse.collapse.result import compute_statistics
from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.experiment.recipe import Recipe
from neural_collapse.inspect.gpu_checks import PRECISIONS
from neural_collapse.networks.build import build_network
from neural_collapse.networks.convolutions import PointwiseConv2d
from neural_collapse.networks.registry import resolve_network
from neural_collapse.training.recipe import TrainingRecipe
from neural_collapse.training.trainer import Trainer

from . import data
from .references import measurement as notebooks_measurement
from .references import training as notebook

LEARNING_RATE = 0.01
CPU_PRECISIONS = tuple(name for name in PRECISIONS if name != "tf32")  # which it lacks
BATCH = 128
NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet18 width 8": {"name": "resnet18", "width": 8},
    "VGG11 width 16": {"name": "vgg11", "width": 16, "hidden_width": 128},
    "ResNet18": {"name": "resnet18"},
    "VGG11": {"name": "vgg11"},
}


def fresh_network(network: str) -> nn.Module:
    """Of the same initial weights as `trainer`'s; contiguous."""
    recipe = resolve_network(NETWORKS[network])
    return build_network(recipe, channels=1, num_classes=10, image_size_px=32, seed=0)


def torchs_network(network: str) -> nn.Module:
    """The same of torch's own layers, as a notebook has them."""
    net = fresh_network(network)
    for module in net.modules():
        if type(module) is PointwiseConv2d:
            module.__class__ = nn.Conv2d
    return net


def trainer(
    network: str, images: PreparedDataset, precision: str, device: torch.device | str = "cpu"
) -> Trainer:
    recipe = Recipe(
        dataset="mnist",
        architecture="network",
        network=resolve_network(NETWORKS[network]),
        training=TrainingRecipe(precision=precision, batch_size=BATCH, cuda_graphs=True),
    )
    return Trainer(recipe, images, LEARNING_RATE, 0, torch.device(device))


def our_epochs(trained: Trainer) -> Callable[[], Any]:
    """One epoch of the project's training a call."""
    epochs = itertools.count(1)
    return lambda: trained.train_epoch(min(next(epochs), trained.training.epochs))


def notebook_dataset(images: PreparedDataset, split: str = "train") -> notebook.PILImages:
    """A split's images as published, which the notebook pads itself."""
    padded, inner = getattr(images, f"{split}_images"), slice(data.PADDING, -data.PADDING)
    labels = getattr(images, f"{split}_labels")
    return notebook.PILImages(
        padded[:, 0, inner, inner].copy(), labels, data.PADDING, data.MEAN, data.STD
    )


def notebook_epochs(
    network: str, images: PreparedDataset, device: torch.device | str = "cpu", workers: int = 0
) -> Callable[[], Any]:
    """One epoch of the notebook's training a call."""
    net = torchs_network(network).to(device)
    sgd = notebook.optimiser(net, LEARNING_RATE)
    pinned = workers > 0 and torch.device(device).type == "cuda"
    batches = notebook.loader(notebook_dataset(images), BATCH, workers=workers, pin_memory=pinned)
    return lambda: notebook.train_epoch(net, sgd, batches)


def our_measurement(
    network: str, images: PreparedDataset, device: torch.device | str = "cpu"
) -> Callable[[], tuple[dict, dict]]:
    """The pipeline's measurement of one checkpoint a call: the statistics of both splits."""
    net, batch_size = fresh_network(network), TrainingRecipe().evaluation_batch_size

    def measure() -> tuple[dict, dict]:
        train, test, *_ = extract_splits(net, images, batch_size=batch_size, device=device)
        return compute_statistics(train), compute_statistics(test)

    return measure


def notebook_measurement(
    network: str, images: PreparedDataset, device: torch.device | str = "cpu"
) -> Callable[[], dict[str, float]]:
    """The notebook's measurement of one checkpoint a call."""
    net = torchs_network(network).to(device)
    loaders = [
        notebook.loader(notebook_dataset(images, split), BATCH, shuffle=False, drop_last=False)
        for split in ("train", "test")
    ]
    return lambda: notebooks_measurement.measure(net, *loaders)
