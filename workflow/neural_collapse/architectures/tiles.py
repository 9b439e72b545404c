"""3x3 convolutions by minimal filtering: a third of the multiplications, for features on the CPU.

Of a tile of outputs only sums of products of sums are computed (Toom and Cook's way to multiply
polynomials, transposed, after Winograd; Lavin and Gray 2016 for networks). A tile of 2 x 4 pixels
takes 24 products a channel pair where the definition takes 72. Larger tiles take fewer yet but
round worse: against float64, 2 x 4 errs 1.1 to 1.5 times as much as oneDNN's direct convolution at
128 to 512 channels, 4 x 4 2.3 to 3.1 times.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TAPS = 3
TILE_PX = 2, 4
_POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 0.5, -2)}
"""Where polynomials are evaluated, besides infinity; for four outputs the points that round best
(Barabasz and others 2020, "Error analysis and improving the accuracy of Winograd convolution")."""
LEAST_CHANNELS = 96  # below, the sums cost what the products save
_COVERED = 1.35  # tiles may cover so many times the map: 2 x 2 of them one of 7 px
_CHANNELS_A_TILE = 16  # with fewer tiles a product spends its time on fetching the weights


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether tiles are faster for images x (B, inputs, H, W), all in float32 on an x86 CPU."""
    tiles = [-(-size // tile) for size, tile in zip(x.shape[2:], TILE_PX, strict=True)]
    covered = np.prod(tiles) * np.prod(TILE_PX)
    return bool(
        x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and covered <= _COVERED * x.shape[2] * x.shape[3]
        and len(x) * np.prod(tiles) * _CHANNELS_A_TILE >= max(weight.shape[:2])
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )


def transformed(weight: Tensor) -> Tensor:
    """(24, outputs, inputs) of a weight (outputs, inputs, 3, 3), rounded once."""
    rows, columns = (_matrices(outputs)[1] for outputs in TILE_PX)
    taps = weight.detach().double().permute(2, 3, 0, 1).flatten(0, 1)
    both = torch.from_numpy(np.kron(rows, columns))
    return (both @ taps.flatten(1)).to(weight.dtype).unflatten(1, taps.shape[1:])


def convolved(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """(B, outputs, H, W), padded by 1. x: (B, inputs, H, W), best channels-last; filters: see
    `transformed`; bias: (outputs,)."""
    images, inputs, height, width = x.shape
    outputs = filters.shape[1]
    (above, across), (read_y, read_x) = TILE_PX, (tile + TAPS - 1 for tile in TILE_PX)
    down, along = -(-height // above), -(-width // across)  # tiles
    into, back = (
        torch.from_numpy(np.kron(y, z)).to(x.dtype)
        for y, z in zip(*((m[2], m[0]) for m in map(_matrices, TILE_PX)), strict=True)
    )
    padded = x.new_zeros(images, down * above + TAPS - 1, along * across + TAPS - 1, inputs)
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    found = x.new_empty(images, down, above, along, across, outputs)
    # As many tiles a turn as let a product read its weights once and leave its results in cache.
    turn = max(1, inputs * outputs // (256 * down * along))
    for start in range(0, images, turn):
        part = padded[start : start + turn]
        count = len(part)
        image, row, pixel, _ = part.stride()
        windows = part.as_strided(
            (read_y, read_x, count, down, along, inputs),
            (row, pixel, image, above * row, across * pixel, 1),
            part.storage_offset(),
        )
        sums = into @ windows.reshape(read_y * read_x, -1)
        products = torch.bmm(sums.view(len(filters), -1, inputs), filters.mT)
        tiles = (back @ products.flatten(1)).view(above, across, count, down, along, outputs)
        target = found[start : start + turn]
        tiles = tiles.permute(2, 3, 0, 4, 1, 5)
        target.copy_(tiles) if bias is None else torch.add(tiles, bias, out=target)
    found = found.view(images, down * above, along * across, outputs)
    cut = found[:, :height, :width].permute(0, 3, 1, 2)
    return cut.contiguous(memory_format=torch.channels_last)


def _matrices(outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A^T, G, B^T) with y = A^T ((G g) * (B^T d)): `outputs` sums of 3 taps g over data d.

    At n - 1 points p and infinity two polynomials are evaluated (G and A), and their product's
    coefficients found by Lagrange's polynomials (B, whose denominators are moved to G).
    """
    points = _POINTS[outputs]
    others = [[q for q in points if q != p] for p in points]
    size = len(points) + 1
    a, g, b = np.zeros((outputs, size)), np.zeros((size, TAPS)), np.zeros((size, size))
    for i, (p, rest) in enumerate(zip(points, others, strict=True)):
        a[:, i] = p ** np.arange(outputs, dtype=float)
        g[i] = p ** np.arange(TAPS, dtype=float) / np.prod([p - q for q in rest])
        b[i, :-1] = np.poly(rest)[::-1]  # coefficients, the lowest first
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    return a, g, b
