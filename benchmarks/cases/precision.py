"""Does the arithmetic of the training step change neural collapse? Final NC1 to NC4 over seeds."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from neural_collapse.training.devices import set_determinism
from neural_collapse.training.loop import train

from .. import data
from ..harness import Results, Settings, case, torch_threads
from ..networks import CPU_PRECISIONS, PRECISIONS

SEEDS_CPU, SEEDS_GPU = range(8), range(4)
GPU_PROCESSES = 4  # a GPU computes for one while others start or evaluate
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
    """The paper's ResNet18 of MNIST, briefly: 2,048 images, 30 epochs, zero training error."""
    config = load_config(Path(__file__).parents[2] / "config.yaml")
    recipe = resolve_recipe(config, "mnist", "resnet")
    training = recipe.training.model_copy(update={"epochs": 30})
    sweep = recipe.sweep.model_copy(update={"learning_rate": 0.0679})
    recipe = recipe.model_copy(update={"training": training, "sweep": sweep})
    return [(recipe, data.mnist(settings.mirror, 2048, 2000))]


Job = tuple[Recipe, PreparedDataset, int, torch.device]


def done(jobs: list[Job], device: torch.device) -> Iterator[tuple[Job, dict]]:
    """Each job with its finals, as they come."""
    if device.type == "cpu":
        for job in jobs:
            with torch_threads(job[0].training.threads):
                yield job, finals(*job)
        return
    # CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(GPU_PROCESSES, context, set_determinism, (True,)) as pool:
        running = {pool.submit(finals, *job): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:  # after an error, of which the others would tell no more
            pool.shutdown(cancel_futures=True)


@case("precision of the training step", forms=("full", "gpu"))
def precision(settings: Settings, results: Results) -> None:
    """How far each precision's median lies from float32's, in standard deviations of its seeds:
    medians, since a few seeds in ten end far from the others, in any precision."""
    device = torch.device(settings.device)
    on_gpu = settings.form == "gpu"
    seeds = SEEDS_GPU if on_gpu else SEEDS_CPU
    precisions = PRECISIONS if on_gpu else CPU_PRECISIONS
    with tempfile.TemporaryDirectory() as root:
        cells = mnist_cells(settings) if on_gpu else digits_cells(Path(root))
    jobs = []
    for seed, name, (recipe, images) in itertools.product(seeds, precisions, cells):
        training = recipe.training.model_copy(update={"precision": name})
        jobs.append((recipe.model_copy(update={"training": training}), images, seed, device))
    found: dict[tuple[str, str], list[dict]] = {}
    for (recipe, _, seed, _), values in done(jobs, device):
        name = recipe.training.precision
        results.say(f"  {recipe.architecture}, {name}, seed {seed}: {json.dumps(values)}")
        found.setdefault((recipe.architecture, name), []).append(values)
    for recipe, images in cells:
        exact = found[recipe.architecture, "float32"]
        for statistic, name in itertools.product(exact[0], precisions[1:]):
            runs = found[recipe.architecture, name]
            reference = np.array([values[statistic] for values in exact])
            # A share of the test set moves by whole examples.
            least = 1 / len(images.test_labels) if statistic in OF_TEST else 0.0
            spread = max(reference.std(ddof=1), least)
            middle = np.median([values[statistic] for values in runs])
            expected = np.median(reference)
            distance = abs(middle - expected)
            results.value(
                f"{recipe.dataset} x {recipe.architecture}, {name}: {statistic}",
                distance / spread if spread else float(distance > 0) * np.inf,
                unit="standard deviations",
                note=f"{middle:.3g}; float32 {expected:.3g} ± {spread:.2g}, {len(seeds)} seeds",
            )
