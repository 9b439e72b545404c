"""DeepFool as in its authors' Python code: one image at a time, one backward pass a candidate."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def deepfool(
    network: nn.Module,
    image: Tensor,
    *,
    candidates: int = 10,
    overshoot: float = 0.02,
    max_steps: int = 50,
) -> tuple[Tensor, int, int]:
    """The perturbation of one image (channels, height, width), the steps, the class it leads to.

    Every step is 1e-4 longer than the distance to the linearised boundary, as theirs is.
    """
    network.eval()
    total = torch.zeros_like(image)
    point = image.clone()[None].requires_grad_(True)
    logits = network(point)
    order = logits[0].detach().argsort(descending=True)[:candidates].tolist()
    original = decided = order[0]
    steps = 0
    while decided == original and steps < max_steps:
        gradient = _gradient(logits[0, original], point)
        nearest, direction = float("inf"), None
        for c in order[1:]:
            w = _gradient(logits[0, c], point) - gradient
            distance = ((logits[0, c] - logits[0, original]).abs() / w.norm()).item()
            if distance < nearest:
                nearest, direction = distance, w
        total += (nearest + 1e-4) * direction / direction.norm()
        point = (image + (1 + overshoot) * total)[None].requires_grad_(True)
        logits = network(point)
        decided = logits[0].argmax().item()
        steps += 1
    return (1 + overshoot) * total, steps, decided


def _gradient(logit: Tensor, point: Tensor) -> Tensor:
    # Into the weights' gradients as well, which is what calling backward does.
    point.grad = None
    logit.backward(retain_graph=True)
    return point.grad[0].clone()


def robustness(network: nn.Module, images: Tensor, **options) -> Tensor:
    """norm2(r) / norm2(x) of each image in turn."""
    return torch.stack([deepfool(network, x, **options)[0].norm() / x.norm() for x in images])
