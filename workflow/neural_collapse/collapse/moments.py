"""What all statistics of one checkpoint and split need of its features, in float64.

Shape suffixes: N examples, C classes, d (written D) feature dimension, B rows of one block.

NC1, Tr(Sigma_W Sigma_B^+) / C, depends on the within-class covariance only in the span of the
centred class means M = [mu_c - mu_G], so a C x C matrix holds all of it and no d x d matrix is
formed. With the singular value decomposition M = U diag(s) V^T that matrix is Q^T Sigma_W Q,
Q = U V^T: Q's columns span what M's do, without the factors s, so that a direction in which the
means hardly differ keeps its digits beside one in which they differ widely. A checkpoint is
stored in about 1 MB for ten classes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..io.errors import UserError
from ..io.tensors import read_tensors, write_tensors
from .arrays import check_weight, label_array, parameter, real_array
from .functional import centred_class_means, span_of_means

FORMAT = "neural_collapse.moments/2"
BLOCK_ROWS = {"cpu": 1024, "cuda": 8192}
"""Rows held in float64 at a time; memory is O(rows (d + C) + C (C + d))."""

LARGEST_FEATURE = 1e140

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Moments:
    """Summary of the features of one split at one checkpoint. Real fields are float64, on the CPU.

    Attributes:
        counts: (C,) int64, examples a class.
        class_means: (C, d), mu_c.
        class_variances: (C,), mean squared distance of class c's features to mu_c
            (the trace of its covariance).
        scatter_projected: (C, C), (1/N) sum_i y_i y_i^T with y_i = Q^T (h_i - mu_c(i)) and
            Q = U V^T of M = [mu_c - mu_G] = U diag(s) V^T, of this same split; Q^T Sigma_W Q.
        weight: (C, d), the last layer's rows w_c.
        bias: (C,), the last layer's bias; zeros where it has none.
        decisions_network: (N,), argmax_c <w_c, h> + b_c.
        decisions_ncc: (N,), the nearest class centre among the *train* class means.
        labels: (N,).

    The three (N,) fields are int16 (int32 above 32767 classes), in the order of the examples.
    """

    counts: Tensor
    class_means: Tensor
    class_variances: Tensor
    scatter_projected: Tensor
    weight: Tensor
    bias: Tensor
    decisions_network: Tensor
    decisions_ncc: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        classes, dim = self.class_means.shape
        examples = self.labels.shape[0]
        index_dtype = _index_dtype(classes)
        expected = {
            "counts": ((classes,), torch.int64),
            "class_means": ((classes, dim), torch.float64),
            "class_variances": ((classes,), torch.float64),
            "scatter_projected": ((classes, classes), torch.float64),
            "weight": ((classes, dim), torch.float64),
            "bias": ((classes,), torch.float64),
            "decisions_network": ((examples,), index_dtype),
            "decisions_ncc": ((examples,), index_dtype),
            "labels": ((examples,), index_dtype),
        }
        for name, (shape, dtype) in expected.items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}"
                )
        if int(self.counts.sum()) != examples:
            raise ValueError(f"counts add up to {int(self.counts.sum())}, not {examples}")

    @cached_property
    def centred_means(self) -> Tensor:
        """M^T, (C, d): mu_c - mu_G."""
        return centred_class_means(self.class_means)

    @property
    def num_classes(self) -> int:
        return self.class_means.shape[0]

    @property
    def feature_dim(self) -> int:
        return self.class_means.shape[1]

    @property
    def num_examples(self) -> int:
        return self.labels.shape[0]


def compute_moments(
    features_ND: np.ndarray | Tensor,
    labels_N: np.ndarray | Tensor,
    num_classes: int,
    weight: np.ndarray | Tensor,
    bias: np.ndarray | Tensor | None,
    *,
    rows_N: np.ndarray | None = None,
    reference_means: np.ndarray | Tensor | None = None,
    split: str = "given",
    device: str | torch.device = "cpu",
) -> Moments:
    """Moments of features in memory or in a memory map.

    Args:
        features_ND: (N, d) float array or tensor; never held in float64 as a whole. Fastest where
            each class's rows lie together.
        labels_N: (N,) whole numbers in [0, num_classes), in the order of the examples.
        weight: (C, d) last-layer weight; bias: (C,), or None for a layer without one.
        rows_N: the row of each example's features; None: they lie in the order of the examples.
        reference_means: (C, d) class means that the nearest-class-centre decision uses; the train
            split's when these features are the test split's. None: this split's own.
        split: the split's name, for error messages.
        device: where the float64 arithmetic runs (a device that has float64).

    Raises:
        UserError: shapes or rows that do not fit, a class without examples, NaN or infinite
            features.

    Features are visited in class order and fixed blocks, so the batches in which they were made
    leave no trace. Deviations are taken from float64 means before anything is squared: raw second
    moments lose every digit near collapse.
    """
    features_ND = _feature_matrix(features_ND, split)
    examples, dim = features_ND.shape
    labels = label_array(labels_N, examples, num_classes, split)
    check_weight(weight, dim, split)
    weight_CD = parameter(weight, (num_classes, dim), "weight").to(device)
    bias_C = (
        torch.zeros(num_classes, dtype=torch.float64)
        if bias is None
        else parameter(bias, (num_classes,), "bias")
    ).to(device)

    source = _Source(features_ND, device)
    order_N, counts_C = _class_order(labels, num_classes, split)
    in_class_order_N = order_N if rows_N is None else _checked_rows(rows_N, examples)[order_N]
    classes_N, rows_of_class = labels[order_N], np.split(in_class_order_N, np.cumsum(counts_C)[:-1])
    means_CD = _class_means(source, rows_of_class, split)
    centres_CD = (
        means_CD
        if reference_means is None
        else parameter(reference_means, (num_classes, dim), "reference_means").to(device)
    )
    # Everything below is a product of a row's deviation from its own class mean, y = h - mu_c, with
    # these rows, plus a constant of its class: W h = W y + W mu_c. So each feature is read once.
    basis_CD = span_of_means(means_CD).basis_CD.to(device)
    origin_D = centres_CD.mean(0)
    towards_CD = centres_CD - origin_D
    products_PD = torch.cat([basis_CD, towards_CD, weight_CD])
    offset_CD = means_CD - origin_D
    # Of the centres c the nearest has the largest <c, h> - |c|^2 / 2: -|h - c|^2 / 2 but for |h|^2.
    halves_C = towards_CD.square().sum(1) / 2
    scores_2CC = torch.stack(
        [
            torch.addmm(-halves_C[:, None], towards_CD, offset_CD.T),
            torch.addmm(bias_C[:, None], weight_CD, means_CD.T),
        ]
    )
    bounds = (
        _rounding(towards_CD, offset_CD, halves_C, origin_D),
        _rounding(weight_CD, means_CD, bias_C),
    )
    per_length_2C, constant_2CC = map(torch.stack, zip(*bounds, strict=True))

    scatter_CC = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
    index_dtype = _index_dtype(num_classes)
    countdown_C = torch.arange(num_classes, 0, -1, dtype=index_dtype, device=device)
    squares, decisions = [], []  # in class order
    for block in source.blocks(examples):
        runs = list(_runs(classes_N[block]))
        deviation_BD = source.read(in_class_order_N[block])
        # A mean's own rounding error, about 1e-16 |mu|, enters these sums only squared.
        for c, of_class in runs:
            deviation_BD[of_class].sub_(means_CD[c])
        # With the examples last, which is the faster way round for few classes.
        products_PB = products_PD @ deviation_BD.T
        y_CB, found_2CB = products_PB[:num_classes], products_PB[-2 * num_classes :]
        scatter_CC.addmm_(y_CB, y_CB.T)
        norms_B = torch.linalg.vector_norm(deviation_BD, dim=1)
        squares.append(norms_B.square())
        found_2CB = found_2CB.unflatten(0, (2, num_classes))
        tolerance_2CB = per_length_2C[..., None] * norms_B
        for c, of_class in runs:
            found_2CB[..., of_class].add_(scores_2CC[..., c, None])
            tolerance_2CB[..., of_class].add_(constant_2CC[..., c, None])
        decisions.append(_first_best(found_2CB, tolerance_2CB, countdown_C))
    decisions_2N = torch.empty(2, examples, dtype=index_dtype)
    decisions_2N.index_copy_(1, torch.from_numpy(order_N), torch.cat(decisions, dim=1).cpu())
    decisions_ncc, decisions_network = decisions_2N.unbind()
    if not torch.isfinite(scatter_CC).all() or means_CD.abs().max() > LARGEST_FEATURE:
        raise UserError(
            f"The features of the {split} split are larger than {LARGEST_FEATURE:.0e}, so their "
            "squares overflow float64; divide features and class means by a constant."
        )
    squares_of_class = torch.cat(squares).cpu().split(counts_C.tolist())
    scatter_CC = (scatter_CC + scatter_CC.T) / (2 * examples)
    return Moments(
        counts=torch.from_numpy(counts_C),
        class_means=means_CD.cpu(),
        class_variances=torch.stack([squares.mean() for squares in squares_of_class]),
        scatter_projected=scatter_CC.cpu(),
        weight=weight_CD.cpu(),
        bias=bias_C.cpu(),
        decisions_network=decisions_network,
        decisions_ncc=decisions_ncc,
        labels=torch.from_numpy(labels).to(index_dtype),
    )


def _rounding(
    rows_CD: Tensor, offsets_CD: Tensor, b_C: Tensor, origin_D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A bound on the rounding of the scores <a_k, y + m_c> + b_k: (C,), for each unit of |y|, and
    (C, C), a constant for each k and class c of the example.

    a_k: rows (C, d); m_c: a constant a class (C, d); b_k: (C,). origin: of which m_c was taken.
    """
    dim = rows_CD.shape[1]
    lengths_C = rows_CD.norm(dim=1)
    per_length_C = _EPS * dim / 2 * lengths_C
    taken = 0 if origin_D is None else 2 * origin_D.norm() * lengths_C
    constant_C = _EPS * (dim / 2 * b_C.abs() + taken)
    return per_length_C, torch.outer(per_length_C, offsets_CD.norm(dim=1)) + constant_C[:, None]


def _first_best(scores_2CB: Tensor, tolerance_2CB: Tensor, countdown_C: Tensor) -> Tensor:
    """(2, B), the lowest class whose score may be the best, to within float64 rounding.

    countdown_C: C, C - 1, ... 1, of the decisions' dtype.

    A matrix product's last bit depends on the block, the machine and its threads; a tie must not.
    The tolerance is at most about 1e-12 of the scores, the features' own float32 rounding 6e-8. It
    is each class's own, so that one of a huge bias leaves the others theirs.
    """
    enough_2B = (scores_2CB - tolerance_2CB).amax(dim=-2)
    # The largest number that counts down from C, many times faster than argmax along this axis;
    # scores that are no numbers give class 0, as they would there.
    ties_2CB = scores_2CB + tolerance_2CB >= enough_2B.unsqueeze(-2)
    first_2B = ties_2CB.mul(countdown_C[:, None]).amax(dim=-2)
    return (len(countdown_C) - first_2B).remainder(len(countdown_C))


def _class_means(source: _Source, rows_of_class: list[np.ndarray], split: str) -> Tensor:
    """(C, d) float64 means.

    Float64 features are summed relative to the class's first example: near collapse all of a class
    lies within a hair of it, and so do the rounding errors. Float32 leaves 29 bits for the sum.
    """
    means = []
    for rows in rows_of_class:
        anchor_D = source.read(rows[:1])[0].clone() if source.double else None
        mean_D = 0
        for block in source.blocks(len(rows)):
            h_BD = source.read(rows[block])
            if anchor_D is not None:
                h_BD.sub_(anchor_D)
            # A product with ones is faster than sum(0) on the CPU.
            mean_D = mean_D + h_BD.new_ones(len(h_BD)) @ h_BD
        mean_D /= len(rows)
        means.append(mean_D if anchor_D is None else mean_D + anchor_D)
    means_CD = torch.stack(means)
    if not torch.isfinite(means_CD).all():
        _refuse(source, split)
    return means_CD


def _refuse(source: _Source, split: str) -> None:
    rows_N = np.arange(len(source.features_ND))
    spoiled = sum(
        int((~torch.isfinite(source.read(rows_N[block])).all(dim=1)).sum())
        for block in source.blocks(len(rows_N))
    )
    raise UserError(
        f"{spoiled} of the {len(rows_N)} examples of the {split} split have NaN "
        "or infinite features; the training has probably diverged: lower its learning rate."
    )


class _Source:
    """Features, read in blocks of rows by the device that computes."""

    def __init__(self, features_ND: np.ndarray | Tensor, device: str | torch.device):
        self.features_ND, self.device = features_ND, torch.device(device)
        self.block_rows = BLOCK_ROWS.get(self.device.type, BLOCK_ROWS["cpu"])
        self.double = features_ND.dtype.itemsize >= 8
        rows = min(self.block_rows, len(features_ND))
        self._buffer_BD = torch.empty(
            rows, features_ND.shape[1], dtype=torch.float64, device=self.device
        )

    def blocks(self, examples: int) -> Iterator[slice]:
        """So many examples, block by block."""
        for start in range(0, examples, self.block_rows):
            yield slice(start, start + self.block_rows)

    def read(self, rows: np.ndarray) -> Tensor:
        """(B, d) float64, the features of a block's rows, in the place of those read before."""
        together = bool((np.diff(rows) == 1).all())
        h_BD = self._take(slice(rows[0], rows[-1] + 1) if together else rows)
        # Widened where it is computed with: float32 is half to copy to a GPU.
        return self._buffer_BD[: len(rows)].copy_(h_BD.to(self.device))

    def _take(self, rows: np.ndarray | slice) -> Tensor:
        """Rows as they are, a view where possible."""
        features_ND = self.features_ND
        if isinstance(features_ND, Tensor):
            if isinstance(rows, slice):
                return features_ND[rows]
            return features_ND.index_select(0, torch.from_numpy(rows).to(features_ND.device))
        # torch takes neither foreign byte orders nor strides that go back.
        h = np.require(features_ND[rows], features_ND.dtype.newbyteorder("="), ["C", "W"])
        return torch.from_numpy(h)


def _runs(classes_B: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each class of a block in class order, and where in the block it lies."""
    starts = [0, *(np.flatnonzero(np.diff(classes_B)) + 1), len(classes_B)]
    for start, stop in itertools.pairwise(starts):
        yield int(classes_B[start]), slice(start, stop)


def _class_order(labels: np.ndarray, num_classes: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The examples class by class, and how many each class has."""
    counts = np.bincount(labels, minlength=num_classes)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        named = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise UserError(
            f"The {split} split has no example of class {named}; "
            "every class needs at least one to have a mean."
        )
    return np.argsort(labels, kind="stable"), counts


def _feature_matrix(features_ND, split: str) -> np.ndarray | Tensor:
    features_ND = real_array(features_ND, f"features of the {split} split")
    if features_ND.ndim != 2 or features_ND.shape[1] == 0:
        raise UserError(
            f"The features of the {split} split have shape {tuple(features_ND.shape)}, not (N, d)."
        )
    return features_ND


def _checked_rows(rows_N, examples: int) -> np.ndarray:
    rows_N = np.asarray(rows_N)
    if rows_N.dtype.kind not in "iu" or not np.array_equal(np.sort(rows_N), np.arange(examples)):
        raise UserError(f"rows_N must name each of the {examples} rows of features once.")
    return rows_N


def _index_dtype(num_classes: int) -> torch.dtype:
    return torch.int16 if num_classes <= torch.iinfo(torch.int16).max else torch.int32


# ---------------------------------------------------------------------------------------- storage


class StoredMoments(NamedTuple):
    """What one file holds: `train, test, extra, metadata = load_moments(path)`."""

    train: Moments
    test: Moments | None
    extra: dict[str, Tensor]
    """Whatever else was stored, by name."""
    metadata: dict[str, str]


_SHARED = ("weight", "bias")


def save_moments(
    path: str | os.PathLike,
    train: Moments,
    test: Moments | None,
    metadata: Mapping[str, str],
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write both splits' moments as one safetensors file, whole or not at all.

    Tensors are named `train.class_means`, `test.class_means`, ...; the last layer, which both
    splits share, `weight` and `bias`; `extra.*` are those of `extra`. Equal content gives equal
    bytes.
    """
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)) or key == "format":
            raise ValueError(f"metadata maps str to str, without the key 'format': {key!r}")
    tensors = {name: getattr(train, name) for name in _SHARED}
    for split, moments in (("train", train), ("test", test)):
        if moments is None:
            continue
        if not all(torch.equal(getattr(moments, name), tensors[name]) for name in _SHARED):
            raise ValueError("train and test moments come from different last layers")
        for field in fields(Moments):
            if field.name not in _SHARED:
                tensors[f"{split}.{field.name}"] = getattr(moments, field.name)
    tensors |= {f"extra.{name}": tensor for name, tensor in (extra or {}).items()}
    write_tensors(path, tensors, metadata, FORMAT)


def load_moments(path: str | os.PathLike) -> StoredMoments:
    """Read what `save_moments` wrote.

    Raises:
        UserError: the file is missing, cut short, or something else than stored moments.
    """
    tensors, metadata = read_tensors(path, "moments file", FORMAT)
    try:
        train = _assemble(tensors, "train")
        has_test = any(name.startswith("test.") for name in tensors)
        test = _assemble(tensors, "test") if has_test else None
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} holds NaN or infinite values")
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: is no complete moments file ({error}); delete it and extract the features "
            "again"
        ) from None
    extra = {
        name.removeprefix("extra."): tensor
        for name, tensor in tensors.items()
        if name.startswith("extra.")
    }
    return StoredMoments(train, test, extra, metadata)


def _assemble(tensors: dict[str, Tensor], split: str) -> Moments:
    names = [field.name for field in fields(Moments)]
    return Moments(**{n: tensors[n if n in _SHARED else f"{split}.{n}"] for n in names})
