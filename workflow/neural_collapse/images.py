"""Images on a device: bytes in, normalised floats out, the same bits wherever it is done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class Normalisation:
    """(x / 255 - mean) / std for each channel, on the device where the images are.

    mean, std: of the published train set in units of 1 (white = 1), as in the data card.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str):
        # Folded in float64, rounded once.
        mean64, std64 = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        shape = (1, len(mean64), 1, 1)
        scale, shift = 1 / (255 * std64), -mean64 / std64
        self.scale = torch.tensor(scale, dtype=torch.float32, device=device).view(shape)
        self.shift = torch.tensor(shift, dtype=torch.float32, device=device).view(shape)

    def __call__(self, images_u8_NCHW: torch.Tensor) -> torch.Tensor:
        """float32, channels_last."""
        floats = images_u8_NCHW.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self.shift, floats, self.scale)


def to_device(images: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """A uint8 array, memory-mapped or not, as a tensor (N, C, H, W) on the device."""
    return torch.from_numpy(np.array(images)).to(device)
