"""One of several processes that train one network: its part of the work, and reductions.

Every process (a rank, one a GPU) holds the same network and takes its part of each batch. Batch
normalisation sees the whole batch through all of them, gradients and losses are summed over them:
the training is that of one process, in another order of summation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Ranks:
    """Which process this is, and of how many; one alone has nothing to exchange."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes states, checkpoints and progress."""
        return self.rank == 0

    def part(self, rows: Tensor) -> Tensor:
        """This rank's contiguous part of a batch; sizes differ by one at most."""
        return rows if self.size == 1 else rows.tensor_split(self.size)[self.rank]

    def share(self, examples: int) -> range:
        """This rank's contiguous part of a whole set."""
        return range(examples * self.rank // self.size, examples * (self.rank + 1) // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all ranks."""
        if self.size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total

    def from_first(self, value: Any) -> Any:
        """The first rank's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def parallel(self, module: nn.Module, example: Tensor) -> nn.Module:
        """`module`, whose gradients become the mean over all ranks; its batch norms, replaced in
        place, see all parts. example: an input of it, for one pass in eval mode."""
        if self.size == 1:
            return module
        if example.is_cuda:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        else:
            for part in module.modules():
                if isinstance(part, _BatchNorm):
                    part.__class__ = CrossRankBatchNorm  # the same parameters and buffers
        with warnings.catch_warnings():
            # torch 2.15 would have forward_sync_buffers in its place, which 2.11 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            parallel = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
        # DDP packs gradients again before its second step, by the order in which they came, and
        # with more than two ranks the packing decides the order of summation. Let this be the
        # first step, or a resumed run would sum its own first step in another order.
        training = module.training
        parallel.eval()
        parallel(example).sum().backward()
        parallel.zero_grad(set_to_none=True)
        return parallel.train(training)


ALONE = Ranks()


class CrossRankBatchNorm(_BatchNorm):
    """Batch normalisation over the parts of all ranks, on the CPU, where torch's SyncBatchNorm
    refuses to work. Any shape (B, C, ...); parts may be of unequal sizes."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None:
            self._count(mean, variance * (count / (count - 1)))
        return output

    @torch.no_grad()
    def _count(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # the plain mean of all batches
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias; all sums over all ranks, in float64.

    Ioffe and Szegedy 2015; parts are combined as in Chan, Golub and LeVeque 1983. The gradients of
    weight and bias are those of this rank's part alone: DDP sums them with all others.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        channels, others = x.shape[1], [0, *range(2, x.dim())]
        shape = (1, channels, *[1] * (x.dim() - 2))
        wide = x.to(torch.float64, copy=True)
        count = wide.numel() / channels
        mean = wide.mean(others)
        scatter = (wide - mean.view(shape)).square_().sum(others)
        own = torch.cat([mean.new_tensor([count]), mean, scatter])
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own)
        counts, means, scatters = torch.stack(parts).split([1, channels, channels], 1)
        count = float(counts.sum())
        mean = (counts * means).sum(0) / count
        variance = (scatters + counts * (means - mean).square()).sum(0) / count
        scale = (variance + eps).rsqrt()
        normal = wide.sub_(mean.view(shape)).mul_(scale.view(shape))
        normal = output = normal.to(torch.promote_types(x.dtype, torch.float32))
        if weight is not None:
            output = torch.addcmul(bias.view(shape), normal, weight.view(shape))
        ctx.save_for_backward(normal, weight, scale)
        ctx.count, ctx.others, ctx.shape = count, others, shape
        ctx.mark_non_differentiable(mean, variance)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Any):
        normal, weight, scale = ctx.saved_tensors
        wide = gradient.to(torch.float64, copy=True)
        own = torch.stack([wide.sum(ctx.others), (wide * normal).sum(ctx.others)])
        total = own.clone()
        distributed.all_reduce(total)
        mean, slope = (value.view(ctx.shape) for value in total / ctx.count)
        factor = scale if weight is None else scale * weight
        inner = wide.sub_(mean).sub_(normal * slope).mul_(factor.view(ctx.shape))
        bias_gradient = weight_gradient = None
        if weight is not None:
            bias_gradient, weight_gradient = own.to(weight.dtype)
        return inner.to(gradient.dtype), weight_gradient, bias_gradient, None
