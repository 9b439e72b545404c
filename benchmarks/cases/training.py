"""Training, the measurement of a checkpoint and the attack, against the notebook's loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from neural_collapse.collapse.attacks import robustness as our_robustness
from neural_collapse.data.images import Normalisation
from neural_collapse.inspect.gpu_speed import ceilings
from neural_collapse.training.devices import set_determinism

from .. import data, networks
from ..harness import Results, Settings, Variant, case, interleave, torch_threads
from ..networks import BATCH, CPU_PRECISIONS, NETWORKS, PRECISIONS
from ..references import deepfool as per_image

AS_IT_COMES = "reference as PyTorch comes: float32, but for convolutions, which are TF32 on a GPU"
FORMS = ("short", "full", "gpu")


def sizes(settings: Settings, steps_narrow: int, steps: int) -> dict[str, int]:
    """Images an epoch of each network that a form compares."""
    if settings.device == "cuda":
        return {"ResNet18": 12_800, "VGG11": 12_800}
    names = NETWORKS if settings.full else ["ResNet18 width 8", "VGG11 width 16", "ResNet18"]
    return {name: BATCH * (steps_narrow if "width" in name else steps) for name in names}


def where(settings: Settings) -> str:
    return AS_IT_COMES if settings.device == "cuda" else "1 thread each"


def deterministic(run: Callable[[], Any], chosen: bool) -> Callable[[], Any]:
    """`run` with a GPU's kernels as the pipeline's jobs choose them; PyTorch's own afterwards."""

    def chosen_kernels() -> None:
        set_determinism(chosen)
        try:
            run()
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = False

    return chosen_kernels


@case("peak speed", forms=("gpu",))
def peak_speed(settings: Settings, results: Results) -> None:
    for name, value in ceilings(torch.device(settings.device), 1.0).items():
        results.value(name.replace("_", " "), value)


@case("training", forms=FORMS)
def training(settings: Settings, results: Results) -> None:
    """The notebook's loop, also with a loader of 8 workers, against every precision."""
    device, on_gpu = settings.device, settings.device == "cuda"
    for network, count in sizes(settings, 16 if settings.full else 8, 2).items():
        images = data.mnist(settings.mirror, count, 256)
        references = {"notebook": Variant(networks.notebook_epochs(network, images, device), count)}
        if settings.full or on_gpu:
            epochs = networks.notebook_epochs(network, images, device, workers=8)
            references["notebook, loader of 8 workers"] = Variant(epochs, count)
        ours = {}
        for precision in PRECISIONS if on_gpu else CPU_PRECISIONS:
            epochs = networks.our_epochs(networks.trainer(network, images, precision, device))
            ours[precision] = Variant(deterministic(epochs, True) if on_gpu else epochs, count)
        if on_gpu:
            epochs = networks.our_epochs(networks.trainer(network, images, "bfloat16", device))
            ours["bfloat16, not deterministic"] = Variant(deterministic(epochs, False), count)
        with torch_threads(1):
            times = interleave(references | ours, settings)
        for variant in ours:
            for reference in references:
                results.compare(
                    f"{network}, {variant}",
                    times[variant],
                    reference,
                    times[reference],
                    "images",
                    where(settings),
                )


@case("measurement of a checkpoint", forms=FORMS)
def measurement(settings: Settings, results: Results) -> None:
    """Network, statistics and test decisions of everything that is measured."""
    for network, count in sizes(settings, 8, 1).items():
        images, work = data.mnist(settings.mirror, count, count // 4), count + count // 4
        ours = networks.our_measurement(network, images, settings.device)
        notebook = networks.notebook_measurement(network, images, settings.device)
        with torch_threads(1):
            times = interleave(
                {"ours": Variant(ours, work), "notebook": Variant(notebook, work)}, settings
            )
        results.compare(
            f"{network}, float32, {count} train and {count // 4} test images",
            times["ours"],
            "notebook: two passes, loops",
            times["notebook"],
            "images",
            where(settings),
        )


@case("deepfool", forms=FORMS)
def deepfool(settings: Settings, results: Results) -> None:
    """Batches against one image at a time, of a network trained for three epochs."""
    network, device = "ResNet18 width 8", settings.device
    images, found = data.mnist(settings.mirror, 2560, 100), {}
    trained = networks.trainer(network, images, "float32", device)
    chosen, count = images.test_images, len(images.test_images)
    inputs = Normalisation(images.mean, images.std, device)(torch.from_numpy(chosen).to(device))

    few = 20 if device == "cuda" else count  # one at a time takes longer there

    def one_by_one() -> None:
        found["theirs"] = per_image.robustness(trained.network.eval(), inputs[:few]).mean().item()

    def batched() -> None:
        ratios = our_robustness(
            trained.network, chosen, images.mean, images.std, batch_size=count, device=device
        )
        found["ours"] = float(np.nanmean(ratios[:few]))

    with torch_threads(1):
        for epoch in (1, 2, 3):
            trained.train_epoch(epoch)
        times = interleave(
            {"theirs": Variant(one_by_one, few), "ours": Variant(batched, count)}, settings
        )
    results.compare(
        f"{network}, {count} images",
        times["ours"],
        f"{few} of them one at a time, a backward pass a candidate",
        times["theirs"],
        "images",
        where(settings),
    )
    results.value(
        f"{network}: relative difference of the mean robustness",
        abs(found["ours"] / found["theirs"] - 1),
        note=f"ours {found['ours']:.4f}, theirs {found['theirs']:.4f}",
    )
