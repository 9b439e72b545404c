"""Progress as text: one line every few seconds, on the screen and in the log."""

from __future__ import annotations

import sys
import time

from .text import clock_text

SAY_SECONDS = 5.0
"""The shortest time between two lines."""


def say(line: str) -> None:
    """Print one line at once; whole lines keep parallel jobs apart on one screen."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts steps of one job and says how far it is, at most every :data:`SAY_SECONDS`.

    The first and the last step are always said. Time left comes from the steps of this process,
    so a resumed job does not count what an earlier one did.
    """

    def __init__(self, label: str, unit: str, total: int, done: int = 0):
        self.label, self.unit, self.total = label, unit, total
        self.started_with = done
        self.started_at = self.said_at = time.monotonic()
        self.first = True

    def step(self, done: int, **values: str) -> None:
        """Say that `done` of `total` are done, with `values` as 'name value' pairs."""
        now = time.monotonic()
        if not (self.first or done >= self.total or now - self.said_at >= SAY_SECONDS):
            return
        self.first, self.said_at = False, now
        made = done - self.started_with
        parts = [f"{self.label}  {self.unit} {done:>{len(str(self.total))}}/{self.total}"]
        parts += [f"{name.replace('_', ' ')} {value}" for name, value in values.items()]
        elapsed = now - self.started_at
        if done >= self.total:
            parts.append(f"done in {clock_text(elapsed)}")
        elif made > 0:
            parts.append(f"{clock_text(elapsed / made * (self.total - done))} left")
        say("  ".join(parts))


class Amounts:
    """Says how much of each named thing is done, at most every :data:`SAY_SECONDS`.

    A callback for work that reports (what, done, total or None); amounts are divided by
    `divisor` and shown in `unit`. What is quick is not said at all.
    """

    def __init__(self, label: str, unit: str = "", divisor: float = 1):
        self.label, self.unit, self.divisor = label, unit, divisor
        self.said_at = time.monotonic()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self.said_at < SAY_SECONDS:
            return
        self.said_at = now
        amount = f"{done / self.divisor:,.0f}"
        if total:
            amount += f"/{total / self.divisor:,.0f}"
        say(f"{self.label}  {what}  {amount} {self.unit}".rstrip())
