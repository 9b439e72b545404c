"""Operations on images as bytes, and their mean and standard deviation. Pure functions."""

from __future__ import annotations

import math

import numpy as np

from ..io.errors import UserError


def resized(images: np.ndarray, side: int | None) -> np.ndarray:
    """uint8 (..., H, W) made smaller to (..., side, side) by Pillow, bilinear and antialiased."""
    if side is None or images.shape[-2:] == (side, side):
        return images
    from PIL import Image

    height, width = images.shape[-2:]
    if side > min(height, width):
        raise UserError(
            f"data.image_size_px: is {side}, but images have {height} x {width} pixels; lower it"
        )
    planes = images.reshape(-1, height, width)
    small = np.empty((len(planes), side, side), np.uint8)
    for plane, place in zip(planes, small, strict=True):
        place[:] = Image.fromarray(plane).resize((side, side), Image.Resampling.BILINEAR)
    return small.reshape(*images.shape[:-2], side, side)


def average_pooled(images: np.ndarray, side: int) -> np.ndarray:
    """The mean of each `side` x `side` square, rounded half up; uint8 (..., H/side, W/side)."""
    if side == 1:
        return images
    height, width = images.shape[-2:]
    if height % side or width % side:
        raise UserError(
            f"data.average_pooling: {side} does not divide the images' {height} x {width} pixels"
        )
    squares = images.reshape(*images.shape[:-2], height // side, side, width // side, side)
    sums = squares.sum(axis=(-3, -1), dtype=np.uint32)
    return ((sums + side * side // 2) // (side * side)).astype(np.uint8)


def padded(images: np.ndarray, pixels: int) -> np.ndarray:
    """`pixels` zeros on each side of height and width."""
    if pixels == 0:
        return images
    return np.pad(images, [(0, 0)] * (images.ndim - 2) + [(pixels, pixels)] * 2)


def mean_and_std(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Channel mean and population standard deviation in [0, 1] of uint8 images (N, C, H, W).

    The arithmetic up to the last division is exact. A channel of one value only has the standard
    deviation 1, so that normalising it gives zeros.
    """
    sums = np.zeros((2, images.shape[1]), np.int64)  # of the values and of their squares
    for start in range(0, len(images), 256):  # bounded memory
        block = images[start : start + 256]
        squares = np.multiply(block, block, dtype=np.uint16)  # 255 squared still fits
        sums += [values.sum(axis=(0, 2, 3), dtype=np.int64) for values in (block, squares)]
    pixels = images[:, 0].size
    means, stds = [], []
    for first, second in zip(*sums.tolist(), strict=True):
        means.append(first / pixels / 255)
        variance = pixels * second - first * first  # times pixels^2; whole numbers, no rounding
        stds.append(math.sqrt(variance) / pixels / 255 if variance > 0 else 1.0)
    return means, stds


def check_square(shape: tuple[int, ...], where: object) -> None:
    """Raise UserError for images (..., height, width) that are not square."""
    if shape[-1] != shape[-2]:
        raise UserError(
            f"{where}: images of {shape[-1]} x {shape[-2]} pixels; only square ones can be used "
            "(the image_size_px of a folder of images crops them)"
        )
