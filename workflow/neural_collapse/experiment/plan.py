"""The cost of a config before it starts: jobs, epochs, checkpoints, disk, hours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from ..data.registry import dataset_entry
from ..io.text import aligned, counted, duration_text, size_text
from ..networks.recipes import NetworkRecipe
from ..networks.registry import label
from .config import Config
from .cost import (
    SIZE_KEYS,
    SPEEDS_FILE,
    CellPlan,
    DataSize,
    NetworkCost,
    network_kind,
    plan_cells,
    training_images,
)
from .layers import check_functions, check_layers

H100_SPEEDS = Path(__file__).with_name("h100_speeds.json")
"""What check-gpu measured on an H100, for a GPU where neither it nor a training has run."""
ASSUMED_FLOPS_PER_SECOND = {"cpu": 2e10, "cuda": 1e13}
"""Floating-point operations a second that training reaches, where nothing like it was measured."""
TELLING_SECONDS = 60
"""A training shorter than this says more of how jobs start than of how fast they are."""
STEP_GIB = {"VGG19": (35, 20), "ResNet152": (43, 22), "DenseNet201": (12.7, 6.8)}
"""Memory of a step of 256 images of 224 px in float32 and bfloat16: computed, not measured."""


@dataclass(frozen=True)
class FinishedRun:
    """The speed of this machine in a finished training."""

    kind: str
    """As `network_kind` has it."""
    flops: float
    """Floating-point operations of its epochs."""
    seconds: float
    """Of all its processes together."""
    way: tuple[str, bool] | None = None
    """As `_way` has it."""


class Estimate(NamedTuple):
    """How long a cell takes, None where that is unknown, and what this rests on."""

    cell: CellPlan
    seconds: float | None
    origin: str = "an assumption"
    """One of `ORIGINS`."""
    runs: Sequence[FinishedRun] = ()


FINISHED, CHECKED, H100 = "finished runs", "as check-gpu measured", "as an H100 reached"
ORIGINS = (FINISHED, CHECKED, H100, "an assumption")
"""What hours may rest on, the best first."""


def _way(training: Mapping[str, Any], device: str) -> tuple[str, bool] | None:
    """What of a training, apart from its network, decides its speed on a GPU."""
    if device == "cpu":
        return None
    return training.get("precision", "float32"), training.get("cuda_graphs", False)


def read_speeds(path: Path) -> list[dict[str, Any]]:
    """The networks that check-gpu timed; none where it has not run or left no such file."""
    try:
        speeds = json.loads(path.read_text(encoding="utf-8"))["networks"]
        return [speed for speed in speeds if speed["channels_last"] and not speed["failure"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def timed_steps(cell: CellPlan, speeds: Iterable[dict[str, Any]]) -> list[FinishedRun]:
    """Steps that check-gpu timed with the cell's precision: of its network at its image size, else
    at any, else of networks of its kind; of these with or without a graph as the cell, if any."""
    training, side = cell.recipe.training, cell.size and cell.size.side_px
    alike = [speed for speed in speeds if speed["precision"] == training.precision]
    own = [speed for speed in alike if speed["network"] == label(cell.recipe.network)]
    chosen = [speed for speed in own if speed["side_px"] == side] or own
    chosen = chosen or [speed for speed in alike if speed["kind"] == cell.kind]
    # With large images a GPU does not wait for the CPU, as it does with small ones without a graph.
    graphs = training.cuda_graphs or (side or 0) > 96
    chosen = [speed for speed in chosen if speed["cuda_graphs"] == graphs] or chosen
    return [
        FinishedRun(s["kind"], TELLING_SECONDS * s["flops_per_second"], TELLING_SECONDS)
        for s in chosen
    ]


def finished_runs(run_files: Iterable[Path], device: str) -> list[FinishedRun]:
    """This machine's finished trainings on `device`; one that cannot be counted is left out."""
    from .provenance import machine

    here, runs = machine()["processor"], []
    for path in run_files:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            facts = run["machine"]
            if (facts["device"], facts["processor"]) != (device, here):
                continue
            size = DataSize(*(run[key] for key in SIZE_KEYS), run.get("examples_per_epoch"))
            epochs = run["epochs"] - run["resumed_after"]
            network = TypeAdapter(NetworkRecipe).validate_python(run["recipe"]["network"])
            forward = NetworkCost.of(network, size).forward_flops
            if forward is not None and epochs > 0 and run["seconds"] > 0:
                flops = epochs * training_images(size) * forward
                way = _way(run["recipe"]["training"], device)
                seconds = run["seconds"] * run.get("processes", 1)
                runs.append(FinishedRun(network_kind(network), flops, seconds, way))
        # A user-defined network may be gone, or need what this environment lacks (UserError).
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


def _estimate(
    cell: CellPlan,
    runs: Sequence[FinishedRun],
    device: str,
    speeds: Mapping[str, Sequence[dict[str, Any]]],
) -> Estimate:
    """speeds: of a GPU, by their origin, the best first."""
    if cell.flops is None:
        return Estimate(cell, None)
    way = _way(cell.recipe.training.model_dump(), device)
    # On a GPU families differ tenfold, and other sources know their speed.
    alike = [run for run in runs if run.way == way and (device == "cpu" or run.kind == cell.kind)]
    if alike:
        telling = telling_runs(alike, cell.kind)
        return Estimate(cell, cell.flops / throughput(telling), FINISHED, telling)
    for origin, timed in speeds.items():
        if steps := timed_steps(cell, timed):
            return Estimate(cell, cell.flops / throughput(steps), origin, steps)
    return Estimate(cell, cell.flops / ASSUMED_FLOPS_PER_SECOND[device])


def _time(estimates: Sequence[Estimate], device: str) -> str:
    """The sum of the hours, and what they rest on."""
    known = [estimate for estimate in estimates if estimate.seconds is not None]
    seconds = sum(estimate.seconds for estimate in known)
    if not seconds:
        return "unknown"
    rate = sum(estimate.cell.flops for estimate in known) / seconds
    return (
        f"about {duration_text(seconds)} of one {'GPU' if device == 'cuda' else 'CPU core'} at "
        f"{rate / 1e12:.3g} TFLOP/s, {_origin(known)}; the start of jobs not counted"
    )


def _origin(known: Sequence[Estimate]) -> str:
    """What the hours rest on, and the networks whose hours rest on something else."""
    networks: dict[str, dict[str, None]] = {}
    for estimate in known:
        networks.setdefault(estimate.origin, {})[label(estimate.cell.recipe.network)] = None
    main, *others = [origin for origin in ORIGINS if origin in networks]
    text = main
    if main == FINISHED:
        text = _finished([estimate for estimate in known if estimate.origin == main])
    elif main == H100:
        text += "; run `neural-collapse check-gpu` to measure this machine"
    elif main != CHECKED:
        text += ", since this machine has no run yet"
    rest = [f"{', '.join(networks[origin])}: {origin}" for origin in others]
    return text + (f" ({'; '.join(rest)})" if rest else "")


def _finished(known: Sequence[Estimate]) -> str:
    """The finished runs that hours rest on, and the networks that none of them is like."""
    runs = {id(run): run for estimate in known for run in estimate.runs}.values()
    text = f"as {counted(len(runs), 'finished run')} of this machine reached"
    if max(run.seconds for run in runs) < TELLING_SECONDS:
        text += f", each under {TELLING_SECONDS} s and mostly starting up, so expect less"
    unlike = dict.fromkeys(
        label(estimate.cell.recipe.network)
        for estimate in known
        if all(run.kind != estimate.cell.kind for run in estimate.runs)
    )
    return text + (f" (none of them like {', '.join(unlike)})" if unlike else "")


def _table(estimates: Sequence[Estimate]) -> list[str]:
    rows = [
        ("dataset", "architecture", "network", "parameters", "trainings", "epochs", "checkpoints",
         "disk", "hours")
    ]  # fmt: skip
    for cell, seconds, *_ in estimates:
        network, size = cell.network, cell.checkpoint_bytes
        rows.append(
            (
                cell.recipe.dataset,
                cell.recipe.architecture,
                label(cell.recipe.network),
                "unknown" if network is None else f"{network.parameters:,}",
                f"{cell.trainings}",
                f"{cell.epochs:,}",
                f"{cell.checkpoints}",
                "unknown" if size is None else size_text(size),
                "unknown" if seconds is None else duration_text(seconds),
            )
        )
    return aligned(rows, left=3)


def _disk(config: Config, cells: Sequence[CellPlan]) -> str:
    prepared = {(c.recipe.dataset, c.recipe.data.name): c.size for c in cells if c.size}
    datasets = {cell.recipe.dataset for cell in cells}
    parts = {
        "checkpoints": sum(cell.checkpoint_bytes or 0 for cell in cells),
        "features and their moments": sum(cell.features_bytes or 0 for cell in cells),
        "prepared images": sum(size.prepared_bytes for size in prepared.values()),
        "downloads": sum(
            dataset_entry(config.custom_datasets, dataset).download_bytes for dataset in datasets
        ),
    }
    listed = ", ".join(f"{size_text(size)} {what}" for what, size in parts.items())
    return f"{size_text(sum(parts.values()))} at its peak ({listed})"


def _remarks(config: Config, cells: Sequence[CellPlan]) -> list[str]:
    """What the sums leave out, and overrides that change nothing."""
    lines = []
    for dataset in dict.fromkeys(cell.recipe.dataset for cell in cells if cell.size is None):
        lines.append(f"not counted  {dataset}: disk and time, which are known once it is prepared")
        custom = config.custom_datasets.get(dataset)
        if custom is not None and not Path(custom.path).exists():
            lines.append(f"missing      {dataset}: there is no {custom.path}; correct its path")
    for cell in cells:
        if cell.network is not None and cell.flops is None:
            lines.append(
                f"not counted  {cell.recipe.dataset} x {cell.recipe.architecture}: its time is "
                f"unknown, since the operations of {label(cell.recipe.network)} cannot be counted "
                "without running it"
            )
    for dataset in filter(config.missing, config.datasets):
        lines.append(f"missing      {dataset}: cannot be downloaded freely; give imagenet_folder")
    for cell in cells:
        step = STEP_GIB.get(label(cell.recipe.network))
        if cell.recipe.resources.gpu > 1 and step and cell.size and cell.size.side_px == 224:
            lines.append(
                f"choice       {cell.recipe.dataset} x {cell.recipe.architecture}: gpu: "
                f"{cell.recipe.resources.gpu} is for speed alone; a step takes {step[0]:g} GiB in "
                f"float32, {step[1]:g} in bfloat16 (computed, not measured), which one card of "
                "80 GB holds"
            )
    if idle := ", ".join(map(str, config.overrides_without_effect)):
        lines.append(
            f"no effect    overrides {idle} (counted from 0): match no dataset x architecture of "
            "this experiment"
        )
    return lines


def plan(config: Config, device: str | None = None) -> str:
    """The plan as text: a line a cell, the sums, what is missing, and where hours come from.

    device: cpu or cuda; left out, what this machine has.
    """
    if not config.shows_own:
        return f"Experiment {config.experiment}: nothing is trained, it shows reference runs"
    from ..training.lease import physical_gpus

    check_functions(config)
    check_layers(config)
    if device is None:
        wanted = config.device == "cuda" or (config.device == "auto" and physical_gpus())
        device = "cuda" if wanted else "cpu"
    files = sorted(Path(config.results_folder).glob("*/*/*/seed-*/run.json"))
    runs, cells = finished_runs(files, device), plan_cells(config)
    checks = {CHECKED: Path(config.results_folder) / SPEEDS_FILE, H100: H100_SPEEDS}
    speeds = {o: read_speeds(path) for o, path in checks.items()} if device == "cuda" else {}
    estimates = [_estimate(cell, runs, device, speeds) for cell in cells]
    prepared = [recipe for c in cells for recipe in (c.recipe, c.recipe.of_other_dataset) if recipe]
    preparations = {(recipe.dataset, recipe.data.name) for recipe in prepared}
    jobs = len({dataset for dataset, _ in preparations}) + len(preparations)
    jobs += sum(cell.jobs for cell in cells)
    lines = [
        f"Experiment {config.experiment}, results in {config.folder}",
        "",
        *_table(estimates),
        "",
        f"jobs         {jobs} before figures, {sum(c.trainings for c in cells)} of them trainings",
        f"epochs       {sum(cell.epochs for cell in cells):,}",
        f"checkpoints  {sum(cell.checkpoints for cell in cells):,}",
        f"disk         {_disk(config, cells)}",
        f"time         {_time(estimates, device)}",
        *_remarks(config, cells),
    ]
    return "\n".join(lines)
