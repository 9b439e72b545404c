"""Class means, variances and within-class scatter from batches, exact to float64 rounding.

Shape suffixes: B rows of one batch, R runs of one class in it (see `Runs`), C classes, d (D)
feature dimension.

All sums are of deviations from the first example of the class, its anchor. Near collapse all
features of a class are close to it, so float64 represents the deviations accurately for any norm
of the features. Batches and metrics are merged by the pairwise update of Chan, Golub and LeVeque
(1983): two parts with n and n' examples, means m and m' and scatters S and S' have the joint
scatter S + S' + (m - m')(m - m')^T n n' / (n + n'). On a GPU, updates do not synchronise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..io.errors import UserError
from .arrays import centres, check_pool, flat_examples, parameter, whole_number
from .moments import Decisions, Moments
from .result import CollapseResult
from .runs import Runs
from .second_pass import SecondPass
from .statistics import project_scatter

SCATTERS = ("projected", "full", "none")


class CollapseMetric:
    """Statistics of neural collapse from batches of features, with the interface of torchmetrics.

    One pass (`update` with every batch, then `compute`) gives the statistics of class means and
    variances (NC2, NC3, CDNV and others); with `scatter="full"` also NC1 and the variability
    collapse index. A second pass over the same examples (`second_pass`, then `update` with every
    batch again) gives what needs the final class means or each example's decision: NC4, accuracies
    and the calibration error, and NC1 with `scatter="projected"`.

    Results depend on batch size, batch order and `merge` only by float64 rounding, about 1e-15 of
    the norm of the class means. An update costs about 10 passes over the batch in float64, and with
    `scatter="full"` 2 B d^2 operations in addition.

    Args:
        num_classes: C; labels are 0..C - 1.
        dim: d, the feature dimension.
        scatter: "full" stores one d x d float64 matrix (34 MB for d = 2048); "projected" a C x C
            matrix, computed in the second pass; "none" neither, for tens of thousands of classes.
        device: device of the sums and of the arithmetic; it must support float64 (not mps).
            Default: the CPU.
        ignore_index: a label, such as -100 for padding tokens, whose rows are left out.
        pool: how feature maps (B, d, height, width) become rows: "mean" over the map, or
            "flatten"; with None they raise UserError.

    Raises:
        UserError: an unknown `scatter` or `pool`, sizes below 1, or device mps.

    >>> metric = CollapseMetric(num_classes=2, dim=2)
    >>> metric.update(torch.tensor([[1.0, 0.2], [-1.0, 0.0]]), torch.tensor([0, 1]))
    >>> metric.update(torch.tensor([[1.0, -0.2], [-1.0, 0.0]]), torch.tensor([0, 1]))
    >>> round(metric.compute()["within_between_trace_ratio"], 6)
    0.02
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        scatter: str = "full",
        *,
        device: torch.device | str | None = None,
        ignore_index: int | None = None,
        pool: str | None = None,
    ) -> None:
        if scatter not in SCATTERS:
            raise UserError(f"scatter is {scatter!r}, not one of {', '.join(SCATTERS)}.")
        check_pool(pool)
        self.num_classes = whole_number(num_classes, "num_classes")
        self.dim, self.scatter = whole_number(dim, "dim"), scatter
        self.device = torch.device("cpu" if device is None else device)
        if self.device.type == "mps":
            raise UserError(
                'mps does not support float64; pass device="cpu": features are copied there.'
            )
        self.ignore_index, self.pool = ignore_index, pool
        self.reset()

    def __repr__(self) -> str:
        return (
            f"<CollapseMetric of {int(self.counts.sum())} examples, C = {self.num_classes}, "
            f"d = {self.dim}, scatter = {self.scatter!r}>"
        )

    def reset(self) -> None:
        """Discard all batches and start with a first pass."""
        # One more row than classes: rows to be ignored count as a class of their own.
        rows = self.num_classes + 1
        zeros = partial(torch.zeros, dtype=torch.float64, device=self.device)
        self._counts = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._anchors = zeros(rows, self.dim)
        self._offsets = zeros(rows, self.dim)  # of the mean from the anchor
        self._squares = zeros(rows)  # of the distances from the mean
        self._scatter = zeros(self.dim, self.dim) if self.scatter == "full" else None
        self._refused = torch.zeros(2, dtype=torch.int64, device=self.device)
        self._second: SecondPass | None = None

    # ------------------------------------------------------------------------------------ updates

    def update(self, features: Any, labels: Any) -> None:
        """Add a batch.

        Args:
            features: (B, d), tokens (B, T, d), or feature maps, see `pool`; any real dtype and
                device. They are detached from the autograd graph.
            labels: (B,), (B, 1), or (B, T) for tokens; integers of any dtype.

        Raises:
            UserError: shapes or dtypes that do not fit together, labels outside 0..C - 1, NaN or
                infinite features. The last two are raised at once on the CPU; on other devices
                they are raised by `compute` or `second_pass`, to avoid a synchronisation.
        """
        h_BD, c_B = flat_examples(features, labels, self.pool)
        if h_BD.shape[1] != self.dim:
            raise UserError(f"The features have {h_BD.shape[1]} columns, but dim is {self.dim}.")
        h_BD, c_B = h_BD.to(self.device), c_B.to(self.device)
        kept_B = torch.ones_like(c_B, dtype=torch.bool)
        if self.ignore_index is not None:
            kept_B = c_B != self.ignore_index
        inside_B = (c_B >= 0) & (c_B < self.num_classes)
        # One pass: a sum with a NaN or an infinity is not finite.
        finite_B = torch.isfinite(h_BD.sum(dim=1, dtype=torch.float64))
        refused = torch.stack([(kept_B & ~inside_B).sum(), (kept_B & ~finite_B).sum()])
        if self.device.type == "cpu":
            _refuse(refused, self.num_classes)
        self._refused += refused
        # Rows that do not count are zeros of one more class.
        kept_B &= inside_B & finite_B
        c_B, order_B = torch.where(kept_B, c_B, self.num_classes).sort(stable=True)
        h_BD = h_BD.masked_fill(~kept_B[:, None], 0)[order_B].to(torch.float64)
        self.add_sorted(h_BD, c_B)

    def add_sorted(self, h_BD: Tensor, c_B: Tensor) -> None:
        """`update` with rows sorted by class: h_BD finite float64, which is overwritten, and c_B
        int64."""
        if not len(c_B):
            return
        if self._second is not None:
            self._second.update(h_BD, c_B)
            return
        runs = Runs(c_B, min(len(c_B), self.num_classes + 1))
        first_RD = h_BD[runs.start_R]
        new_R = (self._counts[runs.class_R] == 0) & (runs.count_R > 0)
        added_RD = torch.where(new_R[:, None], first_RD, 0)
        self._anchors.index_add_(0, runs.class_R, added_RD)
        runs.subtract_(h_BD, self._anchors[runs.class_R])
        mean_RD = runs.sums(h_BD) / runs.count_R.clamp(min=1)[:, None]
        runs.subtract_(h_BD, mean_RD)
        squares_R = runs.sums(torch.linalg.vector_norm(h_BD, dim=1).square())
        delta_RD = mean_RD - self._offsets[runs.class_R]
        before_R, count_R = self._counts[runs.class_R].double(), runs.count_R.double()
        share_R = count_R / (before_R + count_R).clamp(min=1)
        self._offsets.index_add_(0, runs.class_R, delta_RD * share_R[:, None])
        between_R = before_R * share_R
        squares_R += between_R * delta_RD.square().sum(1)
        self._squares.index_add_(0, runs.class_R, squares_R)
        self._counts.index_add_(0, runs.class_R, runs.count_R)
        if self._scatter is not None:
            delta_RD *= between_R.sqrt()[:, None]
            rows_XD = torch.cat([h_BD, delta_RD])
            self._scatter.addmm_(rows_XD.T, rows_XD)

    def second_pass(self, weight: Any = None, bias: Any = None, *, train_means: Any = None) -> None:
        """End the first pass; then call `update` with the same examples again, in any batches.

        Args:
            weight: (C, d), weight of the last layer, for the network's decisions; without it NC4
                is absent.
            bias: (C,), bias of the last layer; None if it has none.
            train_means: (C, d), class means of the train set, if these examples are a test set:
                the centres of the nearest-class-centre decision. A row of NaN stands for a class
                without train examples. Default: the class means of this metric.

        Raises:
            UserError: the second pass has already begun, shapes that do not fit, NaN or infinite
                values, and invalid batches of the first pass (see `update`).
        """
        _refuse(self._refused, self.num_classes)
        if self._second is not None:
            raise UserError("The second pass has already begun; call reset() to start again.")
        shape, unequal = (self.num_classes, self.dim), bool((self.counts != self.counts[0]).any())
        means_CD, centres_CD = self.class_means, centres(train_means, shape)
        if centres_CD is None:
            centres_CD = means_CD.masked_fill((self.counts == 0)[:, None], torch.nan)
        self._second = SecondPass(
            means_CD,
            self.counts,
            centres_CD,
            parameter(weight, shape, "weight"),
            parameter(bias, shape[:1], "bias"),
            # With the full scatter too, for that in which all classes count alike.
            basis=self.scatter == "projected" or (self.scatter == "full" and unequal),
        )

    # ------------------------------------------------------------------------------------ results

    @property
    def counts(self) -> Tensor:
        """(C,) int64, number of examples of each class."""
        return self._counts[:-1]

    @property
    def class_means(self) -> Tensor:
        """(C, d) float64; a row of zeros for a class without examples."""
        return self._anchors[:-1] + self._offsets[:-1]

    def moments(
        self, weight: Any = None, bias: Any = None, *, min_count: int | None = None
    ) -> Moments:
        """The `Moments` of all batches so far, on the CPU; arguments and errors as in `compute`."""
        _refuse(self._refused, self.num_classes)
        means_CD, counts_C = self.class_means.cpu(), self.counts.cpu()
        sums = {} if self._second is None else self._second.sums
        decisions = None if self._second is None else self._second.decisions()
        if decisions is not None and not torch.equal(decisions.counted, counts_C):
            raise UserError(
                f"The second pass has seen {int(decisions.counted.sum())} examples and the first "
                f"{int(counts_C.sum())}; both must see the same ones."
            )
        weight, bias = self._parameters(weight, bias)
        if self._second is not None and self._second.weight is None and weight is not None:
            raise UserError(
                "compute() was given a weight, but not second_pass(), which counts the network's "
                "decisions for NC4: pass it there, or leave it out."
            )
        if self._second is not None and self._second.weight is not None:
            of_second = self._parameters(self._second.weight, self._second.bias)
            if weight is None:
                weight, bias = of_second
            elif not (torch.equal(weight, of_second[0]) and torch.equal(bias, of_second[1])):
                raise UserError(
                    "compute() was given another weight or bias than second_pass(), by which NC4 "
                    "is counted; leave them out, or repeat the second pass."
                )
        examples = max(int(counts_C.sum()), 1)
        scatters = {
            name: _symmetric(sums[name], count)
            for name, count in (("scatter_projected", examples), ("scatter_balanced", 1))
            if name in sums
        }
        if self._scatter is not None:
            scatters["scatter"] = _symmetric(self._scatter, examples)
            scatters["scatter_projected"] = project_scatter(scatters["scatter"], means_CD)
        whole = Moments(
            counts=counts_C.clone(),
            class_means=means_CD,
            class_variances=self._squares[:-1].cpu() / counts_C.clamp(min=1),
            weight=weight,
            bias=bias,
            decisions=decisions,
            calibration=sums["calibration"].cpu().clone() if "calibration" in sums else None,
            **scatters,
        )
        return whole if min_count is None else _frequent_classes(whole, min_count)

    def _parameters(self, weight: Any, bias: Any) -> tuple[Any, Any]:
        if weight is not None and bias is None:
            bias = torch.zeros(self.num_classes)
        return (
            parameter(weight, (self.num_classes, self.dim), "weight"),
            parameter(bias, (self.num_classes,), "bias"),
        )

    def compute(
        self, weight: Any = None, bias: Any = None, *, min_count: int | None = None
    ) -> CollapseResult:
        """The statistics of all batches so far.

        Args:
            weight: (C, d), weight of the last layer; without it NC3 and all other statistics of
                the classifier are absent. After a second pass only that given to `second_pass`,
                the default.
            bias: (C,), bias of the last layer; None if it has none.
            min_count: leave out classes with fewer examples. Only with `scatter="none"`, because
                the scatter matrices are sums over all classes.

        Raises:
            UserError: shapes that do not fit, a second pass over other examples than the first
                or with another weight,
                invalid batches on a GPU (see `update`), and a `min_count` that no class reaches
                or that the scatter matrix does not allow.
        """
        return CollapseResult.of(self.moments(weight, bias, min_count=min_count))

    # -------------------------------------------------------------------------------- joining parts

    def merge(self, other: CollapseMetric) -> CollapseMetric:
        """Add the batches of another metric to this one, which is returned.

        In the second pass both must share the same first pass, as after `sync`.

        Raises:
            UserError: other num_classes, dim or scatter, another pass, or in the second pass
                another first pass.
        """
        kind = (self.num_classes, self.dim, self.scatter, self._second is None)
        others = (other.num_classes, other.dim, other.scatter, other._second is None)
        if kind != others:
            raise UserError(
                "Only metrics of the same num_classes, dim, scatter and pass can be merged."
            )
        state = {name: tensor.to(self.device) for name, tensor in other.state_dict().items()}
        if self._second is not None:
            if not torch.equal(self._counts, state["counts"]):
                raise UserError(
                    "In the second pass only metrics with the same first pass can be merged; call "
                    "sync() before second_pass()."
                )
            self._second.add(state)
        else:
            self._merge_first_pass(state)
        self._refused += state["refused"]
        return self

    def _merge_first_pass(self, state: Mapping[str, Tensor]) -> None:
        theirs_C = state["counts"]
        new_C1 = ((self._counts == 0) & (theirs_C > 0))[:, None]
        self._anchors = torch.where(new_C1, state["anchors"], self._anchors)
        delta_CD = (state["anchors"] - self._anchors) + (state["offsets"] - self._offsets)
        delta_CD.masked_fill_((theirs_C == 0)[:, None], 0)
        share_C = theirs_C.double() / (self._counts + theirs_C).clamp(min=1)
        self._offsets = self._offsets + delta_CD * share_C[:, None]
        between_C = self._counts * share_C
        self._squares = self._squares + state["squares"] + between_C * delta_CD.square().sum(1)
        self._counts = self._counts + theirs_C
        if self._scatter is not None:
            delta_CD = delta_CD[:-1] * between_C[:-1, None].sqrt()
            self._scatter = self._scatter + state["scatter"] + delta_CD.T @ delta_CD

    def sync(self, group: Any = None) -> CollapseMetric:
        """A new metric of the batches of all processes of torch.distributed, bit-identical on all
        of them; a copy of this metric if no process group is initialised. This metric does not
        change.

        With a second pass: `total = metric.sync()`, `total.second_pass(...)`, `total.update(...)`
        with the batches of the process, and `total.sync()` again.

        Args:
            group: a process group. Default: all processes.

        Raises:
            UserError: metrics with other num_classes, dim or scatter, or in another pass.
        """
        distributed = torch.distributed
        together = distributed.is_available() and distributed.is_initialized()
        states = [self.state_dict()]
        if together:
            # As objects, since NCCL sends no tensors that lie on the CPU.
            own = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
            states = [own] * distributed.get_world_size(group)
            on_gpu = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
            with on_gpu:
                distributed.all_gather_object(states, own, group=group)
        total: CollapseMetric | None = None
        for state in states:
            part = copy.deepcopy(self)
            part.load_state_dict(state)
            total = part if total is None else total.merge(part)
        assert total is not None
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """All sums by name, for `load_state_dict` of a metric with the same arguments."""
        state = {
            "counts": self._counts,
            "anchors": self._anchors,
            "offsets": self._offsets,
            "squares": self._squares,
            "refused": self._refused,
        }
        if self._scatter is not None:
            state["scatter"] = self._scatter
        return state | ({} if self._second is None else self._second.sums)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sums that `state_dict` returned, in the same pass.

        Raises:
            UserError: the state is of a metric with other arguments, or of another pass.
        """
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise UserError(
                "The state is of a metric with other num_classes, dim or scatter, or another pass."
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _refuse(refused: Tensor, classes: int) -> None:
    outside, bad = refused.tolist()
    if outside:
        raise UserError(f"{outside} labels are not integers in 0..{classes - 1}.")
    if bad:
        raise UserError(
            f"{bad} examples have NaN, infinite or too large features; the training has probably "
            "diverged."
        )


def _symmetric(sums: Tensor, examples: int) -> Tensor:
    """A scatter from sums of products, in which rounding may differ across the diagonal."""
    return (sums + sums.T).cpu() / (2 * examples)


def _frequent_classes(moments: Moments, min_count: int) -> Moments:
    kept = (moments.counts >= min_count).nonzero().flatten()
    if len(kept) == moments.num_classes:
        return moments
    if moments.scatter is not None or moments.scatter_projected is not None:
        raise UserError('min_count needs scatter="none": scatters are sums over all classes.')
    if not len(kept):
        raise UserError(f"No class has {min_count} examples; lower min_count.")
    rows: dict[str, Any] = {}
    for name in ("counts", "class_means", "class_variances", "weight", "bias"):
        tensor = getattr(moments, name)
        rows[name] = None if tensor is None else tensor[kept]
    decisions = moments.decisions and Decisions(*(counts[kept] for counts in moments.decisions))
    return Moments(**rows, decisions=decisions)
