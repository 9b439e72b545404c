"""Validation of features, labels and parameters: converted to tensors, or UserError is raised; and
the rounding error of means."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..io.errors import UserError

MOST_CLASSES = 10_000_000
"""With fewer examples, labels are taken for identifiers, for which memory would not suffice."""
_REAL = "fiu"  # numpy's kinds of real numbers


def real_array(values: Any, name: str) -> np.ndarray | Tensor:
    """Values as an array or a detached tensor of a real dtype that torch can convert to float64.

    Args:
        name: what the values are, plural, for error messages.

    Raises:
        UserError: complex, sparse, masked, ragged or longdouble values, or no numbers.
    """
    if isinstance(values, Tensor):
        values = values.detach()
        if values.layout != torch.strided:
            raise UserError(f"The {name} are a sparse tensor; pass its .to_dense().")
        if values.is_meta:
            raise UserError(f"The {name} are on the device 'meta', which holds no numbers.")
        if values.is_quantized:
            values = values.dequantize()
        if values.is_complex():
            raise UserError(f"The {name} are complex; real numbers are needed.")
        return values
    if type(values).__module__.startswith("scipy.sparse"):
        raise UserError(f"The {name} are a sparse matrix; pass its .toarray().")
    if not isinstance(values, np.ndarray):
        try:
            values = np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:
            ragged = isinstance(error, ValueError) and "inhomogeneous" in str(error)
            reason = "rows of different lengths; pad or cut them" if ragged else "not numbers"
            raise UserError(f"The {name} are {reason}.") from None
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        raise UserError(f"The {name} are a masked array with masked values; leave those rows out.")
    kind = values.dtype.kind
    if kind == "c":
        raise UserError(f"The {name} are complex; real numbers are needed.")
    if kind == "f" and values.dtype.itemsize > 8:
        raise UserError(
            f"The {name} are {values.dtype}, which torch does not support; pass .astype('float64')."
        )
    if kind == "O" and values.ndim and all(np.ndim(row) for row in values.flat):
        raise UserError(f"The {name} are rows of different lengths; pad or cut them.")
    if values.ndim == 0 and isinstance(values.item(), torch.nn.Module):
        raise UserError(f"The {name} are a module; pass its .weight and .bias.")
    if kind not in _REAL:
        strings = kind in "OU" and values.size and isinstance(values.flat[0], str)
        number = "; number them: numpy.unique(labels, return_inverse=True)[1]"
        hint = number if strings and name.startswith("labels") else ""
        raise UserError(f"The {name} are {values.dtype}, not numbers{hint}.")
    return values


def whole_number(value: Any, name: str) -> int:
    """A positive number of classes, dimensions or epochs as an int, or UserError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise UserError(f"{name} is {value!r}; a whole number of at least 1 is needed.")
    return number


def label_array(labels: Any, examples: int, num_classes: int, split: str) -> np.ndarray:
    """Labels (N,) or (N, 1), integers of any dtype, as (N,) int64.

    Raises:
        UserError: another shape, fractions, labels outside 0..num_classes - 1.
    """
    name = f"labels of the {split} split"
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.double() if labels.is_floating_point() else labels
    labels = np.asarray(_label_numbers(labels, name))
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (examples,):
        hint = " (one-hot rows? pass their .argmax(1))" if labels.ndim == 2 else ""
        raise UserError(
            f"The {split} split has {examples} examples but labels of shape {labels.shape}{hint}."
        )
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        raise UserError(f"The {name} are {labels.dtype} with fractions or NaN, not integers.")
    if examples and not (labels.min() >= 0 and labels.max() < num_classes):
        hint = "; padding? leave it out (ignore_index=-100)" if labels.min() == -100 else ""
        raise UserError(
            f"The {name} run from {labels.min()} to {labels.max()}, but with {num_classes} classes "
            f"they must lie in 0..{num_classes - 1}{hint}."
        )
    if num_classes > max(examples, MOST_CLASSES):
        raise UserError(
            f"The {name} run up to {labels.max()}, in {num_classes} classes; number "
            "them from 0: numpy.unique(labels, return_inverse=True)[1]."
        )
    return labels.astype(np.int64)


def classes_of(labels: np.ndarray | Tensor, *of_classes: Any) -> int:
    """C: the rows of the first array in `of_classes` that is not None, such as weight (C, d);
    without any the largest label + 1, or 0 for no labels, NaN and infinity, which are no labels."""
    for values in of_classes:
        if values is not None and np.ndim(values):
            return len(values)
    largest = float(labels.max()) if 0 not in labels.shape else -1.0
    return int(largest) + 1 if math.isfinite(largest) else 0


def parameter(values: Any, shape: tuple[int, ...], name: str) -> Tensor | None:
    """A parameter of the last layer, or class means, as a float64 copy on the CPU; None for None.

    Raises:
        UserError: another shape, NaN or infinite values.
    """
    if values is None:
        return None
    tensor = torch.as_tensor(native(real_array(values, f"values of {name}")))
    tensor = tensor.cpu().to(torch.float64)
    found = tuple(tensor.shape)
    if found != shape:
        hint = "; it is transposed, pass its .T" if found == shape[::-1] else ""
        raise UserError(f"{name} has shape {found}, but {shape} is needed{hint}.")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds NaN or infinite values; the training has diverged.")
    return tensor.clone()


def centres(train_means: Any, shape: tuple[int, ...]) -> Tensor | None:
    """Class means (C, d), as `parameter`; a row of NaN stands for a class without examples."""
    if train_means is None:
        return None
    given = torch.as_tensor(native(real_array(train_means, "values of train_means"))).cpu()
    absent = given.isnan().all(-1, keepdim=True)
    if absent.all():
        raise UserError("train_means holds only NaN; at least one class needs a mean.")
    parameter(given.masked_fill(absent, 0), shape, "train_means")
    return given.to(torch.float64)


def check_weight(weight: Any, dim: int, split: str) -> None:
    """Raise UserError unless weight is (C, d) for a split's features (N, d)."""
    shape = tuple(real_array(weight, "values of weight").shape)
    if len(shape) != 2:
        raise UserError(f"weight has shape {shape}; (C, d) is needed, one row per class.")
    if shape[1] != dim:
        hint = f"; weight is transposed, pass its .T of shape {shape[::-1]}" * (shape[0] == dim)
        raise UserError(
            f"weight has shape {shape}, (C, d) of {shape[1]} features, but the features of the "
            f"{split} split have {dim} columns{hint}."
        )


def native(values: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """The values in native byte order with strides that torch accepts; copied only if needed."""
    if isinstance(values, Tensor):
        return values
    return np.require(values, values.dtype.newbyteorder("="), ["C", "W"])


def float64_tensor(values: Any) -> Tensor:
    """A float64 tensor on the device of the values; on the CPU for arrays."""
    tensor = torch.as_tensor(native(real_array(values, "values")))
    if tensor.device.type == "mps":  # which has no float64
        tensor = tensor.cpu()
    return tensor.to(torch.float64)


def check_pool(pool: str | None) -> None:
    """Raise UserError for an unknown `pool`."""
    if pool not in (None, "mean", "flatten"):
        raise UserError(f'pool is {pool!r}; pool="mean", pool="flatten" or None is needed.')


def flat_examples(features: Any, labels: Any, pool: str | None) -> tuple[Tensor, Tensor]:
    """A batch as rows: features (B, d) with their dtype, and labels (B,) int64 on their device.

    Args:
        features: (B, d), tokens (B, T, d) with labels (B, T), or maps (B, d, height, width).
        labels: (B,), (B, 1) or (B, T); fractions become a number that is not a valid label.
        pool: "mean" or "flatten", for maps.

    Raises:
        UserError: shapes that do not fit together, an unknown `pool`, and maps without one.
    """
    check_pool(pool)
    h = torch.as_tensor(native(real_array(features, "features")))
    c = torch.as_tensor(native(_label_numbers(labels, "labels"))).to(h.device)
    if h.dim() == 4:
        if pool is None:
            raise UserError(
                f"The features are maps of shape {tuple(h.shape)}; choose how they become vectors: "
                'pool="mean" or pool="flatten".'
            )
        h = h.flatten(2).to(torch.float64).mean(2) if pool == "mean" else h.flatten(1)
    if h.dim() == 3 and c.shape == h.shape[:2]:
        h, c = h.flatten(0, 1), c.flatten()
    if c.dim() == 2 and c.shape[1] == 1:
        c = c[:, 0]
    if h.dim() != 2 or c.shape != h.shape[:1]:
        hint = " One-hot or smoothed labels: give their .argmax(1)." if c.dim() == 2 else ""
        raise UserError(
            f"Features of shape {tuple(h.shape)} and labels of shape {tuple(c.shape)} do not fit; "
            f"(B, d) and (B,), or tokens (B, T, d) and (B, T), are needed.{hint}"
        )
    if c.is_floating_point():
        c = torch.where(c == c.round(), c, 2.0**62)
    return h, c.to(torch.int64)


def _label_numbers(labels: Any, name: str) -> np.ndarray | Tensor:
    if isinstance(labels, (np.ndarray, Tensor)) and "bool" in str(labels.dtype):
        return labels
    return real_array(labels, name)


def feature_rows(
    features: Any, labels: Any, ignore_index: int | None, pool: str | None
) -> tuple[np.ndarray | Tensor, np.ndarray | Tensor]:
    """Features (N, d) and labels (N,) of a whole set, converted by `flat_examples` if needed.

    Rows with the label `ignore_index` are left out.
    """
    check_pool(pool)
    features = real_array(features, "features")
    labels = _label_numbers(labels, "labels")
    if features.ndim != 2:
        features, labels = flat_examples(features, labels, pool)
    if ignore_index is not None:
        numbers = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        rows = np.flatnonzero(numbers != ignore_index)
        features, labels = features[rows], labels[rows]
    return features, labels


def rounding_error(means_CD: Tensor) -> float:
    """The length up to which a difference of float64 means (C, d) counts as zero: 64 eps times the
    largest norm of a mean."""
    return 64 * torch.finfo(torch.float64).eps * float(means_CD.norm(dim=1).max())
