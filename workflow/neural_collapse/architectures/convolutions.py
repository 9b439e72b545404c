"""3x3 convolutions that leave out, on tiny maps, the products with their padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

PAYS_FROM_IMAGES = 32


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution, padded by 1, which keeps the map's size.

    On a map of 2 px five of its nine taps meet nothing but padding at any pixel, on one of 1 px
    eight; the CPU's kernels multiply by those zeros. There it is one matrix product from all
    pixels to all pixels instead, equal up to rounding.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, P, P) -> (B, outputs, P, P)."""
        if not self._pays(x):
            return super().forward(x)
        px = x.shape[2]
        taps = self.weight.to(x.dtype).permute(0, 2, 3, 1)  # (outputs, 3, 3, inputs)
        positions = range(px)
        # From the pixel (i, j) to the pixel (y, x) leads the tap (i - y + 1, j - x + 1).
        matrix = torch.stack(
            [taps[:, 1 - y : 1 - y + px, 1 - x : 1 - x + px] for y in positions for x in positions]
        )
        pixels = x.permute(0, 2, 3, 1).flatten(1)
        out = linear(pixels, matrix.flatten(2).flatten(0, 1), self.bias.repeat(px * px))
        return out.view(len(x), px, px, -1).permute(0, 3, 1, 2)

    @staticmethod
    def _pays(x: Tensor) -> bool:
        if x.dim() != 4 or x.shape[2] != x.shape[3] or not len(x) or x.device.type != "cpu":
            return False
        # At 2 px the matrix is four times the taps, too much work for few images.
        return x.shape[2] == 1 or (x.shape[2] == 2 and len(x) >= PAYS_FROM_IMAGES)
