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
from ..networks.network import Network
from .arrays import label_array
from .measure import compute_moments
from .moments import Moments

if TYPE_CHECKING:
    from ..data.prepared import PreparedDataset

DEFAULT_MEMORY_LIMIT_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Watched:
    """Further layers measured in the same pass, and the mode of batch normalisation."""

    layers: tuple[str, ...] = ()
    """Names of further layers, as in `networks.layers.LayerOutputs`."""
    pool: Pool = "mean"
    """How their feature maps become rows."""
    batch_norm_examples: int | None = None
    """Batch normalisation uses the mean and variance of each batch of this many images, as in
    training, instead of the running ones. None: the running ones."""


NOTHING_ELSE = Watched()


class Splits(NamedTuple):
    """Moments of the train and the test split, and raw features."""

    train: Moments
    test: Moments
    kept: np.ndarray | None
    """(n, d) float32, raw features of the chosen train examples."""
    layers: dict[str, tuple[Moments, Moments]]
    """Train and test moments of further layers, by name; they have no classifier."""
    test_rows: np.ndarray | None
    """(N, d) float32, raw features of the test split."""


def extract_splits(
    network: nn.Module,
    data: PreparedDataset,
    *,
    trained_on: PreparedDataset | None = None,
    keep_rows: Sequence[int] | np.ndarray | None = None,
    keep_test: bool = False,
    watched: Watched = NOTHING_ELSE,
    **options: Any,
) -> Splits:
    """Moments of both splits, of the features and of further layers, in one pass per split.

    The nearest-class-centre decisions on the test split use the class means of the train split.

    Args:
        network: see the module docstring.
        data: the dataset to measure.
        trained_on: the dataset that the network was trained on, if it is not `data`. Its mean and
            std normalise the images, and moments have no classifier, because the network's classes
            are others.
        keep_rows: indices of the train examples whose raw features are returned.
        keep_test: whether to return the raw features of the test split.
        watched: further layers.
        options: passed to `extract`: batch_size, device, scatter.
    """
    normalised_as = data if trained_on is None else trained_on
    test_rows = np.arange(len(data.test_labels)) if keep_test else None
    found, means = [], None
    for split, rows in (("train", keep_rows), ("test", test_rows)):
        moments, raw = extract(
            network,
            getattr(data, f"{split}_images"),
            getattr(data, f"{split}_labels"),
            normalised_as.mean,
            normalised_as.std,
            num_classes=data.num_classes,
            train_means=means,
            keep_rows=rows,
            split=split if trained_on is None else f"{data.name} {split}",
            watched=watched,
            own_classes=trained_on is None,
            **options,
        )
        means = [one.class_means for one in moments]
        found.append((moments, raw))
    ((train, *train_layers), kept), ((test, *test_layers), test_rows) = found
    pairs = zip(train_layers, test_layers, strict=True)
    return Splits(train, test, kept, dict(zip(watched.layers, pairs, strict=True)), test_rows)


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
    """Moments of the features of one split, computed in one pass over its images.

    The network runs in eval mode and in float32 without TF32 or autocast.

    Args:
        network: has `features(x)`, which returns the input (B, d) of its last layer, and
            `classifier`, that nn.Linear, as all networks of `build_network`. It is moved to
            `device` and otherwise not changed.
        images: (N, channels, height, width) uint8; may be a memory map.
        labels: (N,), integers in [0, num_classes).
        mean: one number per channel, of images scaled to [0, 1].
        std: likewise; all greater than 0.
        batch_size: images per forward pass, at most 128 on a CPU; halved if a GPU runs out of
            memory.
        device: where the network runs.
        num_classes: C.
        train_means: for a test split, the class means (C, d) of the train split, one for the
            features and one for each further layer.
        keep_rows: indices of the examples whose raw features are returned.
        split: name of the split, for error messages.
        memory_limit_bytes: if the features are larger than this, they are stored in a temporary
            file until the moments are computed.
        scatter: as in `CollapseMetric`; applies to the features, not to further layers.
        watched: further layers to measure.
        own_classes: whether the labels are the network's classes; if not, the moments have no
            classifier.

    Returns:
        A list with the moments of the features and of each further layer (these without a
        classifier), and the raw features (len(keep_rows), d) float32, or None.

    Raises:
        UserError: input that does not fit, NaN or infinite features, no disk space for the
            temporary file, or a GPU whose memory does not hold one image.
    """
    check_images(images, mean, std, split)
    _check_network(network, num_classes if own_classes else None)
    labels = label_array(labels, len(images), num_classes, split)
    check_batches(len(labels), watched.batch_norm_examples, split)
    chosen = None if keep_rows is None else _row_index(keep_rows, len(images))
    device = torch.device(device)
    network.to(device)
    classifier = network.classifier
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
        if own_classes:
            # torch's older weight and spectral norm set the weight only when the layer runs.
            with torch.no_grad():
                row = torch.zeros(1, dimensions[0], dtype=classifier.weight.dtype, device=device)
                classifier(row)
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
        kept = None if chosen is None else np.array(buffers[0][places_N[chosen]])
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
            f"measurement.batch_norm_examples: {batch_norm_examples} leaves a last batch of one "
            f"image, which has no variance, of the {examples} images of the {split} split; choose "
            "another number"
        )


@contextmanager
def measurement_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode, float32 without TF32 or autocast, and deterministic convolutions; restored on
    exit.

    Inside, the 4-D weights of a `Network` are in its fastest layout; those of other models stay as
    they are, since `view` cannot flatten channels-last feature maps.
    """
    training = {module: module.training for module in network.modules()}
    layout = network.memory_format if isinstance(network, Network) else None
    layouts = {p: p.data for p in network.parameters() if p.dim() == 4} if layout else {}
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    device_type = next((p.device.type for p in network.parameters()), "cpu")
    try:
        cudnn.benchmark, cudnn.deterministic = False, True  # a benchmark's choice varies
        for parameter, data in layouts.items():
            parameter.data = data.contiguous(memory_format=layout)
        network.eval()
        with arithmetic("float32"), torch.autocast(device_type, enabled=False):
            yield
    finally:
        try:
            network.train(training[network])  # a model may have its own, as to split merged weights
        finally:
            for module, mode in training.items():
                module.training = mode
            for parameter, data in layouts.items():
                parameter.data = data
            cudnn.benchmark, cudnn.deterministic = before


def in_batches(
    count: int, batch_size: int, run: Callable[[int, int], None], *, fixed: bool = False
) -> None:
    """Call `run(start, stop)` over range(count); if memory runs out, halve the batch and retry.

    `run` must have no effect if it fails.

    Raises:
        UserError: a batch size below 1, not enough memory for one example, or for a whole batch
            if it is `fixed` because it decides the result.
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
            if fixed:
                raise UserError(
                    f"measurement.batch_norm_examples: {batch_size} images per batch do not fit "
                    "into the GPU's memory; lower it, which changes the results, or stop other "
                    "programs on the GPU"
                ) from None
            if stop - start == 1:
                raise UserError(
                    "not even one image fits into the GPU's memory; stop other programs on the GPU "
                    f"or use a smaller network ({str(error).partition(chr(10))[0]})"
                ) from None
            batch_size = (stop - start) // 2
        else:
            start = stop
            continue
        # Outside the except clause, whose traceback still holds the failed batch's tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
    # On a GPU a batch's features are awaited only when the next batch is already under way.
    pending: list[tuple[np.ndarray, list[Tensor], torch.cuda.Event | None]] = []

    def collect() -> None:
        while pending:
            where, on_host, arrived = pending.pop()
            if arrived is not None:
                arrived.synchronize()
            for buffer, output_BD in zip(buffers, on_host, strict=True):
                buffer[where] = output_BD.numpy()

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
        arrived = None
        if on_cuda:
            for number, output_BD in enumerate(outputs_BD):
                host_BD = torch.empty(output_BD.shape, dtype=torch.float32, pin_memory=True)
                outputs_BD[number] = host_BD.copy_(output_BD, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            collect()
        pending.append((places_N[start:stop], [one.cpu() for one in outputs_BD], arrived))
        if not on_cuda:
            collect()

    if fixed_batch is not None:
        batch_size = fixed_batch
    elif device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    with torch.inference_mode():
        in_batches(len(images), batch_size, run, fixed=fixed_batch is not None)
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


def _check_network(network: nn.Module, num_classes: int | None) -> None:
    classifier = getattr(network, "classifier", None)
    if not (callable(getattr(network, "features", None)) and isinstance(classifier, nn.Linear)):
        raise UserError(
            f"{type(network).__name__} is not a network of this project: it needs a method "
            "features(x), the input of its last layer, and that nn.Linear as its attribute "
            "classifier."
        )
    if num_classes not in (None, classifier.out_features):
        raise UserError(
            f"The network has {classifier.out_features} classes, the dataset {num_classes}."
        )


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


def _row_index(rows: Sequence[int] | np.ndarray, examples: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise UserError(
            f"keep_rows are {rows.dtype} of shape {rows.shape}; a list of integers is needed."
        )
    if rows.size and not (rows.min() >= 0 and rows.max() < examples):
        raise UserError(
            f"keep_rows run from {rows.min()} to {rows.max()}, but there are {examples} examples."
        )
    return rows.astype(np.int64)
