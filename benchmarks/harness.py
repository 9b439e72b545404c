"""Timing several variants of one piece of work against each other, and the table of the results.

Variants take turns, round by round, so that what else the machine does hits all of them alike: in
one process (`interleave`) or each in its own (`worker.take_turns`). The first round only warms up.
A variant's time is its best round's; the spread is that of the ratios of single rounds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

MINIMUM_SECONDS = 0.2
"""A timed piece lasts at least about as long: shorter calls are repeated within a round."""

AS_IT_COMES = "reference as PyTorch comes: float32, but for convolutions, which are TF32 on a GPU"

COLUMNS = {
    "case": "string",
    "variant": "string",  # ours, or what was measured
    "reference": "string",
    "unit": "string",
    "reference_value": "float64",
    "value": "float64",
    "ratio": "float64",
    "ratio_low": "float64",
    "ratio_high": "float64",
    "goal": "string",
    "reached": "boolean",
    "note": "string",
}


@dataclass(frozen=True)
class Goal:
    """A limit on a ratio, or on a value where there is no reference."""

    limit: float
    at_most: bool = False

    def reached(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def text(self, unit: str) -> str:
        return f"{'<=' if self.at_most else '>='} {_number(self.limit)}{unit}"


@dataclass(frozen=True)
class Variant:
    """`run` does `work` units of work (images, examples, calls) each time it is called."""

    run: Callable[[], Any]
    work: float = 1.0


@dataclass(frozen=True)
class Times:
    """Seconds a unit of work, of each round."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    def ratio_to(self, reference: Times) -> tuple[float, float, float]:
        """How many times the reference's speed this is: by best rounds, and the rounds' range."""
        rounds = [r / o for r, o in zip(reference.seconds, self.seconds, strict=True)]
        return reference.best / self.best, min(rounds), max(rounds)


def interleave(
    variants: Mapping[str, Variant],
    rounds: int,
    *,
    synchronise: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    minimum_seconds: float = MINIMUM_SECONDS,
) -> dict[str, Times]:
    """Time each variant once a round.

    synchronise: waits for what a variant left under way on a device.
    """

    def timed(variant: Variant, repeats: int) -> float:
        synchronise()
        started = clock()
        for _ in range(repeats):
            variant.run()
        synchronise()
        return (clock() - started) / repeats

    repeats = {}
    for name, variant in variants.items():
        seconds = timed(variant, 1)
        if seconds < minimum_seconds:
            seconds = timed(variant, 1)  # the first call may have loaded or compiled something
        repeats[name] = max(1, math.ceil(minimum_seconds / max(seconds, 1e-9)))
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            found[name].append(timed(variant, repeats[name]) / variant.work)
    return {name: Times(tuple(seconds)) for name, seconds in found.items()}


# -------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Settings:
    """What a case may ask: the form, where the datasets' files lie, how many rounds."""

    form: str
    mirror: str | None = None
    rounds: int = 3

    @property
    def full(self) -> bool:
        return self.form == "full"

    @property
    def device(self) -> str:
        return "cuda" if self.form == "gpu" else "cpu"

    def synchronise(self) -> None:
        """Wait for what is under way on the device."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


@dataclass
class Results:
    """The rows of one case, printed as they come."""

    case: str
    say: Callable[[str], None] = print
    rows: list[dict[str, Any]] = field(default_factory=list)

    def compare(
        self,
        variant: str,
        ours: Times,
        reference: str,
        theirs: Times,
        *,
        unit: str,
        goal: Goal | None = None,
        note: str = "",
    ) -> float:
        """A ratio reference / ours. unit: of the work, for rates ("images"); "" gives seconds."""
        ratio, low, high = ours.ratio_to(theirs)
        values = [1 / times.best if unit else times.best for times in (theirs, ours)]
        self._add(
            variant,
            reference=reference,
            unit=f"{unit}/s" if unit else "s",
            reference_value=values[0],
            value=values[1],
            ratio=ratio,
            ratio_low=low,
            ratio_high=high,
            goal=goal and goal.text("x"),
            reached=goal and goal.reached(ratio),
            note=note,
        )
        return ratio

    def value(
        self, variant: str, value: float, *, unit: str, goal: Goal | None = None, note: str = ""
    ) -> None:
        """A number that needs no reference."""
        self._add(
            variant,
            value=value,
            unit=unit,
            goal=goal and goal.text(f" {unit}" if unit else ""),
            reached=goal and goal.reached(value),
            note=note,
        )

    def skip(self, reason: str) -> None:
        """Say in a sentence why there is nothing."""
        self._add("-", note=reason)

    def _add(self, variant: str, **values: Any) -> None:
        row = {"case": self.case, "variant": variant} | values
        self.rows.append(row)
        self.say("  " + " | ".join(markdown_cells(row)))


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """All rows with the columns of `COLUMNS`."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _number(value: Any) -> str:
    if value is None or pd.isna(value):
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


HEADINGS = (
    "case",
    "ours",
    "reference",
    "reference's",
    "ours'",
    "ratio",
    "spread",
    "goal",
    "reached",
)


def markdown_cells(row: Mapping[str, Any]) -> list[str]:
    """One row as text, in the order of `HEADINGS`."""

    def text(key: str) -> str:
        value = row.get(key)
        return "" if value is None or pd.isna(value) else str(value)

    unit = text("unit")
    values = [
        f"{number} {unit}".strip() if (number := _number(row.get(key))) else ""
        for key in ("reference_value", "value")
    ]
    ratio = _number(row.get("ratio"))
    spread = f"{_number(row['ratio_low'])}..{_number(row['ratio_high'])}" if ratio else ""
    reached = row.get("reached")
    verdict = "" if reached is None or pd.isna(reached) else "yes" if reached else "no"
    variant = text("variant") + (f" ({text('note')})" if text("note") else "")
    cells = [text("case"), variant, text("reference"), *values, ratio and f"{ratio}x", spread]
    return [cell.replace("|", "/") for cell in [*cells, text("goal"), verdict]]


def markdown(frame: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """The table with what it was measured on above it."""
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for row in frame.to_dict("records"):
        lines.append("| " + " | ".join(markdown_cells(row)) + " |")
    missed = int((frame["reached"] == False).sum())  # noqa: E712
    judged = int(frame["reached"].notna().sum())
    lines += ["", f"{judged - missed} of {judged} goals reached."]
    return "\n".join(lines) + "\n"


def write(frame: pd.DataFrame, facts: Mapping[str, Any], folder: Path, form: str) -> None:
    """<form>.parquet and <form>.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in facts.items():
        frame[name] = str(value)
    frame.to_parquet(folder / f"{form}.parquet", index=False)
    (folder / f"{form}.md").write_text(markdown(frame, facts), encoding="utf-8")


def cores() -> int:
    """Of those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_cores(most: int) -> None:
    """Use no more cores, nor do processes started from now on, where the system can be told."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:most])


def environment(device: Any = None) -> dict[str, Any]:
    """Machine, versions and commit."""
    import torch

    from neural_collapse.experiment.provenance import commit, machine

    facts = machine(device)
    return {
        "processor": facts["processor"],
        "cores": cores(),
        **({"gpu": facts["gpu"]} if "gpu" in facts else {}),
        "torch": torch.__version__,
        "threads_by_default": torch.get_num_threads(),
        "commit": commit(),
    }


# ---------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    name: str
    forms: tuple[str, ...]
    run: Callable[[Settings, Results], None]


CASES: dict[str, Case] = {}


def case(name: str, forms: Sequence[str] = ("short", "full")) -> Callable:
    """Register `function(settings, results)` as a case of these forms."""

    def register(function: Callable[[Settings, Results], None]) -> Callable:
        CASES[name] = Case(name, tuple(forms), function)
        return function

    return register


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many CPU threads within the block, torch's and numpy's."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
