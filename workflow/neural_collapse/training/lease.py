"""Assignment of this machine's GPUs to jobs.

``snakemake --resources gpu=2`` limits the jobs but assigns no GPU. A job therefore leases its GPUs:
it locks one file per physical GPU, all or none, before CUDA starts. The kernel releases the lock
when its last holder ends, also after a kill.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..io.errors import UserError
from ..io.locks import acquire
from ..io.progress import say

NO_GPU = (
    "device: a GPU is requested, but none was found (nvidia-smi lists none, or "
    "CUDA_VISIBLE_DEVICES hides them all); set device: auto or cpu"
)


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
            "nvidia-smi does not answer; fix the GPU's driver or set device: cpu"
        ) from None
    except (OSError, subprocess.CalledProcessError):
        return []
    # GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-...)
    #   MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-...)
    found = re.findall(r"^\s*(GPU|MIG)\b.*\(UUID:\s*([^\s)]+)\)", listing.stdout, re.MULTILINE)
    following = [kind for kind, _ in found[1:]] + [""]
    return [
        uuid
        for (kind, uuid), after in zip(found, following, strict=False)
        if (kind, after) != ("GPU", "MIG")
    ]


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
    folder = Path(
        os.environ.get("NC_LEASE_FOLDER") or tempfile.gettempdir() + "/neural-collapse-gpu"
    )
    with _folder_of_locks(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            folder.chmod(0o1777)  # mkdir's mode is cut by the umask
    return folder


@contextlib.contextmanager
def _folder_of_locks(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be used for GPU locks ({error.strerror}); "
            "set NC_LEASE_FOLDER to a folder of this machine that every user can write"
        ) from None


@contextlib.contextmanager
def lease(count: int, slots: int | None = None, poll_seconds: float = 1.0) -> Iterator[list[str]]:
    """Hold `count` GPUs that no other job holds, and show CUDA only those.

    Waits until `count` GPUs are free at once and locks all or none, so two jobs cannot wait for
    each other. There is no queue: jobs with one GPU may overtake one that waits for several. With
    `slots` = n (default: NC_GPU_SLOTS, or 1), up to n jobs with the same n share a GPU. In a SLURM
    job that sees no more GPUs than it needs, those assigned by the scheduler are used.

    Raises:
        UserError: the machine has fewer GPUs.
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
    given = os.environ.get("NC_GPU_SLOTS", "").strip() if slots is None else str(slots)
    text = given or "1"
    if not re.fullmatch(r"0*[1-9][0-9]{0,2}", text):
        raise UserError(
            f"NC_GPU_SLOTS or --gpu-slots: is {text!r}; give the number of jobs that share a GPU"
        )
    held = _wait(lease_folder(), gpus, count, int(text), poll_seconds)
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


def _wait(
    folder: Path, gpus: list[str], count: int, slots: int, poll_seconds: float
) -> dict[str, int]:
    """Locks on `count` of the cards, as {card: descriptor}."""
    told = False
    with _folder_of_locks(folder):
        while True:
            alone = acquire(folder / "folder.lock", wait=True, everyone=True)
            try:
                held = _take(folder, gpus, count, slots)
            finally:
                os.close(alone)
            if held:
                return held
            if not told:
                say(f"waits for {count} of {len(gpus)} GPUs, which other jobs hold")
                told = True
            time.sleep(poll_seconds)


def _take(folder: Path, gpus: list[str], count: int, slots: int) -> dict[str, int]:
    """Locks on the emptiest cards, none where too few are free; the folder is locked."""
    used = {gpu: _jobs_on(folder, gpu) for gpu in gpus}
    free = [gpu for gpu in gpus if set(used[gpu]) <= {slots} and len(used[gpu]) < slots]
    chosen = sorted(free, key=lambda gpu: len(used[gpu]))[:count]
    if len(chosen) < count:
        return {}
    held: dict[str, int] = {}
    with contextlib.ExitStack() as undo:
        for gpu in sorted(chosen, key=gpus.index):
            for slot in range(slots):
                with contextlib.suppress(BlockingIOError):
                    path = folder / f"card-{_file_name(gpu)}={slots}={slot}.lock"
                    held[gpu] = acquire(path, everyone=True)
                    undo.callback(os.close, held[gpu])
                    # A child that keeps the descriptor holds the card as well.
                    os.set_inheritable(held[gpu], True)
                    break
            if gpu not in held:
                return {}
        undo.pop_all()
    return held


def _jobs_on(folder: Path, gpu: str) -> list[int]:
    """For each job that holds a card, by how many jobs at most it shares it."""
    found = []
    for path in folder.glob(f"card-{glob.escape(_file_name(gpu))}=*=*.lock"):
        try:
            os.close(acquire(path, everyone=True))
        except BlockingIOError:
            found.append(int(path.stem.split("=")[1]))
    return found


def _file_name(gpu: str) -> str:
    return gpu.replace("/", "_").replace("=", "_")
