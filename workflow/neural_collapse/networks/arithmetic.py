"""Arithmetic of float32 products (true float32 or TF32), and detection of exhausted memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Inside the block, float32 products are exact float32; for "tf32", TF32 on GPUs that have it.

    For "bfloat16", operations that autocast leaves in float32 are exact float32. PyTorch enables
    TF32 for convolutions by default: 10 bits of mantissa instead of 23, which limits NC1 to 2e-8.
    """
    from torch import backends

    # These switches can be read whichever way they were set. Reading allow_tf32, the older name,
    # raises an error if the newer one has been set.
    on_gpu = "tf32" if precision == "tf32" else "ieee"
    switches = {
        backends.cuda.matmul: on_gpu,
        backends.cudnn.conv: on_gpu,
        backends.mkldnn.matmul: "ieee",
        backends.mkldnn.conv: "ieee",
    }
    before = {switch: switch.fp32_precision for switch in switches}
    try:
        for switch, value in switches.items():
            switch.fp32_precision = value
        yield
    finally:
        for switch, value in before.items():
            switch.fp32_precision = value


OUT_OF_MEMORY = (
    "out of memory",  # a CUDA call that does not go through torch's allocator
    # cuDNN: torch tries one engine after the other, and drops that each lacked memory.
    "unable to find an engine to execute this computation",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Texts of torch's RuntimeErrors if a device's memory ran out inside a library."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory ran out, which is not always a torch.OutOfMemoryError."""
    from torch import OutOfMemoryError

    if isinstance(error, OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
