"""The sum of the classifier's rows: a closed form that every training must follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_collapse.io.tensors import read_tensors
from neural_collapse.training.checkpoints import FORMAT, list_checkpoints
from neural_collapse.training.closed_form import sum_of_rows_factors
from neural_collapse.training.loop import train
from neural_collapse.training.recipe import TrainingRecipe

CPU = torch.device("cpu")


def step_by_step(training: TrainingRecipe, learning_rate: float, steps: int) -> list[float]:
    """The recurrence itself, one step at a time."""
    s, v, found = 1.0, 0.0, [1.0]
    for epoch in range(1, training.epochs + 1):
        rate = training.learning_rate_at(learning_rate, epoch)
        for _ in range(steps):
            if training.optimizer.name == "sgdw":
                s -= rate * training.weight_decay * s
            else:
                v = training.momentum * v + training.weight_decay * s
                s -= rate * v
        found.append(s)
    return found


@pytest.mark.parametrize("name", ["sgd", "sgdw"])
@pytest.mark.parametrize(("decay", "momentum"), [(5e-4, 0.9), (0.1, 0.5), (0.3, 0.0), (0.0, 0.9)])
def test_factors_are_the_recurrence_step_by_step(name, decay, momentum):
    training = TrainingRecipe(
        epochs=9, batch_size=32, weight_decay=decay, momentum=momentum, optimizer={"name": name}
    )
    found = sum_of_rows_factors(training, 0.1, examples=1000)
    np.testing.assert_allclose(found, step_by_step(training, 0.1, 31), rtol=1e-12)


@pytest.mark.parametrize(
    "changes", [{"optimizer": {"name": "adam"}}, {"optimizer": {"name": "adamw"}}, {"loss": "mse"}]
)
def test_no_closed_form_is_none(changes):
    assert sum_of_rows_factors(TrainingRecipe(**changes), 0.1, 1000) is None


@pytest.mark.parametrize(
    ("name", "loss", "resumed"),
    [
        ("sgd", "cross_entropy", False),
        ("sgd", "label_smoothing", True),
        ("sgdw", "focal", False),
        ("sgdw", "cross_entropy", True),
    ],
)
def test_a_training_follows_the_closed_form(
    tmp_path, make_data, make_recipe, interrupted, name, loss, resumed
):
    """Through two milestones, with a large decay so that it moves far, in one go or in two."""
    recipe = make_recipe(
        epochs=6,
        measured=(1, 2, 3, 4, 5, 6),
        weight_decay=0.05 if name == "sgd" else 0.5,
        keep_incomplete_batch=True,
        batch_size=16,
        loss=loss,
        optimizer={"name": name},
    )
    options = {
        "learning_rate": 0.1,
        "seed": 1,
        "device": CPU,
        "state_root": tmp_path / "state",
        "checkpoint_folder": tmp_path / "out",
        "checkpoint_epochs": recipe.measured_epochs,
    }
    if resumed:
        with interrupted(4):
            train(recipe, make_data(), **options)
    history, _ = train(recipe, make_data(), **options)
    assert history.resumed_after == (3 if resumed else 0)
    weights = [
        read_tensors(path, "checkpoint", FORMAT)[0]["classifier.weight"].double()
        for path in list_checkpoints(tmp_path / "out").values()
    ]
    sums = torch.stack([weight.sum(0) for weight in weights])
    factors = sum_of_rows_factors(recipe.training, 0.1, examples=90)
    expected = torch.tensor(factors)[:, None] * sums[0]
    # Far from where it began, which a training that went another way would not meet by chance.
    assert expected[-1].norm() < 0.7 * sums[0].norm()
    assert (weights[-1] - weights[0]).norm() > 0.1
    torch.testing.assert_close(sums, expected, rtol=2e-5, atol=2e-6)
