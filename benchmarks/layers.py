"""Every kind of layer that networks are made of, on this CPU, against float64.

``python -m benchmarks.layers``: outputs and gradients. torch's kernels differ with what the CPU
can do, the memory format, the threads and the shape, and one writes outside its memory. So each
set of instructions that this CPU has is tried in processes whose buffers end at forbidden memory
(``guard.c``; without a C compiler, glibc's checks): what would be wrong in silence crashes, and
costs one layer, not the run. Status 1 if a layer of the project's own networks is at fault.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from .layer_trials import TOLERANCE, Case, Task, Trial, Variant, sample

VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
ISAS = {
    "native": (),
    "AVX512_CORE_BF16": ("AVX512_CORE_BF16",),
    "AVX512_CORE": ("AVX512_CORE",),
    "AVX2": ("AVX2", "avx2", "AVX2"),
    "SSE41": ("SSE41", "default", "SSE4_2"),
}
TRIED = {"AVX512": list(ISAS), "AVX2": ["native", "SSE41"]}
"""What caps a CPU can show, by torch's name for what it can do itself."""
SECONDS = 10  # for what takes milliseconds
CASES_A_PROCESS = 20


def tried(tasks: Sequence[Task], repeats: int) -> Iterator[dict]:
    """A row for each, from processes of their own: the next one goes on after a crash."""
    fork, done = multiprocessing.get_context("fork"), 0
    while done < len(tasks):
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=_try, args=(tasks[done:], repeats, sender))
        child.start()
        sender.close()
        fault = "crash"
        try:
            while receiver.poll(SECONDS):
                row = receiver.recv()
                yield _row(*tasks[done], **row)
                done += 1
            fault = "hang"
        except EOFError:  # the child has ended
            pass
        child.kill()
        child.join()
        if done < len(tasks):
            yield _row(*tasks[done], fault=fault)
            done += 1


def _try(tasks: Sequence[Task], repeats: int, rows: Connection) -> None:
    trial, of = None, None
    for case, variant in tasks:
        if case != of:
            trial, of = Trial(case), case
        try:
            errors = trial.errors(variant, repeats)
            where = max(errors, key=errors.get)
            wrong = errors[where] > TOLERANCE[variant.dtype]
            row = {"fault": "wrong" if wrong else "", "where": where, "error": errors[where]}
        except Exception as error:
            row = {"fault": "error", "where": f"{type(error).__name__}: {error}"[:200]}
        rows.send(row)


def _row(case: Case, variant: Variant, fault: str, where: str = "", error: float = 0) -> dict:
    own = {"fault": fault, "where": where, "error": error}
    return case._asdict() | variant._asdict() | own


def work(quick: bool) -> None:
    """In a process with one set of instructions: a line of JSON for each layer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    first = Case("3x3", 2, 2, 2, 4)  # what torch loads on first use, before any fork
    for _, variant in first.variants():
        Trial(first).errors(variant._replace(threads=1), 1)
    parts = sample(quick)
    for start in range(0, len(parts), CASES_A_PROCESS):
        tasks = list(chain.from_iterable(parts[start : start + CASES_A_PROCESS]))
        for row in tried(tasks, 2 if quick else 4):
            print(json.dumps(row), flush=True)


def guarded(folder: str) -> dict[str, str]:
    """Variables that make writing outside of memory a crash."""
    if not sys.platform.startswith("linux"):
        return {}
    compiler, library = shutil.which("cc"), Path(folder, "guard.so")
    if not compiler:
        return {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    source = Path(__file__).with_name("guard.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each kind of layer that is at fault, how often, by how much and in which shapes."""

    def summary(group: pd.DataFrame) -> pd.Series:
        at_fault = group[group.fault != ""]
        counts = at_fault.fault.value_counts()
        shapes = {
            name: ",".join(map(str, sorted(at_fault[name].unique())))
            for name in ("threads", "images", "inputs", "outputs", "px")
        }
        wrong = at_fault[at_fault.fault == "wrong"]
        return pd.Series(
            {"tried": len(group)}
            | {fault: counts.get(fault, 0) for fault in ("wrong", "crash", "hang", "error")}
            | {"worst": f"{wrong.error.max():.2g}" if len(wrong) else ""}
            | {"of": ",".join(sorted(wrong["where"].unique()))}
            | shapes
        )

    keys = ["kind", "way", "dtype", "format"]
    found = rows.groupby(keys, sort=False)[list(rows.columns)].apply(summary).reset_index()
    return found[found[["wrong", "crash", "hang", "error"]].sum(axis=1) > 0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller sample: a minute")
    parser.add_argument("--isa", nargs="+", choices=ISAS, help="default: native and all below")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.quick)
        return 0
    able = torch.backends.cpu.get_cpu_capability()
    isas: Iterable[str] = arguments.isa or TRIED.get(able, ["native"])
    if arguments.quick and not arguments.isa:
        isas = [isa for isa in isas if isa in ("native", "AVX2")]
    frames = []
    with tempfile.TemporaryDirectory() as folder:
        guards = guarded(folder)
        for isa in isas:
            started = time.monotonic()
            variables = dict(zip(VARIABLES, ISAS[isa], strict=False)) | guards
            variables["OMP_WAIT_POLICY"] = "PASSIVE"  # not to wait busily where others work
            command = [sys.executable, "-m", "benchmarks.layers", "--work"]
            lines = subprocess.run(
                command + ["--quick"] * arguments.quick,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout.splitlines()
            frame = pd.DataFrame(map(json.loads, lines))
            frame.insert(0, "isa", isa)
            frames.append(frame)
            faults = (frame.fault != "").sum()
            seconds = time.monotonic() - started
            print(f"\n{isa}: {faults} of {len(frame)} layers at fault ({seconds:.0f} s)")
            if faults:
                print(table(frame).to_string(index=False), flush=True)
    rows = pd.concat(frames)
    return int(((rows.fault != "") & (rows.way == "project")).any())


if __name__ == "__main__":
    sys.exit(main())
