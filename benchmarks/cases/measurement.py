"""Everything that is measured of one checkpoint: network, statistics, test decisions."""

from __future__ import annotations

from collections.abc import Callable

from .. import jobs as pieces
from ..harness import AS_IT_COMES, Goal, Results, Settings, Times, Variant, case, cores, interleave
from ..jobs import NOTEBOOK, Job, one_thread, whole_machine
from ..networks import OURS
from ..worker import take_turns

CPU_GOAL, GPU_GOAL = Goal(3), Goal(20)
REFERENCE = "notebook: two passes, loops"


@case("measurement of a checkpoint", forms=("short", "full", "gpu"))
def measurement(settings: Settings, results: Results) -> None:
    """On the CPU the notebook with torch's own threads, and jobs of ours, one a core."""
    if settings.device == "cpu":
        for name, train in sizes(settings).items():
            compare(name, train, settings, results, whole_machine)
        return
    for name in ("ResNet18", "VGG11"):
        train = 10_000
        times = on_gpu(name, train, settings)
        report(name, train, times, results, REFERENCE, GPU_GOAL, f"; {AS_IT_COMES}")


@case("measurement of a checkpoint, one thread", forms=("full",))
def one_thread_each(settings: Settings, results: Results) -> None:
    """What each side makes of one core."""
    for name, train in sizes(settings).items():
        compare(name, train, settings, results, one_thread)


def sizes(settings: Settings) -> dict[str, int]:
    """Train images by network; a quarter as many of the test set come on top."""
    found = {"ResNet18 width 8": 1024, "ResNet18": 128}
    if settings.full:
        found = {name: 4 * train for name, train in found.items()} | {"VGG11": 1024}
    return found


def compare(
    name: str,
    train: int,
    settings: Settings,
    results: Results,
    sides: Callable[[str, str, dict[str, int]], dict[str, list[Job]]],
) -> None:
    jobs = sides("measurement", name, {OURS: train, NOTEBOOK: train})
    times, _ = take_turns(jobs, settings.mirror, settings.rounds, 1.5)
    if sides is one_thread:
        report(name, train, times, results, f"{REFERENCE}, 1 thread")
    else:
        title = f"{name}, {cores()} jobs of 1 thread"
        report(title, train, times, results, f"{REFERENCE}, torch's own threads", CPU_GOAL)


def report(
    title: str,
    train: int,
    times: dict[str, Times],
    results: Results,
    reference: str,
    goal: Goal | None = None,
    more: str = "",
) -> None:
    results.compare(
        title,
        times[OURS],
        reference,
        times[NOTEBOOK],
        unit="images",
        goal=goal,
        note=f"{train} train and {train // 4} test images, float32{more}",
    )


def on_gpu(name: str, train: int, settings: Settings) -> dict[str, Times]:
    variants = {
        v: Variant(*pieces.measurement(v, name, train, settings.mirror, settings.device))
        for v in (OURS, NOTEBOOK)
    }
    return interleave(variants, settings.rounds, synchronise=settings.synchronise)
