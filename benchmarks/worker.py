"""Jobs in processes of their own, one a variant, or a core each for the machine's throughput.

How a process keeps its memory is a part of its speed: ours as the pipeline's jobs do, a reference
as any Python script does. A worker prepares its job, says `ready`, and for every line of standard
input works for about so many seconds and answers with the work done, the seconds, and what the job
last returned.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import neural_collapse

from .harness import Times

if TYPE_CHECKING:
    from .jobs import Job


class Worker:
    """A process that does a job on demand."""

    def __init__(self, job: Job, mirror: str | None):
        self.result: float | None = None
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.worker",
                json.dumps(dataclasses.asdict(job)),
                mirror or "",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env=environment(),
        )

    def answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a job of the benchmark ended early; see its error above")
        return line.strip()

    def start(self, seconds: float) -> None:
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def workers(jobs: Mapping[str, list[Job]], mirror: str | None) -> Iterator[dict[str, list[Worker]]]:
    """A worker for every job, by variant, all ready."""
    with ExitStack() as stack:
        groups: dict[str, list[Worker]] = {variant: [] for variant in jobs}
        for variant, alike in jobs.items():
            for job in alike:
                worker = Worker(job, mirror)
                stack.callback(worker.close)
                groups[variant].append(worker)
        for group in groups.values():
            for worker in group:
                worker.answer()
        yield groups


def take_turns(
    jobs: Mapping[str, list[Job]], mirror: str | None, rounds: int, seconds: float
) -> tuple[dict[str, Times], dict[str, float | None]]:
    """Seconds a unit of work of each variant, round by round, and what its first job returned.

    A variant's jobs work side by side; the variants one after the other.
    """
    found: dict[str, list[float]] = {variant: [] for variant in jobs}
    results: dict[str, float | None] = {}
    with workers(jobs, mirror) as groups:
        for number in range(rounds + 1):
            for variant, group in groups.items():
                for worker in group:
                    worker.start(seconds if number else 0.0)
                answers = [json.loads(worker.answer()) for worker in group]
                # Until the last one stops, so that none gains by having had the machine alone.
                works, elapsed, values = zip(*answers, strict=True)
                results[variant] = values[0]
                if number:
                    found[variant].append(max(elapsed) / sum(works))
    return {variant: Times(tuple(values)) for variant, values in found.items()}, results


def environment() -> dict[str, str]:
    """This process's, with the library that this process uses, and torch's own threads."""
    import os

    library = str(Path(neural_collapse.__file__).parents[1])
    paths = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in limits}
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def main(text: str, mirror: str) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    from neural_collapse.training.devices import keep_freed_memory

    from .jobs import PIECES, Job

    job = Job(**json.loads(text))
    if job.threads:
        torch.set_num_threads(job.threads)
        threadpool_limits(job.threads)
    if job.ours:
        keep_freed_memory()
    run, work = PIECES[job.piece](job.variant, job.subject, job.amount, mirror or None)
    print("ready", flush=True)
    for line in sys.stdin:
        done, started = 0.0, time.perf_counter()
        while True:
            result = run()
            done += work
            elapsed = time.perf_counter() - started
            if elapsed >= float(line):
                break
        if not isinstance(result, float):
            result = None
        print(json.dumps([done, elapsed, result]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
