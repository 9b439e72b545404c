"""The training and sweep parts of a recipe. Importing this module does not import torch."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection
from contextlib import suppress
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..io.model import Model
from ..io.text import shown
from .schedule import learning_rate_name

FRACTION = r"[0-9]{1,20}(/[0-9]{1,20}|\.[0-9]{1,20})?|\.[0-9]{1,20}"
READ_BY_LOSS = {"smoothing": "label_smoothing", "focal_gamma": "focal", "mse_reduction": "mse"}
LearningRate = Annotated[float, Field(gt=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def _fraction(item: Any) -> Fraction:
    # Fraction itself would work for hours on "1e999999999".
    if isinstance(item, (int, float)) or re.fullmatch(FRACTION, str(item)):
        with suppress(ValueError, ZeroDivisionError):
            fraction = Fraction(str(item))
            if 0 < fraction < 1:
                return fraction
    raise ValueError(f"{shown(item)} is not a fraction between 0 and 1 such as '1/3'")


class OptimizerRecipe(Model):
    """The optimiser, and Adam's parameters."""

    name: Literal["sgd", "sgdw", "adam", "adamw"] = "sgd"
    """SGD with momentum or Adam; `sgd` and `adam` add the weight decay to the gradient (coupled),
    `sgdw` and `adamw` shrink the weights by learning rate x decay instead (decoupled)."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Adam's decay rates of the gradient's mean and of its square."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added by Adam to the root of the mean square."""

    def unread(self) -> Collection[str]:
        """See :class:`Model`."""
        return () if self.name in {"adam", "adamw"} else ("betas", "epsilon")


class TrainingRecipe(Model):
    """Optimiser, loss and schedule of a training; the paper's is SGD on the cross-entropy."""

    LATER: ClassVar = frozenset(
        {"optimizer", "smoothing", "focal_gamma", "mse_reduction", "oversample", "tensorboard"}
    )

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 350
    """Passes over the train set."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000_000)] = 128
    """Examples per step."""
    keep_incomplete_batch: bool = False
    """Also train on the last, incomplete batch of an epoch; the authors' notebook skips it."""
    oversample: bool = False
    """Repeat the images of smaller classes within an epoch, up to the largest class's count. Losses
    and errors after an epoch, features and statistics count each image once."""
    loss: Literal["cross_entropy", "mse", "label_smoothing", "focal"] = "cross_entropy"
    """The loss, computed in float64 on the logits: in float32 it vanishes below 4e-8. `mse`
    compares logits with one-hot labels."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the target that `label_smoothing` spreads over all classes."""
    focal_gamma: Annotated[float, Field(ge=0, le=100)] = 2.0
    """Exponent of `focal`, (1 - p)^gamma x cross-entropy; 0 is the cross-entropy."""
    mse_reduction: Literal["mean", "half_sum"] = "mean"
    """`mse` over the classes: their mean, as torch.nn.MSELoss, or half their sum, as Han, Papyan
    and Donoho, which is C / 2 times as large at the same weight decay."""
    optimizer: OptimizerRecipe = OptimizerRecipe()
    """The optimiser: `{name: adamw}`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of `sgd` and `sgdw`; no Nesterov."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 5e-4
    """L2 penalty on every parameter, as in the notebook, coupled or decoupled as the optimiser
    says; ImageNet uses 1e-4."""
    learning_rate_milestones: tuple[str, ...] = ("1/3", "2/3")
    """Fractions of `epochs`, rounded down, after which the learning rate is multiplied by
    `learning_rate_factor`: 116 and 233 of 350. ImageNet uses 1/2 and 3/4."""
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the learning rate at each milestone."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Arithmetic of the training step: true float32, TF32 (GPU) or bfloat16 autocast. Features,
    statistics and attack always use true float32. Losses and errors after each epoch use float32 if
    this is float32, otherwise TF32."""
    cuda_graphs: bool = False
    """On one GPU, launch all kernels of a training step at once, with any optimiser and loss: at
    32 px 1.1 to 4.4 times the speed on an H100 (TF32). Ignored on the CPU and with several GPUs."""
    compile: bool = False
    """Fuse the kernels of a training step with torch.compile; the first step takes a minute. Not
    yet measured on a GPU by this project."""
    deterministic: bool = True
    """Use deterministic GPU kernels, so that the same recipe is bit-identical on the same GPU. A
    layer of a custom network may have none (torch's adaptive pooling to more than 1 px)."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of a training; part of the recipe, because their number changes the last bits."""
    evaluation_batch_size: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1000
    """Largest number of examples per step without training: the CPU uses at most 128, and a GPU
    halves it if its memory runs out."""
    tensorboard: bool = False
    """Also write TensorBoard event files to the folder `tensorboard` of each run: losses and errors
    during training, statistics after they are measured. Only jobs that run from then on write them,
    and setting it runs none again. Needs the package tensorboard."""

    def unread(self) -> Collection[str]:
        """See :class:`Model`."""
        return [key for key, loss in READ_BY_LOSS.items() if self.loss != loss]

    @field_validator("learning_rate_milestones", mode="before")
    @classmethod
    def _fractions(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise ValueError("must be a list of fractions such as ['1/3', '2/3']")
        fractions = list(map(_fraction, value))
        if fractions != sorted(set(fractions)):
            raise ValueError("must be in rising order, each once")
        return tuple(map(str, value))

    @model_validator(mode="after")
    def _fit_together(self) -> TrainingRecipe:
        for first, second in itertools.pairwise(self.milestones):
            if first == second:
                given = ", ".join(map(repr, self.learning_rate_milestones))
                raise ValueError(
                    f"learning_rate_milestones: two of {given} are epoch {first} of {self.epochs}, "
                    "which would lower the learning rate twice; leave one out"
                )
        if self.compile and self.precision == "tf32":
            raise ValueError(
                "compile: torch.compile does not work with precision: tf32; leave one of them out"
            )
        return self

    @property
    def milestones(self) -> tuple[int, ...]:
        """The epochs after which the learning rate falls: (116, 233) for 350 epochs and ("1/3",
        "2/3"). Milestones that round down to 0 are left out."""
        rounded = [math.floor(self.epochs * Fraction(f)) for f in self.learning_rate_milestones]
        return tuple(epoch for epoch in rounded if epoch > 0)

    def steps(self, examples: int) -> int:
        """Number of steps in an epoch of `examples` train examples."""
        more = self.batch_size - 1 if self.keep_incomplete_batch else 0
        return (examples + more) // self.batch_size

    def mse_decay(self, num_classes: int) -> float:
        """The lambda with which sum_i |z_i - e_y|^2 / (2 N) + lambda (|W|^2 + |b|^2) / 2 is the
        objective of a training with `mse` and coupled decay, up to a factor (2 / C of the mean)."""
        return self.weight_decay * (num_classes / 2 if self.mse_reduction == "mean" else 1)

    def learning_rate_at(self, initial: float, epoch: int) -> float:
        """The learning rate during `epoch` (from 1), given the initial one."""
        return initial * self.learning_rate_factor ** sum(epoch > m for m in self.milestones)


class SweepRecipe(Model):
    """The learning rates of the sweep, and how one is selected."""

    learning_rate: LearningRate | None = None
    """A fixed learning rate, without a sweep; null runs the sweep."""
    learning_rate_min: LearningRate = 1e-4
    """Smallest of the geometrically spaced learning rates."""
    learning_rate_max: LearningRate = 0.25
    """Largest of these."""
    count: Annotated[int, Field(ge=1, le=1000)] = 25
    """Number of these: numpy.geomspace(min, max, count), to 12 digits; ImageNet has 10."""
    additional_learning_rates: tuple[LearningRate, ...] = ()
    """Further learning rates; adding one later trains only that one."""
    selection: Literal["test_error", "held_out_error"] = "test_error"
    """Selects the rate at the last epoch: the smallest test error, as in the paper, or the smallest
    error on train images held out from the sweep's trainings."""
    held_out_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Fraction of each class's train images held out for `held_out_error`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the sweep's trainings. Every seed of the experiment uses the selected rate."""

    def unread(self) -> Collection[str]:
        """See :class:`Model`."""
        return () if self.selection == "held_out_error" else ("held_out_fraction",)

    @model_validator(mode="after")
    def _range(self) -> SweepRecipe:
        if self.learning_rate_min > self.learning_rate_max:
            raise ValueError(
                f"learning_rate_min ({self.learning_rate_min:g}) is above "
                f"learning_rate_max ({self.learning_rate_max:g}); swap them"
            )
        if self.count > 1 and self.learning_rate_min == self.learning_rate_max:
            raise ValueError("learning_rate_min equals learning_rate_max; set count to 1")
        names = [learning_rate_name(rate) for rate in self.learning_rates]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"the learning rate {min(doubled)} is given twice in the sweep")
        return self

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """All candidates in ascending order; a single one if `learning_rate` is set."""
        if self.learning_rate is not None:
            return (self.learning_rate,)
        import numpy

        spaced = numpy.geomspace(self.learning_rate_min, self.learning_rate_max, self.count)
        # The last bits of numpy's depend on the processor; those of a resumed training must not.
        rounded = [float(f"{rate:.12g}") for rate in spaced]
        return tuple(sorted([*rounded, *self.additional_learning_rates]))

    def named(self) -> dict[str, float]:
        """The candidates by their name in paths."""
        return {learning_rate_name(rate): rate for rate in self.learning_rates}
