"""``nn.Conv2d`` by ways round that are faster on the CPU where its own kernels waste their vectors.

Four cases, each torch's convolution up to rounding, in the layers' names, state and seeds as well:

* 3x3 on maps of 1 or 2 px: most of the nine taps meet padding only. One matrix product instead.
* 3x3 to so few channels that those of one pixel fill half a vector or less, on large maps: k
  neighbouring pixels are computed at once, as k times the channels of a kernel k - 1 wider with
  stride k. The same holds for the gradient of the input, a convolution from outputs to inputs.
* 3x3 of stride 2 from few channels: the gradient of the input at even and odd rows and columns is
  four convolutions of at most 2x2 taps of the output's gradient. One convolution for all four.
* 1x1 of stride 2: the gradient of the input is zero but at the pixels that were looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.nn.functional import conv2d, linear, pad

from .eager import derived_again, eager_on_cpu

VECTOR = {"AVX512": 16, "AVX2": 8}
"""Numbers of float32 in a vector, by torch's name for what the CPU can do."""
LARGE_PX = 24  # the width of map from which pixels at once pay
FEW_CHANNELS = 16  # up to which four times as many for a stride of 2 pay
MANY_IMAGES = 32  # from which a map of 2 px as one product pays: its matrix is four times the taps

# Kernel, stride, padding.
_SAME_SIZE = (3, 3), (1, 1), (1, 1)
_HALVING = (3, 3), (2, 2), (1, 1)
_PICKING = (1, 1), (2, 2), (0, 0)
_Stride = tuple[int, int]


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` in all but the last bits on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, P, P) -> (B, outputs, Q, Q)."""
        if not self._plain(x):
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if x.dtype == weight.dtype:
            kind = tuple(weight.shape[2:]), self.stride, self.padding
            if kind == _SAME_SIZE and _tiny(x):
                return _tiny_map(x, weight, bias)
            if self._another_way(x, kind):
                return _Convolution.apply(x, weight, bias, self.stride)
        return self._conv_forward(x, weight, bias)

    def _plain(self, x: Tensor) -> bool:
        return (
            eager_on_cpu(x)
            and x.dim() == 4
            and len(x) > 0
            and x.is_floating_point()
            and self.groups == 1
            and self.dilation == (1, 1)
            and self.padding_mode == "zeros"
        )

    def _another_way(self, x: Tensor, kind: tuple) -> bool:
        if not (x.is_contiguous(memory_format=torch.channels_last) and self.in_channels > 1):
            return False  # of one channel, the memory format would be unclear
        if kind == _SAME_SIZE:
            towards_x, forward = (
                _pixels_at_once(x.shape[3], channels) > 1
                for channels in (self.in_channels, self.out_channels)
            )
            return forward or (towards_x and x.requires_grad)
        if kind == _HALVING:
            even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
            return x.requires_grad and even and self.in_channels <= FEW_CHANNELS
        return x.requires_grad and kind == _PICKING


def _tiny(x: Tensor) -> bool:
    px = x.shape[2]
    return px == x.shape[3] and (px == 1 or (px == 2 and len(x) >= MANY_IMAGES))


def _tiny_map(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution padded by 1 as one product from all pixels to all pixels."""
    px = x.shape[2]
    taps = weight.permute(0, 2, 3, 1)  # (outputs, 3, 3, inputs)
    positions = range(px)
    # From the pixel (i, j) to the pixel (y, x) leads the tap (i - y + 1, j - x + 1).
    matrix = torch.stack(
        [taps[:, 1 - y : 1 - y + px, 1 - x : 1 - x + px] for y in positions for x in positions]
    )
    pixels = x.permute(0, 2, 3, 1).flatten(1)
    bias = None if bias is None else bias.repeat(px * px)
    out = linear(pixels, matrix.flatten(2).flatten(0, 1), bias)
    return out.view(len(x), px, px, -1).permute(0, 3, 1, 2)


def _pixels_at_once(width: int, channels: int) -> int:
    """How many neighbouring pixels of a row a vector holds, for so many channels of a pixel."""
    lanes = VECTOR.get(torch.backends.cpu.get_cpu_capability(), 1)
    pays = channels >= 4 and lanes % channels == 0 and width >= LARGE_PX
    k = lanes // channels
    return k if pays and width % k == 0 else 1


class _Convolution(torch.autograd.Function):
    """3x3 padded by 1 with a stride of 1 or 2, or 1x1; x: (B, inputs, P, Q), channels-last."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Stride) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.biases = stride, None if bias is None else list(bias.shape)
        if weight.shape[-1] == 1 or stride != (1, 1):
            return conv2d(x, weight, bias, stride, weight.shape[-1] // 2)
        out = _same_size(x, weight, bias)
        # A view made in here could not be changed in place, as by a ReLU.
        return out.new_empty(0).set_(out.untyped_storage(), 0, out.shape, out.stride())

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if derived_again(gradient):
            return *_torchs_gradients(gradient, x, weight, ctx.stride, ctx.biases, wanted), None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return (
            _gradient_of_input(gradient, x, weight, ctx.stride) if wanted[0] else None,
            _gradient_of_weight(gradient, x, weight, ctx.stride) if wanted[1] else None,
            gradient.sum((0, 2, 3)) if wanted[2] else None,
            None,
        )


def _same_size(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution padded by 1, k pixels at once."""
    outputs, inputs = weight.shape[:2]
    width = x.shape[3]
    k = _pixels_at_once(width, outputs)
    if k == 1:
        return conv2d(x, weight, bias, padding=1)
    wide = weight.new_zeros(k, outputs, 3, k + 2, inputs).permute(0, 1, 4, 2, 3)
    for pixel in range(k):
        wide[pixel, ..., pixel : pixel + 3] = weight
    bias = None if bias is None else bias.repeat(k)
    out = conv2d(x, wide.flatten(0, 1), bias, stride=(1, k), padding=1)
    # In memory the channels of k pixels lie one pixel's after another's, as the pixels do.
    return _refolded(out.contiguous(memory_format=torch.channels_last), outputs, width)


def _refolded(x: Tensor, channels: int, width: int) -> Tensor:
    """Channels-last maps as ones of another width, in the same memory."""
    images, height = x.shape[0], x.shape[2]
    strides = (height * width * channels, 1, width * channels, channels)
    return x.as_strided((images, channels, height, width), strides)


def _gradient_of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: _Stride) -> Tensor:
    towards = weight.transpose(0, 1)  # (inputs, outputs, taps, taps)
    inputs = len(towards)
    if weight.shape[-1] == 1:
        found = torch.zeros_like(x)
        found[..., :: stride[0], :: stride[1]] = conv2d(gradient, towards)
        return found
    if stride == (2, 2):
        blocks = conv2d(pad(gradient, (0, 1, 0, 1)), _towards_blocks(towards))
        pixels = blocks.permute(0, 2, 3, 1).unflatten(3, (2, 2 * inputs)).transpose(2, 3)
        return pixels.reshape(len(x), *x.shape[2:], inputs).permute(0, 3, 1, 2)
    if _pixels_at_once(x.shape[3], inputs) > 1:
        return _same_size(gradient, towards.flip(2, 3), None)
    return _torchs_gradients(gradient, x, weight, stride, None, (True, False, False))[0]


def _towards_blocks(towards: Tensor) -> Tensor:
    """(4 * inputs, outputs, 2, 2), from pixels of the output to 2x2 blocks of the input.

    Row 2i of the input meets the tap 1 of row i of the output; row 2i + 1 the tap 2 of row i and
    the tap 0 of row i + 1. Columns likewise.
    """
    inputs, outputs = towards.shape[:2]
    blocks = towards.new_zeros(2, 2, inputs, 2, 2, outputs).permute(0, 1, 2, 5, 3, 4)
    taps = towards.flip(2, 3)
    one, two = slice(1, 2), slice(None, None, 2)
    blocks[0, 0, ..., :1, :1] = taps[..., one, one]
    blocks[0, 1, ..., :1, :] = taps[..., one, two]
    blocks[1, 0, ..., :, :1] = taps[..., two, one]
    blocks[1, 1] = taps[..., two, two]
    return blocks.flatten(0, 2)


def _gradient_of_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: _Stride) -> Tensor:
    outputs, inputs, taps = weight.shape[:3]
    width = x.shape[3]
    k = _pixels_at_once(width, outputs) if (taps, stride) == (3, (1, 1)) else 1
    if k == 1:
        return _torchs_gradients(gradient, x, weight, stride, None, (False, True, False))[1]
    wide = _refolded(gradient, k * outputs, width // k)
    like = x.new_empty(k * outputs, 3, k + 2, inputs).permute(0, 3, 1, 2)  # only its shape counts
    found = _torchs_gradients(wide, x, like, (1, k), None, (False, True, False))[1]
    parts = found.float() if found.dtype in (torch.bfloat16, torch.float16) else found
    parts = parts.unflatten(0, (k, outputs))
    return sum(parts[pixel, ..., pixel : pixel + 3] for pixel in range(k)).to(found.dtype)


def _torchs_gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: _Stride,
    biases: list[int] | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of input, weight and bias (its shape: biases), by torch."""
    padding = weight.shape[2] // 2
    return torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        biases,
        stride,
        (padding, padding),
        (1, 1),
        False,
        (0, 0),
        1,
        wanted,
    )
