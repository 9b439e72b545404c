"""DeepFool in batches against one image at a time."""

from __future__ import annotations

from collections.abc import Callable

from ..harness import AS_IT_COMES, Goal, Results, Settings, Times, Variant, case, cores, interleave
from ..jobs import ONE_BY_ONE, attacks, whole_machine
from ..networks import OURS
from ..worker import take_turns

CPU_GOAL, GPU_GOAL = Goal(8), Goal(100)
SAME = Goal(0.01, at_most=True)
NETWORKS = ["ResNet (1,1,1,1) width 8, 8 px", "ResNet18 width 8"]
COUNT = 100  # images, as in the paper


@case("deepfool", forms=("short", "full", "gpu"))
def deepfool(settings: Settings, results: Results) -> None:
    ours_threads = their_threads = ""
    if settings.device == "cpu":
        ours_threads, their_threads = f", {cores()} jobs of 1 thread", ", torch's own threads"
    for network in NETWORKS[:1] if settings.form == "short" else NETWORKS:
        if settings.device == "cuda":
            times, means = on_gpu(network, settings)
        else:
            jobs = whole_machine("robustness", network, {ONE_BY_ONE: COUNT, OURS: COUNT})
            times, means = take_turns(jobs, settings.mirror, 2 if settings.full else 1, 0.5)
        results.compare(
            f"{network}, {COUNT} images" + ours_threads,
            times[OURS],
            "one image at a time, a backward pass a candidate" + their_threads,
            times[ONE_BY_ONE],
            unit="images",
            goal=GPU_GOAL if settings.device == "cuda" else CPU_GOAL,
            note=AS_IT_COMES if settings.device == "cuda" else "",
        )
        results.value(
            f"{network}: relative difference of the mean robustness",
            abs(means[OURS] / means[ONE_BY_ONE] - 1),
            unit="",
            goal=SAME,
            note=f"ours {means[OURS]:.4f}, theirs {means[ONE_BY_ONE]:.4f}",
        )


def on_gpu(network: str, settings: Settings) -> tuple[dict[str, Times], dict[str, float]]:
    """Both ways in this process, on one network."""
    found: dict[str, float] = {}

    def kept(variant: str, attack: Callable[[], float]) -> Variant:
        return Variant(lambda: found.update({variant: attack()}), COUNT)

    ways = attacks(network, COUNT, settings.mirror, settings.device)
    variants = {variant: kept(variant, attack) for variant, attack in ways.items()}
    return interleave(variants, 2, synchronise=settings.synchronise), found
