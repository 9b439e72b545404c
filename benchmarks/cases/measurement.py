"""Everything that is measured of one checkpoint: network, statistics, test decisions."""

from __future__ import annotations

from .. import data
from ..harness import Goal, Results, Settings, Variant, case, interleave
from ..networks import NOTEBOOKS, OURS, measurement_of
from ..worker import Worker

CPU_GOAL, GPU_GOAL = Goal(3), Goal(20)


@case("measurement of a checkpoint", forms=("short", "full", "gpu"))
def measurement(settings: Settings, results: Results) -> None:
    raw = data.mnist(settings.mirror)
    sizes = {"ResNet18 width 8": (1024, 256), "ResNet18": (128, 32)}
    if settings.full:
        sizes = {name: (4 * train, 4 * test) for name, (train, test) in sizes.items()}
        sizes["VGG11"] = (1024, 256)
    if settings.device == "cuda":
        sizes = {"ResNet18": (10_000, 2000), "VGG11": (10_000, 2000)}
    for name, (train, test) in sizes.items():
        if settings.device == "cpu":
            # Processes of their own: how a process keeps its memory is a part of its speed.
            variants = {OURS: 1, NOTEBOOKS: 1}
            with Worker.group(settings, variants, name, train, notebook_threads=1) as groups:
                times = Worker.interleave(groups, settings.rounds, 2.0)
        else:
            images = data.subset(raw, train, test)
            times = interleave(
                {
                    variant: Variant(
                        measurement_of(variant, name, images, settings.device), train + test
                    )
                    for variant in (OURS, NOTEBOOKS)
                },
                settings.rounds,
                synchronise=settings.synchronise,
            )
        results.compare(
            name,
            times[OURS],
            "notebook: two passes, loops",
            times[NOTEBOOKS],
            unit="images",
            goal=GPU_GOAL if settings.device == "cuda" else CPU_GOAL,
            note=f"{train} train and {test} test images, float32",
        )
