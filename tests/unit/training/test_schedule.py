"""Measured epochs, milestones, the learning rate of each epoch, and the sweep's rates."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neural_collapse.training.recipe import SweepRecipe, TrainingRecipe
from neural_collapse.training.schedule import learning_rate_name, spaced_epochs

# As the authors' notebook prints them.
NOTEBOOK_EPOCHS = [
    *range(1, 15), 16, 17, 19, 20, 22, 24, 27, 29, 32, 35, 38, 42, 45, 50, 54, 59, 65, 71, 77, 85,
    92, 101, 110, 121, 132, 144, 158, 172, 188, 206, 225, 245, 268, 293, 320, 350,
]  # fmt: skip


def test_spaced_epochs_50_of_350_are_the_notebooks():
    assert len(NOTEBOOK_EPOCHS) == 50
    assert list(spaced_epochs(350, 50)) == NOTEBOOK_EPOCHS


@given(last=st.integers(1, 2000), count=st.integers(2, 300))
def test_spaced_epochs_any_count_rise_from_first_to_last(last, count):
    epochs = spaced_epochs(last, count)
    assert epochs[0] == 1
    assert epochs[-1] == last
    assert list(epochs) == sorted(set(epochs))
    assert len(epochs) == min(count, last)
    assert all(type(epoch) is int for epoch in epochs)
    steps = np.diff(epochs)
    # Denser at the start: rounding moves a step by one at most.
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(steps))


def test_milestones_of_the_paper_are_its_epochs():
    assert TrainingRecipe().milestones == (116, 233)
    imagenet = TrainingRecipe(epochs=300, learning_rate_milestones=["1/2", "3/4"])
    assert imagenet.milestones == (150, 225)


@given(
    epochs=st.integers(1, 60),
    thirds=st.booleans(),
    initial=st.floats(1e-4, 1),
    factor=st.floats(0.05, 1),
)
@settings(max_examples=30, deadline=None)
def test_learning_rate_any_schedule_is_torchs(epochs, thirds, initial, factor):
    milestones = [epochs // 3, 2 * epochs // 3] if thirds else [epochs // 2, 3 * epochs // 4]
    milestones = [epoch for epoch in milestones if epoch > 0]
    assume(len(set(milestones)) == len(milestones))
    recipe = TrainingRecipe(
        epochs=epochs,
        learning_rate_milestones=["1/3", "2/3"] if thirds else [0.5, 0.75],
        learning_rate_factor=factor,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=initial)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, factor)
    for epoch in range(1, epochs + 1):
        assert math.isclose(
            recipe.learning_rate_at(initial, epoch), schedule.get_last_lr()[0], rel_tol=1e-12
        )
        optimizer.step()
        schedule.step()


def test_sweep_default_is_the_papers():
    rates = SweepRecipe().learning_rates
    assert all(rate == float(f"{rate:.12g}") for rate in rates)
    # Written out from its closed form, not with numpy.
    expected = [1e-4 * (0.25 / 1e-4) ** (i / 24) for i in range(25)]
    assert rates == pytest.approx(expected, rel=1e-12)
    # Three of them are known to have won in the paper.
    names = [learning_rate_name(rate) for rate in rates]
    assert [float(name) for name in names] == pytest.approx(expected, rel=1e-4)
    for won in (0.0679, 0.13025, 0.18045):
        assert min(abs(rate - won) / won for rate in rates) < 2e-3


@given(low=st.floats(1e-6, 1e-2), ratio=st.floats(1.5, 1e4), count=st.integers(2, 60))
def test_learning_rate_names_lead_back_to_them(low, ratio, count):
    sweep = SweepRecipe(learning_rate_min=low, learning_rate_max=low * ratio, count=count)
    named = sweep.named()
    assert len(named) == len(sweep.learning_rates) == count
    for name, rate in named.items():
        assert float(name) == pytest.approx(rate, rel=1e-4)
        assert set(name) <= set("0123456789.e+-")


def test_additional_learning_rate_leaves_the_others_names():
    small, large = SweepRecipe(), SweepRecipe(additional_learning_rates=[0.4, 0.003])
    assert set(large.named()) - set(small.named()) == {"0.4", "0.003"}
    assert set(small.named()) < set(large.named())
    assert SweepRecipe(learning_rate=0.05).learning_rates == (0.05,)
