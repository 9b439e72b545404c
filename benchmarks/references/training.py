"""Training as in the authors' notebook: PIL images, torchvision's transforms, a DataLoader.

Stands for a plain PyTorch script: torch.optim.SGD as it comes, float32, contiguous layout, loss and
accuracy fetched from the device every step.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset


class PILImages(Dataset):
    """Grey images as torchvision's datasets give them: a PIL image, transformed, and its label."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, padding: int, mean: float, std: float
    ):
        from torchvision import transforms

        self.images, self.labels = images, labels.tolist()
        self.transform = transforms.Compose(
            [transforms.Pad(padding), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loader(
    dataset: Dataset, batch_size: int, *, workers: int = 0, pin_memory: bool = False, **options
) -> DataLoader:
    """Shuffled, without the last, incomplete batch, unless `options` say otherwise."""
    options = {"shuffle": True, "drop_last": True} | options
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        **options,
    )


def optimiser(
    network: nn.Module, learning_rate: float, momentum: float = 0.9, weight_decay: float = 5e-4
) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )


def train_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader
) -> tuple[list[float], list[float]]:
    """Loss and accuracy of every step."""
    network.train()
    device = next(network.parameters()).device
    losses, accuracies = [], []
    for inputs, labels in batches:
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        outputs = network(inputs)
        loss = functional.cross_entropy(outputs, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracies.append((outputs.argmax(1) == labels).float().mean().item())
    return losses, accuracies
