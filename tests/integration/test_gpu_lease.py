"""Jobs that lease GPUs: no card twice, no deadlock, nothing lost by kill -9.

The cards are fake: a `nvidia-smi` on PATH lists them, and nothing here starts CUDA.  What jobs do
is read from a log that each of them writes under a lock of its own; the test writes a kill there
before the kernel carries it out, so the log's order is the order of events.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from neural_collapse.io.errors import UserError
from neural_collapse.io.locks import acquire
from neural_collapse.training import lease as lease_module
from neural_collapse.training.devices import device_for
from neural_collapse.training.lease import lease, lease_folder, visible_gpus

# argv: log, job, GPUs, how many blocks it hashes while it holds them.
CROWD_JOB = """
import fcntl, hashlib, os, sys
from neural_collapse.training.lease import lease

log, job, count, blocks = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
lock = os.open(log + ".lock", os.O_RDWR | os.O_CREAT)

def note(*words):
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(log, "a") as file:
        file.write(" ".join([job, *words]) + "\\n")
    fcntl.flock(lock, fcntl.LOCK_UN)

note("start")
with lease(count, poll_seconds=0.01) as cards:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(cards)
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    note("acquire", *cards)
    for _ in range(blocks):
        hashlib.sha256(bytes(1 << 18)).digest()
    note("release")
"""

# argv: GPUs, slots.  Says what it holds, and lets go when its standard input ends.
OBEDIENT_JOB = """
import os, sys
from neural_collapse.training.lease import lease

if "TEST_USER" in os.environ:
    os.umask(0o077)
    os.setuid(int(os.environ["TEST_USER"]))
with lease(int(sys.argv[1]), int(sys.argv[2]), poll_seconds=0.01) as cards:
    print("holds", *cards, flush=True)
    if len(sys.argv) > 3:
        child = os.fork()
        if child == 0:
            if sys.argv[3] == "exec":
                os.execvp("cat", ["cat"])
            sys.stdin.read()
            os._exit(0)
        print(child, flush=True)
    sys.stdin.read()
"""

UUIDS = [f"GPU-0000000{index}-aaaa-bbbb-cccc-dddddddddddd" for index in range(4)]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(n)` makes this a machine of n GPUs, and returns the environment of its jobs."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "NC_GPU_SLOTS"):
        monkeypatch.delenv(name, raising=False)
    # Set, so that monkeypatch takes away what a lease leaves behind.
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("NC_LEASE_FOLDER", str(tmp_path / "leases"))

    def of(gpus: int, listing: str | None = None) -> dict[str, str]:
        if listing is None:
            listing = "\n".join(
                f"GPU {index}: Fake H200 (UUID: {UUIDS[index]})" for index in range(gpus)
            )
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return dict(os.environ)

    return of


class Crowd:
    """Starts jobs, kills some, starts those again, until all have finished."""

    def __init__(self, folder: Path, environment: dict[str, str], seed: int):
        self.log, self.environment = folder / "log", environment
        self.log.touch()
        self.lock = os.open(f"{self.log}.lock", os.O_RDWR | os.O_CREAT)
        self.random = random.Random(seed)
        self.running: dict[str, subprocess.Popen] = {}
        self.kills = Counter()

    def start(self, job: str, count: int) -> None:
        blocks = self.random.randrange(10, 60)
        command = [sys.executable, "-c", CROWD_JOB, *map(str, (self.log, job, count, blocks))]
        self.running[job] = subprocess.Popen(
            command, env=self.environment, stderr=subprocess.DEVNULL
        )

    def kill(self, job: str) -> None:
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        with open(self.log, "a") as file:
            file.write(f"{job} killed\n")
        self.running[job].kill()
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        self.running.pop(job).wait()

    def records(self) -> list[list[str]]:
        """Each a job's name and try, what it did, and with which cards."""
        return [line.split() for line in self.log.read_text().splitlines()]

    def run(self, counts: list[int], kill_share: float) -> None:
        for index, count in enumerate(counts):
            self.start(f"{index}.0", count)
        read, moved = 0, time.monotonic()
        while self.running:
            records = self.records()
            for job, what, *_ in records[read:]:
                moved = time.monotonic()
                # Some die holding cards, some while they wait, or just before; not one that
                # finished before its turn to die came.
                if what in ("start", "acquire") and self.random.random() < kill_share:
                    process = self.running.get(job)
                    if process and process.poll() is None:
                        self.kill(job)
                        self.kills[what] += 1
                        index, tries = map(int, job.split("."))
                        self.start(f"{index}.{tries + 1}", counts[index])
            read = len(records)
            for job, process in list(self.running.items()):
                if process.poll() is not None:
                    assert process.returncode == 0, f"job {job} failed"
                    del self.running[job]
            # Not a limit on the whole: only on a crowd in which nobody moves any more.
            assert time.monotonic() - moved < 120, f"deadlock among {sorted(self.running)}"
            time.sleep(0.005)


def replay(records: list[list[str]], slots: int) -> Counter:
    """Check that no card ever has more than `slots` jobs; returns how often each was held."""
    holders: dict[str, set[str]] = {}
    times = Counter()
    for job, what, *cards in records:
        if what == "acquire":
            assert len(set(cards)) == len(cards)
            for card in cards:
                holders.setdefault(card, set()).add(job)
                assert len(holders[card]) <= slots, f"{card} is held by {holders[card]}"
                times[card] += 1
        elif what in ("release", "killed"):
            for jobs in holders.values():
                jobs.discard(job)
    return times


@pytest.mark.parametrize(("slots", "seed"), [(1, 1), (3, 3)])
def test_thirty_jobs_with_kills_never_overlap_and_all_finish(tmp_path, machine, slots, seed):
    crowd = Crowd(tmp_path, machine(2) | {"NC_GPU_SLOTS": str(slots)}, seed)
    counts = [1 + (index % 3 == 0) for index in range(30)]
    try:
        crowd.run(counts, kill_share=0.2)
    finally:
        for process in crowd.running.values():
            process.kill()
            process.wait()
    records = crowd.records()
    assert set(replay(records, slots)) == set(UUIDS[:2])
    released = Counter(int(job.split(".")[0]) for job, what, *_ in records if what == "release")
    assert set(released) == set(range(30))
    acquired = {job: len(cards) for job, what, *cards in records if what == "acquire"}
    assert all(number == counts[int(job.split(".")[0])] for job, number in acquired.items())
    assert min(crowd.kills["start"], crowd.kills["acquire"]) >= 2


def test_the_replay_notices_an_overlap():
    with pytest.raises(AssertionError, match="is held by"):
        replay([["0", "acquire", "a"], ["1", "acquire", "b", "a"]], 1)


class Job:
    """An obedient job, and what it says."""

    def __init__(self, environment, count=1, slots=1, child=None):
        arguments = [str(count), str(slots)] + ([child] if child else [])
        self.process = subprocess.Popen(
            [sys.executable, "-c", OBEDIENT_JOB, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def holds(self) -> list[str]:
        """Blocks until it has its cards; it must not have to wait first, or have said so."""
        line = self.process.stdout.readline()
        assert line.startswith("holds"), line
        return line.split()[1:]

    def waits(self) -> None:
        """Blocks until it waits for cards."""
        line = self.process.stdout.readline()
        assert line.startswith("waits for"), line

    def finish(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


@pytest.fixture
def jobs(machine):
    """`jobs(environment, ...)` starts a job; whatever is left of them is killed in the end."""
    started = []

    def start(*arguments, **keywords):
        started.append(Job(*arguments, **keywords))
        return started[-1]

    yield start
    for job in started:
        if job.process.poll() is None:
            job.process.kill()
        job.process.communicate()


def test_slots_share_a_card_on_purpose_and_only_among_themselves(machine, jobs):
    environment = machine(2)
    sharing = [jobs(environment, slots=2) for _ in range(2)]
    assert sorted(job.holds()[0] for job in sharing) == UUIDS[:2]  # the emptiest card first
    sharing += [jobs(environment, slots=2) for _ in range(2)]
    assert sorted(job.holds()[0] for job in sharing[2:]) == UUIDS[:2]
    alone = jobs(environment, slots=1)
    alone.waits()
    fifth = jobs(environment, slots=2)
    fifth.waits()
    sharing[0].finish()
    assert len(fifth.holds()) == 1  # half a card is free, and the other wants a whole one
    fifth.finish()
    for job in sharing[1:]:
        job.finish()
    assert len(alone.holds()) == 1


def test_cards_are_taken_all_or_none(machine, jobs):
    environment = machine(2)
    first = jobs(environment)
    assert first.holds() == [UUIDS[0]]
    wide = jobs(environment, count=2)
    wide.waits()
    late = jobs(environment)
    assert late.holds() == [UUIDS[1]]  # the waiting job holds none
    late.finish()
    first.finish()
    assert wide.holds() == UUIDS[:2]


@pytest.mark.parametrize("error", [BlockingIOError, OSError])
def test_a_card_that_cannot_be_locked_leaves_none_held(machine, monkeypatch, error):
    machine(2)
    failing = [error(errno.EIO, "input/output error")]

    def fails_once(path, **how):
        if UUIDS[1] in path.name and failing:
            raise failing.pop()
        return acquire(path, **how)

    monkeypatch.setattr(lease_module, "acquire", fails_once)
    if error is OSError:
        with pytest.raises(UserError, match="input/output error"), lease(2):
            pass
    with lease(2, poll_seconds=0.01) as cards:  # would wait for ever for a card that stayed locked
        assert cards == UUIDS[:2] and not failing


def test_jobs_of_other_widths_do_not_share_a_card(machine, jobs):
    environment = machine(1)
    first = jobs(environment, slots=2)
    first.holds()
    jobs(environment, slots=3).waits()


@pytest.mark.parametrize("child", ["fork", "exec"])
def test_an_orphan_holds_the_card(machine, jobs, child):
    environment = machine(1)
    parent = jobs(environment, child=child)
    parent.holds()
    orphan = int(parent.process.stdout.readline())
    try:
        os.kill(parent.process.pid, signal.SIGKILL)
        parent.process.wait()
        following = jobs(environment)
        following.waits()
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert following.holds() == [UUIDS[0]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_several_users_share_the_locks(machine, jobs, tmp_path):
    environment = machine(1)
    # A folder that everybody reaches; pytest's own is closed to others.
    open_folder = Path(tempfile.mkdtemp(prefix="nc-lease-test-"))
    shared = open_folder / "shared"

    def job(user):
        return jobs(environment | {"TEST_USER": user})

    try:
        open_folder.chmod(0o755)
        shutil.copy(tmp_path / "bin" / "nvidia-smi", open_folder)
        environment["PATH"] = f"{open_folder}:{environment['PATH']}"
        shared.mkdir()
        shared.chmod(0o1777)
        environment["NC_LEASE_FOLDER"] = str(shared / "leases")
        first = job("65534")
        first.holds()
        assert (shared / "leases").stat().st_mode & 0o7777 == 0o1777
        second = job("65533")
        second.waits()
        third = job("65534")
        third.waits()
        second.process.kill()
        second.process.wait()
        first.finish()
        third.holds()
        third.finish()
        job("65533").holds()
    finally:
        shutil.rmtree(open_folder)


# ------------------------------------------------------------------- which cards a job may use


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, UUIDS),
        ("0", UUIDS[:1]),
        ("3,1", [UUIDS[3], UUIDS[1]]),
        (" 2 , 0 ", [UUIDS[2], UUIDS[0]]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,-1,2", [UUIDS[1]]),  # CUDA stops at the first that is none
        ("0,9,1", [UUIDS[0]]),
        ("²", []),
        (UUIDS[2], [UUIDS[2]]),
        ("GPU-00000003", [UUIDS[3]]),  # CUDA takes a beginning that only one card has
        ("GPU-0000000", []),
        ("GPU-ffffffff", []),
        (f"{UUIDS[1]},0", [UUIDS[1], UUIDS[0]]),
        (f"1,{UUIDS[1]}", [UUIDS[1]]),
        ("MIG-11111111-2222", ["MIG-11111111-2222"]),
        ("MIG-GPU-5d5ba0d6/1/0", ["MIG-GPU-5d5ba0d6/1/0"]),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(machine, monkeypatch, visible, expected):
    machine(4)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == expected


def test_a_split_card_is_listed_as_its_instances(machine):
    machine(
        0,
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)\n"
        "  MIG 3g.20gb     Device  0: (UUID: MIG-bbbb)\n"
        "  MIG 3g.20gb     Device  1: (UUID: MIG-cccc)\n"
        "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-dddd)\n",
    )
    assert visible_gpus() == ["MIG-bbbb", "MIG-cccc", "GPU-dddd"]


def test_a_machine_without_driver_has_no_gpu(machine, tmp_path):
    machine(1)
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert visible_gpus() == []


def test_old_mig_names_become_file_names(machine, monkeypatch):
    machine(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-5d5ba0d6/1/0")
    with lease(1) as cards:
        assert cards == ["MIG-GPU-5d5ba0d6/1/0"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-GPU-5d5ba0d6/1/0"
        assert all("/" not in path.name for path in lease_folder().iterdir())


def test_a_lease_leaves_the_environment_as_it_was(machine, monkeypatch):
    machine(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with lease(1) as cards:
        assert cards == [UUIDS[1]]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("NC_GPU_SLOTS", "01")
    with lease(1) as again:
        assert again == [UUIDS[1]]


def test_inside_slurm_the_scheduler_has_chosen(machine, monkeypatch):
    machine(4)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    monkeypatch.setenv("NC_LEASE_FOLDER", "/proc/cannot/be/made")
    with lease(1) as cards, lease(1):
        assert cards == [UUIDS[2]]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_several_jobs_within_one_slurm_allocation_share_its_cards(machine, monkeypatch):
    machine(4)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    with lease(1) as cards:
        assert cards == [UUIDS[1]]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
        with lease(1) as others:
            assert others == [UUIDS[2]]


def test_no_gpu_asked_takes_no_lock(machine, tmp_path):
    machine(2)
    with lease(0) as cards:
        assert cards == []
    assert not (tmp_path / "leases").exists()


@pytest.mark.parametrize(
    ("environment", "count", "slots", "said"),
    [
        ({}, 3, None, "asks for 3 GPUs and may use 2"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 2, None, "asks for 2 GPUs and may use 1"),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 1, None, "none was found"),
        ({"NC_GPU_SLOTS": "many"}, 1, None, "is 'many'; give the number of jobs"),
        ({"NC_GPU_SLOTS": "0"}, 1, None, "NC_GPU_SLOTS or --gpu-slots: is '0'"),
        ({}, 1, 0, "--gpu-slots: is '0'"),
        ({"NC_LEASE_FOLDER": "/proc/none"}, 1, None, "NC_LEASE_FOLDER"),
        ({"NC_LEASE_FOLDER": "/dev/null"}, 1, None, "NC_LEASE_FOLDER"),
    ],
)
def test_lease_that_is_impossible_raises_one_sentence(
    machine, monkeypatch, environment, count, slots, said
):
    machine(2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error, lease(count, slots):
        pass
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("choice", "gpus", "said"),
    [
        ("cuda", 0, "was given no GPU"),
        ("cuda", 3, "asks for 3 GPUs"),
        ("auto", 1, "this torch cannot use it"),
    ],
)
def test_device_that_is_unavailable_raises_one_sentence(machine, monkeypatch, choice, gpus, said):
    import torch

    machine(2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=said), device_for(choice, gpus, 1, True):
        pass


def test_layer_without_deterministic_kernel_raises_one_sentence():
    import torch

    torch.use_deterministic_algorithms(True)
    try:
        with (
            pytest.raises(UserError, match=r"training\.deterministic: .*\(put_ .*\)") as error,
            device_for("cpu", 0, torch.get_num_threads(), True),
        ):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # has none on the CPU either
    finally:
        torch.use_deterministic_algorithms(False)
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="shape"), device_for("cpu", 0, 1, True):
        torch.zeros(2) @ torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("choice", "gpus", "cards"), [("cpu", 1, 2), ("auto", 0, 2), ("auto", 1, 0)]
)
def test_a_job_without_gpu_computes_on_the_cpu(machine, tmp_path, choice, gpus, cards):
    machine(cards)
    with device_for(choice, gpus, 1, True) as device:
        assert device.type == "cpu"
    assert not (tmp_path / "leases").exists()
