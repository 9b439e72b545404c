"""The pipeline's stages, each from files to files: what a rule runs, and a person can.

Every function reads what the one before it wrote, does one thing, and leaves either whole outputs
or none. Expensive ones continue where an earlier try stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..io import versions
from ..io.errors import UserError
from ..io.files import deliver, require_writable, write_text_atomically
from ..io.progress import Progress
from ..results.run_facts import DECIDES_TRAINING, read_run, recipe_of
from ..training.schedule import SWEEP_EVALUATIONS, spaced_epochs
from .recipe import READ_ELSEWHERE, Recipe, read_recipe


def _read_curve(path: Path, recipe: Recipe):
    """A learning curve of the recipe's dataset and network."""
    from ..results.tables import read_table

    curve = read_table(path, "history")
    cells = set(zip(curve["dataset"], curve["architecture"], strict=True))
    if cells != {(recipe.dataset, recipe.architecture)}:
        raise UserError(
            f"{path}: is no learning curve of {recipe.dataset} x {recipe.architecture}; "
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
    device: str,
    gpus: int,
    gpu_slots: int | None = None,
    processes: int | None = None,
) -> None:
    """Train one learning rate of the sweep and keep its learning curve.

    processes: how many share the training; by default one a GPU, or one on the CPU.
    gpu_slots: jobs that may share one GPU; by default NC_GPU_SLOTS, or one.
    """
    from ..results.tables import write_table
    from ..training.devices import device_for
    from ..training.distributed import process_count
    from ..training.loop import train

    recipe = read_recipe(recipe_path)
    if learning_rate not in recipe.sweep.learning_rates:
        known = ", ".join(map(str, recipe.sweep.learning_rates))
        raise UserError(
            f"{recipe_path}: the learning rate {learning_rate} is not in its sweep; known: {known}"
        )
    require_writable(output)
    data = _sweep_data(recipe, data_folder)
    training = recipe.training
    with device_for(device, gpus, training.threads, training.deterministic, gpu_slots) as where:
        history, _ = train(
            recipe,
            data,
            learning_rate=learning_rate,
            seed=recipe.sweep.seed,
            device=where,
            state_root=state_root,
            evaluated_epochs=spaced_epochs(training.epochs, SWEEP_EVALUATIONS),
            keep_state=True,
            processes=process_count(where, gpus, processes),
        )
    write_table(candidate_frame(recipe, history), output, "history")


def _open_data(recipe: Recipe, data_folder: Path):
    """The prepared dataset of a recipe.

    Raises UserError where it lacks what measuring will ask of it, which must not be found out
    only after a training.
    """
    from ..data.prepared import PreparedDataset

    data = PreparedDataset.open(data_folder)
    recipe.figure_1_classes(data.num_classes)
    asked, examples = recipe.robustness.images, len(data.test_labels)
    if asked > examples:
        raise UserError(
            f"robustness.images: {asked} are asked for, but {recipe.dataset} has {examples} test "
            "images; lower it"
        )
    return data


def _sweep_data(recipe: Recipe, data_folder: Path):
    """What the sweep's trainings see: their test set is what selects."""
    from ..training.selection import held_out

    data = _open_data(recipe, data_folder)
    if recipe.sweep.selection == "held_out_error":
        return held_out(data, recipe.sweep.held_out_fraction, recipe.sweep.seed)
    return data


def candidate_frame(recipe: Recipe, history):
    """The learning curve `history` of the sweep, under the name of the split that it selects by."""
    split = recipe.sweep.selection.removesuffix("_error")
    frame = history_frame(recipe, recipe.sweep.seed, history)
    return frame.replace({"split": {"test": split}})


def history_frame(recipe: Recipe, seed: int, history):
    """The learning curve `history` as a table."""
    import pandas as pd

    rows = [
        {
            "dataset": recipe.dataset,
            "architecture": recipe.architecture,
            "seed": seed,
            "learning_rate": history.learning_rate,
            "epoch": record.epoch,
            "split": split,
            "statistic": statistic,
            "value": getattr(record, f"{split}_{statistic}"),
            "diverged": history.diverged,
        }
        for record in history.records
        for split in ("train", "test")
        for statistic in ("loss", "error")
    ]
    return pd.DataFrame(rows)


def select_learning_rate(
    recipe_path: Path, curve_paths: Sequence[Path], table: Path, selection: Path
) -> None:
    """Choose the learning rate with the lowest error at the last epoch, on the test set or, where
    the recipe says so, on held-out train images.
    """
    from ..results.tables import concat_tables, write_table
    from ..training.selection import choose

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
    device: str,
    gpus: int,
    gpu_slots: int | None = None,
    processes: int | None = None,
) -> None:
    """Train the chosen learning rate and keep the weights of the measured epochs.

    winner: the sweep's winning learning curve, or None where the recipe pins the rate.
    processes: how many share the training; by default one a GPU, or one on the CPU.
    """
    from ..networks.registry import label
    from ..results.tables import write_table
    from ..training.checkpoints import checkpoint_name
    from ..training.devices import device_for
    from ..training.distributed import process_count
    from ..training.loop import train
    from .provenance import provenance

    recipe = read_recipe(recipe_path)
    data = _open_data(recipe, data_folder)
    if winner is not None:
        learning_rate = float(_read_curve(winner, recipe)["learning_rate"].iloc[0])
    elif recipe.sweep.learning_rate is not None:
        learning_rate = recipe.sweep.learning_rate
    else:
        raise UserError(f"{recipe_path}: pins no learning rate, so --winner must be given")
    kept = [checkpoint_folder / checkpoint_name(epoch) for epoch in recipe.measured_epochs]
    require_writable(*kept, history_path, run_path)
    started = time.monotonic()
    training = recipe.training
    with device_for(device, gpus, training.threads, training.deterministic, gpu_slots) as where:
        shared_by = process_count(where, gpus, processes)
        history, network = train(
            recipe,
            data,
            learning_rate=learning_rate,
            seed=seed,
            device=where,
            state_root=state_root,
            checkpoint_folder=checkpoint_folder,
            checkpoint_epochs=recipe.measured_epochs,
            processes=shared_by,
            keep_state=True,
        )
        if history.diverged:
            raise UserError(
                f"{recipe.dataset} x {recipe.architecture}: training diverged in epoch "
                f"{history.records[-1].epoch} at learning rate {learning_rate:g}; "
                "lower sweep.learning_rate"
            )
        facts = provenance(where)
    run = {
        "dataset": recipe.dataset,
        "architecture": recipe.architecture,
        "seed": seed,
        "dataset_label": data.label,
        "network": label(recipe.network),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "feature_dimension": network.classifier.in_features,
        "learning_rate": learning_rate,
        "learning_rate_origin": "pinned" if winner is None else "sweep",
        "epochs": training.epochs,
        "kept_epochs": list(recipe.measured_epochs),
        "diverged": False,
        "resumed_after": history.resumed_after,
        "processes": shared_by,
        "num_classes": data.num_classes,
        "channels": data.channels,
        "image_size_px": data.image_size_px,
        "train_examples": len(data.train_labels),
        "test_examples": len(data.test_labels),
        "data_hash": data.data_hash,
        "training_version": versions.TRAINING,
        "recipe": recipe.model_dump(mode="json", include=DECIDES_TRAINING),
        "seconds": round(time.monotonic() - started, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    }
    write_table(history_frame(recipe, seed, history), history_path, "history")
    write_text_atomically(run_path, json.dumps(run, indent=2) + "\n")


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _measure_checkpoints(
    recipe: Recipe,
    data,
    checkpoint_folder: Path,
    state_root: Path,
    *,
    what: str,
    depends_on: dict[str, Any],
    measure,
    deliver,
    device: str,
    gpus: int,
    gpu_slots: int | None = None,
) -> None:
    """Measure every checkpoint of a run, each once, and hand all results over at the end.

    `measure(network, torch_device, epoch, target)` writes the file `target`; an interrupted job
    keeps those it has. `deliver({epoch: file})` makes the outputs of them. Data, network and
    device are set up once for all checkpoints.
    """
    from ..networks.build import build_network
    from ..training.checkpoints import list_checkpoints, load_checkpoint
    from ..training.devices import device_for
    from ..training.state import StateFolder, fingerprint

    checkpoints = list_checkpoints(checkpoint_folder)
    missing = sorted(set(recipe.measured_epochs) - checkpoints.keys())
    if missing:
        raise UserError(
            f"{checkpoint_folder}: the checkpoint of epoch {missing[0]} is missing; "
            "delete the folder and train again"
        )
    key = fingerprint(
        version=versions.MEASUREMENT,
        what=what,
        network=recipe.network.model_dump(),
        data=data.data_hash,
        **depends_on,
    )
    label = f"{recipe.dataset} x {recipe.architecture}  {what}"
    threads = recipe.training.threads
    with (
        StateFolder(state_root, key) as folder,
        device_for(device, gpus, threads, recipe.training.deterministic, gpu_slots) as where,
    ):
        results, progress = {}, None
        network = build_network(
            recipe.network,
            channels=data.channels,
            num_classes=data.num_classes,
            image_size_px=data.image_size_px,
            seed=0,
        ).to(where)
        for count, epoch in enumerate(recipe.measured_epochs, 1):
            path = checkpoints[epoch]
            results[epoch] = folder.folder / f"{path.stem}-{_digest(path)}.safetensors"
            if not results[epoch].exists():
                load_checkpoint(path, network)
                progress = progress or Progress(
                    label, "checkpoint", len(recipe.measured_epochs), done=count - 1
                )
                measure(network, where, epoch, results[epoch])
                progress.step(count, epoch=str(epoch))
        deliver(results)
        folder.finish()


def extract_features(
    recipe_path: Path,
    data_folder: Path,
    checkpoint_folder: Path,
    output_folder: Path,
    *,
    state_root: Path,
    device: str,
    gpus: int,
    gpu_slots: int | None = None,
) -> None:
    """Stream train and test set through every checkpoint; keep the moments of the features, and
    some raw features of the epochs that Figure 1 shows."""
    import numpy as np
    import torch

    from ..collapse.features import extract_splits
    from ..collapse.moments import save_moments
    from ..training.checkpoints import checkpoint_name

    recipe = read_recipe(recipe_path)
    data = _open_data(recipe, data_folder)
    labels = np.asarray(data.train_labels)
    measurement = recipe.measurement
    pictured = recipe.figure_1_classes(data.num_classes)
    require_writable(*(output_folder / checkpoint_name(e) for e in recipe.measured_epochs))
    of_each = [
        np.flatnonzero(labels == c)[: measurement.activation_examples_per_class] for c in pictured
    ]
    rows = np.concatenate(of_each) if pictured else None

    def measure(network, where, epoch: int, target: Path) -> None:
        keep = rows if epoch in recipe.activation_epochs else None
        train, test, raw = extract_splits(
            network,
            data,
            batch_size=recipe.training.evaluation_batch_size,
            device=where,
            keep_rows=keep,
        )
        extra = {}
        if raw is not None:
            extra["features"] = torch.from_numpy(raw)
            extra["labels"] = torch.from_numpy(labels[rows])
        save_moments(target, train, test, {"epoch": str(epoch)}, extra)

    def hand_over(results: dict[int, Path]) -> None:
        deliver({checkpoint_name(epoch): path for epoch, path in results.items()}, output_folder)

    _measure_checkpoints(
        recipe,
        data,
        checkpoint_folder,
        state_root,
        what="features",
        depends_on={
            "measurement": measurement.model_dump(exclude=READ_ELSEWHERE["measurement"]),
            "epochs": recipe.training.epochs,
        },
        measure=measure,
        deliver=hand_over,
        device=device,
        gpus=gpus,
        gpu_slots=gpu_slots,
    )


def measure_robustness(
    recipe_path: Path,
    data_folder: Path,
    checkpoint_folder: Path,
    output: Path,
    *,
    seed: int,
    state_root: Path,
    device: str,
    gpus: int,
    gpu_slots: int | None = None,
) -> None:
    """Attack the same test images with DeepFool at every checkpoint."""
    import numpy as np
    import pandas as pd
    import torch

    from ..collapse.attacks import robustness
    from ..io.tensors import read_tensors, write_tensors
    from ..results.tables import write_table

    recipe = read_recipe(recipe_path)
    data = _open_data(recipe, data_folder)
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

    def deliver(results: dict[int, Path]) -> None:
        rows = []
        for epoch, path in results.items():
            tensors, _ = read_tensors(path, "robustness result", ROBUSTNESS_FORMAT)
            ratios = tensors["ratios"].numpy()
            found = ratios[np.isfinite(ratios)]
            rows.append(
                {
                    "dataset": recipe.dataset,
                    "architecture": recipe.architecture,
                    "seed": seed,
                    "epoch": epoch,
                    "split": "test",
                    "statistic": "robustness",
                    "value": float(found.mean()) if len(found) else math.nan,
                }
            )
        write_table(pd.DataFrame(rows), output, "measurements")

    _measure_checkpoints(
        recipe,
        data,
        checkpoint_folder,
        state_root,
        what="robustness",
        depends_on={"robustness": attack.model_dump()},
        measure=measure,
        deliver=deliver,
        device=device,
        gpus=gpus,
        gpu_slots=gpu_slots,
    )


ROBUSTNESS_FORMAT = "neural_collapse.robustness/1"


def compute_statistics(
    recipe_path: Path, features_folder: Path, statistics: Path, activations: Path, *, seed: int
) -> None:
    """Every statistic of every measured epoch, on train and on test set, and the features of
    Figure 1's classes in the space that their means span."""
    import pandas as pd

    from ..collapse.moments import load_moments
    from ..collapse.projection import project_three_classes
    from ..collapse.result import compute_statistics as of
    from ..results.tables import empty_table, write_table
    from ..training.checkpoints import checkpoint_name

    recipe = read_recipe(recipe_path)
    run = {"dataset": recipe.dataset, "architecture": recipe.architecture, "seed": seed}
    rows, pictures = [], []
    for epoch in recipe.measured_epochs:
        path = features_folder / checkpoint_name(epoch)
        stored = load_moments(path)
        again = "; delete the folder and extract the features again"
        if stored.test is None:
            raise UserError(f"{path}: holds no test set{again}")
        for split, moments in [("train", stored.train), ("test", stored.test)]:
            for statistic, value in of(moments).items():
                rows.append(
                    {**run, "epoch": epoch, "split": split, "statistic": statistic, "value": value}
                )
        if epoch in recipe.activation_epochs:
            try:
                classes = recipe.figure_1_classes(stored.train.num_classes)
                if not classes:
                    continue
                raw, labels = stored.extra["features"], stored.extra["labels"]
                frame = project_three_classes(
                    [raw[labels == c].numpy() for c in classes],
                    stored.train.class_means.numpy(),
                    stored.train.weight.numpy(),
                    classes,
                )
            except KeyError as error:
                raise UserError(f"{path}: lacks Figure 1's {error}{again}") from None
            except (ValueError, IndexError, UserError) as error:
                raise UserError(f"{path}: does not fit the recipe: {error}{again}") from None
            pictures.append(frame.assign(**run, epoch=epoch))
    require_writable(statistics, activations)
    write_table(pd.DataFrame(rows), statistics, "measurements")
    points = pd.concat(pictures, ignore_index=True) if pictures else empty_table("activations")
    write_table(points, activations, "activations")


def _recipe_text(run: dict[str, Any], recipe: Recipe) -> str:
    """What a run was trained with, as it says itself, and what it was then measured with."""
    values = recipe.model_dump(mode="json", exclude={"resources"})
    values |= {part: value for part, value in recipe_of(run).items() if part in DECIDES_TRAINING}
    return json.dumps(values, sort_keys=True)


def collect_tables(
    histories: Sequence[Path],
    statistics: Sequence[Path],
    robustness: Sequence[Path],
    activations: Sequence[Path],
    runs: Sequence[Path],
    sweeps: Sequence[Path],
    recipes: Sequence[Path],
    labels: dict[str, str],
    output_folder: Path,
    reference_folder: Path | None = None,
) -> None:
    """Put the tables of all runs together: everything that a figure reads.

    recipes: of the runs' cells; they say at which accuracy the terminal phase starts.
    labels: how each dataset's column and each architecture's row is titled.
    reference_folder: a set of reference results whose runs of these datasets and architectures
        are put beside them; their origin is `reference`.
    """
    import pandas as pd

    from ..results.reference_runs import read_tables
    from ..results.tables import (
        OWN,
        RUN_KEY,
        concat_files,
        concat_tables,
        schema_of,
        terminal_phase_epoch,
        write_table,
    )

    curves = concat_files(histories, "history").drop(columns=["learning_rate", "diverged"])
    measured = concat_files([*statistics, *robustness], "measurements")
    cells = {(r.dataset, r.architecture): r for r in map(read_recipe, recipes)}
    rows = []
    for path in runs:
        run = read_run(path)
        dataset, architecture = run["dataset"], run["architecture"]
        if (dataset, architecture) not in cells:
            raise UserError(f"--recipes: none is of {dataset} x {architecture}, as {path} is")
        accuracy = cells[dataset, architecture].measurement.terminal_phase_accuracy
        own = curves[(curves[RUN_KEY] == [dataset, architecture, run["seed"]]).all(axis=1)]
        rows.append(
            {
                **run,
                "dataset_label": labels.get(dataset, run["dataset_label"]),
                "architecture_label": labels.get(architecture, architecture),
                "terminal_phase_accuracy": accuracy,
                "terminal_phase_epoch": terminal_phase_epoch(own, accuracy),
                "recipe": _recipe_text(run, cells[dataset, architecture]),
            }
        )
    frame = pd.DataFrame(
        [{"origin": OWN, **row} for row in rows], columns=schema_of("runs").names
    ).astype({"terminal_phase_epoch": "Int64"})
    tables = {
        "measurements": [curves, measured],
        "runs": [frame],
        "sweep": [concat_files(sweeps, "sweep")],
        "activations": [concat_files(activations, "activations")],
    }
    reference = {} if reference_folder is None else read_tables(reference_folder)
    for name, parts in tables.items():
        if name in reference:
            shipped = reference[name]
            known = shipped["dataset"].isin(labels) & shipped["architecture"].isin(labels)
            parts = [*parts, shipped[known]]
        write_table(concat_tables(parts, name), output_folder / f"{name}.parquet", name)
