"""Several learning rates in one process against one after another."""

from __future__ import annotations

import torch

from neural_collapse.experiment.config import Recipe, SweepRecipe, TrainingRecipe
from neural_collapse.networks.recipes import NetworkRecipe
from neural_collapse.networks.registry import resolve_network
from neural_collapse.training.together import METHODS, choose_method
from neural_collapse.training.trainer import DeviceData, Trainer

from .. import data
from ..harness import Goal, Results, Settings, Variant, case, interleave, torch_threads
from ..networks import BATCH

RATES = SweepRecipe().learning_rates  # the paper's 25


def small_resnet(width: int) -> dict:
    return {"name": "resnet18", "blocks": [1, 1, 1, 1], "width": width}


def small_vgg(width: int) -> dict:
    return {
        "name": "vgg11",
        "convolutions": [1, 1, 2, 2],
        "width": width,
        "hidden_width": 8 * width,
    }


NEVER_SLOWER = Goal(0.97)  # side by side is the same work: what is missing to 1 is noise


# (title, network, pixels, goal)
ON_CPU = [
    ("ResNet width 4, 8 px", small_resnet(4), 8, Goal(3)),
    ("VGG width 4, 8 px", small_vgg(4), 8, Goal(3)),
    ("ResNet width 16, 8 px", small_resnet(16), 8, NEVER_SLOWER),
    ("ResNet width 8, 32 px", small_resnet(8), 32, NEVER_SLOWER),
]
ON_CPU_SHORT = [ON_CPU[0], ON_CPU[-1]]
ON_GPU = [
    ("ResNet width 4, 8 px", small_resnet(4), 8, Goal(5)),
    ("ResNet18, 32 px", {"name": "resnet18"}, 32, Goal(2)),
    ("VGG11, 32 px", {"name": "vgg11"}, 32, Goal(1)),
]


@case("sweep of 25 learning rates", forms=("short", "full", "gpu"))
def sweep(settings: Settings, results: Results) -> None:
    """The paper's rates trained for an epoch of a few steps, each after the other and together."""
    device = torch.device(settings.device)
    on_gpu = settings.form == "gpu"
    cells = ON_GPU if on_gpu else ON_CPU if settings.full else ON_CPU_SHORT
    for title, network, pixels, goal in cells:
        count = BATCH * (20 if on_gpu else 1 if pixels == 32 else 4)
        images = data.averaged(
            data.prepared(data.subset(data.mnist(settings.mirror), count)), pixels
        )
        resolved: NetworkRecipe = resolve_network(network)
        recipe = Recipe(
            dataset="mnist",
            architecture="vgg" if network["name"] == "vgg11" else "resnet",
            network=resolved,
            training=TrainingRecipe(
                batch_size=BATCH, precision="bfloat16" if on_gpu else "float32"
            ),
        )
        with torch_threads(1):
            placed = DeviceData(recipe, images, device)
            chosen = choose_method(recipe, placed, RATES, 0)
            alone = [Trainer(recipe, placed, rate, 0, device) for rate in RATES]

            def one_by_one(alone=alone) -> None:
                for trainer in alone:
                    trainer.train_epoch(1)

            variants = {"one after another": Variant(one_by_one, len(RATES))}
            for kind in METHODS.values():
                joint = kind(recipe, placed, RATES, 0)
                variants[kind.method] = Variant(
                    lambda joint=joint: joint.train_epoch(1), len(RATES)
                )
            times = interleave(variants, settings.rounds, synchronise=settings.synchronise)
        for method in METHODS:
            taken = method == chosen.method
            results.compare(
                f"{title}, {method}",
                times[method],
                "one after another",
                times["one after another"],
                unit="epochs",
                goal=goal if taken else None,
                note="what the probe chose" if taken else "",
            )
