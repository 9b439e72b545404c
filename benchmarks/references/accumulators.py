"""Statistics from streaming accumulators, as in toolkits for large label sets.

Batches of (features, labels) are seen once for each kind of sum, in float32: class means by a
product with one-hot labels, the d x d within-class scatter by one matrix product a batch, and the
two classifiers' agreement by expanded squared distances. Sigma_B is inverted by torch's pinv as it
comes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .statistics import Batches, geometry


class Means:
    def __init__(self, classes: int, dim: int):
        self.totals, self.counts = torch.zeros(classes, dim), torch.zeros(classes)

    def add(self, features: Tensor, labels: Tensor) -> None:
        one_hot = functional.one_hot(labels, len(self.counts)).to(features.dtype)
        self.totals += one_hot.T @ features
        self.counts += one_hot.sum(0)

    def result(self) -> Tensor:
        return self.totals / self.counts[:, None]


class WithinScatter:
    def __init__(self, means: Tensor):
        self.means, self.examples = means, 0
        self.total = torch.zeros(means.shape[1], means.shape[1])

    def add(self, features: Tensor, labels: Tensor) -> None:
        deviations = features - self.means[labels]
        self.total += deviations.T @ deviations
        self.examples += len(labels)

    def result(self) -> Tensor:
        return self.total / self.examples


class Agreement:
    def __init__(self, means: Tensor):
        self.means, self.matches, self.examples = means, 0, 0

    def add(self, features: Tensor, logits: Tensor) -> None:
        distances = (
            features.square().sum(1, keepdim=True)
            + self.means.square().sum(1)
            - 2 * features @ self.means.T
        )
        self.matches += (distances.argmin(1) == logits.argmax(1)).sum().item()
        self.examples += len(features)

    def result(self) -> float:
        return self.matches / self.examples


def accumulated_statistics(batches: Batches, weight: Tensor) -> dict[str, float]:
    """The statistics by this project's names and conventions."""
    classes, dim = weight.shape
    sums = Means(classes, dim)
    for features, _, labels in batches():
        sums.add(features, labels)
    means = sums.result()
    within, agreement = WithinScatter(means), Agreement(means)
    for features, logits, labels in batches():
        within.add(features, labels)
        agreement.add(features, logits)

    centred = means - means.mean(0)
    between = centred.T @ centred / classes
    nc1 = torch.trace(torch.linalg.pinv(between) @ within.result()).item() / classes
    found = {
        "nc1_within_class_variability": nc1,
        "nc4_ncc_mismatch": 1 - agreement.result(),
    }
    return found | geometry(centred, weight)
