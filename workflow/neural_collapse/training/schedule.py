"""The evaluated epochs and the names of learning rates: pure functions."""

from __future__ import annotations

SWEEP_EVALUATIONS = 50
"""How often a candidate of the sweep is evaluated: its last epoch decides, and a curve needs no
more. Not the measured epochs, whose change must not train the sweep again."""


def learning_rate_name(rate: float) -> str:
    """A learning rate as text in paths and tables: five significant digits."""
    return f"{rate:.5g}"


def spaced_epochs(last: int, count: int) -> tuple[int, ...]:
    """The epochs that the authors' notebook measures: `count` of 1..`last`, denser at the start.

    The spacing is geometric where that advances at least one epoch, otherwise one epoch. Fewer
    than `count` come back where `last` is smaller.
    """
    if count >= last:
        return tuple(range(1, last + 1))
    epochs = [1.0]
    ratio = (last / epochs[-1]) ** (1 / (count - len(epochs)))
    while len(epochs) < count:
        following = epochs[-1] * ratio
        if following - epochs[-1] >= 1:
            epochs.append(following)
        else:
            epochs.append(epochs[-1] + 1)
            if len(epochs) < count:
                ratio = (last / epochs[-1]) ** (1 / (count - len(epochs)))
    return tuple(sorted({round(epoch) for epoch in epochs}))
