"""Measurement of a run's checkpoints: features, statistics, robustness."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ...collapse.attacks import robustness
from ...collapse.features import Watched, extract_splits
from ...collapse.moments import Moments, StoredMoments, load_moments, save_moments
from ...collapse.projection import project_three_classes
from ...collapse.result import compute_statistics as statistics_of_moments
from ...collapse.separation import LEAST_LAYERS, separation_law
from ...collapse.statistics import UndefinedStatistic, mean_cosine, mse_decomposition
from ...io import versions
from ...io.errors import UserError
from ...io.files import deliver, reading, require_writable
from ...io.progress import Progress
from ...io.tensorboard import Events
from ...io.tensors import keep_if_whole, read_tensors, write_tensors
from ...networks.build import build_network
from ...results.tables import empty_table, write_table
from ...training.checkpoints import checkpoint_name, list_checkpoints, load_checkpoint
from ...training.devices import device_for
from ...training.state import StateFolder, fingerprint
from ..recipe import READ_ELSEWHERE, Recipe, read_recipe
from .data import open_data
from .other import is_other, open_other, other_statistics, stored_other_statistics
from .train import tensorboard_folder

UNLEARNED = {"classifier": "not learned"}
"""Metadata of the moments of a user-defined network whose last layer has no weight of its own that
is trained."""
ROBUSTNESS_FORMAT = "neural_collapse.robustness/1"


def _digest(path: Path) -> str:
    with reading(path, "a checkpoint"), open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


@contextmanager
def _measured_checkpoints(
    recipe: Recipe,
    data,
    what: str,
    depends_on: dict[str, Any],
    measure: Callable[..., None],
    *,
    seed: int,
    checkpoint_folder: Path,
    state_root: Path,
    device: str,
    gpus: int,
    gpu_slots: int | None = None,
) -> Iterator[dict[int, Path]]:
    """The file of each measured epoch that `measure(network, torch_device, epoch, file)` wrote.

    An interrupted job keeps those it has in `state_root`; they are deleted after the block. Data,
    network and device are set up once for all checkpoints. seed: of the run, since a user-defined
    network may hold random numbers that checkpoints lack. gpu_slots: jobs that may share one GPU.
    """
    checkpoints, epochs = list_checkpoints(checkpoint_folder), recipe.measured_epochs
    if missing := sorted(set(epochs) - checkpoints.keys()):
        raise UserError(
            f"{checkpoint_folder}: the checkpoint of epoch {missing[0]} is missing; "
            "delete the folder and run again"
        )
    key = fingerprint(
        version=versions.MEASUREMENT,
        what=what,
        network=recipe.network.model_dump(),
        data=data.data_hash,
        **depends_on,
    )
    label, training = f"{recipe.dataset} x {recipe.architecture}  {what}", recipe.training
    with (
        StateFolder(state_root, key) as state,
        device_for(device, gpus, training.threads, training.deterministic, gpu_slots) as where,
    ):
        results, progress = {}, None
        network = build_network(
            recipe.network,
            channels=data.channels,
            num_classes=data.num_classes,
            image_size_px=data.image_size_px,
            seed=seed,
        ).to(where)
        for count, epoch in enumerate(epochs, 1):
            path = checkpoints[epoch]
            results[epoch] = state.folder / f"{path.stem}-{_digest(path)}.safetensors"
            if not keep_if_whole(results[epoch]):
                load_checkpoint(path, network)
                progress = progress or Progress(label, "checkpoint", len(epochs), done=count - 1)
                measure(network, where, epoch, results[epoch])
                progress.step(count, epoch=str(epoch))
        yield results
        state.finish()


def extract_features(
    recipe_path: Path,
    data_folder: Path,
    output_folder: Path,
    *,
    other_cards: Sequence[Path] = (),
    **place: Any,
) -> None:
    """Stream train and test set through every checkpoint; keep the moments of the features, and
    some raw features of the epochs that Figure 1 shows.

    other_cards: the card of the dataset that `measurement.other_dataset` names; its images follow
        in the same pass, and what they say of the features is kept.
    place: the keyword arguments of `_measured_checkpoints`.
    """
    recipe = read_recipe(recipe_path)
    data = open_data(recipe, data_folder)
    other = open_other(recipe, data, other_cards)
    require_writable(*(output_folder / checkpoint_name(e) for e in recipe.measured_epochs))
    measured = recipe.measurement.model_dump(exclude=READ_ELSEWHERE["measurement"])
    depends_on = {"measurement": measured, "epochs": recipe.training.epochs}
    if other is not None:
        depends_on["other"] = other.data_hash
    save = partial(_save_features, recipe, data, other, _figure_1_rows(recipe, data))
    with _measured_checkpoints(recipe, data, "features", depends_on, save, **place) as results:
        deliver({checkpoint_name(epoch): path for epoch, path in results.items()}, output_folder)


def _save_features(recipe: Recipe, data, other, rows, network, where, epoch: int, target: Path):
    """Write the moments of one checkpoint, and the raw features of the train examples `rows`."""
    measurement = recipe.measurement
    splits = extract_splits(
        network,
        data,
        batch_size=recipe.training.evaluation_batch_size,
        device=where,
        keep_rows=rows if epoch in recipe.activation_epochs else None,
        keep_test=other is not None,
        scatter=measurement.scatter if other is None else "full",
        watched=Watched(
            measurement.layers, measurement.layer_pool, measurement.batch_norm_examples
        ),
    )
    extra, pair = {}, (splits.train, splits.test)
    if splits.kept is not None:
        extra["features"] = torch.from_numpy(splits.kept)
        extra["labels"] = torch.from_numpy(data.train_labels[rows])
    if other is not None:
        extra |= other_statistics(network, data, other, splits, recipe, where)
        if measurement.scatter != "full":  # of which the recipe keeps nothing
            pair = tuple(replace(moments, scatter=None) for moments in pair)
    metadata = {"epoch": str(epoch)}
    if recipe.network.classifier == "learned" and not network.learns_classifier():
        metadata |= UNLEARNED
    save_moments(target, *pair, metadata, extra, splits.layers)


def _figure_1_rows(recipe: Recipe, data):
    """The train examples whose raw features are kept; None where Figure 1 leaves them out."""
    classes = recipe.figure_1_classes(data.num_classes)
    count = recipe.measurement.activation_examples_per_class
    kept = [np.flatnonzero(np.asarray(data.train_labels) == c)[:count] for c in classes]
    return np.concatenate(kept) if kept else None


def measure_robustness(
    recipe_path: Path, data_folder: Path, output: Path, *, seed: int, **place: Any
) -> None:
    """Attack the same test images with DeepFool at every checkpoint; place: as in
    `extract_features`."""
    recipe = read_recipe(recipe_path)
    data = open_data(recipe, data_folder)
    require_writable(output)
    attack = recipe.robustness
    examples = len(data.test_labels)
    chosen = np.sort(np.random.default_rng(attack.seed).permutation(examples)[: attack.images])
    images = np.asarray(data.test_images[chosen])

    def measure(network, where, epoch: int, target: Path) -> None:
        ratios = robustness(
            network,
            images,
            data.mean,
            data.std,
            batch_size=min(attack.images, recipe.training.evaluation_batch_size),
            device=where,
            candidates=min(attack.candidate_classes, data.num_classes),
            overshoot=attack.overshoot,
            max_steps=attack.max_steps,
        )
        tensors = {"ratios": torch.from_numpy(ratios)}
        write_tensors(target, tensors, {"epoch": str(epoch)}, ROBUSTNESS_FORMAT)

    depends_on = {"robustness": attack.model_dump()}
    decides = recipe, data, "robustness", depends_on, measure
    with _measured_checkpoints(*decides, seed=seed, **place) as results:
        table = pd.DataFrame(
            {
                "dataset": recipe.dataset,
                "architecture": recipe.architecture,
                "seed": seed,
                "epoch": results.keys(),
                "split": "test",
                "statistic": "robustness",
                "value": map(_mean_ratio, results.values()),
            }
        )
        write_table(table, output, "measurements")


def _mean_ratio(path: Path) -> float:
    """The mean over the images whose decision DeepFool could change."""
    tensors, _ = read_tensors(path, "robustness result", ROBUSTNESS_FORMAT)
    ratios = tensors["ratios"].numpy()
    found = ratios[np.isfinite(ratios)]
    return float(found.mean()) if len(found) else math.nan


def _mse_parts(recipe: Recipe, stored: StoredMoments) -> dict[str, float]:
    """The parts of the MSE, where the recipe trains with it and keeps what they need.

    They add up to it for equal counts, coupled decay and a classifier that is learned alone, and
    are left out otherwise.
    """
    training, moments = recipe.training, stored.train
    if not (
        training.loss == "mse"
        and training.optimizer.name in ("sgd", "adam")
        and training.weight_decay
        and recipe.network.classifier == "learned"
        and not UNLEARNED.items() <= stored.metadata.items()
        and moments.balanced
        and moments.scatter is not None
    ):
        return {}
    parts = mse_decomposition(
        moments.class_means,
        moments.scatter,
        moments.weight,
        moments.bias,
        training.mse_decay(moments.num_classes),
    )
    return {f"mse_{name}": value for name, value in parts._asdict().items()}


def _minority(recipe: Recipe, moments: Moments, split: str) -> dict[str, float]:
    """Statistics of the recipe's minority classes: the mean cosine of their classifiers
    with the train split, their accuracy with the test split."""
    if recipe.data.imbalance is None:
        return {}
    minority = list(recipe.data.imbalance.minority_classes)
    if split == "train":
        if len(minority) == 1:  # which has no pairs
            return {}
        try:
            cosine = mean_cosine(moments.weight[minority])
        except UndefinedStatistic:  # of a row of zeros
            cosine = math.nan
        return {"minority_classifier_cosine": cosine}
    counted = int(moments.decisions.counted[minority].sum())
    right = int(moments.decisions.network_correct[minority].sum())
    return {"minority_accuracy": right / counted if counted else math.nan}


def statistics_of(recipe: Recipe, stored: StoredMoments) -> dict[str, dict[str, float]]:
    """Every statistic of a checkpoint by split and name; a further layer's as name@layer, the law
    over those layers, the minority's own, the parts of the train split's MSE, and what another
    dataset gives."""
    found = {}
    for number, split in enumerate(("train", "test")):
        values = dict(statistics_of_moments(stored[number]))
        layers = {name: statistics_of_moments(pair[number]) for name, pair in stored.layers.items()}
        values |= {f"{n}@{layer}": v for layer, own in layers.items() for n, v in own.items()}
        if len(layers) >= LEAST_LAYERS:
            law = separation_law([own["separation_fuzziness"] for own in layers.values()])
            values |= {"separation_rate": law.rate, "separation_linearity": law.linearity}
        found[split] = values | _minority(recipe, stored[number], split)
    found["train"] |= _mse_parts(recipe, stored)
    found["test"] |= stored_other_statistics(recipe, stored.extra)
    return found


def _load_moments(recipe: Recipe, path: Path) -> StoredMoments:
    """The moments of a checkpoint; raises UserError where they lack what the recipe measures."""
    stored, name = load_moments(path), recipe.measurement.other_dataset
    lacking = ""
    if stored.test is None:
        lacking = "no test set"
    elif tuple(stored.layers) != recipe.measurement.layers:
        lacking = "other layers than the recipe names"
    elif name and not any(map(is_other, stored.extra)):
        lacking = f"nothing of {name}"
    if lacking:
        raise UserError(f"{path}: holds {lacking}; delete its folder and run again")
    return stored


def _figure_1_points(recipe: Recipe, stored: StoredMoments, path: Path) -> pd.DataFrame | None:
    """Features of Figure 1's classes in the space that their means span."""
    try:
        classes = recipe.figure_1_classes(stored.train.num_classes)
        if not classes:
            return None
        raw, labels = stored.extra["features"], stored.extra["labels"]
        return project_three_classes(
            [raw[labels == c].numpy() for c in classes],
            stored.train.class_means.numpy(),
            stored.train.weight.numpy(),
            classes,
        )
    except (KeyError, ValueError, IndexError, UserError) as error:
        why = "lacks Figure 1's" if isinstance(error, KeyError) else "does not fit the recipe:"
        raise UserError(f"{path}: {why} {error}; delete its folder and run again") from None


def compute_statistics(
    recipe_path: Path, features_folder: Path, statistics: Path, activations: Path, *, seed: int
) -> None:
    """Every statistic of every measured epoch, on train and on test set, and the features of
    Figure 1's classes in the space that their means span."""
    recipe = read_recipe(recipe_path)
    run = {"dataset": recipe.dataset, "architecture": recipe.architecture, "seed": seed}
    rows, pictures = [], []
    for epoch in recipe.measured_epochs:
        path = features_folder / checkpoint_name(epoch)
        stored = _load_moments(recipe, path)
        for split, values in statistics_of(recipe, stored).items():
            rows += [
                {**run, "epoch": epoch, "split": split, "statistic": statistic, "value": value}
                for statistic, value in values.items()
            ]
        if epoch in recipe.activation_epochs:
            points = _figure_1_points(recipe, stored, path)
            if points is not None:
                pictures.append(points.assign(**run, epoch=epoch))
    require_writable(statistics, activations)
    write_table(pd.DataFrame(rows), statistics, "measurements")
    points = pd.concat(pictures, ignore_index=True) if pictures else empty_table("activations")
    write_table(points, activations, "activations")
    # In a run of their own: writing them again replaces all that stands there.
    folder = tensorboard_folder(recipe, statistics)
    with Events(folder and folder / "statistics") as events:
        for row in rows:
            events.write(row["epoch"], {f"{row['statistic']}/{row['split']}": row["value"]})
