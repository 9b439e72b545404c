"""What a config will cost before anything starts: jobs, epochs, checkpoints, disk, hours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .config import SWEEP_EVALUATIONS, Config, Recipe, resolve_recipe
from .datasets.registry import dataset_entry

# Floating-point operations a second that training reaches, where this machine has no run yet: by
# device and, on a GPU, precision. Assumptions for a data-centre card, not measurements of this
# project.
ASSUMED_CPU_FLOPS_PER_SECOND = 2e10
ASSUMED_GPU_FLOPS_PER_SECOND = {"float32": 2e13, "tf32": 6e13, "bfloat16": 2e14}
SIZE_KEYS = ("train_examples", "test_examples", "channels", "image_size_px", "num_classes")


@dataclass(frozen=True)
class CellPlan:
    """The cost of one dataset x architecture over all its trainings."""

    dataset: str
    architecture: str
    network: str
    parameters: int
    candidates: int
    """Trainings of the sweep; 0 where the learning rate is pinned."""
    candidate_jobs: int
    """Jobs that they are: several may be trained together, and each curve is then taken apart."""
    runs: int
    """Trainings whose checkpoints are kept: one a seed."""
    epochs: int
    """Epochs of all trainings together."""
    checkpoints: int
    checkpoint_bytes: int
    """Of all checkpoints together."""
    precision: str
    """Arithmetic of the training step."""
    flops: float
    """Floating-point operations of all trainings and measurements."""

    @property
    def trainings(self) -> int:
        """Candidates and kept runs."""
        return self.candidates + self.runs


@dataclass(frozen=True)
class DataSize:
    """What is known of a dataset without its files."""

    train: int
    test: int
    channels: int
    side_px: int
    num_classes: int

    @property
    def prepared_bytes(self) -> int:
        """Size of its prepared arrays."""
        return (self.train + self.test) * (self.channels * self.side_px**2 + 8)


def data_size(config: Config, recipe: Recipe) -> DataSize | None:
    """Sizes after preparation; None for a person's own dataset, which only its files know."""
    entry, data = dataset_entry(config.custom_datasets, recipe.dataset), recipe.data
    if None in (entry.num_classes, entry.train_examples, entry.image_size_px, entry.channels):
        return None
    side = math.ceil(entry.image_size_px / data.average_pooling) + 2 * data.padding_pixels
    train, test = (
        published if kept is None else min(published, kept * entry.num_classes)
        for published, kept in [
            (entry.train_examples, data.examples_per_class),
            (entry.test_examples, data.test_examples_per_class),
        ]
    )
    return DataSize(train, test, entry.channels, side, entry.num_classes)


def _network_size(recipe: Recipe, size: DataSize) -> tuple[str, int, int]:
    """Label, parameters, and forward operations an image (two a multiply-add)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from .architectures.build import construct_without_weights, describe

    numbers = {
        "channels": size.channels,
        "num_classes": size.num_classes,
        "image_size_px": size.side_px,
    }
    described = describe(recipe.network, **numbers)
    network = construct_without_weights(recipe.network, **numbers).eval()
    inputs = torch.empty(1, size.channels, size.side_px, size.side_px, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(inputs)
    return described.label, described.parameter_count, counter.get_total_flops()


def candidate_flops(size: DataSize, forward: int, epochs: int) -> float:
    """Operations of one training of the sweep, which is evaluated less often."""
    evaluations = 1 + min(epochs, SWEEP_EVALUATIONS)
    return (3 * size.train * epochs + (size.train + size.test) * evaluations) * forward


def training_flops(size: DataSize, forward: int) -> float:
    """Operations of one epoch: backward costs twice forward, and both sets are evaluated."""
    return (3 * size.train + size.train + size.test) * forward


def plan_cells(config: Config) -> list[CellPlan]:
    """The cost of every cell whose dataset's sizes are known."""
    plans = []
    for dataset, architecture in config.cells():
        recipe = resolve_recipe(config, dataset, architecture)
        size = data_size(config, recipe)
        if size is None:
            continue
        label, parameters, forward = _network_size(recipe, size)
        candidates = 0 if recipe.sweep.learning_rate is not None else len(recipe.sweep.named())
        jobs = candidates
        if recipe.sweep.together > 1 and candidates:
            jobs += len(recipe.sweep.packs)
        runs, epochs = len(config.seeds), recipe.training.epochs
        measured = len(recipe.measured_epochs)
        one_training = epochs * training_flops(size, forward)
        # A checkpoint is one more pass over both sets and the attack, some steps of a few images.
        attack = recipe.robustness.images * recipe.robustness.candidate_classes * 3 * 4
        one_measurement = (size.train + size.test + attack) * forward
        plans.append(
            CellPlan(
                dataset,
                architecture,
                label,
                parameters,
                candidates,
                jobs,
                runs,
                (candidates + runs) * epochs,
                runs * measured,
                runs * measured * parameters * 4,
                recipe.training.precision,
                candidates * candidate_flops(size, forward, epochs)
                + runs * (one_training + measured * one_measurement),
            )
        )
    return plans


def measured_throughput(run_files: Iterable[Path], device: str) -> float | None:
    """Operations a second of this machine's finished trainings, their median; None without any."""
    from .provenance import machine

    here, rates = machine()["processor"], []
    for path in run_files:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            facts = run["machine"]
            if facts["device"] != device or facts["processor"] != here:
                continue
            size = DataSize(*(run[key] for key in SIZE_KEYS))
            epochs = run["epochs"] - run["resumed_after"]
            _, _, forward = _network_size(Recipe.model_validate(run["recipe"]), size)
            rates.append(epochs * training_flops(size, forward) / run["seconds"])
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue
    return median(rates) if rates else None


def _assumed(device: str, cell: CellPlan) -> float:
    if device == "cpu":
        return ASSUMED_CPU_FLOPS_PER_SECOND
    return ASSUMED_GPU_FLOPS_PER_SECOND[cell.precision]


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f} {unit}" if unit in ("B", "kB") else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def plan(config: Config, device: str | None = None) -> str:
    """The plan as text: a line a cell, the sums, what is missing, and where hours come from.

    device: cpu or cuda; left out, what this machine has.
    """
    if not config.shows_own:
        return f"Experiment {config.experiment}: nothing is trained, it shows reference runs"
    from .training.devices import physical_gpus

    if device is None:
        wanted = config.device != "cpu" and (config.device == "cuda" or physical_gpus())
        device = "cuda" if wanted else "cpu"
    runs = sorted(Path(config.results_folder).glob("*/*/*/seed-*/run.json"))
    throughput = measured_throughput(runs, device)
    origin = "the median of this machine's own runs"
    if throughput is None:
        origin = "an assumption, since this machine has no run yet"
    cells = plan_cells(config)
    seconds_of = {cell: cell.flops / (throughput or _assumed(device, cell)) for cell in cells}
    rows = [
        (
            cell.dataset,
            cell.architecture,
            cell.network,
            f"{cell.parameters:,}",
            f"{cell.trainings}",
            f"{cell.epochs:,}",
            f"{cell.checkpoints}",
            _bytes(cell.checkpoint_bytes),
            _hours(seconds_of[cell]),
        )
        for cell in cells
    ]
    heads = (
        *("dataset", "architecture", "network", "parameters", "trainings"),
        *("epochs", "checkpoints", "disk", "hours"),
    )
    prepared = {}
    for dataset, architecture in config.cells():
        recipe = resolve_recipe(config, dataset, architecture)
        size = data_size(config, recipe)
        if size is not None:
            prepared[dataset, recipe.data.name] = size.prepared_bytes
    weights, images = sum(cell.checkpoint_bytes for cell in cells), sum(prepared.values())
    downloads = sum(
        dataset_entry(config.custom_datasets, dataset).download_bytes or 0
        for dataset in {dataset for dataset, _ in config.cells()}
    )
    seconds = sum(seconds_of.values())
    rate = sum(cell.flops for cell in cells) / seconds if seconds else 0.0
    # Per cell: sweep and selection; and per run: train, features, statistics, attack.
    jobs = sum(cell.candidate_jobs + bool(cell.candidates) + 4 * cell.runs for cell in cells)
    jobs += 2 * len(prepared)
    lines = [f"Experiment {config.experiment}, results in {config.folder}", ""]
    lines += _aligned([heads, *rows])
    lines += [
        "",
        f"jobs         {jobs} before figures, "
        f"{sum(cell.trainings for cell in cells)} of them trainings",
        f"epochs       {sum(cell.epochs for cell in cells):,}",
        f"checkpoints  {sum(cell.checkpoints for cell in cells):,}",
        f"disk         {_bytes(weights + images + downloads)} at its peak ({_bytes(weights)} "
        f"checkpoints, {_bytes(images)} prepared images, {_bytes(downloads)} downloads)",
        f"time         about {_hours(seconds)} of one "
        f"{'GPU' if device == 'cuda' else 'CPU core'} at {rate / 1e12:.3g} TFLOP/s, {origin}; "
        "the start of jobs not counted",
    ]
    for dataset in config.datasets:
        if config.missing(dataset):
            lines.append(
                f"missing      {dataset}: cannot be downloaded freely; give imagenet_folder"
            )
        elif dataset in config.custom_datasets:
            lines.append(f"not counted  {dataset}: its size is known once it is prepared")
    return "\n".join(lines)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
