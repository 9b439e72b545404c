"""The statistics of one checkpoint with per-class and per-sample loops, as in the notebook.

Two passes over batches of (features, logits, labels): class means, then within-class covariance as
a sum of one d x d outer product a sample, in float32; the pseudo-inverse of Sigma_B from scipy's
svds; nearest class centres by one set of norms a sample.

Results have this project's names and conventions (NC1 with its 1/C, standard deviations of ddof 0),
so that they can be compared number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

Batches = Callable[[], Iterable[tuple[Tensor, Tensor, Tensor]]]


def batches_of(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, batch_size: int = 128
) -> Batches:
    """Features in memory as batches."""

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(features), batch_size):
            part = slice(start, start + batch_size)
            yield features[part], features[part] @ weight.T + bias, labels[part]

    return batches


def notebook_statistics(batches: Batches, weight: Tensor) -> tuple[dict[str, float], list[Tensor]]:
    """Statistics of the train set, and its class means."""
    classes, dim = weight.shape
    device = weight.device
    counts = [0] * classes
    means = [torch.zeros(dim, device=device) for _ in range(classes)]
    for features, _, labels in batches():
        for c in range(classes):
            of_class = features[labels == c]
            if len(of_class):
                means[c] += of_class.sum(0)
                counts[c] += len(of_class)
    means = [mean / count for mean, count in zip(means, counts, strict=True)]

    within = torch.zeros(dim, dim, device=device)
    network_correct = matches = 0
    for features, logits, labels in batches():
        for c in range(classes):
            rows = labels == c
            of_class = features[rows]
            if not len(of_class):
                continue
            deviations = of_class - means[c]
            within += torch.matmul(deviations.unsqueeze(2), deviations.unsqueeze(1)).sum(0)
            decided = logits[rows].argmax(1)
            network_correct += (decided == c).sum().item()
            matches += (nearest_centres(of_class, means) == decided).sum().item()
    examples = sum(counts)
    within /= examples

    M = torch.stack(means, 1)
    M_centred = M - M.mean(1, keepdim=True)
    between = M_centred @ M_centred.T / classes
    vectors, values, _ = svds(between.cpu().numpy(), k=classes - 1)
    inverse = vectors @ np.diag(values**-1) @ vectors.T
    nc1 = float(np.trace(within.cpu().numpy() @ inverse)) / classes

    found = {
        "nc1_within_class_variability": nc1,
        "nc4_ncc_mismatch": 1 - matches / examples,
        "network_accuracy": network_correct / examples,
    }
    return found | geometry(M_centred.T, weight), means


def geometry(centred: Tensor, weight: Tensor) -> dict[str, float]:
    """NC2 and NC3 of centred class means (C, d) and the last layer's weight (C, d)."""
    classes = len(weight)
    found = {
        "nc3_self_duality": (weight / weight.norm() - centred / centred.norm())
        .square()
        .sum()
        .item()
    }
    off_diagonal = ~torch.eye(classes, dtype=torch.bool, device=weight.device)
    for name, rows in [("means", centred), ("classifier", weight)]:
        norms = rows.norm(dim=1, keepdim=True)
        pairs = ((rows / norms) @ (rows / norms).T)[off_diagonal]
        found[f"nc2_equinorm_{name}"] = (norms.std(correction=0) / norms.mean()).item()
        found[f"nc2_equiangularity_{name}"] = pairs.std(correction=0).item()
        found[f"nc2_maximal_angle_{name}"] = (pairs + 1 / (classes - 1)).abs().mean().item()
    return found


def nearest_centres(features: Tensor, means: list[Tensor]) -> Tensor:
    """One norm to every centre for each sample in turn."""
    centres = torch.stack(means)
    return torch.stack([torch.norm(h - centres, dim=1).argmin() for h in features])


def notebook_mismatch(batches: Batches, means: list[Tensor]) -> float:
    """NC4 on another set: the share of decisions that differ from the nearest train mean's."""
    different = examples = 0
    for features, logits, labels in batches():
        different += (nearest_centres(features, means) != logits.argmax(1)).sum().item()
        examples += len(labels)
    return different / examples
