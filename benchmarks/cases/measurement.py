"""Everything that is measured of one checkpoint: network, statistics, test decisions."""

from __future__ import annotations

from .. import data
from ..harness import Goal, Results, Settings, Times, Variant, case, interleave
from ..jobs import NOTEBOOK, Job
from ..networks import OURS, cores, measurement_of
from ..worker import take_turns

CPU_GOAL, GPU_GOAL = Goal(3), Goal(20)
REFERENCE = "notebook: two passes, loops"


@case("measurement of a checkpoint", forms=("short", "full", "gpu"))
def measurement(settings: Settings, results: Results) -> None:
    sizes = {"ResNet18 width 8": 1024, "ResNet18": 128}
    if settings.full:
        sizes = {name: 4 * train for name, train in sizes.items()} | {"VGG11": 1024}
    if settings.device == "cuda":
        sizes = {"ResNet18": 10_000, "VGG11": 10_000}
    for name, train in sizes.items():
        if settings.device == "cpu":
            jobs = {v: [Job("measurement", v, name, train)] for v in (OURS, NOTEBOOK)}
            times, _ = take_turns(jobs, settings.mirror, settings.rounds, 2.0)
        else:
            times = on_gpu(name, train, settings)
        results.compare(
            name,
            times[OURS],
            REFERENCE,
            times[NOTEBOOK],
            unit="images",
            goal=GPU_GOAL if settings.device == "cuda" else CPU_GOAL,
            note=f"{train} train and {train // 4} test images, float32"
            + (", 1 thread each" if settings.device == "cpu" else ""),
        )


def on_gpu(name: str, train: int, settings: Settings) -> dict[str, Times]:
    images = data.subset(data.mnist(settings.mirror), train, train // 4)
    return interleave(
        {
            variant: Variant(
                measurement_of(variant, name, images, settings.device), train + train // 4
            )
            for variant in (OURS, NOTEBOOK)
        },
        settings.rounds,
        synchronise=settings.synchronise,
    )


@case("measurement, whole machine")
def whole_machine(settings: Settings, results: Results) -> None:
    """The notebook with torch's own threads against one job of ours a core, side by side."""
    count = cores()
    names = {"ResNet18": 128} | ({"ResNet18 width 8": 1024, "VGG11": 512} if settings.full else {})
    for name, train in names.items():
        jobs = {
            OURS: [Job("measurement", OURS, name, train)] * count,
            NOTEBOOK: [Job("measurement", NOTEBOOK, name, train, threads=0)],
        }
        times, _ = take_turns(jobs, settings.mirror, settings.rounds, 2.0)
        results.compare(
            f"{name}, {count} jobs of 1 thread",
            times[OURS],
            f"{REFERENCE}, {count} threads",
            times[NOTEBOOK],
            unit="images",
            goal=CPU_GOAL,
            note=f"{train} train and {train // 4} test images, float32",
        )
