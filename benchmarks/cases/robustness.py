"""DeepFool in batches against one image at a time."""

from __future__ import annotations

import numpy as np
import torch

from neural_collapse.collapse import robustness as ours
from neural_collapse.images import Normalisation

from .. import data
from ..harness import Goal, Results, Settings, Times, Variant, case, interleave
from ..jobs import ONE_BY_ONE, whole_machine
from ..networks import OURS, cores, sized, trainer
from ..references import deepfool as per_sample
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
    for network in NETWORKS:
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
        )
        results.value(
            f"{network}: relative difference of the mean robustness",
            abs(means[OURS] / means[ONE_BY_ONE] - 1),
            unit="",
            goal=SAME,
            note=f"ours {means[OURS]:.4f}, theirs {means[ONE_BY_ONE]:.4f}",
        )


def on_gpu(network: str, settings: Settings) -> tuple[dict[str, Times], dict[str, float]]:
    raw = data.subset(data.mnist(settings.mirror), 2560, 500)
    trained = trainer(network, raw, "float32", settings.device)
    for epoch in (1, 2, 3):
        trained.train_epoch(epoch)
    images = sized(network, raw)
    chosen = images.test_images[:COUNT]
    bytes_ = torch.from_numpy(chosen).to(settings.device)
    inputs = Normalisation(images.mean, images.std, settings.device)(bytes_)
    found: dict[str, float] = {}

    def theirs() -> None:
        values = per_sample.robustness(trained.network.eval(), inputs)
        found[ONE_BY_ONE] = float(values.mean())

    def batched() -> None:
        values = ours(
            trained.network,
            chosen,
            images.mean,
            images.std,
            batch_size=COUNT,
            device=settings.device,
        )
        found[OURS] = float(np.nanmean(values))

    times = interleave(
        {ONE_BY_ONE: Variant(theirs, COUNT), OURS: Variant(batched, COUNT)},
        2,
        synchronise=settings.synchronise,
    )
    return times, found
