"""`neural-collapse check-gpu`: checks and times a GPU, and recommends settings."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..experiment.config import Config
from ..experiment.cost import SPEEDS_FILE
from ..experiment.provenance import machine
from ..io.errors import UserError
from ..io.files import write_text_atomically
from ..io.progress import say
from ..io.text import aligned, counted, size_text
from ..networks.arithmetic import is_out_of_memory
from ..training.devices import set_determinism
from .gpu_checks import PRECISIONS, Check, run_checks
from .gpu_speed import Speed, ceilings, networks_of, speeds


def check_gpu(config: Config, quick: bool, output: Path | None, device: str = "cuda") -> str:
    """Check and time the GPU, write the JSON file that `plan` reads, and say what to set.

    quick: every network once, shorter and not in NCHW. output: by default in the config's results
    folder. What is done is written at once, since a machine may be taken away. Raises UserError
    where there is no GPU, and after writing all where a check failed.
    """
    where = torch.device(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("check-gpu: torch finds no GPU here; run it on a machine with a GPU")
    output = output or Path(config.results_folder) / SPEEDS_FILE
    if where.type == "cuda":
        set_determinism(True)
    facts = machine(where) | {"torch": torch.__version__, "deterministic": True}
    if where.type == "cuda":
        facts |= {
            "memory_bytes": torch.cuda.mem_get_info(where)[1],
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    driver = f", driver {facts['driver']}" if facts.get("driver") else ""
    say(f"{facts.get('gpu', facts['processor'])}{driver}, torch {torch.__version__}: checks")
    checks, seconds = run_checks(where), 0.15 if quick else 0.5
    timed: list[Speed] = []
    found: dict[str, Any] = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "checks": [asdict(check) | {"passed": check.passed} for check in checks],
        "ceilings": {},
        "networks": [],
    }
    _write(output, found)
    found["ceilings"] = _ceilings(where, seconds)
    _write(output, found)
    for recipe, size in networks_of(config, quick):
        say(f"{recipe.dataset} x {recipe.architecture}, {size.side_px} px")
        timed += speeds(recipe, size, where, seconds, nchw=not quick)
        found["networks"] = [asdict(speed) for speed in timed]
        _write(output, found)
    failed = [check for check in checks if not check.passed]
    tables = [*_table(timed, found["ceilings"]), "", *_checked(checks), "", *_advice(timed, facts)]
    text = "\n".join(tables)
    text += f"\n\nwritten: {output}, which `neural-collapse plan` reads"
    if failed:
        print(text)
        raise UserError(
            f"check-gpu: {counted(len(failed), 'check')} failed, the first one: {failed[0].name}; "
            "do not trust results of this GPU"
        )
    return text


def _driver() -> str | None:
    """The version of NVIDIA's driver; None where nvidia-smi does not say it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.partition("\n")[0].strip() or None


def _ceilings(device: torch.device, seconds: float) -> dict[str, float]:
    """What the device does at best; nothing where its memory does not hold what that takes."""
    say("ceilings")
    try:
        return ceilings(device, seconds, 8192 if device.type == "cuda" else 256)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    say("ceilings: left out, because GPU memory ran out; stop other programs on it")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {}


def _write(output: Path, found: dict[str, Any]) -> None:
    write_text_atomically(output, json.dumps(found, indent=1) + "\n")


def _table(timed: list[Speed], found: dict[str, float]) -> list[str]:
    rows = [
        ("network", "precision", "graph", "layout", "px", "batch", "images/s", "TFLOP/s", "ceiling",
         "memory")
    ]  # fmt: skip
    for speed in timed:
        best = found.get(f"convolution_{speed.precision}_flops")
        measured = [
            f"{speed.images_per_second:,.0f}",
            f"{speed.flops_per_second / 1e12:.3g}",
            f"{100 * speed.flops_per_second / best:.0f} %" if best else "",
            size_text(speed.peak_bytes),
        ]
        rows.append(
            (
                speed.network,
                speed.precision,
                "yes" if speed.cuda_graphs else "no",
                "NHWC" if speed.channels_last else "NCHW",
                f"{speed.side_px}",
                f"{speed.batch_size}",
                *(measured if not speed.failure else [speed.failure, "", "", ""]),
            )
        )
    return aligned(rows, left=4)


def _checked(checks: list[Check]) -> list[str]:
    lines = [f"{sum(check.passed for check in checks)} of {len(checks)} checks passed"]
    for check in checks:
        if not check.passed:
            reason = check.failure or f"off by {check.difference:.2g} of {check.tolerance:g}"
            lines.append(f"FAILED  {check.name}: {reason}")
    return lines


def _advice(timed: list[Speed], facts: dict[str, Any]) -> list[str]:
    """What to set in the config, and what it costs not to."""
    if not timed:
        return [
            "no network was timed: the size of the config's images is not known; prepare its data"
        ]
    frame = pd.DataFrame(map(asdict, timed))
    failed = frame[frame["cuda_graphs"] & (frame["failure"] != "")]
    frame = frame[frame["channels_last"] & (frame["failure"] == "")]
    network = ["network", "side_px", "batch_size"]
    rates = frame.pivot_table(
        "images_per_second", network, ["precision", "cuda_graphs"], sort=False
    ).reindex(columns=pd.MultiIndex.from_product([PRECISIONS, [False, True]]))
    best = rates.T.groupby(level=0).max().T
    lines = []
    for precision in PRECISIONS[1:]:
        shares = (best["float32"] / best[precision]).dropna()
        if len(shares):
            lines.append(
                f"precision    {precision} takes {shares.median():.2f} of float32's time "
                f"({shares.min():.2f} to {shares.max():.2f}), both with CUDA graphs where faster"
            )
    gains = pd.DataFrame({p: rates[p, True] / rates[p, False] for p in PRECISIONS})
    paying = []
    for (name, side, size), row in gains.iterrows():
        faster = ", ".join(f"{x:.2f}x in {p}" for p, x in row.items() if x > 1.05)
        if faster:
            paying.append(f"{name} {side} px, batch {size} ({faster})")
    if paying:
        lines += [f"cuda_graphs  true for {paying[0]}", *(f"{'':22}{one}" for one in paying[1:])]
    elif gains.notna().any(axis=None):
        lines.append("cuda_graphs  false")
    for row in failed.itertuples():
        lines.append(
            f"cuda_graphs  false for {row.network} {row.side_px} px, batch {row.batch_size} in "
            f"{row.precision}: {row.failure}"
        )
    if (memory := facts.get("memory_bytes")) and len(frame):
        largest = max(frame["peak_bytes"])
        slots = max(1, min(4, int(0.8 * memory) // max(1, largest)))
        lines.append(
            f"gpu_slots    {slots} by memory, {size_text(largest)} a step at most; jobs that share "
            "a card gain only with MPS"
        )
        if not any(speed.failure for speed in timed):
            lines.append("gpu          1: a step of every network fits this card")
    return lines
