"""Timing several variants of one piece of work against each other, and the table of the results.

Variants take turns, round by round, so that what else the machine does hits all of them alike. The
first round only warms up. A variant's time is its best round's; the spread is that of the ratios of
single rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

MINIMUM_SECONDS = 0.2
"""A timed piece lasts at least about as long: shorter calls are repeated within a round."""
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
    "note": "string",
}


@dataclass(frozen=True)
class Variant:
    """`run` does `work` units of work (images, examples) each time it is called."""

    run: Callable[[], Any]
    work: float


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
    settings: Settings,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time each variant once a round."""

    def timed(variant: Variant, repeats: int) -> float:
        settings.synchronise()
        started = clock()
        for _ in range(repeats):
            variant.run()
        settings.synchronise()
        return (clock() - started) / repeats

    repeats = {}
    for name, variant in variants.items():
        seconds = timed(variant, 1)
        if seconds < MINIMUM_SECONDS:
            seconds = timed(variant, 1)  # the first call may have loaded or compiled something
        repeats[name] = max(1, math.ceil(MINIMUM_SECONDS / max(seconds, 1e-9)))
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(settings.rounds):
        for name, variant in variants.items():
            found[name].append(timed(variant, repeats[name]) / variant.work)
    return {name: Times(tuple(seconds)) for name, seconds in found.items()}


@dataclass(frozen=True)
class Settings:
    """What a case may ask: the form, where the datasets' files lie."""

    form: str
    mirror: str | None = None

    @property
    def full(self) -> bool:
        return self.form == "full"

    @property
    def device(self) -> str:
        return "cuda" if self.form == "gpu" else "cpu"

    @property
    def rounds(self) -> int:
        return 3 if self.full else 2

    def synchronise(self) -> None:
        """Wait for what is under way on the device."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


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


# -------------------------------------------------------------------------------------- results


@dataclass
class Results:
    """The rows of one case, printed as they come."""

    case: str
    say: Callable[[str], None] = print
    rows: list[dict[str, Any]] = field(default_factory=list)

    def compare(
        self, variant: str, ours: Times, reference: str, theirs: Times, unit: str, note: str = ""
    ) -> None:
        """The rates, in `unit` a second, and their ratio."""
        ratio, low, high = ours.ratio_to(theirs)
        self.value(
            variant,
            1 / ours.best,
            unit=f"{unit}/s",
            reference=reference,
            reference_value=1 / theirs.best,
            ratio=ratio,
            ratio_low=low,
            ratio_high=high,
            note=note,
        )

    def value(self, variant: str, value: float, **others: Any) -> None:
        """A number; others: of the columns."""
        row = {"case": self.case, "variant": variant, "value": value} | others
        self.rows.append(row)
        self.say("  " + " | ".join(_cells(row)))


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """All rows with the columns of `COLUMNS`."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


HEADINGS = ("case", "ours", "reference", "reference's", "ours'", "ratio", "spread")


def _cells(row: Mapping[str, Any]) -> list[str]:
    """One row as text, in the order of `HEADINGS`."""
    known = {key: value for key, value in row.items() if not pd.isna(value) and value != ""}
    unit = known.get("unit", "")
    note = f" ({known['note']})" if "note" in known else ""
    cells = [row["case"], row["variant"] + note, known.get("reference", "")]
    for key in ("reference_value", "value"):
        cells.append(f"{_number(known[key])} {unit}".strip() if key in known else "")
    cells += ["", ""]
    if "ratio" in known:
        cells[-2] = f"{_number(known['ratio'])}x"
        cells[-1] = f"{_number(known['ratio_low'])}..{_number(known['ratio_high'])}"
    return [cell.replace("|", "/") for cell in cells]


def markdown(frame: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """The table with what it was measured on above it."""
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in frame.to_dict("records")]
    return "\n".join(lines) + "\n"


def write(frame: pd.DataFrame, facts: Mapping[str, Any], folder: Path, form: str) -> None:
    """<form>.parquet and <form>.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in facts.items():
        frame[name] = str(value)
    frame.to_parquet(folder / f"{form}.parquet", index=False)
    (folder / f"{form}.md").write_text(markdown(frame, facts), encoding="utf-8")


def environment(device: str) -> dict[str, Any]:
    """Machine, versions and commit."""
    import torch

    from neural_collapse.experiment.provenance import commit, machine

    facts = machine(torch.device(device))
    return {
        "processor": facts["processor"],
        **({"gpu": facts["gpu"]} if "gpu" in facts else {}),
        "torch": torch.__version__,
        "commit": commit(),
    }


# ---------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    forms: tuple[str, ...]
    run: Callable[[Settings, Results], None]


CASES: dict[str, Case] = {}


def case(name: str, forms: Sequence[str] = ("short", "full")) -> Callable:
    """Register `function(settings, results)` as a case of these forms."""

    def register(function: Callable[[Settings, Results], None]) -> Callable:
        CASES[name] = Case(tuple(forms), function)
        return function

    return register
