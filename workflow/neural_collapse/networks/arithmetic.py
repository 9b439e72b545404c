"""In what arithmetic float32 numbers are multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Within the block true float32, or for "tf32" TF32 on GPUs that have it.

    In bfloat16 what autocast leaves in float32, such as the last layer, is true float32.

    PyTorch leaves TF32 on for convolutions by default: 10 bits of mantissa instead of 23, a floor
    of 2e-8 in NC1.
    """
    from torch import backends

    # These switches can be read whichever way they were set. Reading allow_tf32, the older name,
    # raises an error after somebody has set the newer one.
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
