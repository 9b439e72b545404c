"""The second pass, which needs the class means: decisions, and scatter on the span of the means.

Shape suffixes: B rows of one batch, C classes, d (D) feature dimension; 2: nearest class centre
(NCC) and network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .moments import CALIBRATION_BINS, Decisions
from .runs import Runs
from .statistics import span_of_means

_EPS = torch.finfo(torch.float64).eps
_SCORES = 2**24  # float64 numbers held at a time


class SecondPass:
    """Sums over examples that need the class means of the first pass; `sums` by name.

    Args:
        means_CD: (C, d), class means; a row of zeros for a class without examples.
        counts_C: (C,), examples of each class.
        centres_CD: (C, d), centres of the NCC decision; a row of NaN for a class without one.
        weight: (C, d), or None for NCC decisions only.
        bias: (C,), or None.
        basis: whether to sum the scatter on the span of the means.
    """

    def __init__(
        self,
        means_CD: Tensor,
        counts_C: Tensor,
        centres_CD: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        basis: bool,
    ) -> None:
        classes, _ = means_CD.shape
        device = means_CD.device
        self.weight, self.bias = weight, bias
        # Examples that do not count are of one more class.
        self.means_CD = torch.cat([means_CD, means_CD.new_zeros(1, means_CD.shape[1])])
        self.sums = {"decided": torch.zeros(4, classes + 1, dtype=torch.int64, device=device)}
        if weight is not None:
            # Of each bin of confidence: examples, their confidence, those decided rightly.
            self.sums["calibration"] = means_CD.new_zeros(CALIBRATION_BINS, 3)
        if basis:
            self.basis_CD = span_of_means(means_CD).basis_CD.to(device)
            self.sums["scatter_projected"] = means_CD.new_zeros(classes, classes)
            # The same with all classes of equal weight, where that differs.
            if counts_C.min() != counts_C.max():
                self.sums["scatter_balanced"] = means_CD.new_zeros(classes, classes)
                shares_C = counts_C.clamp(min=1).double().reciprocal() / classes
                self.roots_C = torch.cat([shares_C, shares_C.new_zeros(1)]).sqrt()
        # Both decisions are by the largest of <row, h - origin> + constant: of the centres c the
        # nearest has the largest <c, h> - |c|^2 / 2, which is -|h - c|^2 / 2 but for |h|^2.
        # A class without examples has no centre to be near to.
        centres_CD = centres_CD.to(device)
        absent_C = centres_CD.isnan().all(1)
        centres_CD = centres_CD.masked_fill(absent_C[:, None], 0)
        self.origin_D = centres_CD.mean(0)
        towards_CD = centres_CD - self.origin_D
        halves_C = towards_CD.square().sum(1) / 2
        rows, constants = [towards_CD], [(-halves_C).masked_fill(absent_C, -torch.inf)]
        bounds = [_rounding(towards_CD, halves_C, 2 * self.origin_D.norm())]
        if weight is not None:
            weight = weight.to(device)
            bias = weight.new_zeros(classes) if bias is None else bias.to(device)
            rows.append(weight)
            constants.append(weight @ self.origin_D + bias)
            bounds.append(_rounding(weight, bias.abs(), self.origin_D.norm()))
        self.rows_PD = torch.cat(rows)
        self.constants_2C = torch.stack(constants)
        self.per_length_2C, self.rounding_2C = map(torch.stack, zip(*bounds, strict=True))
        dtype = torch.int16 if classes < 2**15 else torch.int32
        self.countdown_C = torch.arange(classes, 0, -1, dtype=dtype, device=device)

    def update(self, h_BD: Tensor, c_B: Tensor) -> Tensor:
        """Add a batch of float64 features, which are overwritten; returns the decisions (1 or 2,
        B)."""
        size = max(1, _SCORES // len(self.rows_PD))
        parts = zip(h_BD.split(size), c_B.split(size), strict=True)
        return torch.cat([self._update(h, c) for h, c in parts], dim=1)

    def _update(self, h_BD: Tensor, c_B: Tensor) -> Tensor:
        if "scatter_projected" in self.sums:
            runs = Runs(c_B, len(c_B))
            rows_RD = self.means_CD[runs.class_R]
            # A mean's own rounding error, about 1e-16 |mu|, enters only squared.
            runs.subtract_(h_BD, rows_RD)
            y_CB = self.basis_CD @ h_BD.T
            self.sums["scatter_projected"].addmm_(y_CB, y_CB.T)
            if "scatter_balanced" in self.sums:
                y_CB *= self.roots_C[c_B]
                self.sums["scatter_balanced"].addmm_(y_CB, y_CB.T)
            runs.subtract_(h_BD, self.origin_D - rows_RD)
        else:
            h_BD.sub_(self.origin_D)
        x_BD = h_BD
        scores_2CB = (self.rows_PD @ x_BD.T).unflatten(0, self.constants_2C.shape)
        scores_2CB += self.constants_2C[..., None]
        lengths_B = torch.linalg.vector_norm(x_BD, dim=1)
        tolerance_2CB = self.per_length_2C[..., None] * lengths_B + self.rounding_2C[..., None]
        decisions_2B = _first_best(scores_2CB, tolerance_2CB, self.countdown_C)
        ncc_B, network_B = decisions_2B[0], decisions_2B[-1]
        everything_B = torch.ones_like(c_B, dtype=torch.bool)
        found_4B = torch.stack([everything_B, ncc_B == c_B, network_B == c_B, ncc_B == network_B])
        if "calibration" in self.sums:
            counted_B = c_B < len(self.means_CD) - 1
            _add_confidence(self.sums["calibration"], scores_2CB[1], found_4B[2], counted_B)
        else:
            found_4B[2:] = False
        self.sums["decided"].index_add_(1, c_B, found_4B.to(torch.int64))
        return decisions_2B

    def decisions(self) -> Decisions:
        """The counts, on the CPU."""
        return Decisions(*self.sums["decided"][:, :-1].cpu().clone())

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add the sums of another part."""
        for name, tensor in self.sums.items():
            tensor += sums[name]


def _add_confidence(sums_K3: Tensor, logits_CB: Tensor, right_B: Tensor, counted_B: Tensor) -> None:
    """Add a batch to the sums of K bins of confidence: examples, confidence, right decisions."""
    bins = len(sums_K3)
    largest_B = logits_CB.amax(0)
    confidence_B = 1 / (logits_CB - largest_B).exp().sum(0)
    bin_B = (confidence_B * bins).ceil().clamp(1, bins) - 1
    # A product, not sums into places, whose order a GPU would not repeat.
    of_bin_KB = (bin_B == torch.arange(bins, device=bin_B.device)[:, None]) & counted_B
    values_B3 = torch.stack([torch.ones_like(confidence_B), confidence_B, right_B.double()], 1)
    sums_K3 += of_bin_KB.double() @ values_B3


def _rounding(rows_CD: Tensor, constants_C: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """A bound on the rounding of <row_k, x> + constant_k: (C,) for each unit of |x|, and (C,).

    taken: the length of what was subtracted to get x or the rows.
    """
    dim = rows_CD.shape[1]
    lengths_C = rows_CD.norm(dim=1)
    return _EPS * dim / 2 * lengths_C, _EPS * (dim / 2 * constants_C + taken * lengths_C)


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
