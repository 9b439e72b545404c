"""Jobs in processes of their own, one a variant, or a core each for the machine's throughput.

A worker sets itself up, says `ready`, and for every line of standard input trains for about so many
seconds and answers with the images and the seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import neural_collapse

from .harness import Settings, Times


class Worker:
    """A process that trains, or measures, on demand.

    variant: "notebook" or a precision of ours to train; one of `measurement_of` to measure.
    threads: 0 leaves torch's own number.
    """

    def __init__(
        self, variant: str, network: str, images: int, mirror: str | None, threads: int = 0
    ):
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.worker",
                variant,
                network,
                str(images),
                mirror or "",
                str(threads),
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
            raise RuntimeError("a training job of the benchmark ended early; see its error above")
        return line.strip()

    def start(self, seconds: float) -> None:
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    @staticmethod
    @contextmanager
    def group(
        settings: Settings,
        counts: Mapping[str, int],
        network: str,
        images: int,
        notebook_threads: int = 0,
    ) -> Iterator[dict[str, list[Worker]]]:
        """So many workers of each variant, all ready; ours of one thread, as in the pipeline."""
        with ExitStack() as stack:
            groups: dict[str, list[Worker]] = {variant: [] for variant in counts}
            for variant, count in counts.items():
                for _ in range(count):
                    threads = notebook_threads if "notebook" in variant else 1
                    worker = Worker(variant, network, images, settings.mirror, threads)
                    stack.callback(worker.close)
                    groups[variant].append(worker)
            for workers in groups.values():
                for worker in workers:
                    worker.answer()
            yield groups

    @staticmethod
    def interleave(
        groups: Mapping[str, list[Worker]], rounds: int, seconds: float
    ) -> dict[str, Times]:
        """Seconds an image of each group, round by round; a round's workers start together."""
        found: dict[str, list[float]] = {variant: [] for variant in groups}
        for number in range(rounds + 1):
            for variant, workers in groups.items():
                for worker in workers:
                    worker.start(seconds if number else 0.0)
                answers = [json.loads(worker.answer()) for worker in workers]
                # The jobs stop at the end of an epoch, not at the same moment: rates are summed.
                rate = sum(images / elapsed for images, elapsed in answers)
                if number:
                    found[variant].append(1 / rate)
        return {variant: Times(tuple(values)) for variant, values in found.items()}


def environment() -> dict[str, str]:
    """This process's, with the library that this process uses."""
    import os

    library = str(Path(neural_collapse.__file__).parents[1])
    paths = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def main(variant: str, network: str, images: str, mirror: str, threads: str) -> None:
    import torch

    from neural_collapse.training.devices import keep_freed_memory

    from . import data
    from .networks import (
        NOTEBOOKS,
        OURS,
        measurement_of,
        notebook_epochs,
        our_epochs,
        trainer,
    )

    count = int(images)
    raw = data.subset(data.mnist(mirror or None), count, count // 4)
    if int(threads):
        torch.set_num_threads(int(threads))
    if "notebook" not in variant:
        keep_freed_memory()
    if variant in (OURS, NOTEBOOKS):
        epoch = measurement_of(variant, network, raw)
        count += count // 4
    elif variant == "notebook":
        epoch = notebook_epochs(network, raw)
    else:
        epoch = our_epochs(trainer(network, raw, variant))
    print("ready", flush=True)
    for line in sys.stdin:
        done, started = 0, time.perf_counter()
        while True:
            epoch()
            done += count
            elapsed = time.perf_counter() - started
            if elapsed >= float(line):
                break
        print(json.dumps([done, elapsed]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
