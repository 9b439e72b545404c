"""Measure a run's checkpoints while its training goes on, so that little is left when it ends.

    python -m benchmarks.measure_along WORK DEVICE GPUS

For gpu_window.sh. The folder WORK holds cell/recipe.json, the prepared data and the training's
state. Features are written to WORK/cell/features; statistics to WORK/so-far while checkpoints are
missing, to WORK/cell when they are complete. A file WORK/trained says that no checkpoint will
follow.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from unittest import mock

from neural_collapse.experiment.recipe import Recipe, read_recipe
from neural_collapse.experiment.stages.measure import compute_statistics, extract_features
from neural_collapse.training.checkpoints import checkpoint_name


def measure_along(work: Path, device: str, gpus: int) -> bool:
    """Measure until the training has ended; returns whether all checkpoints were measured.

    device, gpus: as in `extract_features`, whose own job would resume from the same states.
    """
    cell = work / "cell"
    recipe_path, features = cell / "recipe.json", cell / "features"
    recipe = read_recipe(recipe_path)
    every, done = recipe.measured_epochs, ()
    place = {"seed": 0, "state_root": work / "f", "device": device, "gpus": gpus}

    def measure(new: tuple[int, ...], found: tuple[int, ...], folder: Path) -> None:
        with mock.patch.object(Recipe, "measured_epochs", new):
            extract_features(
                recipe_path, work / "data", features, checkpoint_folder=folder, **place
            )
        target = cell if found == every else work / "so-far"
        tables = [target / f"{name}.parquet" for name in ("statistics", "activations")]
        with mock.patch.object(Recipe, "measured_epochs", found):
            compute_statistics(recipe_path, features, *tables, seed=0)

    # Those of the whole run: they are chosen from the measured epochs.
    with mock.patch.object(Recipe, "activation_epochs", recipe.activation_epochs):
        while True:
            ended = (work / "trained").exists()
            folder = next(work.glob("state/*/checkpoints"), work)
            found = tuple(epoch for epoch in every if (folder / checkpoint_name(epoch)).exists())
            if new := tuple(epoch for epoch in found if epoch not in done):
                measure(new, found, folder)
                done = found
            elif ended or done == every:
                return done == every
            else:
                time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(not measure_along(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
