"""Measuring one checkpoint as in the notebook: the network runs over the train set twice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader

from .statistics import Batches, notebook_mismatch, notebook_statistics


def through_network(network: nn.Module, loader: DataLoader) -> Batches:
    """Features, logits and labels of a loader's images, from a pass of their own each time."""
    device = next(network.parameters()).device

    def batches() -> Iterator:
        network.eval()
        with torch.no_grad():
            for inputs, labels in loader:
                features = network.features(inputs.to(device))
                yield features, network.classifier(features), labels.to(device)

    return batches


def measure(network: nn.Module, train: DataLoader, test: DataLoader) -> dict[str, float]:
    """Train statistics, and the test set's decisions against the train means."""
    weight = network.classifier.weight.detach()
    found, means = notebook_statistics(through_network(network, train), weight)
    mismatch = notebook_mismatch(through_network(network, test), means)
    return found | {"test_nc4_ncc_mismatch": mismatch}
