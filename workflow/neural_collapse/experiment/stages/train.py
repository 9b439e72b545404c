"""Trainings: the candidates of the sweep, the selection of the rate, the final training."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ...data.prepared import PreparedDataset
from ...io import versions
from ...io.errors import UserError
from ...io.files import require_writable, write_text_atomically
from ...networks.registry import label
from ...results.run_facts import DECIDES_TRAINING
from ...results.tables import concat_tables, read_table, write_table
from ...training.checkpoints import checkpoint_name
from ...training.devices import device_for
from ...training.distributed import process_count
from ...training.history import history_frame
from ...training.loop import train
from ...training.schedule import SWEEP_EVALUATIONS, learning_rate_name, spaced_epochs
from ...training.selection import choose, held_out
from ...training.trainer import oversampled
from ..provenance import provenance
from ..recipe import Recipe, read_recipe
from .data import open_data


def _read_curve(path: Path, recipe: Recipe) -> pd.DataFrame:
    """A learning curve of the recipe's dataset and network."""
    curve = read_table(path, "history")
    cells = set(zip(curve["dataset"], curve["architecture"], strict=True))
    if cells != {(recipe.dataset, recipe.architecture)}:
        raise UserError(
            f"{path}: is not a learning curve of {recipe.dataset} x {recipe.architecture}; "
            "delete it and run again"
        )
    return curve


def train_candidate(
    recipe_path: Path,
    data_folder: Path,
    output: Path,
    *,
    learning_rate: float,
    state_root: Path,
    **place: Any,
) -> None:
    """Train one learning rate of the sweep and keep its learning curve; place: see `_devices`."""
    recipe = read_recipe(recipe_path)
    # By name, since a path has fewer digits.
    named, name = recipe.sweep.named(), learning_rate_name(learning_rate)
    if name not in named:
        raise UserError(
            f"{recipe_path}: the learning rate {learning_rate} is not in its sweep; "
            f"known: {', '.join(named)}"
        )
    require_writable(output)
    data = open_data(recipe, data_folder)
    if recipe.sweep.selection == "held_out_error":  # what selects is in the test set's place
        data = held_out(data, recipe.sweep.held_out_fraction, recipe.sweep.seed)
    with _devices(recipe, **place) as (where, processes):
        history, _ = train(
            recipe,
            data,
            learning_rate=named[name],
            seed=recipe.sweep.seed,
            device=where,
            state_root=state_root,
            evaluated_epochs=spaced_epochs(recipe.training.epochs, SWEEP_EVALUATIONS),
            keep_state=True,
            processes=processes,
        )
    write_table(history_frame(recipe, history), output, "history")


@contextmanager
def _devices(
    recipe: Recipe,
    device: str,
    gpus: int,
    gpu_slots: int | None = None,
    processes: int | None = None,
) -> Iterator[tuple[torch.device, int]]:
    """Where a training computes, and how many processes share it.

    gpu_slots: jobs that may share one GPU; by default NC_GPU_SLOTS, or one.
    processes: by default one a GPU, or one on the CPU.
    """
    training = recipe.training
    with device_for(device, gpus, training.threads, training.deterministic, gpu_slots) as where:
        yield where, process_count(where, gpus, processes)


def select_learning_rate(
    recipe_path: Path, curve_paths: Sequence[Path], table: Path, selection: Path
) -> None:
    """Choose the learning rate with the lowest error at the last epoch, on the test set or, where
    the recipe says so, on held-out train images.
    """
    recipe = read_recipe(recipe_path)
    if not curve_paths:
        raise UserError("--curves: none is given; name the learning curves to choose from")
    split = recipe.sweep.selection.removesuffix("_error")
    read = {path: _read_curve(path, recipe) for path in curve_paths}
    for path, curve in read.items():
        last = curve[(curve["split"] == split) & (curve["epoch"] == recipe.training.epochs)]
        if last.empty and not curve["diverged"].any():
            raise UserError(
                f"{path}: has no {split.replace('_', '-')} error of epoch "
                f"{recipe.training.epochs}; delete it and run again"
            )
    curves = concat_tables(read.values(), "history")
    require_writable(table, selection)
    winner = choose(curves, recipe.training.epochs, split)
    write_table(curves.assign(selected=curves["learning_rate"] == winner), table, "sweep")
    diverged = curves[curves["diverged"]]["learning_rate"].nunique()
    chosen = {
        "dataset": recipe.dataset,
        "architecture": recipe.architecture,
        "learning_rate": winner,
        "criterion": f"lowest {split.replace('_', '-')} error at the last epoch",
        "candidates": len(curve_paths),
        "diverged": diverged,
    }
    write_text_atomically(selection, json.dumps(chosen, indent=2) + "\n")


def train_model(
    recipe_path: Path,
    data_folder: Path,
    checkpoint_folder: Path,
    history_path: Path,
    run_path: Path,
    *,
    seed: int,
    winner: Path | None,
    state_root: Path,
    **place: Any,
) -> None:
    """Train the chosen learning rate and keep the weights of the measured epochs.

    winner: the sweep's winning learning curve, or None where the recipe pins the rate.
    place: see `_devices`.
    """
    recipe = read_recipe(recipe_path)
    data = open_data(recipe, data_folder)
    learning_rate = recipe.sweep.learning_rate
    if winner is not None:
        learning_rate = float(_read_curve(winner, recipe)["learning_rate"].iloc[0])
    elif learning_rate is None:
        raise UserError(f"{recipe_path}: has no fixed learning rate, so --winner must be given")
    kept = [checkpoint_folder / checkpoint_name(epoch) for epoch in recipe.measured_epochs]
    require_writable(*kept, history_path, run_path)
    started = time.monotonic()
    with _devices(recipe, **place) as (where, processes):
        history, network = train(
            recipe,
            data,
            learning_rate=learning_rate,
            seed=seed,
            device=where,
            state_root=state_root,
            checkpoint_folder=checkpoint_folder,
            checkpoint_epochs=recipe.measured_epochs,
            processes=processes,
            keep_state=True,
            tensorboard_folder=tensorboard_folder(recipe, run_path),
        )
        if history.diverged:
            raise UserError(
                f"{recipe.dataset} x {recipe.architecture}: training diverged in epoch "
                f"{history.records[-1].epoch} at learning rate {learning_rate:g}; "
                "lower sweep.learning_rate"
            )
        facts = provenance(where)
    run = {
        "seed": seed,
        "learning_rate": learning_rate,
        "learning_rate_origin": "pinned" if winner is None else "sweep",
        "resumed_after": history.resumed_after,
        "processes": processes,
        **_facts_of(recipe, data, network),
        "seconds": round(time.monotonic() - started, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    }
    write_table(history_frame(recipe, history, seed), history_path, "history")
    write_text_atomically(run_path, json.dumps(run, indent=2) + "\n")


def tensorboard_folder(recipe: Recipe, output: Path) -> Path | None:
    """Where a run's event files lie, beside its other outputs; None where none are asked for."""
    return output.with_name("tensorboard") if recipe.training.tensorboard else None


def _facts_of(recipe: Recipe, data: PreparedDataset, network) -> dict[str, Any]:
    """The facts of a run's recipe, data and network in run.json."""
    repeats = recipe.training.oversample
    unlearned = recipe.network.classifier == "learned" and not network.learns_classifier()
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "feature_dimension": network.classifier.in_features,
        "dataset": recipe.dataset,
        "architecture": recipe.architecture,
        "dataset_label": data.label,
        "network": label(recipe.network),
        "epochs": recipe.training.epochs,
        "kept_epochs": list(recipe.measured_epochs),
        "diverged": False,
        "num_classes": data.num_classes,
        "channels": data.channels,
        "image_size_px": data.image_size_px,
        "train_examples": len(data.train_labels),
        "test_examples": len(data.test_labels),
        **({"examples_per_epoch": len(oversampled(data.train_labels))} if repeats else {}),
        **({"learned_classifier": False} if unlearned else {}),
        "data_hash": data.data_hash,
        "training_version": versions.TRAINING,
        "recipe": recipe.model_dump(mode="json", include=DECIDES_TRAINING),
    }
