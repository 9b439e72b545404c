"""The losses against mpmath and their written formulas, to the smallest values."""

from __future__ import annotations

import math
from functools import partial
from typing import get_args

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

from neural_collapse.collapse.features import extract_splits
from neural_collapse.collapse.moments import StoredMoments
from neural_collapse.experiment.stages.measure import statistics_of
from neural_collapse.training.losses import cross_entropy, focal, loss_of
from neural_collapse.training.recipe import TrainingRecipe
from neural_collapse.training.trainer import Trainer

LOSSES = get_args(TrainingRecipe.model_fields["loss"].annotation)


def exact_loss(logits: torch.Tensor, labels: torch.Tensor) -> list[mpmath.mpf]:
    with mpmath.workdps(60):
        return [
            mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(x)) for x in row)) - mpmath.mpf(row[label])
            for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
        ]


@pytest.mark.parametrize("margin", [1.0, 16.0, 18.5, 21.0, 30.0])
def test_the_loss_is_right_where_float32_vanishes(margin):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20, 10, generator=generator)
    labels = torch.arange(20) % 10
    logits[torch.arange(20), labels] += margin
    exact = exact_loss(logits, labels)
    found = cross_entropy(logits, labels, "none")
    assert found.dtype == torch.float64
    for value, truth in zip(found.tolist(), exact, strict=True):
        # log(1 + x) near 1 keeps 16 digits of 1 + x, not of x.
        assert abs(value - truth) <= 1e-7 * truth + 4e-15 * margin
    mean = float(mpmath.fsum(exact) / 20)
    assert cross_entropy(logits, labels).item() == pytest.approx(mean, rel=1e-6, abs=4e-15 * margin)
    if margin == 21.0:
        assert 1e-9 < mean < 1e-7
        float32 = nn.functional.cross_entropy(logits, labels).item()
        assert abs(float32 - mean) > 0.05 * mean  # why float64


def test_the_gradient_at_a_loss_of_1e_8_is_that_of_the_softmax():
    logits = torch.zeros(1, 4, requires_grad=True)
    with torch.no_grad():
        logits[0, 0] = 19.0
    cross_entropy(logits, torch.tensor([0])).backward()
    with mpmath.workdps(40):
        share = 1 / (mpmath.exp(19) + 3)
    np.testing.assert_allclose(
        logits.grad[0].numpy(), [-3 * float(share), *[float(share)] * 3], rtol=1e-6
    )


# ------------------------------------------------------------------------------- other losses


def batch(examples: int = 12, classes: int = 5, margin: float = 0.0):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(examples, classes, generator=generator)
    labels = torch.arange(examples) % classes
    logits[torch.arange(examples), labels] += margin
    return logits, labels


def written_out(name: str, row: list[float], label: int, training: TrainingRecipe) -> mpmath.mpf:
    """One example's loss from its formula, to 60 digits."""
    classes, z = len(row), [mpmath.mpf(x) for x in row]
    total = mpmath.fsum(map(mpmath.exp, z))
    p = [mpmath.exp(x) / total for x in z]
    if name == "mse":
        squares = mpmath.fsum((x - (c == label)) ** 2 for c, x in enumerate(z))
        return squares / (classes if training.mse_reduction == "mean" else 2)
    if name == "label_smoothing":
        share = mpmath.mpf(training.smoothing)
        target = [(1 - share) * (c == label) + share / classes for c in range(classes)]
        return -mpmath.fsum(t * mpmath.log(q) for t, q in zip(target, p, strict=True))
    if name == "focal":
        return -((1 - p[label]) ** mpmath.mpf(training.focal_gamma)) * mpmath.log(p[label])
    return -mpmath.log(p[label])


@pytest.mark.parametrize("margin", [0.0, 5.0, 14.0])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("cross_entropy", {}),
        ("mse", {}),
        ("mse", {"mse_reduction": "half_sum"}),
        ("label_smoothing", {"smoothing": 0.0}),
        ("label_smoothing", {"smoothing": 0.1}),
        ("label_smoothing", {"smoothing": 0.9}),
        ("focal", {"focal_gamma": 0.0}),
        ("focal", {"focal_gamma": 0.5}),
        ("focal", {"focal_gamma": 3.0}),
    ],
)
def test_a_loss_is_its_formula(name, more, margin):
    training = TrainingRecipe(loss=name, **more)
    logits, labels = batch(margin=margin)
    loss = loss_of(training)
    found = loss(logits, labels, "none")
    assert found.dtype == torch.float64
    with mpmath.workdps(60):
        rows = zip(logits.tolist(), labels.tolist(), strict=True)
        exact = [float(written_out(name, *row, training)) for row in rows]
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-8)
    assert loss(logits, labels).item() == pytest.approx(math.fsum(exact) / len(exact), rel=1e-8)
    assert loss(logits, labels, "sum").item() == pytest.approx(math.fsum(exact), rel=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_is_the_slope_of_the_loss(name):
    logits, labels = batch(margin=2.0)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(
        partial(loss_of(TrainingRecipe(loss=name)), labels_B=labels), logits
    )


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_a_focal_loss_of_certain_examples_has_no_nan_in_its_gradient(gamma):
    logits = torch.tensor([[1000.0, 0.0], [40.0, 0.0], [0.0, 800.0]], requires_grad=True)
    focal(logits, torch.tensor([0, 0, 0]), gamma=gamma).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[2].abs().max() > 0.1  # the wrong one still counts


@pytest.mark.parametrize("name", LOSSES)
def test_a_training_lowers_and_records_the_recipes_loss(make_recipe, make_data, name):
    data = make_data()
    trainer = Trainer(make_recipe(loss=name, epochs=6), data, 0.02, 0, torch.device("cpu"))
    before = trainer.evaluate(0)
    for epoch in range(1, 7):
        trainer.train_epoch(epoch)
    after = trainer.evaluate(6)
    assert after.train_loss < before.train_loss
    network = trainer.network.eval()
    with torch.no_grad():
        logits = network(trainer.data.normalise(torch.from_numpy(data.train_images)))
    labels = torch.from_numpy(data.train_labels)
    with mpmath.workdps(30):
        rows = zip(logits.tolist(), labels.tolist(), strict=True)
        exact = [float(written_out(name, *row, trainer.training)) for row in rows]
    assert after.train_loss == pytest.approx(np.mean(exact), rel=1e-4)


# ------------------------------------------------------------------------- the parts of the MSE


def parts_of(make_recipe, make_data, examples=90, **training):
    """A short training, its record, and the statistics of its last checkpoint by split."""
    recipe = make_recipe(batch_size=15, weight_decay=0.02, **training)
    recipe = recipe.model_copy(
        update={"measurement": recipe.measurement.model_copy(update={"scatter": "full"})}
    )
    data = make_data(examples)
    trainer = Trainer(recipe, data, 0.05, 0, torch.device("cpu"))
    for epoch in (1, 2, 3):
        trainer.train_epoch(epoch)
    splits = extract_splits(trainer.network, data, batch_size=32, device="cpu", scatter="full")
    stored = StoredMoments(splits.train, splits.test, {}, {}, {})
    return trainer, trainer.evaluate(3), statistics_of(recipe, stored)


@pytest.mark.parametrize(("reduction", "share"), [("mean", 2 / 3), ("half_sum", 1.0)])
def test_the_measured_parts_add_up_to_the_loss_and_the_decay(
    make_recipe, make_data, reduction, share
):
    trainer, record, found = parts_of(make_recipe, make_data, loss="mse", mse_reduction=reduction)
    layer = trainer.network.classifier
    decay = 0.01 * sum(p.detach().double().square().sum().item() for p in layer.parameters())
    parts = [found["train"][f"mse_{name}"] for name in ("nc1", "nc23", "perpendicular")]
    assert min(parts) > 0
    assert share * sum(parts) == pytest.approx(record.train_loss + decay, rel=1e-5)
    assert not any(name.startswith("mse") for name in found["test"])
    assert 0 < found["train"]["vci"] < 1


@pytest.mark.parametrize(
    ("examples", "changes"),
    [
        (90, {"loss": "cross_entropy"}),
        (90, {"loss": "mse", "optimizer": {"name": "adamw"}}),
        (91, {"loss": "mse"}),
    ],
    ids=["another loss", "decoupled decay", "unequal counts"],
)
def test_parts_that_would_not_add_up_are_left_out(make_recipe, make_data, examples, changes):
    _, _, found = parts_of(make_recipe, make_data, examples, **changes)
    assert not any(name.startswith("mse") for name in found["train"])
