"""Does the arithmetic of the training step change neural collapse? Final NC1 to NC4 over seeds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from neural_collapse.collapse.features import extract_splits
from neural_collapse.collapse.registry import OF_MOMENTS
from neural_collapse.collapse.result import compute_statistics
from neural_collapse.data.download import download_dataset
from neural_collapse.data.prepare import prepare_dataset
from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.experiment.config import load_config, resolve_recipe
from neural_collapse.experiment.recipe import Recipe
from neural_collapse.training.loop import train

from .. import data
from ..harness import Results, Settings, case, torch_threads

SEEDS_CPU, SEEDS_GPU = range(8), range(3)
PAPER = [name for name in OF_MOMENTS if name.startswith(("nc1", "nc2", "nc3", "nc4"))]
OF_TEST = ("nc4_ncc_mismatch", "test_error")


def finals(recipe: Recipe, images: PreparedDataset, seed: int, device: torch.device) -> dict:
    """NC1 to NC4 and the test error after the last epoch."""
    with tempfile.TemporaryDirectory() as states:
        history, network = train(
            recipe,
            images,
            learning_rate=recipe.sweep.learning_rate,
            seed=seed,
            device=device,
            state_root=states,
            evaluated_epochs=(0,),
        )
    moments, test, *_ = extract_splits(
        network, images, batch_size=recipe.training.evaluation_batch_size, device=device
    )
    values = compute_statistics(moments)
    mismatch = "nc4_ncc_mismatch"
    return {name: values[name] for name in PAPER if name != mismatch} | {
        mismatch: compute_statistics(test)[mismatch],
        "test_error": history.records[-1].test_error,
    }


def digits_cells(root: Path) -> list[tuple[Recipe, PreparedDataset]]:
    """The quickstart's digits, with the rates that it pins."""
    config = load_config(Path(__file__).parents[2] / "config" / "quickstart.yaml")
    cells = []
    for architecture in config.architectures:
        recipe = resolve_recipe(config, "digits", architecture)
        sweep = recipe.sweep.model_copy(update={"learning_rate": 0.05})
        cells.append(recipe.model_copy(update={"sweep": sweep}))
    download_dataset("digits", root / "raw")
    prepare_dataset("digits", root / "raw", root / "prepared", cells[0].data)
    images = PreparedDataset.open(root / "prepared")
    return [(recipe, images) for recipe in cells]


def mnist_cells(settings: Settings) -> list[tuple[Recipe, PreparedDataset]]:
    """MNIST in the paper's protocol but for its length: ResNet18, 35 epochs, the known rate."""
    images = data.mnist(settings.mirror)
    recipe = Recipe(
        dataset="mnist",
        architecture="resnet",
        network={"family": "resnet", "block": "basic", "blocks": [2, 2, 2, 2]},
        training={"epochs": 35, "threads": 4},
        sweep={"learning_rate": 0.0679},
        measurement={"epochs": 10},
    )
    return [(recipe, images)]


@case("precision of the training step", forms=("full", "gpu"))
def precision(settings: Settings, results: Results) -> None:
    """How far each precision's median lies from float32's, in standard deviations of its seeds:
    medians, since a few seeds in ten end far from the others, in any precision."""
    device = torch.device(settings.device)
    on_gpu = settings.form == "gpu"
    seeds = SEEDS_GPU if on_gpu else SEEDS_CPU
    with tempfile.TemporaryDirectory() as root:
        cells = mnist_cells(settings) if on_gpu else digits_cells(Path(root))
    for recipe, images in cells:
        found = {}
        # The CPU has no TF32.
        for name in ("float32", "tf32", "bfloat16") if on_gpu else ("float32", "bfloat16"):
            training = recipe.training.model_copy(update={"precision": name})
            changed = recipe.model_copy(update={"training": training})
            with torch_threads(recipe.training.threads):
                found[name] = [finals(changed, images, seed, device) for seed in seeds]
        exact = found.pop("float32")
        for statistic in exact[0]:
            reference = np.array([values[statistic] for values in exact])
            # A share of the test set moves by whole examples.
            least = 1 / len(images.test_labels) if statistic in OF_TEST else 0.0
            spread = max(reference.std(ddof=1), least)
            for name, runs in found.items():
                middle = np.median([values[statistic] for values in runs])
                expected = np.median(reference)
                distance = abs(middle - expected)
                results.value(
                    f"{recipe.dataset} x {recipe.architecture}, {name}: {statistic}",
                    distance / spread if spread else float(distance > 0) * np.inf,
                    unit="standard deviations",
                    note=f"{middle:.3g}; float32 {expected:.3g} ± {spread:.2g}, {len(seeds)} seeds",
                )
