"""Batch normalisation that is as fast on the CPU with few channels as with many.

torch's kernel goes through channels-last maps one pixel at a time, the channels of a pixel being
its vector: 8 or 12 channels leave most of it empty, and 16 are one vector a turn. Here neighbouring
pixels are taken together, k at a time, as if each had channels of its own, and their statistics are
combined.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .eager import derived_again, eager_on_cpu

NARROW = 16  # channels up to which it pays, those of one vector
WIDE = 128  # channels of the pixels taken together
PAYS_FROM = 2**18  # elements: below, what is saved is less than a Python function's own time


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` in all but the last bits of the CPU's training steps."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, P, P), same shape and dtype out."""
        k = self._pixels_at_once(x)
        if k == 1:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        return _Widened.apply(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.momentum,
            self.eps,
            k,
        )

    def _pixels_at_once(self, x: Tensor) -> int:
        if not (
            eager_on_cpu(x)
            and self.training
            and self.affine
            and self.track_running_stats
            and self.momentum is not None
            and x.numel() >= PAYS_FROM
            and x.is_contiguous(memory_format=torch.channels_last)
        ):
            return 1
        channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
        if not 1 < channels <= NARROW:  # of one channel, the memory format would be unclear
            return 1
        k = 1
        while channels * k < WIDE and pixels % (4 * k) == 0:  # two wide pixels are left, likewise
            k *= 2
        return k


def _widened(x: Tensor, k: int) -> Tensor:
    """(B, C, P, P), channels-last, as (B, k * C, pixels / k, 1) in the same memory."""
    images, channels = x.shape[:2]
    pixels = x.shape[2] * x.shape[3] // k
    wide = k * channels
    return x.as_strided((images, wide, pixels, 1), (pixels * wide, 1, wide, wide))


def _repeated(k: int, *values_C: Tensor) -> tuple[Tensor, ...]:
    """Each (C,) as (k * C,), with fewer and faster calls than its repeat(k)."""
    stacked = torch.stack(values_C).unsqueeze(1)
    return stacked.expand(-1, k, -1).reshape(len(values_C), -1).unbind()


class _Widened(torch.autograd.Function):
    """Batch normalisation with the batch's own statistics, k pixels at once."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        k: int,
    ) -> Tensor:
        wide = _widened(x, k)
        # Running statistics, here for nothing, make it give float32 for bfloat16.
        unused = weight.new_empty(2, wide.shape[1]).unbind()
        means, variances = (
            part.view(k, -1) for part in torch.batch_norm_update_stats(wide, *unused, 0.0)
        )
        # The parts are of equal size: the whole's variance is theirs on average, and that of
        # their means.
        mean = means.mean(0)
        variance = variances.mean(0) + means.var(0, correction=0)
        examples = x.numel() // x.shape[1]
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (examples / (examples - 1)), momentum)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.k = eps, k
        # Into memory of its own shape: a view could not be changed in place, as by a ReLU.
        out = torch.empty_like(x)
        torch.ops.aten.native_batch_norm.out(
            wide,
            *_repeated(k, weight, bias, mean, variance),
            False,
            0.0,
            eps,
            out=_widened(out, k),
            save_mean=weight.new_empty(0),
            save_invstd=weight.new_empty(0),
        )
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, mean, variance = ctx.saved_tensors
        k, eps = ctx.k, ctx.eps
        inverse = (variance + eps).rsqrt()
        if derived_again(gradient):
            found = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, None, None, mean, inverse, True, eps, ctx.needs_input_grad[:3]
            )
            return *found, *(None,) * 5
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        wide, wide_gradient = _widened(x, k), _widened(gradient, k)
        in_one_pass = x.dtype == weight.dtype
        scaled, *sums = torch.ops.aten.native_batch_norm_backward(
            wide_gradient,
            wide,
            *_repeated(k, weight, mean, variance),
            None,
            None,
            False,
            eps,
            [not in_one_pass, True, True],
        )
        to_weight, to_bias = (part.view(k, -1).sum(0) for part in sums)
        # w s (g - mean(g) - xhat mean(g xhat)), of which the last two are linear in x.
        examples = x.numel() // x.shape[1]
        scale = weight * inverse
        slope = -scale * inverse * to_weight / examples
        offset = -scale * to_bias / examples - slope * mean
        if in_one_pass:
            shape = (1, -1, 1, 1)
            slope, offset, scale = (p.view(shape) for p in _repeated(k, slope, offset, scale))
            found = torch.addcmul(offset, wide, slope).addcmul_(wide_gradient, scale)
        else:
            # The normalisation's own kernel multiplies bfloat16 by float32.
            zeros, ones = torch.zeros_like(sums[0]), torch.ones_like(sums[0])
            found, _, _ = torch.native_batch_norm(
                wide, *_repeated(k, slope, offset), zeros, ones, False, 0.0, 0.0
            )
            found.add_(scaled)
        return found.as_strided(x.shape, x.stride()), to_weight, to_bias, *(None,) * 5
