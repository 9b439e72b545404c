"""Statistics of given features, against the notebook's loops and streaming accumulators."""

from __future__ import annotations

import numpy as np
import torch

from neural_collapse.collapse.measure import measure

from ..harness import Results, Settings, Variant, case, interleave, torch_threads
from ..references.accumulators import accumulated_statistics
from ..references.statistics import batches_of, notebook_statistics


@case("statistics")
def statistics(settings: Settings, results: Results) -> None:
    # The notebook's loops take time in proportion to the examples, but for svds: (N, d, C, as many
    # as are enough to know how much; 0 where svds alone takes a minute).
    shapes = [(10_000, 512, 10, 10_000), (20_000, 1024, 10, 400)]
    if settings.full:
        shapes += [
            (60_000, 512, 10, 10_000),
            (50_000, 512, 100, 10_000),
            (20_000, 2048, 100, 2000),  # ResNet50 on CIFAR100
            (20_000, 2048, 1000, 0),  # ResNet152 on ImageNet, a thirtieth of its examples
        ]
    for examples, dim, classes, few in shapes:
        features, labels = features_near_collapse(examples, dim, classes, 1e-3)
        order = np.argsort(labels, kind="stable")  # as the extraction writes them
        ordered = features[order], labels[order]
        layer = last_layer(dim, classes)
        tensors = torch.from_numpy(features), torch.from_numpy(labels)
        whole, part = (batches_of(*(t[:n] for t in tensors), *layer) for n in (examples, few))
        variants = {
            "ours": Variant(lambda o=ordered, w=layer: measure(*o, *w), examples),
            "streaming accumulators, d x d, float32 pinv": Variant(
                lambda b=whole, w=layer: accumulated_statistics(b, w[0]), examples
            ),
        }
        if few:
            variants[f"notebook's loops on {few} examples"] = Variant(
                lambda b=part, w=layer: notebook_statistics(b, w[0]), few
            )
        with torch_threads(1):
            times = interleave(variants, settings)
        for reference in [name for name in variants if name != "ours"]:
            results.compare(
                f"N={examples}, d={dim}, C={classes}",
                times["ours"],
                reference,
                times[reference],
                "examples",
                "1 thread each",
            )


def features_near_collapse(
    examples: int, dim: int, classes: int, nc1: float
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, d) of about this NC1 around the vertices of a simplex, and labels."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((dim, classes - 1)))[0]
    simplex = np.linalg.qr(np.eye(classes)[:, :-1] - 1 / classes)[0]
    labels = np.arange(examples) % classes
    # Sigma_B is 1 / C in C - 1 directions, so that noise of equal size in all directions gives
    # NC1 = within^2 (C - 1).
    features = rng.standard_normal((examples, dim), dtype=np.float32)
    features *= np.sqrt(nc1 / (classes - 1))
    features += (simplex @ axes.T + 1.0)[labels]  # after a ReLU, the mean of all is not near zero
    return features, labels


def last_layer(dim: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, dim, generator=generator)
    return weight, torch.randn(classes, generator=generator)
