"""``nn.Conv2d`` by ways round that are faster on the CPU where its own kernels waste their vectors.

Four cases, each torch's convolution up to rounding, in the layers' names, state and seeds as well:

* 3x3 on maps of 1 or 2 px: most of the nine taps meet padding only. One matrix product instead.
* 3x3 to 4 or 8 channels on large maps: the channels of a pixel fill a part of a vector, so k
  neighbouring pixels are computed at once, as k times the channels of a kernel k - 1 wider with
  stride k. The same holds for the gradient of the input, a convolution from outputs to inputs.
* 3x3 of stride 2 from few channels: the gradient of the input at even and odd rows and columns is
  four convolutions of at most 2x2 taps of the output's gradient. One convolution for all four.
* 1x1 of stride 2: the gradient of the input is zero but at the pixels that were looked at.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear, pad

VECTOR = {"AVX512": 16, "AVX2": 8}
"""Numbers of float32 in a vector, by torch's name for what the CPU can do."""
LARGE_PX = 24  # the width of map from which pixels at once pay
FEW_CHANNELS = 16  # up to which four times as many for a stride of 2 pay
MANY_IMAGES = 32  # from which a map of 2 px as one product pays: its matrix is four times the taps

# Kernel, stride, padding.
_SAME_SIZE = (3, 3), (1, 1), (1, 1)
_HALVING = (3, 3), (2, 2), (1, 1)
_PICKING = (1, 1), (2, 2), (0, 0)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` in all but the last bits on the CPU, and second derivatives, which are
    refused where one of the other ways round is taken."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, P, P) -> (B, outputs, Q, Q)."""
        if not self._plain_on_cpu(x):
            return super().forward(x)
        if self._kind() == _SAME_SIZE and _tiny(x):
            return self._tiny_map(x)
        if torch.is_autocast_enabled("cpu") and x.dtype == torch.float32:
            x = x.to(torch.get_autocast_dtype("cpu"))
        if not self._another_way(x):
            return super().forward(x)
        return _Convolution.apply(x, self.weight, self.bias, self.stride[0])

    def _plain_on_cpu(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dim() == 4
            and len(x) > 0
            and self.groups == 1
            and self.dilation == (1, 1)
            and self.padding_mode == "zeros"
            and not torch.compiler.is_compiling()
        )

    def _kind(self) -> tuple:
        return self.kernel_size, self.stride, self.padding

    def _another_way(self, x: Tensor) -> bool:
        if not (x.is_contiguous(memory_format=torch.channels_last) and self.in_channels > 1):
            return False  # of one channel, the memory format would be unclear
        if self._kind() == _SAME_SIZE:
            return any(
                _pixels_at_once(x.shape[3], channels) > 1
                for channels in (self.in_channels, self.out_channels)
            )
        if self._kind() == _HALVING:
            even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
            return x.requires_grad and even and self.in_channels <= FEW_CHANNELS
        return x.requires_grad and self._kind() == _PICKING

    def _tiny_map(self, x: Tensor) -> Tensor:
        px = x.shape[2]
        taps = self.weight.to(x.dtype).permute(0, 2, 3, 1)  # (outputs, 3, 3, inputs)
        positions = range(px)
        # From the pixel (i, j) to the pixel (y, x) leads the tap (i - y + 1, j - x + 1).
        matrix = torch.stack(
            [taps[:, 1 - y : 1 - y + px, 1 - x : 1 - x + px] for y in positions for x in positions]
        )
        pixels = x.permute(0, 2, 3, 1).flatten(1)
        bias = None if self.bias is None else self.bias.repeat(px * px)
        out = linear(pixels, matrix.flatten(2).flatten(0, 1), bias)
        return out.view(len(x), px, px, -1).permute(0, 3, 1, 2)


def _tiny(x: Tensor) -> bool:
    px = x.shape[2]
    return px == x.shape[3] and (px == 1 or (px == 2 and len(x) >= MANY_IMAGES))


def _pixels_at_once(width: int, channels: int) -> int:
    """How many neighbouring pixels of a row a vector holds, for so many channels of a pixel."""
    lanes = VECTOR.get(torch.backends.cpu.get_cpu_capability(), 1)
    pays = channels >= 4 and lanes % channels == 0 and width >= LARGE_PX
    k = lanes // channels
    return k if pays and width % k == 0 else 1


class _Convolution(torch.autograd.Function):
    """3x3 padded by 1 with a stride of 1 or 2, or 1x1; x: (B, inputs, P, P), channels-last."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.stride, ctx.weight_dtype, ctx.has_bias = stride, weight.dtype, bias is not None
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, weight)
        if weight.shape[-1] == 1 or stride > 1:
            return conv2d(x, weight, bias, stride, weight.shape[-1] // 2)
        out = _same_size(x, weight, bias)
        # A view made in here could not be changed in place, as by a ReLU.
        return out.new_empty(0).set_(out.untyped_storage(), 0, out.shape, out.stride())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        to_x = to_weight = to_bias = None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[0]:
            to_x = _gradient_of_input(gradient, x, weight, ctx.stride)
        if ctx.needs_input_grad[1]:
            to_weight = _gradient_of_weight(gradient, x, weight, ctx.stride, ctx.weight_dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            to_bias = gradient.sum((0, 2, 3), dtype=ctx.weight_dtype)
        return to_x, to_weight, to_bias, None


def _same_size(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution padded by 1, k pixels at once."""
    outputs, width = len(weight), x.shape[3]
    k = _pixels_at_once(width, outputs)
    if k == 1:
        return conv2d(x, weight, bias, padding=1)
    bias = None if bias is None else bias.repeat(k)
    out = conv2d(x, _rearranged(weight, _side_by_side(k)), bias, stride=(1, k), padding=1)
    # In memory the channels of k pixels lie one pixel's after another's, as the pixels do.
    return _refolded(out, outputs, width)


def _refolded(x: Tensor, channels: int, width: int) -> Tensor:
    """Channels-last maps as ones of another width, in the same memory."""
    images, height = x.shape[0], x.shape[2]
    strides = (height * width * channels, 1, width * channels, channels)
    return x.as_strided((images, channels, height, width), strides)


def _rearranged(weight: Tensor, taps: Tensor) -> Tensor:
    """Kernels whose taps are these of a 3x3 kernel (O, C, 3, 3); 9 stands for none.

    taps: (k, height, width); out: (k * O, C, height, width), a copy for each of the k.
    """
    found = pad(weight.permute(2, 3, 0, 1).flatten(0, 1), (0, 0) * 2 + (0, 1))[taps]
    return found.permute(0, 3, 1, 2, 4).flatten(0, 1).permute(0, 3, 1, 2)


@cache
def _side_by_side(k: int) -> Tensor:
    """The taps of k neighbouring pixels of a row on all that they meet."""
    taps = torch.full((k, 3, k + 2), 9)
    for pixel in range(k):
        taps[pixel, :, pixel : pixel + 3] = torch.arange(9).view(3, 3)
    return taps


@cache
def _backwards() -> Tensor:
    """The taps by which the four pixels of a 2x2 block of the input meet the output.

    Row 2i of the input meets the tap 1 of row i of the output; row 2i + 1 the tap 2 of row i and
    the tap 0 of row i + 1. Columns likewise.
    """
    none = 9
    return torch.tensor(
        [
            [[4, none], [none, none]],
            [[5, 3], [none, none]],
            [[7, none], [1, none]],
            [[8, 6], [2, 0]],
        ]
    )


def _gradient_of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    towards = weight.transpose(0, 1)  # (inputs, outputs, taps, taps)
    inputs = len(towards)
    if weight.shape[-1] == 1:
        found = torch.zeros_like(x)
        found[..., ::stride, ::stride] = conv2d(gradient, towards)
        return found
    if stride == 2:
        blocks = conv2d(pad(gradient, (0, 1, 0, 1)), _rearranged(towards, _backwards()))
        pixels = blocks.permute(0, 2, 3, 1).unflatten(3, (2, 2 * inputs)).transpose(2, 3)
        return pixels.reshape(len(x), *x.shape[2:], inputs).permute(0, 3, 1, 2)
    if _pixels_at_once(x.shape[3], inputs) > 1:
        return _same_size(gradient, towards.flip(2, 3), None)
    return _torchs_gradient(gradient, x, weight, (1, 1), 1, of_input=True)


def _gradient_of_weight(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype
) -> Tensor:
    outputs, inputs, taps = weight.shape[:3]
    width = x.shape[3]
    k = _pixels_at_once(width, outputs) if (taps, stride) == (3, 1) else 1
    if k == 1:
        strides = (stride, stride)
        found = _torchs_gradient(gradient, x, weight, strides, taps // 2, of_input=False)
        return found.to(dtype)
    wide = _refolded(gradient, k * outputs, width // k)
    like = x.new_empty(k * outputs, 3, k + 2, inputs).permute(0, 3, 1, 2)  # only its shape
    found = _torchs_gradient(wide, x, like, (1, k), 1, of_input=False)
    parts = found.to(dtype).unflatten(0, (k, outputs))
    return sum(parts[pixel, ..., pixel : pixel + 3] for pixel in range(k))


def _torchs_gradient(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: int,
    *,
    of_input: bool,
) -> Tensor:
    found = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        stride,
        (padding, padding),
        (1, 1),
        False,
        (0, 0),
        1,
        (of_input, not of_input, False),
    )
    return found[0 if of_input else 1]
