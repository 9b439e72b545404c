"""The moments of features from which all statistics of a checkpoint and split are computed.

Shape suffixes: N examples, C classes, d (written D) feature dimension.

NC1, Tr(Sigma_W Sigma_B^+) / C, depends on the within-class covariance only in the span of the
centred class means M = [mu_c - mu_G], so a C x C matrix is sufficient and no d x d matrix is
needed. With the singular value decomposition M = U diag(s) V^T, this matrix is Q^T Sigma_W Q with
Q = U V^T. Q has the same column span as M without the factors s, so directions in which the means
hardly differ are represented as accurately as the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..io.errors import UserError
from .statistics import UndefinedStatistic, centred_class_means

FORMAT = "neural_collapse.moments/2"
CALIBRATION_BINS = 15
"""Bins of equal width in confidence, as in Guo et al. (2017)."""


class Decisions(NamedTuple):
    """Counts of decisions for each class; (C,) int64 each.

    Attributes:
        counted: examples of the class.
        ncc_correct: examples whose nearest class centre, among the train class means, is that of
            their class.
        network_correct: examples for which argmax_c w_c . h + b_c is their class.
        agreeing: examples for which the two decisions are equal.
    """

    counted: Tensor
    ncc_correct: Tensor
    network_correct: Tensor
    agreeing: Tensor


def _by_name(decisions: Decisions | None) -> dict[str, Tensor]:
    if decisions is None:
        return {}
    return {f"decisions.{name}": tensor for name, tensor in decisions._asdict().items()}


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of the features of one split, on the CPU; floating-point fields are float64.

    A field that was not measured is None, and statistics that need it are absent.

    Attributes:
        counts: (C,) int64, examples of each class.
        class_means: (C, d), mu_c; a row of zeros for a class without examples.
        class_variances: (C,), mean squared distance of class c's features to mu_c
            (the trace of its covariance).
        scatter_projected: (C, C), Q^T Sigma_W Q with Q = U V^T of M = U diag(s) V^T of this split.
        scatter_balanced: (C, C), the same with examples weighted by N / (C n_c), so that all
            classes have equal weight; only for unbalanced classes, from a second pass.
        scatter: (d, d), Sigma_W.
        weight: (C, d), the last layer's rows w_c.
        bias: (C,), the last layer's bias; zeros where it has none.
        decisions: see `Decisions`; without a weight, `network_correct` and `agreeing` are zero.
        calibration: (15, 3), for the examples whose largest softmax probability p lies in
            (k / 15, (k + 1) / 15]: their number, the sum of p, and the number that the network
            classifies correctly.
    """

    counts: Tensor
    class_means: Tensor
    class_variances: Tensor
    scatter_projected: Tensor | None = None
    scatter: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    decisions: Decisions | None = None
    calibration: Tensor | None = None
    scatter_balanced: Tensor | None = None

    def __post_init__(self) -> None:
        classes, dim = self.class_means.shape
        shapes = {
            "class_means": (classes, dim),
            "weight": (classes, dim),
            "scatter": (dim, dim),
            "scatter_projected": (classes, classes),
            "scatter_balanced": (classes, classes),
            "calibration": (CALIBRATION_BINS, 3),
        }
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "decisions"}
        counts = {"counts": tensors.pop("counts"), **_by_name(self.decisions)}
        for dtype, named in ((torch.int64, counts), (torch.float64, tensors)):
            for name, tensor in named.items():
                shape = shapes.get(name, (classes,))
                if tensor is not None and (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
                    raise ValueError(
                        f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}"
                    )

    @cached_property
    def empty_classes(self) -> list[int]:
        """Indices of the classes without examples."""
        return (self.counts == 0).nonzero().flatten().tolist()

    @property
    def centres(self) -> Tensor:
        """(C, d): mu_c, and NaN for a class without examples, as `train_means` of a test set."""
        return self.class_means.masked_fill((self.counts == 0)[:, None], torch.nan)

    @cached_property
    def centred_means(self) -> Tensor:
        """M^T, (C, d): mu_c - mu_G."""
        return centred_class_means(self.class_means)

    def share(self, count: Callable[[Decisions], Tensor]) -> float:
        """A count of `decisions` as a fraction of all examples."""
        assert self.decisions is not None
        examples = int(self.decisions.counted.sum())
        if not examples:
            raise UndefinedStatistic("there are no examples")
        return int(count(self.decisions).sum()) / examples

    @property
    def balanced(self) -> bool:
        """Whether all classes have the same number of examples."""
        return bool((self.counts == self.counts[0]).all())

    @cached_property
    def centred_at_examples(self) -> Tensor:
        """(C, d): mu_c - mu, with mu the mean of all examples."""
        return centred_class_means(self.class_means, self.counts)

    @property
    def num_classes(self) -> int:
        return self.class_means.shape[0]

    @property
    def feature_dim(self) -> int:
        return self.class_means.shape[1]

    @property
    def num_examples(self) -> int:
        return int(self.counts.sum())


# ---------------------------------------------------------------------------------------- storage


class StoredMoments(NamedTuple):
    """The content of a moments file."""

    train: Moments
    test: Moments | None
    extra: dict[str, Tensor]
    """Other tensors, by name."""
    metadata: dict[str, str]
    layers: dict[str, tuple[Moments, Moments]]
    """Train and test moments of further layers, by name, in the order of measurement."""


_SHARED = ("weight", "bias")
_LAYERS = "layers"


def save_moments(
    path: str | Path,
    train: Moments,
    test: Moments | None,
    metadata: Mapping[str, str],
    extra: Mapping[str, Tensor] | None = None,
    layers: Mapping[str, tuple[Moments, Moments]] | None = None,
) -> None:
    """Write the moments of both splits to one safetensors file, atomically.

    Tensors are named `train.class_means`, `test.class_means`, ...; `weight` and `bias` are stored
    once for both splits; those of `extra` are named `extra.*`, those of further layers
    `layers.0.train.class_means`, ..., with the names of the layers in the metadata. Equal content
    gives equal bytes.
    """
    from ..io.tensors import write_tensors  # safetensors, which measuring does not need

    parts = {"train": train} | ({} if test is None else {"test": test})
    for number, pair in enumerate((layers or {}).values()):
        parts[f"layers.{number}.train"], parts[f"layers.{number}.test"] = pair
    tensors = {name: getattr(train, name) for name in _SHARED}
    for part, moments in parts.items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in _own(moments).items()}
    tensors |= {f"extra.{name}": tensor for name, tensor in (extra or {}).items()}
    if layers:
        metadata = {**metadata, _LAYERS: json.dumps(list(layers))}
    write_tensors(path, tensors, metadata, FORMAT)


def load_moments(path: str | Path) -> StoredMoments:
    """Read what `save_moments` wrote.

    Raises:
        UserError: the file is missing, truncated or not a moments file.
    """
    from ..io.tensors import read_tensors

    tensors, metadata = read_tensors(path, "moments file", FORMAT)
    try:
        train = _assemble(tensors, "train")
        test = _assemble(tensors, "test") if _under("test.", tensors) else None
        layers = {
            name: (
                _assemble(tensors, f"layers.{number}.train", shared=False),
                _assemble(tensors, f"layers.{number}.test", shared=False),
            )
            for number, name in enumerate(json.loads(metadata.pop(_LAYERS, "[]")))
        }
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} holds NaN or infinite values")
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: is not a complete moments file ({error}); delete its folder and run again"
        ) from None
    return StoredMoments(train, test, _under("extra.", tensors), metadata, layers)


def _own(moments: Moments) -> dict[str, Tensor]:
    """The tensors of one split that the other does not share, by name."""
    names = [f.name for f in fields(Moments) if f.name not in (*_SHARED, "decisions")]
    own = {name: getattr(moments, name) for name in names} | _by_name(moments.decisions)
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, under their names without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _assemble(tensors: Mapping[str, Tensor], split: str, shared: bool = True) -> Moments:
    own = _under(f"{split}.", tensors)
    counts = _under("decisions.", own)
    own = {name: tensor for name, tensor in own.items() if not name.startswith("decisions.")}
    layer = {name: tensors[name] for name in _SHARED} if shared else {}
    try:
        return Moments(**own, **layer, decisions=Decisions(**counts) if counts else None)
    except TypeError as error:  # a field too few or too many
        raise ValueError(str(error).partition("() ")[2]) from None
