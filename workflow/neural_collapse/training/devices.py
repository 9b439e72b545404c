"""Set-up of the device of a job: GPU lease, threads, memory, determinism."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

from ..io.errors import UserError
from ..io.progress import say
from .lease import NO_GPU, lease, visible_gpus


def keep_freed_memory() -> None:
    """Let this process keep main memory that it has freed; no result changes.

    glibc gives large blocks back to the kernel and gets them again, page by page, at every layer of
    every step: up to a third of a narrow network's time.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        # Before 2.35 more than 32 MiB is refused. The second alone would freeze the first at its
        # least.
        if mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25):
            mallopt(trim_threshold, 2**31 - 1)


def set_determinism(deterministic: bool) -> None:
    """Select deterministic GPU kernels, or the fastest; call it before CUDA starts."""
    # The same either way, since cuBLAS chooses its kernels by the room that it has.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(deterministic)
    # It would fill every new tensor with NaN, so that an error in a kernel shows.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not deterministic


@contextlib.contextmanager
def device_for(
    choice: str, gpus: int, threads: int, deterministic: bool, slots: int | None = None
) -> Iterator[Any]:
    """A torch device, set up: lease, threads, determinism.

    choice: auto, cpu or cuda. gpus: number of GPUs of the job; 0 computes on the CPU. slots: number
    of jobs that share a GPU; None reads NC_GPU_SLOTS.
    """
    wanted = choice != "cpu" and gpus > 0
    if wanted and choice == "auto" and not visible_gpus():
        wanted = False
        say("a GPU is requested but none was found: runs on the CPU (device: auto)")
    if choice == "cuda" and not wanted:
        raise UserError(
            "device: cuda is set, but the job was given no GPU; "
            "run with --resources gpu=1 or set device: auto"
        )
    with lease(gpus if wanted else 0, slots) as held:
        if wanted:
            say(f"runs on {', '.join(held) or 'the GPU that the scheduler gave'}")
        import torch

        keep_freed_memory()
        torch.set_num_threads(threads)
        if wanted and not torch.cuda.is_available():
            raise UserError(
                "device: there is a GPU, but this torch cannot use it; "
                "install a torch built for its driver or set device: cpu"
                if visible_gpus()
                else NO_GPU
            )
        if wanted:
            # Nothing here is nondeterministic on the CPU, where this call would load torch's
            # compiler: four seconds a job.
            set_determinism(deterministic)
        try:
            yield torch.device("cuda" if wanted else "cpu")
        except RuntimeError as error:
            if "use_deterministic_algorithms" not in str(error):
                raise
            raise UserError(
                f"training.deterministic: the network has a layer without a deterministic GPU "
                f"kernel ({str(error).split(', ')[0]}); use another layer or set it to false"
            ) from None
