"""Features and their moments, from one streaming pass of a network over a dataset.

Shape suffixes: N examples, B of one batch, X the image axes (channels, height, width), d (D)
feature dimension. A network is any module with `features(x) -> (B, d)`, the input of its last
linear layer, and `classifier`, that layer; `forward` is `classifier(features(x))`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.images import CPU_BATCH, Normalisation
from ..io.errors import UserError
from ..networks.arithmetic import arithmetic, is_out_of_memory
from ..networks.folding import fold_batch_norms
from ..networks.layers import LayerOutputs, Pool, layer_dimensions
from .arrays import label_array
from .measure import compute_moments
from .moments import Moments

if TYPE_CHECKING:
    from ..data.prepared import PreparedDataset

DEFAULT_MEMORY_LIMIT_BYTES = 8 * 2**30


class Splits(NamedTuple):
    """Moments of the train and the test split, and the raw features of chosen train rows."""

    train: Moments
    test: Moments
    kept: np.ndarray | None
    layers: dict[str, tuple[Moments, Moments]]
    """Train and test moments of further layers, by name; they have no classifier."""
    test_rows: np.ndarray | None = None
    """Raw features (N, d) of the test split, where they were asked for."""


@dataclass(frozen=True)
class Watched:
    """What else is measured in the same pass, and how."""

    layers: tuple[str, ...] = ()
    """Further layers, as `networks.layers.LayerOutputs` has them."""
    pool: Pool = "mean"
    """How their maps become rows."""
    batch_norm_examples: int | None = None
    """Batch normalisation uses the mean and variance of each batch of this many images, as in
    training, instead of its running ones."""


NOTHING_ELSE = Watched()


def extract_splits(
    network: nn.Module,
    data: PreparedDataset,
    *,
    batch_size: int,
    device: str | torch.device,
    keep_rows: Sequence[int] | np.ndarray | None = None,
    keep_test: bool = False,
    scatter: str = "projected",
    watched: Watched = NOTHING_ELSE,
) -> Splits:
    """Moments of both splits, of the features and of further layers, each image passed once.

    The test split's nearest-class-centre decisions are by the train means. Arguments, errors and
    what the raw features are: see `extract`; keep_test: whether to return the test split's as well.
    """
    test_rows = np.arange(len(data.test_labels)) if keep_test else None
    (train, kept), (test, test_rows) = _extract_both(
        network,
        data,
        data.mean,
        data.std,
        (keep_rows, test_rows),
        batch_size=batch_size,
        device=device,
        scatter=scatter,
        watched=watched,
    )
    layers = dict(zip(watched.layers, zip(train[1:], test[1:], strict=True), strict=True))
    return Splits(train[0], test[0], kept, layers, test_rows)


class OtherFeatures(NamedTuple):
    """A network's features of a dataset that it was not trained on."""

    train_rows: np.ndarray
    """(N, d) float32, in the order of the images; of `most` images, spread evenly, where there are
    more."""
    train_labels: np.ndarray
    """(N,), theirs."""
    test_rows: np.ndarray
    test: Moments
    """Of the test split, without a classifier; its nearest class centres are the train split's."""


def extract_other(
    network: nn.Module,
    other: PreparedDataset,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int,
    device: str | torch.device,
    most: int,
    batch_norm_examples: int | None = None,
) -> OtherFeatures:
    """Features of another dataset's two splits, whose classes need not be the network's.

    Args:
        network: see the module docstring.
        other: of the size and channels of the images that the network was trained on.
        mean: of the network's own images, by which these are normalised too; `std` likewise.
        most: raw features of the train split, in memory.
        batch_norm_examples: see `Watched`.
    """
    count = len(other.train_labels)
    spread = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    (_, train_rows), (test, test_rows) = _extract_both(
        network,
        other,
        mean,
        std,
        (spread, np.arange(len(other.test_labels))),
        name=f"{other.name} ",
        batch_size=batch_size,
        device=device,
        watched=Watched(batch_norm_examples=batch_norm_examples),
        own_classes=False,
    )
    return OtherFeatures(train_rows, other.train_labels[spread], test_rows, test[0])


def _extract_both(
    network: nn.Module,
    data: PreparedDataset,
    mean: Sequence[float],
    std: Sequence[float],
    keep_rows: tuple,
    name: str = "",
    **options: Any,
) -> list[tuple[list[Moments], np.ndarray | None]]:
    """`extract` of the train and then of the test split, this one by the train split's means.

    keep_rows: of each split; name: goes before the split's in error messages.
    """
    means, found = None, []
    for split, rows in zip(("train", "test"), keep_rows, strict=True):
        moments, raw = extract(
            network,
            getattr(data, f"{split}_images"),
            getattr(data, f"{split}_labels"),
            mean,
            std,
            num_classes=data.num_classes,
            train_means=means,
            keep_rows=rows,
            split=f"{name}{split}",
            **options,
        )
        means = [one.class_means for one in moments]
        found.append((moments, raw))
    return found


def extract(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int,
    device: str | torch.device,
    num_classes: int,
    train_means: Sequence[Tensor | np.ndarray] | None = None,
    keep_rows: Sequence[int] | np.ndarray | None = None,
    split: str = "given",
    memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
    scatter: str = "projected",
    watched: Watched = NOTHING_ELSE,
    own_classes: bool = True,
) -> tuple[list[Moments], np.ndarray | None]:
    """Moments of a network's outputs on one split, and the raw features of chosen rows.

    Args:
        network: see the module docstring; moved to `device`, otherwise left as it was.
        images: (N, channels, height, width) uint8, may be a memory map.
        labels: (N,) whole numbers in [0, num_classes).
        mean: one number a channel, of images scaled to [0, 1]; `std` likewise.
        batch_size: images a forward pass; halved whenever the device runs out of memory.
        train_means: the train split's class means of each output when this is the test split.
        keep_rows: indices of the examples whose raw features to return.
        split: the split's name, for error messages.
        memory_limit_bytes: features larger than this go to a temporary file.
        scatter: see `CollapseMetric`; of the features alone.
        watched: further layers.
        own_classes: whether labels are of the network's classes; else moments have no classifier.

    Returns:
        The moments of the features and of each further layer, these without a classifier; and a
        float32 array (len(keep_rows), d), or None without `keep_rows`.

    Raises:
        UserError: input that does not fit, NaN or infinite features, a full disk.
    """
    labels = _checked(network, images, labels, mean, std, num_classes, split, own_classes)
    check_batches(len(labels), watched.batch_norm_examples, split)
    classifier, device = network.classifier, torch.device(device)
    network.to(device)
    # Each class's features lie together, as the moments read them.
    places_N = np.empty(len(labels), dtype=np.int64)
    places_N[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    # On a GPU events belong to a device's stream.
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with measurement_mode(network), current, ExitStack() as held:
        outputs, dimensions = held.enter_context(_outputs(network, watched, images.shape[1:]))
        limit = memory_limit_bytes // len(dimensions)
        shapes = [(len(images), dim) for dim in dimensions]
        buffers = [held.enter_context(_host_buffer(shape, limit)) for shape in shapes]
        normalise = Normalisation(mean, std, device)
        fixed = watched.batch_norm_examples
        _stream(outputs, images, normalise, batch_size, fixed, buffers, places_N)
        moments = []
        for number, rows_ND in enumerate(buffers):
            decides = own_classes and number == 0  # further layers have no classifier
            found = compute_moments(
                rows_ND,
                labels,
                num_classes,
                classifier.weight if decides else None,
                classifier.bias if decides else None,
                rows_N=places_N,
                train_means=None if train_means is None else train_means[number],
                scatter=scatter if number == 0 else "projected",
                allow_empty=train_means is not None,  # NC4 of a test set needs train means alone
                split=split,
                device=device if device.type == "cuda" else "cpu",  # mps has no float64
            )
            moments.append(found)
        kept = None
        if keep_rows is not None:
            kept = np.array(buffers[0][places_N[_row_index(keep_rows, images)]])
    return moments, kept


Outputs = Callable[[Tensor], list[Tensor]]
"""Of images on the device: their features (B, d), then the outputs of further layers."""


@contextmanager
def _outputs(
    network: nn.Module, watched: Watched, image_shape: Sequence[int]
) -> Iterator[tuple[Outputs, list[int]]]:
    """What is asked of a network in eval mode, and d of each output."""
    dimension = network.classifier.in_features
    if watched == NOTHING_ELSE:
        folded = fold_batch_norms(network)
        yield lambda x: [folded.features(x)], [dimension]
        return
    # Not folded, since a convolution's output would then be that of the norm after it.
    dimensions = layer_dimensions(network, watched.layers, watched.pool, image_shape)
    by_batch = watched.batch_norm_examples is not None
    norms = [module for module in network.modules() if by_batch and isinstance(module, _BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:  # in training mode, but their running means and variances stay
            norm.training, norm.track_running_stats = True, False
        with LayerOutputs(network, watched.layers, watched.pool) as layers:

            def outputs(x: Tensor) -> list[Tensor]:
                features, rows = layers.features(x)
                return [features, *rows]

            yield outputs, [dimension, *dimensions]
    finally:
        for norm, track in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = False, track


def check_batches(examples: int, batch_norm_examples: int | None, split: str) -> None:
    """Raise UserError if batches of this size leave a last batch of one image."""
    if batch_norm_examples is not None and examples % batch_norm_examples == 1:
        raise UserError(
            f"measurement.batch_norm_examples: {batch_norm_examples} leave a batch of one image of "
            f"the {examples} of the {split} split, which has no variance; choose another number"
        )


@contextmanager
def measurement_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode, true float32 and repeatable convolutions; all as before on leaving.

    4-D weights lie channels-last meanwhile, which is the faster layout on CPU and GPU.
    """
    training = {module: module.training for module in network.modules()}
    layouts = {p: p.data for p in network.parameters() if p.dim() == 4}
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    device_type = next((p.device.type for p in network.parameters()), "cpu")
    try:
        cudnn.benchmark, cudnn.deterministic = False, True  # a benchmark picks the way by a race
        for parameter, data in layouts.items():
            parameter.data = data.contiguous(memory_format=torch.channels_last)
        network.eval()
        with arithmetic("float32"), torch.autocast(device_type, enabled=False):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, data in layouts.items():
            parameter.data = data
        cudnn.benchmark, cudnn.deterministic = before


def in_batches(count: int, batch_size: int, run: Callable[[int, int], None]) -> None:
    """Call `run(start, stop)` over range(count); where memory runs out, halve the batch and go on.

    `run` must leave nothing behind when it fails. Raises UserError where one alone does not fit.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    start = 0
    while start < count:
        stop = min(start + batch_size, count)
        try:
            run(start, stop)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if stop - start == 1:
                raise UserError(
                    "not even one image fits into the GPU's memory; stop other programs on it or "
                    f"use a smaller network ({str(error).partition(chr(10))[0]})"
                ) from None
            batch_size = (stop - start) // 2
        else:
            start = stop
            continue
        # Outside the except clause, whose traceback still holds the failed batch's tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _in_fixed_batches(count: int, batch_size: int, run: Callable[[int, int], None]) -> None:
    """The same with batches that decide the result, so that none may be smaller."""
    try:
        for start in range(0, count, batch_size):
            run(start, min(start + batch_size, count))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"measurement.batch_norm_examples: {batch_size} images a batch are more than the GPU's "
            "memory holds; lower it (the results change with it), or stop other programs on it"
        ) from None


def _stream(
    outputs: Outputs,
    images: np.ndarray,
    normalise: Normalisation,
    batch_size: int,
    fixed_batch: int | None,
    buffers: Sequence[np.ndarray],
    places_N: np.ndarray,
) -> None:
    """Fill each of `buffers` (N, d), float32, with an output of the images.

    fixed_batch: images a batch, where those decide the result; places_N: the row of each image.
    """
    device = normalise.scale.device
    on_cuda = device.type == "cuda"
    if device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    # On a GPU a batch's features are awaited only when the next batch is already under way.
    pending: list[tuple[np.ndarray, list[Tensor], torch.cuda.Event]] = []

    def store(where: np.ndarray, outputs_BD: list[Tensor]) -> None:
        for buffer, output_BD in zip(buffers, outputs_BD, strict=True):
            buffer[where] = output_BD.numpy()

    def collect() -> None:
        while pending:
            where, on_host, arrived = pending.pop()
            arrived.synchronize()
            store(where, on_host)

    def run(start: int, stop: int) -> None:
        batch_BX = torch.from_numpy(np.array(images[start:stop]))
        if on_cuda:
            batch_BX = batch_BX.pin_memory().to(device, non_blocking=True)
        outputs_BD = outputs(normalise(batch_BX.to(device)))
        if outputs_BD[0].shape != (stop - start, buffers[0].shape[1]):
            raise UserError(
                f"network.features gave shape {tuple(outputs_BD[0].shape)} for {stop - start} "
                f"images; its classifier takes (B, {buffers[0].shape[1]})."
            )
        if on_cuda:
            on_host = []
            for output_BD in outputs_BD:
                host_BD = torch.empty(output_BD.shape, dtype=torch.float32, pin_memory=True)
                on_host.append(host_BD.copy_(output_BD, non_blocking=True))
            arrived = torch.cuda.Event()
            arrived.record()
            collect()
            pending.append((places_N[start:stop], on_host, arrived))
        else:
            store(places_N[start:stop], [output_BD.cpu() for output_BD in outputs_BD])

    with torch.inference_mode():
        if fixed_batch is None:
            in_batches(len(images), batch_size, run)
        else:
            _in_fixed_batches(len(images), fixed_batch, run)
        collect()


@contextmanager
def _host_buffer(shape: tuple[int, int], memory_limit_bytes: int) -> Iterator[np.ndarray]:
    """A float32 array in memory, or in a temporary file when it is larger than the limit."""
    nbytes = shape[0] * shape[1] * 4
    if nbytes <= memory_limit_bytes or nbytes == 0:
        yield np.empty(shape, dtype=np.float32)
        return
    with tempfile.TemporaryDirectory(prefix="features-") as folder:
        path = Path(folder, "features.float32")
        with open(path, "wb") as file:
            try:
                # Claim the space now: a memory map on a full disk ends the process by SIGBUS.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, nbytes)
            except OSError as error:
                raise UserError(
                    f"{folder} has no room for {nbytes / 1e9:.1f} GB of features ({error}); "
                    "set TMPDIR to a larger disk or raise the memory limit."
                ) from error
        mapped = np.memmap(path, dtype=np.float32, mode="r+", shape=shape)
        try:
            yield mapped
        finally:
            mapped._mmap.close()


def _checked(
    network: nn.Module,
    images: np.ndarray,
    labels,
    mean,
    std,
    num_classes: int,
    split: str,
    own_classes: bool,
) -> np.ndarray:
    """The labels as (N,) int64, where everything fits together; else a UserError."""
    check_images(images, mean, std, split)
    classifier = getattr(network, "classifier", None)
    if not (callable(getattr(network, "features", None)) and isinstance(classifier, nn.Linear)):
        raise UserError(
            f"{type(network).__name__} is not a network of this project: it needs a method "
            "features(x), the input of its last layer, and that nn.Linear as its attribute "
            "classifier."
        )
    if own_classes and classifier.out_features != num_classes:
        raise UserError(
            f"The network decides between {classifier.out_features} classes, the data set has "
            f"{num_classes}."
        )
    return label_array(labels, len(images), num_classes, split)


def check_images(images: np.ndarray, mean, std, split: str) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(
            f"The images of the {split} split are {images.dtype} of shape {images.shape}; uint8 "
            "(N, channels, height, width) is needed."
        )
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"mean and std have {len(mean)} and {len(std)} numbers for images of {channels} "
            "channels."
        )
    if not all(s > 0 for s in std):
        raise UserError(f"std is {list(std)}; every channel's must be greater than zero.")


def _row_index(rows: Sequence[int] | np.ndarray, images: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise UserError(f"Rows are chosen by whole numbers, not {rows.dtype} {rows.shape}.")
    if rows.size and not (rows.min() >= 0 and rows.max() < len(images)):
        raise UserError(
            f"Rows run from {rows.min()} to {rows.max()}, but there are {len(images)} examples."
        )
    return rows.astype(np.int64)
