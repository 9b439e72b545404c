"""The networks that cases share, and what trains them: the project's trainer and the notebook's."""

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
from neural_collapse.networks.build import build_network
from neural_collapse.networks.convolutions import PointwiseConv2d
from neural_collapse.networks.registry import resolve_network
from neural_collapse.training.recipe import TrainingRecipe
from neural_collapse.training.trainer import Trainer

from . import data
from .references import measurement as notebooks_measurement
from .references import training as notebook

LEARNING_RATE = 0.01
BATCH = 128

NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet18 width 8": {"name": "resnet18", "width": 8},
    "ResNet18 width 16": {"name": "resnet18", "width": 16},
    "VGG11 width 8": {"name": "vgg11", "width": 8, "hidden_width": 64},
    "VGG11 width 16": {"name": "vgg11", "width": 16, "hidden_width": 128},
    "ResNet18": {"name": "resnet18"},
    "VGG11": {"name": "vgg11"},
    # The quickstart's size on digits.
    "ResNet (1,1,1,1) width 8, 8 px": {"name": "resnet18", "blocks": [1, 1, 1, 1], "width": 8},
}


SMALL_PX = 8
"""Side of the images that the networks named so see, averaged from 32 px."""


def recipe(network: str, precision: str = "float32") -> Recipe:
    spec = NETWORKS[network]
    return Recipe(
        dataset="mnist",
        architecture=spec["name"].rstrip("0123456789"),
        network=resolve_network(spec),
        training=TrainingRecipe(precision=precision, batch_size=BATCH),
    )


def fresh_network(network: str) -> nn.Module:
    """Of the same initial weights as `trainer`'s; contiguous."""
    return build_network(
        recipe(network).network, channels=1, num_classes=10, image_size_px=32, seed=0
    )


def torchs_network(network: str) -> nn.Module:
    """The same of torch's own layers, as a notebook has them."""
    net = fresh_network(network)
    for module in net.modules():
        if type(module) is PointwiseConv2d:
            module.__class__ = nn.Conv2d
    return net


def trainer(
    network: str, images: data.RawImages, precision: str, device: torch.device | str = "cpu"
) -> Trainer:
    return Trainer(
        recipe(network, precision), sized(network, images), LEARNING_RATE, 0, torch.device(device)
    )


def sized(network: str, images: data.RawImages) -> PreparedDataset:
    """The images as a network sees them."""
    whole = data.prepared(images)
    return data.averaged(whole, SMALL_PX) if network.endswith(f" {SMALL_PX} px") else whole


def our_epochs(trained: Trainer) -> Callable[[], None]:
    """One epoch of the project's training a call."""
    epochs = itertools.count(1)
    return lambda: trained.train_epoch(min(next(epochs), trained.training.epochs))


def notebook_dataset(images: data.RawImages, split: str = "train") -> notebook.PILImages:
    return notebook.PILImages(
        getattr(images, f"{split}_images"),
        getattr(images, f"{split}_labels"),
        data.PADDING,
        data.MEAN,
        data.STD,
    )


def notebook_epochs(
    network: str,
    images: data.RawImages,
    device: torch.device | str = "cpu",
    *,
    workers: int = 0,
) -> Callable[[], Any]:
    """One epoch of the notebook's training a call."""
    net = torchs_network(network).to(device)
    sgd = notebook.optimiser(net, LEARNING_RATE)
    batches = notebook.loader(
        notebook_dataset(images),
        BATCH,
        workers=workers,
        pin_memory=workers > 0 and torch.device(device).type == "cuda",
    )
    return lambda: notebook.train_epoch(net, sgd, batches)


OURS = "ours"


def measurement_of(
    variant: str, network: str, images: data.RawImages, device: torch.device | str = "cpu"
) -> Callable[[], Any]:
    """The measurement of one checkpoint a call: the pipeline's stages, or the notebook's."""
    net = (fresh_network if variant == OURS else torchs_network)(network).to(device)
    if variant != OURS:
        loaders = [
            notebook.loader(notebook_dataset(images, split), BATCH, shuffle=False, drop_last=False)
            for split in ("train", "test")
        ]
        return lambda: notebooks_measurement.measure(net, *loaders)
    prepared = data.prepared(images)

    def measure() -> tuple[dict, dict]:
        batch_size = TrainingRecipe().evaluation_batch_size
        train, test, *_ = extract_splits(net, prepared, batch_size=batch_size, device=device)
        return compute_statistics(train), compute_statistics(test)

    return measure
