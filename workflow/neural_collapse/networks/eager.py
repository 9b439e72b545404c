"""Where a layer in Python may take another way than torch's own layers, which can do everything."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

# torch has no public names for these.
_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_in_batched_backward = getattr(
    getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", lambda x: False
)


def eager_on_cpu(x: Tensor) -> bool:
    """An ordinary tensor of the CPU, outside torch.compile and torch's transforms."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not _within_transform(x)


def derived_again(gradient: Tensor) -> bool:
    """Whether a backward pass, given this gradient, must be one that torch can derive or batch."""
    return torch.is_grad_enabled() or _within_transform(gradient)


def _within_transform(x: Tensor) -> bool:
    """In one of torch.func's transforms, a batched backward pass or forward-mode derivatives."""
    forward_mode = getattr(forward_ad, "_current_level", -1) >= 0
    return forward_mode or _transforms_active() or _in_batched_backward(x)
