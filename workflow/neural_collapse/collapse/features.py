"""One streaming pass of a network over a data set: features, and from them the moments.

Shape suffixes: N examples, B of one batch, X the image axes (channels, height, width), d (D)
feature dimension. A network is any module with `features(x) -> (B, d)`, the input of its last
linear layer, and `classifier`, that layer; `forward` is `classifier(features(x))`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.images import CPU_BATCH, Normalisation
from ..io.errors import UserError
from ..networks.arithmetic import arithmetic
from ..networks.folding import fold_batch_norms
from .arrays import label_array
from .measure import compute_moments
from .moments import Moments

if TYPE_CHECKING:
    from ..data.prepared import PreparedDataset

DEFAULT_MEMORY_LIMIT_BYTES = 8 * 2**30


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
    train_means: Tensor | np.ndarray | None = None,
    keep_rows: Sequence[int] | np.ndarray | None = None,
    split: str = "given",
    memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
) -> tuple[Moments, np.ndarray | None]:
    """Moments of a network's features on one split, and the raw features of chosen rows.

    Args:
        network: see the module docstring; moved to `device`, otherwise left as it was.
        images: (N, channels, height, width) uint8, may be a memory map.
        labels: (N,) whole numbers in [0, num_classes).
        mean: one number a channel, of images scaled to [0, 1].
        std: likewise.
        batch_size: images a forward pass; halved, for good, whenever the device runs out of
            memory.
        train_means: the train split's class means when this is the test split.
        keep_rows: indices of the examples whose raw features to return.
        split: the split's name, for error messages.
        memory_limit_bytes: features larger than this go to a temporary file.

    Returns:
        The moments, and a float32 array (len(keep_rows), d), or None without `keep_rows`.

    Raises:
        UserError: input that does not fit, NaN or infinite features, a full disk.
    """
    labels = _checked(network, images, labels, mean, std, num_classes, split)
    classifier, device = network.classifier, torch.device(device)
    network.to(device)
    # Each class's features lie together, as the moments read them.
    places_N = np.empty(len(labels), dtype=np.int64)
    places_N[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    # On a GPU events belong to a device's stream.
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    shape = (len(images), classifier.in_features)
    with (
        measurement_mode(network),
        current,
        _host_buffer(shape, memory_limit_bytes) as features_ND,
    ):
        normalise = Normalisation(mean, std, device)
        _stream(fold_batch_norms(network), images, normalise, batch_size, features_ND, places_N)
        moments = compute_moments(
            features_ND,
            labels,
            num_classes,
            classifier.weight,
            classifier.bias,
            rows_N=places_N,
            train_means=train_means,
            allow_empty=train_means is not None,  # NC4 of a test set needs the train means alone
            split=split,
            device=device if device.type == "cuda" else "cpu",  # mps has no float64
        )
        kept = None
        if keep_rows is not None:
            kept = np.array(features_ND[places_N[_row_index(keep_rows, images)]])
    return moments, kept


def extract_splits(
    network: nn.Module,
    data: PreparedDataset,
    *,
    batch_size: int,
    device: str | torch.device,
    keep_rows: Sequence[int] | np.ndarray | None = None,
) -> tuple[Moments, Moments, np.ndarray | None]:
    """Moments of the train and the test split, and the raw features of chosen train rows.

    The test split's nearest-class-centre decisions are by the train means. Arguments, errors and
    what the raw features are: see `extract`.
    """

    def of(split: str, images: np.ndarray, labels: np.ndarray, **more: Any):
        return extract(
            network,
            images,
            labels,
            data.mean,
            data.std,
            batch_size=batch_size,
            device=device,
            num_classes=data.num_classes,
            split=split,
            **more,
        )

    train, kept = of("train", data.train_images, data.train_labels, keep_rows=keep_rows)
    means = train.class_means
    test, _ = of("test", data.test_images, data.test_labels, train_means=means)
    return train, test, kept


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

    `run` must leave nothing behind when it fails.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    start = 0
    while start < count:
        stop = min(start + batch_size, count)
        try:
            run(start, stop)
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
            batch_size = (stop - start) // 2
        else:
            start = stop
            continue
        # Outside the except clause, whose traceback still holds the failed batch's tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _stream(
    folded: nn.Module,
    images: np.ndarray,
    normalise: Normalisation,
    batch_size: int,
    features_ND: np.ndarray,
    places_N: np.ndarray,
) -> None:
    """Fill features_ND (float32) with the images' features; places_N is the row of each."""
    device = normalise.scale.device
    on_cuda = device.type == "cuda"
    if device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    # On a GPU a batch's features are awaited only when the next batch is already under way.
    pending: list[tuple[np.ndarray, Tensor, torch.cuda.Event]] = []

    def collect() -> None:
        while pending:
            where, host_BD, arrived = pending.pop()
            arrived.synchronize()
            features_ND[where] = host_BD.numpy()

    def run(start: int, stop: int) -> None:
        batch_BX = torch.from_numpy(np.array(images[start:stop]))
        if on_cuda:
            batch_BX = batch_BX.pin_memory().to(device, non_blocking=True)
        batch_BD = folded.features(normalise(batch_BX.to(device)))
        if batch_BD.shape != (stop - start, features_ND.shape[1]):
            raise UserError(
                f"network.features gave shape {tuple(batch_BD.shape)} for {stop - start} images; "
                f"its classifier takes (B, {features_ND.shape[1]})."
            )
        if on_cuda:
            host_BD = torch.empty(batch_BD.shape, dtype=torch.float32, pin_memory=True)
            host_BD.copy_(batch_BD, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            collect()
            pending.append((places_N[start:stop], host_BD, arrived))
        else:
            features_ND[places_N[start:stop]] = batch_BD.cpu().numpy()

    with torch.inference_mode():
        in_batches(len(features_ND), batch_size, run)
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
    network: nn.Module, images: np.ndarray, labels, mean, std, num_classes: int, split: str
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
    if classifier.out_features != num_classes:
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
