"""Neural collapse of a saved model on images from a folder or a .npz file."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.image_files import ImageRef, decode_image, index_image_folder
from ..data.images import Normalisation
from ..data.parsers import read_npz
from ..io.errors import UserError
from ..io.progress import Progress, say
from .features import check_images
from .model import measure_model
from .result import CollapseResult
from .saved_features import read_tensor_file

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std per channel with which torchvision's weights were trained."""


def measure_saved_model(
    model: str,
    data: Path,
    *,
    weights: Path | None = None,
    layer: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize_px: int | None = None,
    crop_px: int | None = None,
    batch_size: int = 100,
    device: str = "cpu",
    pool: str | None = None,
) -> CollapseResult:
    """Measure a saved model on both splits of a dataset.

    Args:
        model: "torchvision:NAME", or "MODULE:FUNCTION" for your own code: the function returns an
            nn.Module and is called with `num_classes` if it has that parameter.
        data: a folder with train/<class>/ and test/<class>/ or val/<class>/, or a .npz file with
            the arrays train_images, train_labels, test_images and test_labels.
        weights: a file with a state dict; None: initial weights for torchvision's models, those
            that the function returns otherwise.
        mean, std: one number per channel, of images scaled to 0..1. Default for torchvision's
            models: ImageNet's.
        resize_px, crop_px: for a folder: resize the shorter side, then crop the centre square.
        batch_size: images per forward pass.
        layer, device, pool: as in `measure_model`.

    Raises:
        UserError: an unknown model, weights that do not fit it, unreadable data, no mean and std,
            and all cases of `measure_model`.
    """
    splits = _splits(data, resize_px, crop_px)
    classes = int(max(labels.max() for _, labels in splits.values())) + 1
    network = _model(model, classes)
    if weights is not None:
        _load(network, weights)
    if mean is None and std is None and model.startswith("torchvision:"):
        mean, std = IMAGENET
    if mean is None or std is None:
        raise UserError("Pass --mean and --std, one number per channel, of images scaled to 0..1.")
    say(f"pixels are scaled to 0..1, then normalised by mean {list(mean)} and std {list(std)}")
    for name, (images, _) in splits.items():
        check_images(images[:1], mean, std, name)
    normalise = Normalisation(mean, std, device)
    loaders = [
        _batches(name, images, labels, batch_size, normalise)
        for name, (images, labels) in splits.items()
    ]
    return measure_model(network, *loaders, layer=layer, device=device, pool=pool)


class _Folder:
    """Images of a folder, decoded where they are sliced."""

    def __init__(
        self, refs: Sequence[ImageRef], resize_px: int | None, crop_px: int | None
    ) -> None:
        self.refs, self.resize_px, self.crop_px = refs, resize_px, crop_px

    def __getitem__(self, rows: slice) -> np.ndarray:
        images = [decode_image(ref, self.resize_px, self.crop_px) for ref in self.refs[rows]]
        if len({image.shape for image in images}) > 1:
            raise UserError(
                f"{self.refs[rows.start]}: the images differ in size; "
                "pass --resize-px and --crop-px"
            )
        return np.stack(images)


Images = np.ndarray | _Folder


def _splits(
    data: Path, resize_px: int | None, crop_px: int | None
) -> dict[str, tuple[Images, np.ndarray]]:
    """Images and labels of the splits train and test."""
    if data.is_dir():
        found = index_image_folder(data)
        for reason, what in found.left_out.items():
            say(f"{data}: left out {reason}: {what}")
        train, test = (_Folder(refs, resize_px, crop_px) for refs in (found.train, found.test))
        return {"train": (train, found.train_labels), "test": (test, found.test_labels)}
    if data.suffix != ".npz":
        raise UserError(f"{data}: is neither a folder of images nor a .npz file")
    if resize_px is not None or crop_px is not None:
        raise UserError("--resize-px and --crop-px are for folders of images, not for .npz files.")
    arrays = read_npz(data)
    return {
        "train": (arrays.train_images, arrays.train_labels),
        "test": (arrays.test_images, arrays.test_labels),
    }


def _batches(
    name: str, images: Images, labels: np.ndarray, batch_size: int, normalise: Normalisation
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Normalised batches of one split, with progress."""
    progress = Progress(name, "image", len(labels))
    for start in range(0, len(labels), batch_size):
        rows = slice(start, start + batch_size)
        batch = torch.from_numpy(np.asarray(images[rows]))
        inputs = normalise(batch.to(normalise.scale.device))
        # `view` in a model cannot flatten channels-last feature maps.
        yield inputs.clone(memory_format=torch.contiguous_format), labels[rows]
        progress.step(start + len(labels[rows]))


def _model(name: str, classes: int) -> nn.Module:
    module, _, function = name.partition(":")
    if not function:
        raise UserError(f"--model {name}: pass torchvision:NAME or MODULE:FUNCTION.")
    if module == "torchvision":
        from torchvision import models

        try:
            return models.get_model(function, weights=None, num_classes=classes)
        except ValueError:
            raise UserError(f"torchvision has no model {function!r}.") from None
    sys.path.insert(0, "")
    try:
        build = getattr(importlib.import_module(module), function)
        takes = "num_classes" in inspect.signature(build).parameters
        network = build(num_classes=classes) if takes else build()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--model {name}: {type(error).__name__}: {reason}") from error
    finally:
        sys.path.remove("")
    if not isinstance(network, nn.Module):
        raise UserError(
            f"--model {name}: it returned {type(network).__name__}; an nn.Module is needed."
        )
    return network


def _load(network: nn.Module, path: Path) -> None:
    state: Any = read_tensor_file(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: contains no state dict; save model.state_dict()")
    for prefix in ("module.", "_orig_mod."):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        reason = lines[1].strip() if len(lines) > 1 else lines[0]
        raise UserError(f"{path}: does not fit {type(network).__name__}: {reason[:300]}") from None
