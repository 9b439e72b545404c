"""Where a job computes, with which arithmetic, and on which GPU of several.

``snakemake --resources gpu=2`` counts jobs but tells none of them which GPU it has. A job
therefore leases its cards: one locked file a physical card, taken all or nothing before CUDA
starts. The kernel frees the lock when its last holder dies, so a kill loses nothing. Jobs that
wait stand in a queue, so that one which needs two cards is not passed over for ever by jobs that
need one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..io.errors import UserError
from ..io.progress import say

SLOTS_VARIABLE = "NC_GPU_SLOTS"
FOLDER_VARIABLE = "NC_LEASE_FOLDER"


def physical_gpus() -> list[str]:
    """The UUIDs of this machine's GPUs, without starting CUDA; empty where there are none.

    A card that is split into MIG instances is listed as those: CUDA knows nothing else of it.
    """
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            "nvidia-smi does not answer; mend the GPU's driver or set device: cpu"
        ) from None
    except (OSError, subprocess.CalledProcessError):
        return []
    # GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-...)
    #   MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-...)
    found = re.findall(r"^\s*(GPU|MIG)\b.*\(UUID:\s*([^\s)]+)\)", listing.stdout, re.MULTILINE)
    gpus: list[str] = []
    whole = False
    for kind, uuid in found:
        if kind == "MIG" and whole:
            gpus.pop()
        whole = kind == "GPU"
        gpus.append(uuid)
    return gpus


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by UUID where known; respects CUDA_VISIBLE_DEVICES.

    Read as CUDA reads it: indices or (shortened) UUIDs, up to the first that names no card.
    """
    gpus = physical_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    names: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        if re.fullmatch(r"[0-9]+", name):
            matching = gpus[int(name) : int(name) + 1]
        elif name.startswith(("GPU-", "MIG-")):
            matching = [gpu for gpu in gpus if gpu.startswith(name)]
            if not matching and (name.startswith("MIG-") or not gpus):
                matching = [name]  # nvidia-smi may be missing, or not list the instances
        else:
            matching = []  # empty, -1, NoDevFiles
        if len(matching) != 1:
            break
        if matching[0] not in names:
            names += matching
    return names


def lease_folder() -> Path:
    """The node's own folder of lock files, shared by all its users."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir() + "/neural-collapse-gpu")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            folder.chmod(0o1777)  # mkdir's mode is cut by the umask
    except OSError as error:
        raise _unusable(folder, error) from None
    return folder


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: cannot be used for GPU locks ({error.strerror}); "
        f"set {FOLDER_VARIABLE} to a folder of this machine that every user can write"
    )


def gpu_slots() -> int:
    """How many jobs share a card: the environment's NC_GPU_SLOTS, else 1."""
    text = os.environ.get(SLOTS_VARIABLE, "").strip() or "1"
    if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) == 0:
        raise UserError(f"{SLOTS_VARIABLE}: is {text!r}; give the number of jobs that share a GPU")
    return int(text)


NO_GPU = (
    "device: a GPU is asked for, but none was found (nvidia-smi lists none, or "
    "CUDA_VISIBLE_DEVICES hides them all); set device: auto or cpu"
)


@contextlib.contextmanager
def lease(count: int, slots: int | None = None, poll_seconds: float = 1.0) -> Iterator[list[str]]:
    """Hold `count` GPUs that no other job holds, and show CUDA only those.

    Waits until as many are free, taking all or none so that two jobs cannot wait for each other;
    who came first is served first. With `slots` = n (default: NC_GPU_SLOTS, else 1) up to n jobs
    that say the same n share a card. Inside a SLURM job that sees no more cards than it asks for,
    the scheduler has chosen already: they are used as they are.
    Raises UserError where the machine has fewer.
    """
    gpus = visible_gpus() if count > 0 else []
    if count == 0 or ("SLURM_JOB_ID" in os.environ and len(gpus) <= count):
        yield gpus
        return
    if not gpus:
        raise UserError(NO_GPU)
    if len(gpus) < count:
        raise UserError(
            f"resources.gpu: this job asks for {count} GPUs and may use {len(gpus)}; "
            "lower it or give more with CUDA_VISIBLE_DEVICES"
        )
    slots = gpu_slots() if slots is None else slots
    if slots < 1:
        raise UserError(f"slots: {slots} jobs cannot share a GPU; give 1 or more")
    held = _wait(lease_folder(), _Request(count, slots, tuple(gpus)), poll_seconds)
    before = {name: os.environ.get(name) for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES")}
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
    try:
        yield list(held)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for descriptor in held.values():
            os.close(descriptor)


class _Request(NamedTuple):
    """What a job asks for: `count` cards of `gpus`, each shared by at most `slots` jobs."""

    count: int
    slots: int
    gpus: tuple[str, ...]


class _Cards:
    """How many jobs are on each card, and how many of them share it."""

    def __init__(self, folder: Path):
        self.used: dict[str, int] = {}
        self.slots: dict[str, int] = {}
        for path in folder.glob("card-*.lock"):
            name = re.fullmatch(r"card-(.+)=([0-9]+)=[0-9]+\.lock", path.name)
            if name is None:
                continue
            gpu, slots = name.groups()
            descriptor = _try_lock(path)
            if descriptor is None:
                self.used[gpu] = self.used.get(gpu, 0) + 1
                self.slots[gpu] = int(slots)
            else:
                os.close(descriptor)

    def choose(self, request: _Request) -> list[str] | None:
        """The cards that a request would get now, the emptiest first; None where too few."""
        open_to_it = [
            gpu
            for gpu in map(_file_name, request.gpus)
            if self.slots.get(gpu, request.slots) == request.slots
            and self.used.get(gpu, 0) < request.slots
        ]
        chosen = sorted(open_to_it, key=lambda gpu: self.used.get(gpu, 0))[: request.count]
        return chosen if len(chosen) == request.count else None

    def reserve(self, request: _Request) -> None:
        """Leave an earlier request what it waits for: its cards, or all that it may get them of."""
        chosen = self.choose(request)
        for gpu in map(_file_name, request.gpus) if chosen is None else chosen:
            if chosen is None:
                self.slots[gpu] = 0
            else:
                self.used[gpu] = self.used.get(gpu, 0) + 1
                self.slots[gpu] = request.slots


def _file_name(gpu: str) -> str:
    return gpu.replace("/", "_").replace("=", "_")


def _wait(folder: Path, request: _Request, poll_seconds: float) -> dict[str, int]:
    """Locks on the cards as {card: descriptor}, in the order of arrival."""
    ticket, told = None, False
    try:
        while True:
            with _alone(folder):
                if ticket is None:
                    ticket = _Ticket(folder, request)
                held = _take(folder, request, ticket.number)
                if held is not None:
                    # Before anybody else looks, who would count this job as served and waiting.
                    ticket.give_up()
                    ticket = None
                    return held
            if not told:
                say(
                    f"waits for {request.count} of {len(request.gpus)} GPUs; "
                    "other jobs hold them or came first"
                )
                told = True
            time.sleep(poll_seconds)
    except OSError as error:
        raise _unusable(folder, error) from None
    finally:
        if ticket is not None:
            ticket.give_up()


def _take(folder: Path, request: _Request, number: int) -> dict[str, int] | None:
    """The locks if the request can be served now without passing over an earlier one."""
    cards = _Cards(folder)
    for earlier in _waiting(folder, number):
        cards.reserve(earlier)
    chosen = cards.choose(request)
    if chosen is None:
        return None
    held: dict[str, int] = {}
    for gpu in request.gpus:
        if _file_name(gpu) not in chosen:
            continue
        for slot in range(request.slots):
            path = folder / f"card-{_file_name(gpu)}={request.slots}={slot}.lock"
            descriptor = _try_lock(path)
            if descriptor is not None:
                # A child that keeps the descriptor holds the card as well.
                os.set_inheritable(descriptor, True)
                held[gpu] = descriptor
                break
    if len(held) == request.count:
        return held
    for descriptor in held.values():
        os.close(descriptor)
    return None


class _Ticket:
    """A place in the queue: a numbered file, locked while its owner lives and waits."""

    def __init__(self, folder: Path, request: _Request):
        numbers = [int(path.stem.removeprefix("ticket-")) for path in _tickets(folder)]
        self.number = max(numbers, default=0) + 1
        self.path = folder / f"ticket-{self.number:012d}.json"
        descriptor = _try_lock(self.path)
        if descriptor is None:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.descriptor = descriptor
        os.write(descriptor, json.dumps(request).encode())

    def give_up(self) -> None:
        """Leave the queue."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self.descriptor)


def _tickets(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"ticket-{'[0-9]' * 12}.json"))


def _waiting(folder: Path, before: int) -> Iterator[_Request]:
    """The requests that wait since before ticket `before`; those of the dead are cleared away."""
    for path in _tickets(folder):
        if int(path.stem.removeprefix("ticket-")) >= before:
            return
        with contextlib.suppress(FileNotFoundError):
            descriptor = _try_lock(path, create=False)
            if descriptor is not None:
                with contextlib.suppress(OSError):  # another user's: it stays, and counts nothing
                    path.unlink()
                os.close(descriptor)
                continue
            with contextlib.suppress(ValueError, TypeError):
                count, slots, gpus = json.loads(path.read_text(encoding="utf-8"))
                yield _Request(int(count), int(slots), tuple(map(str, gpus)))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time looks and takes."""
    descriptor = _open_shared(folder / "queue.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path, create: bool = True) -> int | None:
    """A descriptor that holds the file's lock; None where another process does."""
    descriptor = _open_shared(path, create)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open_shared(path: Path, create: bool = True) -> int:
    """Open a file that every user may lock, making it where it is missing.

    Not with O_CREAT where it is there: in a sticky folder like /tmp Linux refuses that for
    another user's file (fs.protected_regular).
    """
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if not create:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            os.fchmod(descriptor, 0o666)  # open's mode is cut by the umask
            return descriptor


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
    """Ask a GPU for deterministic kernels, or for the fastest it finds."""
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

    choice: auto, cpu or cuda. gpus: how many the job was given; 0 computes on the CPU. slots: how
    many jobs share a card; None asks NC_GPU_SLOTS.
    """
    wanted = choice != "cpu" and gpus > 0
    if wanted and choice == "auto" and not visible_gpus():
        wanted = False
        say("a GPU is asked for and none was found: computes on the CPU (device: auto)")
    if choice == "cuda" and not wanted:
        raise UserError(
            "device: cuda is asked for, but the job was given no GPU; "
            "run with --resources gpu=1 or set device: auto"
        )
    with lease(gpus if wanted else 0, slots) as held:
        if wanted:
            say(f"runs on {', '.join(held) or 'the GPU that the scheduler gave'}")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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
                f"kernel ({str(error).split(', ')[0]}); take another layer, or set it to false"
            ) from None
