"""What callers bring as features, labels and parameters: taken as it is, or one clear sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..io.errors import UserError

_REAL = "fiu"  # numpy's kinds of real numbers


def real_array(values: Any, name: str) -> np.ndarray | Tensor:
    """Numbers as an array or a detached tensor of a real dtype that torch can widen to float64.

    Args:
        values: array, tensor, nested lists, pandas frame or series.
        name: subject of the error message, in the plural.

    Raises:
        UserError: complex, sparse, ragged, longdouble, or not numbers.
    """
    if isinstance(values, Tensor):
        values = values.detach()
        if values.layout != torch.strided:
            raise UserError(f"The {name} are a sparse tensor; give its .to_dense().")
        if values.is_quantized:
            values = values.dequantize()
        if values.is_complex():
            raise UserError(f"The {name} are complex; the statistics are those of real numbers.")
        return values
    if type(values).__module__.startswith("scipy.sparse"):
        raise UserError(f"The {name} are a sparse matrix; give its .toarray().")
    if not isinstance(values, np.ndarray):
        try:
            values = np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:
            ragged = isinstance(error, ValueError) and "inhomogeneous" in str(error)
            reason = "rows of different lengths" if ragged else "not an array of numbers"
            raise UserError(f"The {name} are {reason}.") from None
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        raise UserError(f"The {name} are a masked array with masked values; leave those rows out.")
    kind = values.dtype.kind
    if kind == "c":
        raise UserError(f"The {name} are complex; the statistics are those of real numbers.")
    if kind == "f" and values.dtype.itemsize > 8:
        raise UserError(
            f"The {name} are {values.dtype}, which torch does not have; give .astype('float64')."
        )
    if kind == "O" and values.ndim and all(np.ndim(row) for row in values.flat):
        raise UserError(f"The {name} are rows of different lengths.")
    if kind not in _REAL:
        raise UserError(f"The {name} are {values.dtype}, not numbers.")
    return values


def label_array(labels: Any, examples: int, num_classes: int, split: str) -> np.ndarray:
    """Labels as (N,) int64.

    Args:
        labels: (N,) or one column (N, 1); integers of any width, or whole numbers of a float type.

    Raises:
        UserError: another shape, fractions, labels outside [0, num_classes).
    """
    name = f"labels of the {split} split"
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.double() if labels.is_floating_point() else labels
    if not (isinstance(labels, (np.ndarray, Tensor)) and "bool" in str(labels.dtype)):
        labels = real_array(labels, name)
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (examples,):
        hint = " (one-hot rows? give their .argmax(1))" if labels.ndim == 2 else ""
        raise UserError(
            f"The {split} split has {examples} examples but labels of shape {labels.shape}{hint}."
        )
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        raise UserError(f"The {name} are {labels.dtype} with fractions or NaN, not whole numbers.")
    if examples and not (labels.min() >= 0 and labels.max() < num_classes):
        raise UserError(
            f"The {name} run from {labels.min()} to {labels.max()}, but with {num_classes} classes "
            f"they must lie in 0..{num_classes - 1}."
        )
    return labels.astype(np.int64)


def parameter(values: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """A parameter of the last layer, or means, as a float64 copy on the CPU.

    Raises:
        UserError: another shape (a transposed one is called so), NaN or infinite values.
    """
    tensor = torch.as_tensor(_native(real_array(values, f"values of {name}")))
    tensor = tensor.cpu().to(torch.float64)
    found = tuple(tensor.shape)
    if found != shape:
        hint = "; it is transposed, give its .T" if found == shape[::-1] else ""
        raise UserError(f"{name} has shape {found}, but {shape} is needed{hint}.")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds NaN or infinite values; the training has diverged.")
    return tensor.clone()


def check_weight(weight: Any, dim: int, split: str) -> None:
    """Raise UserError unless weight is (C, d) for a split's features (N, d)."""
    shape = tuple(real_array(weight, "values of weight").shape)
    if len(shape) != 2:
        raise UserError(f"weight has shape {shape}; (C, d) is needed, one row a class.")
    if shape[1] != dim:
        hint = f"; weight is transposed, give its .T of shape {shape[::-1]}" * (shape[0] == dim)
        raise UserError(
            f"weight has shape {shape}, (C, d) of {shape[1]} features, but the features of the "
            f"{split} split have {dim} columns{hint}."
        )


def _native(values: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """In the machine's byte order, with strides that torch takes."""
    if isinstance(values, Tensor):
        return values
    return np.require(values, values.dtype.newbyteorder("="), ["C", "W"])
