"""Sums and differences by class over a batch in class order, without waiting for the device.

Shape suffixes: B rows of the batch, R runs of one class in it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

_FEW = 64  # runs for which a loop over slices beats one gather


class Runs:
    """Runs of equal classes in a batch.

    On the CPU, R is the number of runs. On other devices, reading that number would synchronise:
    R is `bound`, and surplus runs have count 0.

    Args:
        c_B: (B,) int64, B > 0.
        bound: at least the number of runs.

    Attributes:
        start_R: int64, the first row of each run.
        class_R: int64, its class.
        count_R: int64, its number of rows.
    """

    def __init__(self, c_B: Tensor, bound: int) -> None:
        begins_B = torch.ones_like(c_B, dtype=torch.bool)
        begins_B[1:] = c_B[1:] != c_B[:-1]
        self._slices: list[slice] | None = None
        if c_B.device.type == "cpu":
            self.start_R = begins_B.nonzero().flatten()
            if len(self.start_R) <= _FEW:
                ends = [*self.start_R.tolist(), len(c_B)]
                self._slices = [slice(*pair) for pair in itertools.pairwise(ends)]
            bound = len(self.start_R)
        else:
            start_R = torch.full((bound,), len(c_B), dtype=torch.int64, device=c_B.device)
            rows_B = torch.arange(len(c_B), device=c_B.device)
            start_R.scatter_reduce_(0, begins_B.cumsum(0) - 1, rows_B, "amin")
            self.start_R = start_R.clamp_(max=len(c_B) - 1)
        self.run_B = begins_B.cumsum(0) - 1
        self.class_R = c_B[self.start_R]
        self.count_R = torch.zeros(bound, dtype=torch.int64, device=c_B.device).index_add_(
            0, self.run_B, torch.ones_like(c_B)
        )

    def sums(self, values_B: Tensor) -> Tensor:
        """(R, ...), the sum of each run of (B, ...)."""
        if self._slices is not None and values_B.dim() == 2:
            # A product with ones is faster than sum(0) on the CPU.
            ones_B = values_B.new_ones(len(values_B))
            return torch.stack([ones_B[s] @ values_B[s] for s in self._slices])
        shape = (len(self.start_R), *values_B.shape[1:])
        return values_B.new_zeros(shape).index_add_(0, self.run_B, values_B)

    def subtract_(self, values_BD: Tensor, rows_RD: Tensor) -> None:
        """Subtract each run's row from its values, in place."""
        if self._slices is None:
            values_BD -= rows_RD[self.run_B]
            return
        for run, row_D in zip(self._slices, rows_RD, strict=True):
            values_BD[run].sub_(row_D)
