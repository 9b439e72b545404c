"""Whether torch is at something that layers written in Python know nothing of."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def within_transform(x: Tensor) -> bool:
    """Within one of torch.func's transforms, a batched backward pass or forward-mode derivatives.

    torch has no public name for any of these questions.
    """
    transforms = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
    functorch = getattr(torch._C, "_functorch", None)
    batched = getattr(functorch, "is_legacy_batchedtensor", lambda x: False)
    return getattr(forward_ad, "_current_level", -1) >= 0 or transforms() or batched(x)
