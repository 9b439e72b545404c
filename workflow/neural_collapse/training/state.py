"""The state from which an interrupted job resumes.

It is not a declared output, because Snakemake deletes the outputs of a failed job. A state file is
written to a temporary name, flushed and renamed. It contains a checksum: if it is corrupt, the
previous one is used. The folder's name contains a fingerprint of recipe, data and code version, so
a job resumes only its own state, and a lock prevents two jobs from using one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..io.errors import UserError
from ..io.files import atomic_path, remove_temporaries, written
from ..io.locks import FINISHED, delete, lock
from ..io.progress import say
from ..io.tensors import from_bytes, to_bytes

STATES_KEPT = 2  # the newest, and the one before it in case the newest is corrupt
CPU = torch.device("cpu")


def state_interval_seconds() -> float:
    """Seconds between two writes of a training's state: NC_STATE_SECONDS, by default 60.

    A network's state takes seconds to write, in which a fast GPU computes several epochs.
    """
    text = os.environ.get("NC_STATE_SECONDS", "").strip() or "60"
    with suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    raise UserError(f"NC_STATE_SECONDS: is {text!r}; give seconds, 0 for after every epoch")


def kernels(device: torch.device, processes: int = 1) -> str:
    """What decides the bits of a training besides recipe and data: torch, its kernels, and the
    number of processes, left out where it is 1."""
    if device.type == "cuda":
        name, cudnn = torch.cuda.get_device_name(device), torch.backends.cudnn.version()
        kind = f"{name}, cuDNN {cudnn}"
    else:
        kind = torch.backends.cpu.get_cpu_capability()
    number = f", {processes} processes" if processes > 1 else ""
    return f"torch {torch.__version__}, {kind}{number}"


def fingerprint(**parts: Any) -> str:
    """A short hash of everything that decides a job's result."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class StateFolder:
    """A job's own folder of resume states, locked while the job lives.

    Use it as a context manager. Leaving the block keeps everything for the next try. `finish` says
    that the job has succeeded, and keeps its last state until another job has read its results
    (``locks.clear_finished``): a job may be killed, or its outputs taken for broken ones, after its
    last line. `clear` deletes everything.
    """

    def __init__(
        self, root: str | Path, fingerprint: str, device: torch.device = CPU, processes: int = 1
    ):
        self.folder, self.device, self.processes = Path(root) / fingerprint, device, processes
        self._lock = None

    def __enter__(self) -> StateFolder:
        try:
            with written(self.folder):
                self._lock = lock(Path(f"{self.folder}.lock"))
                self.folder.mkdir(parents=True, exist_ok=True)
        except BlockingIOError as error:
            raise UserError(
                f"{self.folder}: is in use by {error.strerror}; "
                "wait for it, or end it and run again"
            ) from None
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be locked ({error.strerror}); check the results folder"
            ) from None
        remove_temporaries(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def clear(self) -> None:
        """Delete the states: the job is done."""
        delete(self.folder)

    def finish(self) -> None:
        """Mark the job as done; only its last state is kept."""
        with atomic_path(self.folder / FINISHED) as marker:
            marker.touch()
        for old in self._files()[1:]:
            old.unlink(missing_ok=True)

    def restart(self) -> None:
        """Delete states that cannot be used, which would hide those of the epochs before them."""
        for path in [*self._files(), self.folder / FINISHED]:
            path.unlink(missing_ok=True)

    def write(self, epoch: int, tensors: Mapping[str, torch.Tensor], facts: Any) -> None:
        """Write the state after `epoch`: tensors, and `facts`, which must be JSON values."""
        metadata = {"epoch": str(epoch), "facts": json.dumps(facts)}
        metadata["kernels"] = kernels(self.device, self.processes)
        with atomic_path(self.folder / f"state-{epoch:06d}.safetensors") as temporary:
            temporary.write_bytes(to_bytes(tensors, metadata))
        for old in self._files()[STATES_KEPT:]:
            old.unlink(missing_ok=True)

    def read(self) -> tuple[int, dict[str, torch.Tensor], Any] | None:
        """The newest complete state as (epoch, tensors, facts), or None."""
        for path in self._files():
            try:
                payload = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
            try:
                tensors, metadata = from_bytes(payload)
                found = int(metadata["epoch"]), tensors, json.loads(metadata["facts"])
            except (KeyError, TypeError, ValueError):
                say(f"{path}: is corrupt; the state before it is used")
                path.unlink(missing_ok=True)
                continue
            left_by = metadata.get("kernels", "another version")
            here = kernels(self.device, self.processes)
            if left_by != here:
                say(
                    f"{path}: was written by {left_by}, not {here}; the result may not be "
                    "bit-identical"
                )
            return found
        return None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.safetensors"), reverse=True)


class BackgroundWriter:
    """Writes snapshots from another thread, one at a time, so that the device does not wait.

    A context manager; leave the block after `finish`, which raises what a write raised.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: Future | None = None
        self._buffers: dict[str, torch.Tensor] = {}

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def snapshot(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies in reused host memory; waits for the write before, whose memory it takes."""
        self.finish()
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        for name, tensor in tensors.items():
            if name not in self._buffers or self._buffers[name].shape != tensor.shape:
                self._buffers[name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                )
            self._buffers[name].copy_(tensor.detach(), non_blocking=True)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return self._buffers

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Call `work` in the thread."""
        self._pending = self._pool.submit(work, *arguments)

    def finish(self) -> None:
        """Wait for the last write and raise what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
