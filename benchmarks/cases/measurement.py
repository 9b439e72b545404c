"""Everything that is measured of one checkpoint: network, statistics, test decisions."""

from __future__ import annotations

import torch

from neural_collapse.collapse import compute_statistics, extract
from neural_collapse.config import TrainingRecipe
from neural_collapse.datasets.prepared import PreparedDataset

from .. import data
from ..harness import Goal, Results, Settings, Variant, case, interleave, torch_threads
from ..networks import BATCH, fresh_network, notebook_dataset
from ..references import measurement as notebook
from ..references.training import loader

CPU_GOAL, GPU_GOAL = Goal(3), Goal(20)


def measured(
    network: torch.nn.Module, images: PreparedDataset, settings: Settings
) -> dict[str, float]:
    """As the pipeline's stages do it, from prepared arrays."""
    common = {
        "mean": images.mean,
        "std": images.std,
        "batch_size": TrainingRecipe().evaluation_batch_size,
        "device": settings.device,
        "num_classes": images.num_classes,
    }
    train, _ = extract(network, images.train_images, images.train_labels, **common)
    test, _ = extract(
        network,
        images.test_images,
        images.test_labels,
        reference_means=train.class_means,
        **common,
    )
    found = compute_statistics(train)
    return found | {f"test_{name}": value for name, value in compute_statistics(test).items()}


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
        images = data.subset(raw, train, test)
        prepared = data.prepared(images)
        ours = fresh_network(name).to(settings.device)
        theirs = fresh_network(name).to(settings.device)
        loaders = [
            loader(notebook_dataset(images, split), BATCH, shuffle=False, drop_last=False)
            for split in ("train", "test")
        ]
        count = train + test
        with torch_threads(1):
            times = interleave(
                {
                    "notebook": Variant(lambda n=theirs, p=loaders: notebook.measure(n, *p), count),
                    "ours": Variant(lambda n=ours, i=prepared: measured(n, i, settings), count),
                },
                settings.rounds,
                synchronise=settings.synchronise,
            )
        results.compare(
            name,
            times["ours"],
            "notebook: two passes, loops",
            times["notebook"],
            unit="images",
            goal=GPU_GOAL if settings.device == "cuda" else CPU_GOAL,
            note=f"{train} train and {test} test images, float32",
        )
