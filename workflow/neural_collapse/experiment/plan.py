"""What a config will cost before anything starts: jobs, epochs, checkpoints, disk, hours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from ..data.registry import dataset_entry
from ..networks.recipes import CustomRecipe, NetworkRecipe
from ..networks.registry import label
from .config import SWEEP_EVALUATIONS, Config, Recipe, resolve_recipe

# Floating-point operations a second that training reaches, where this machine has no run yet: by
# device and, on a GPU, precision. Assumptions for a data-centre card, not measurements of this
# project.
ASSUMED_CPU_FLOPS_PER_SECOND = 2e10
ASSUMED_GPU_FLOPS_PER_SECOND = {"float32": 2e13, "tf32": 6e13, "bfloat16": 2e14}
TELLING_SECONDS = 60
"""A training shorter than this says more of how jobs start than of how fast they are."""
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
    runs: int
    """Trainings whose checkpoints are kept: one a seed."""
    epochs: int
    """Epochs of all trainings together."""
    checkpoints: int
    checkpoint_bytes: int
    """Of all checkpoints together."""
    features_bytes: int
    """Of what is kept of their features: moments, and Figure 1's raw ones."""
    precision: str
    """Arithmetic of the training step."""
    flops: float | None
    """Floating-point operations of all trainings and measurements; None where the network's cannot
    be counted."""
    kind: str
    """What networks that compute alike share: see `network_kind`."""

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


def network_kind(network: NetworkRecipe) -> str:
    """The network's family; of a person's own the function, since their code may do anything."""
    return network.function if isinstance(network, CustomRecipe) else network.family


def _network_size(network: NetworkRecipe, size: DataSize) -> tuple[int, int, int | None]:
    """Parameters, feature dimension, and forward operations an image (two a multiply-add).

    The operations are None where a person's own code does not run without numbers.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..networks.build import construct_without_weights

    built = construct_without_weights(
        network, channels=size.channels, num_classes=size.num_classes, image_size_px=size.side_px
    )
    parameters = sum(parameter.numel() for parameter in built.parameters())
    dim = built.classifier.in_features
    inputs = torch.empty(1, size.channels, size.side_px, size.side_px, device="meta")
    try:
        # A custom network comes with its weights.
        built.eval().to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(inputs)
    except Exception:
        if not isinstance(network, CustomRecipe):
            raise
        return parameters, dim, None
    return parameters, dim, counter.get_total_flops()


def features_bytes(recipe: Recipe, size: DataSize, dim: int) -> int:
    """What is kept of the features of one run's checkpoints, but for names and the like."""
    classes, examples = size.num_classes, size.train + size.test
    # In float64 both splits' class means, their scatter matrices, the last layer; of an example its
    # label and two decisions.
    moments = 8 * (3 * classes * dim + 2 * classes**2) + 3 * 2 * examples
    chosen = len(recipe.figure_1_classes(classes))
    raw = 4 * dim * chosen * recipe.measurement.activation_examples_per_class
    return len(recipe.measured_epochs) * moments + len(recipe.activation_epochs) * raw


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
        parameters, dim, forward = _network_size(recipe.network, size)
        candidates = 0 if recipe.sweep.learning_rate is not None else len(recipe.sweep.named())
        runs, epochs = len(config.seeds), recipe.training.epochs
        measured = len(recipe.measured_epochs)
        flops = None
        if forward is not None:
            # A checkpoint is one more pass over both sets and the attack, some steps of a few
            # images.
            attack = recipe.robustness.images * recipe.robustness.candidate_classes * 3 * 4
            one_measurement = (size.train + size.test + attack) * forward
            one_run = epochs * training_flops(size, forward) + measured * one_measurement
            flops = candidates * candidate_flops(size, forward, epochs) + runs * one_run
        plans.append(
            CellPlan(
                dataset,
                architecture,
                label(recipe.network),
                parameters,
                candidates,
                runs,
                (candidates + runs) * epochs,
                runs * measured,
                runs * measured * parameters * 4,
                runs * features_bytes(recipe, size, dim),
                recipe.training.precision,
                flops,
                network_kind(recipe.network),
            )
        )
    return plans


@dataclass(frozen=True)
class FinishedRun:
    """What a training of this machine says of its speed."""

    kind: str
    """As `network_kind` has it."""
    flops: float
    """Floating-point operations of its epochs."""
    seconds: float


def finished_runs(run_files: Iterable[Path], device: str) -> list[FinishedRun]:
    """This machine's finished trainings on `device`; one that cannot be counted is left out."""
    from .provenance import machine

    here, runs = machine()["processor"], []
    for path in run_files:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            facts = run["machine"]
            if facts["device"] != device or facts["processor"] != here:
                continue
            size = DataSize(*(run[key] for key in SIZE_KEYS))
            epochs = run["epochs"] - run["resumed_after"]
            network = TypeAdapter(NetworkRecipe).validate_python(run["recipe"]["network"])
            *_, forward = _network_size(network, size)
            if forward is not None and epochs > 0 and run["seconds"] > 0:
                flops = epochs * training_flops(size, forward)
                runs.append(FinishedRun(network_kind(network), flops, run["seconds"]))
        # A person's own network may be gone, or need what this environment lacks (UserError).
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return runs


def telling_runs(runs: Sequence[FinishedRun], kind: str) -> list[FinishedRun]:
    """The runs that say most of how fast networks of a kind train.

    Of short ones, starting up is the larger part, so any long one says more; among those, of the
    same kind of network.
    """
    chosen = [run for run in runs if run.seconds >= TELLING_SECONDS] or list(runs)
    return [run for run in chosen if run.kind == kind] or chosen


def throughput(runs: Sequence[FinishedRun]) -> float:
    """Operations a second of all the runs together, so that each counts by its length."""
    return sum(run.flops for run in runs) / sum(run.seconds for run in runs)


def _assumed(device: str, cell: CellPlan) -> float:
    if device == "cpu":
        return ASSUMED_CPU_FLOPS_PER_SECOND
    return ASSUMED_GPU_FLOPS_PER_SECOND[cell.precision]


def _origin(telling: Mapping[CellPlan, Sequence[FinishedRun]]) -> str:
    """What the hours of these cells rest on."""
    runs = {id(run): run for chosen in telling.values() for run in chosen}.values()
    if not runs:
        return "an assumption, since this machine has no run yet"
    text = f"as {_count(len(runs), 'finished run')} of this machine reached"
    if max(run.seconds for run in runs) < TELLING_SECONDS:
        text += f", each under {TELLING_SECONDS} s and mostly starting up, so expect less"
    strangers = {
        cell.network: None
        for cell, chosen in telling.items()
        if all(run.kind != cell.kind for run in chosen)
    }
    return text + (f" (none of them like {', '.join(strangers)})" if strangers else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


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
    from ..training.devices import physical_gpus

    if device is None:
        wanted = config.device != "cpu" and (config.device == "cuda" or physical_gpus())
        device = "cuda" if wanted else "cpu"
    files = sorted(Path(config.results_folder).glob("*/*/*/seed-*/run.json"))
    runs = finished_runs(files, device)
    cells = plan_cells(config)
    counted = [cell for cell in cells if cell.flops is not None]
    telling = {cell: telling_runs(runs, cell.kind) for cell in counted}
    seconds_of = {
        cell: cell.flops / (throughput(telling[cell]) if runs else _assumed(device, cell))
        for cell in counted
    }
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
            _hours(seconds_of[cell]) if cell in seconds_of else "unknown",
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
    features = sum(cell.features_bytes for cell in cells)
    downloads = sum(
        dataset_entry(config.custom_datasets, dataset).download_bytes or 0
        for dataset in {dataset for dataset, _ in config.cells()}
    )
    seconds = sum(seconds_of.values())
    time = "unknown"
    if seconds:
        rate = sum(cell.flops for cell in counted) / seconds
        time = (
            f"about {_hours(seconds)} of one {'GPU' if device == 'cuda' else 'CPU core'} at "
            f"{rate / 1e12:.3g} TFLOP/s, {_origin(telling)}; the start of jobs not counted"
        )
    # Per cell: sweep and selection; and per run: train, features, statistics, attack.
    jobs = sum(cell.candidates + bool(cell.candidates) + 4 * cell.runs for cell in cells)
    jobs += 2 * len(prepared)
    lines = [f"Experiment {config.experiment}, results in {config.folder}", ""]
    lines += _aligned([heads, *rows])
    lines += [
        "",
        f"jobs         {jobs} before figures, "
        f"{sum(cell.trainings for cell in cells)} of them trainings",
        f"epochs       {sum(cell.epochs for cell in cells):,}",
        f"checkpoints  {sum(cell.checkpoints for cell in cells):,}",
        f"disk         {_bytes(weights + features + images + downloads)} at its peak "
        f"({_bytes(weights)} checkpoints, {_bytes(features)} features and their moments, "
        f"{_bytes(images)} prepared images, {_bytes(downloads)} downloads)",
        f"time         {time}",
    ]
    lines += [
        f"not counted  {cell.dataset} x {cell.architecture}: its time is unknown, since the "
        f"operations of {cell.network} cannot be counted without running it"
        for cell in cells
        if cell.flops is None
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
