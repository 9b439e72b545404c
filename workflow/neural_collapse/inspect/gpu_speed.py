"""Speed of a device: its peak speed, and training steps of a config's networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..experiment.config import Config, resolve_recipe
from ..experiment.cost import DataSize, NetworkCost, data_size, network_kind
from ..experiment.recipe import Recipe
from ..io.errors import UserError
from ..networks.arithmetic import arithmetic, is_out_of_memory
from ..networks.registry import label
from ..training.optimisers import Optimiser
from ..training.trainer import Batch, StepTooLarge, Trainer
from .gpu_checks import PRECISIONS, made_up_data

MOST_STEPS = 30


@dataclass(frozen=True)
class Speed:
    """Training steps of one network in one way."""

    dataset: str
    architecture: str
    network: str
    kind: str
    side_px: int
    batch_size: int
    precision: str
    cuda_graphs: bool
    channels_last: bool
    images_per_second: float = 0.0
    flops_per_second: float = 0.0
    peak_bytes: int = 0
    failure: str = ""


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def runs_per_second(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """How often `run` is done in a second, after two times that do not count.

    Of a run that takes longer than `seconds`, the second time counts.
    """
    for _ in range(2):
        began = time.perf_counter()
        run()
        synchronise(device)
        once = time.perf_counter() - began
    if once > seconds:
        return 1 / once
    # Several at a time, since a GPU that is waited for after each run computes less.
    together = 3 if 3 * once < seconds else 1
    began, done, took = time.perf_counter(), 0, 0.0
    while took < seconds and done < MOST_STEPS:
        for _ in range(together):
            run()
        synchronise(device)
        done, took = done + together, time.perf_counter() - began
    return done / took


def ceilings(device: torch.device, seconds: float, size: int = 8192) -> dict[str, float]:
    """What the device does at best: bytes copied a second, and FLOP/s of a matrix product and of a
    3x3 convolution (128 images of 256 channels, in its faster layout) in each precision."""
    source = torch.empty(size * size * 8, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rate = runs_per_second(lambda: target.copy_(source), device, seconds)
    found = {"copy_bytes_per_second": 2 * source.nbytes * rate}
    side = max(1, size // 256)
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        square = torch.randn(size, size, device=device, dtype=dtype)
        images = torch.randn(128, 256, side, side, device=device, dtype=dtype)
        weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
        with arithmetic(precision), torch.no_grad():
            products = runs_per_second(lambda a=square: a @ a, device, seconds)
            convolutions = 0.0
            for layout in (torch.channels_last, torch.contiguous_format):
                x, w = images.to(memory_format=layout), weight.to(memory_format=layout)
                rate = runs_per_second(
                    lambda x=x, w=w: functional.conv2d(x, w, padding=1), device, seconds
                )
                convolutions = max(convolutions, rate)
        found[f"product_{precision}_flops"] = 2.0 * size**3 * products
        found[f"convolution_{precision}_flops"] = 2.0 * 128 * 256**2 * 9 * side**2 * convolutions
    return found


def networks_of(config: Config, quick: bool) -> list[tuple[Recipe, DataSize]]:
    """Each network of a config once at each image and batch size; quick: once."""
    found: dict[tuple, tuple[Recipe, DataSize]] = {}
    for cell in config.cells():
        recipe = resolve_recipe(config, *cell)
        size = data_size(config, recipe)
        if size is not None:
            key = (label(recipe.network), size.side_px, recipe.training.batch_size)
            found.setdefault(key[:1] if quick else key, (recipe, size))
    return list(found.values())


def speeds(
    recipe: Recipe, size: DataSize, device: torch.device, seconds: float, *, nchw: bool
) -> Iterator[Speed]:
    """A network's training steps in every precision, with and without a CUDA graph; nchw: also in
    that layout, in which the pipeline does not train."""
    batch = recipe.training.batch_size
    data = made_up_data(batch, size.channels, size.side_px, size.num_classes)
    forward = NetworkCost.of(recipe.network, size).forward_flops or 0
    for precision in PRECISIONS:
        training = recipe.training.model_copy(update={"precision": precision, "compile": False})
        ways = [(False, True)]  # (CUDA graph, channels-last)
        if device.type == "cuda":
            ways.append((True, True))
        if nchw:
            ways.append((False, False))
        trainer = None
        for graphs, channels_last in ways:
            fields = (recipe.dataset, recipe.architecture, label(recipe.network))
            kind = network_kind(recipe.network)
            fields += (kind, size.side_px, batch, precision, graphs, channels_last)
            try:
                if trainer is None:
                    changed = recipe.model_copy(update={"training": training})
                    trainer = Trainer(changed, data, 1e-4, 0, device, stream=False)
                trainer.graphed, trainer.graph = graphs, None
                rate, peak = _steps(trainer, channels_last, seconds)
                images = rate * batch
                yield Speed(*fields, images, 3 * forward * images, peak)
            except (UserError, RuntimeError) as error:
                # Said of this way alone: the others are worth as much as before.
                short = isinstance(error, StepTooLarge) or is_out_of_memory(error)
                failure = "out of memory" if short else str(error).partition("\n")[0] or repr(error)
                yield Speed(*fields, failure=failure)
        del trainer
        if device.type == "cuda":
            # It refuses where the end of a failed recording could not be told to it.
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


def _steps(trainer: Trainer, channels_last: bool, seconds: float) -> tuple[float, int]:
    """(steps a second, the memory that they take at most) on one batch."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    trainer.network.to(memory_format=layout).train()
    trainer.network.zero_grad()  # of a step that failed
    # What it keeps must lie as the weights do.
    trainer.optimiser = Optimiser(trainer.training, trainer.network)
    device = trainer.device
    with closing(trainer.data.batches(0, 1)) as batches:
        inputs, labels, examples = next(batches)
    # One channel fits both layouts: `contiguous` would leave the strides that cuDNN goes by.
    batch = Batch(inputs.clone(memory_format=layout), labels, examples)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with arithmetic(trainer.training.precision):
        rate = runs_per_second(lambda: trainer.step(batch, 1e-4), device, seconds)
    return rate, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
