"""DeepFool in batches against one image at a time."""

from __future__ import annotations

import numpy as np
import torch

from neural_collapse.collapse import robustness as ours
from neural_collapse.images import Normalisation

from .. import data
from ..harness import Goal, Results, Settings, Variant, case, interleave, torch_threads
from ..networks import sized, trainer
from ..references import deepfool as per_sample

CPU_GOAL, GPU_GOAL = Goal(8), Goal(100)
SAME = Goal(0.01, at_most=True)
NETWORKS = ["ResNet (1,1,1,1) width 8, 8 px", "ResNet18 width 8"]


@case("deepfool", forms=("short", "full", "gpu"))
def deepfool(settings: Settings, results: Results) -> None:
    for network in NETWORKS:
        attack(network, settings, results)


def attack(title: str, settings: Settings, results: Results) -> None:
    """A network trained for three epochs, its test images attacked in both ways."""
    count = 100  # as in the paper; one at a time, a part of them is enough to be timed
    alone = 20 if settings.form == "short" else count
    raw = data.subset(data.mnist(settings.mirror), 5120, 500)
    trained = trainer(title, raw, "float32", settings.device)
    with torch_threads(1):
        for epoch in (1, 2, 3):
            trained.train_epoch(epoch)
        network = trained.network
        error = trained.evaluate(3).test_error
        images = sized(title, raw)
        chosen = images.test_images[:count]
        bytes_ = torch.from_numpy(chosen).to(settings.device)
        inputs = Normalisation(images.mean, images.std, settings.device)(bytes_)
        found: dict[str, np.ndarray] = {}

        def theirs() -> None:
            found["theirs"] = per_sample.robustness(network.eval(), inputs[:alone]).cpu().numpy()

        def batched() -> None:
            found["ours"] = ours(
                network, chosen, images.mean, images.std, batch_size=count, device=settings.device
            )

        times = interleave(
            {"theirs": Variant(theirs, alone), "ours": Variant(batched, count)},
            min(settings.rounds, 2),
            synchronise=settings.synchronise,
        )
    results.compare(
        f"{title}, {count} images",
        times["ours"],
        "one image at a time, a backward pass a candidate",
        times["theirs"],
        unit="images",
        goal=GPU_GOAL if settings.device == "cuda" else CPU_GOAL,
        note=f"trained to a test error of {100 * error:.1f} %",
    )
    means = {name: float(np.nanmean(ratios[:alone])) for name, ratios in found.items()}
    results.value(
        f"{title}: relative difference of the mean robustness",
        abs(means["ours"] / means["theirs"] - 1),
        unit="",
        goal=SAME,
        note=f"ours {means['ours']:.4f}, theirs {means['theirs']:.4f}",
    )
