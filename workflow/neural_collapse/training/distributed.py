"""One job in several processes: start them, and end all when one of them fails.

The parent process is not a rank: it starts one process per rank, prints the output of the first,
and waits. It uses no GPU memory, can end processes that hang, and reports the error in one
sentence. If it is killed, the kernel kills the others (or a closing pipe, if the kernel cannot).
They inherit the descriptors of leased GPUs (see :func:`.lease.lease`), so a GPU is free when the
last of them has ended.

They communicate on the loopback interface at a port chosen by the kernel: jobs on one machine do
not collide, and other machines cannot connect.
"""

from __future__ import annotations

import ctypes
import io
import json
import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np

from ..io.errors import UserError
from ..io.progress import say

# A rank that waits longer than this for another one gives up. Dead ones are noticed at once; this
# is for hardware that hangs, and long enough for a checkpoint on a slow disk.
PATIENCE = timedelta(hours=1)

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from neural_collapse.training.distributed import _work; _work(*map(int, sys.argv[2:]))"
)
_PR_SET_PDEATHSIG = 1


class _Failure(NamedTuple):
    """Why a rank has no result: what it raised, or the status with which it died in silence."""

    sentence: str = ""
    of_user: bool = False
    trace: str = ""
    status: int | None = None


def process_count(device: Any, gpus: int, processes: int | None = None) -> int:
    """How many processes a job computes with: one a GPU, one on the CPU, or what is asked for."""
    if processes is None:
        return max(1, gpus) if device.type == "cuda" else 1
    if processes < 1:
        raise UserError(f"--processes: is {processes}; give 1 or more")
    return processes


def launch(processes: int, device: Any, function: Callable[..., Any], *args: Any, **kwargs: Any):
    """Call `function(ranks, device, *args, **kwargs)` in `processes` new processes.

    Returns what the first rank's call returns. device: of this process; on "cuda" rank r computes
    on the r-th visible GPU and exchanges through NCCL, on the CPU through gloo. function: known by
    its module's name, as everything in `args`; memory maps among them are opened, not copied.
    Threads and deterministic algorithms are set as they are here.
    Raises UserError where a rank raised one or was killed, RuntimeError where it failed otherwise;
    all others have been ended then.
    """
    import torch

    if device.type == "cuda" and torch.cuda.device_count() < processes:
        raise UserError(
            f"resources.gpu: {processes} processes need a GPU each, and this job sees "
            f"{torch.cuda.device_count()}; lower it or give more with CUDA_VISIBLE_DEVICES"
        )
    store = _meeting_place()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    settings = (processes, device.type, store.port, threads, deterministic)
    task = _dumps((settings, function, args, kwargs))
    environment = dict(os.environ)
    if os.path.exists("/sys/class/net/lo"):
        # Otherwise the machine's name decides, which in a container may lead nowhere.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(name, "lo")
    workers: list[_Worker] = []
    reports: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    try:
        for rank in range(processes):
            workers.append(_Worker(rank, environment, reports))
        for worker in workers:
            worker.give(task)
        for _ in workers:
            worker = reports.get()
            if isinstance(worker.report, _Failure):
                _raise(workers, worker)
        return workers[0].report
    finally:
        for worker in workers:
            worker.end()


def _meeting_place():
    """A store that ranks find each other through, served by this process."""
    from torch.distributed import TCPStore

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


class _Worker:
    """A rank's process, seen from the one that started it."""

    def __init__(self, rank: int, environment: dict[str, str], reports: queue.SimpleQueue):
        self.rank = rank
        self.report: Any = None  # its result, or a _Failure
        self.said: deque[str] = deque(maxlen=30)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), str(rank), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            close_fds=False,  # inheritable ones are leases of GPUs
        )
        self.threads = [
            threading.Thread(target=self._listen, daemon=True),
            threading.Thread(target=self._wait, args=(reports,), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def give(self, task: bytes) -> None:
        """Tell it what to do. Its input stays open: that it closes means that we are gone."""
        with suppress(BrokenPipeError):  # it is dead: so says its report
            self.process.stdin.write(task)
            self.process.stdin.flush()

    def end(self) -> None:
        """Kill it if it is there, and leave nothing behind."""
        self.process.kill()
        self.process.wait()
        for thread in self.threads:
            thread.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()

    def _listen(self) -> None:
        for line in io.TextIOWrapper(self.process.stderr, "utf-8", "replace"):
            self.said.append(line)
            if self.rank == 0:
                say(line.rstrip("\n"))

    def _wait(self, reports: queue.SimpleQueue) -> None:
        try:
            self.report = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            self.report = _Failure(status=self.process.wait())
        except Exception as error:
            self.report = _Failure(f"its result cannot be read: {error}")
        reports.put(self)


def _raise(workers: list[_Worker], noticed: _Worker) -> None:
    """Raise the cause of a failure: a rank that died in silence makes the others fail as well."""
    if noticed.report.status is None and not noticed.report.of_user:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            dead = [worker for worker in workers if worker.process.poll() is not None]
            if dead:
                noticed = dead[0]
                noticed.threads[1].join()
                break
            time.sleep(0.05)
    failure, which = noticed.report, f"process {noticed.rank + 1} of {len(workers)}"
    if failure.of_user:
        raise UserError(failure.sentence)
    if failure.status in (-signal.SIGKILL, -signal.SIGTERM):
        raise UserError(
            f"{which} was killed, perhaps because memory ran out, and the others were stopped; run "
            "again: the training resumes after its last saved epoch"
        )
    how, trace = f"failed, and the others were stopped: {failure.sentence}", failure.trace
    if failure.status is not None:
        name = signal.Signals(-failure.status).name if failure.status < 0 else None
        died = f"died of {name}" if name else f"ended with status {failure.status}"
        how, trace = f"{died}, and the others were stopped", "".join(noticed.said)
    error = RuntimeError(f"{which} {how}")
    error.add_note(trace)
    raise error


def _work(rank: int, parent: int) -> None:
    """A rank's whole life."""
    with suppress(AttributeError, OSError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started us ends us
    # What anybody prints must not get into the report.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tasks = sys.stdin.buffer
    header = _read(tasks, 8)
    payload = _read(tasks, int.from_bytes(header, "little"))
    watch = threading.Thread(target=_leave_with, args=(tasks,), daemon=True)
    watch.start()
    try:
        report = _call(rank, payload)
    except UserError as error:
        report = _Failure(str(error), of_user=True)
    except BaseException as error:
        first_line = (str(error).splitlines() or [""])[0]
        trace = traceback.format_exc()
        report = _Failure(f"{type(error).__name__}: {first_line}", trace=trace)
    pickle.dump(report if rank == 0 or isinstance(report, _Failure) else None, answers)
    answers.flush()
    # Stay: the others may still read from this one's memory, and a lost connection would hide why
    # it failed. Who started us ends us.
    watch.join()


def _read(stream: Any, count: int) -> bytes:
    payload = stream.read(count)
    if len(payload) < count:
        os._exit(1)
    return payload


def _leave_with(parent: Any) -> None:
    parent.read()
    os._exit(1)


def _call(rank: int, payload: bytes) -> Any:
    import torch
    from torch import distributed

    from .devices import keep_freed_memory, set_determinism
    from .ranks import Ranks

    settings, function, args, kwargs = pickle.loads(payload)
    size, kind, port, threads, deterministic = settings
    keep_freed_memory()
    torch.set_num_threads(threads)
    device, backend, more = torch.device(kind), "gloo", {}
    if kind == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        set_determinism(deterministic)
        backend, more = "nccl", {"device_id": device}
    store = distributed.TCPStore("127.0.0.1", port, is_master=False)
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=PATIENCE, **more
    )
    return function(Ranks(rank, size), device, *args, **kwargs)


class _Pickler(pickle.Pickler):
    """Sends a memory map as the place of its file; a view of one is copied."""

    def reducer_override(self, value: Any) -> Any:
        whole = isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap)
        if whole and value.flags.c_contiguous:
            return np.memmap, (value.filename, value.dtype, "r", value.offset, value.shape)
        return NotImplemented


def _dumps(value: Any) -> bytes:
    """A pickle, its length before it."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    payload = buffer.getvalue()
    return len(payload).to_bytes(8, "little") + payload
