"""Weights of one epoch as a safetensors file, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..io.errors import UserError
from ..io.tensors import read_tensors, write_tensors

FORMAT = "neural_collapse.checkpoint/1"


def checkpoint_name(epoch: int) -> str:
    """The file name of an epoch's checkpoint, zero-padded so that names sort by epoch."""
    return f"epoch-{epoch:04d}.safetensors"


def save_checkpoint(
    path: str | Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a network's state dict (parameters and buffers) with metadata, atomically."""
    write_tensors(path, state, metadata, FORMAT)


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple]:
    """(shape, dtype) by name, to compare the tensors of two networks."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def load_checkpoint(path: str | Path, network: torch.nn.Module) -> None:
    """Load a checkpoint's weights into `network`.

    Raises:
        UserError: the file is missing, corrupt, or of another network, or contains NaN or infinite
            values.
    """
    tensors, _ = read_tensors(path, "checkpoint", FORMAT)
    differing = dict(shapes(network.state_dict()).items() ^ shapes(tensors).items())
    if differing:
        raise UserError(
            f"{path}: holds another network than the recipe's: {min(differing)!r} does not fit; "
            "delete its folder and run again, or use the recipe that it was made with"
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{path}: {name!r} holds NaN or infinite values, so its training diverged; "
                "train again at a lower learning rate"
            )
    network.load_state_dict(tensors)


def list_checkpoints(folder: str | Path) -> dict[int, Path]:
    """Paths of the checkpoints in a folder by epoch, ascending; UserError if there are none."""
    found = {
        int(path.stem.removeprefix("epoch-")): path
        for path in sorted(Path(folder).glob("epoch-*.safetensors"))
        if path.stem.removeprefix("epoch-").isdecimal()
    }
    if not found:
        raise UserError(f"{folder}: holds no checkpoints (epoch-NNNN.safetensors)")
    return dict(sorted(found.items()))
