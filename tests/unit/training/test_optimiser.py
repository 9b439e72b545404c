"""Optimisers and the order of examples, against torch's own and plain float64."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neural_collapse.training.optimisers import Optimiser
from neural_collapse.training.recipe import OptimizerRecipe, TrainingRecipe
from neural_collapse.training.trainer import epoch_order

OPTIMISERS = get_args(OptimizerRecipe.model_fields["name"].annotation)


def small_network() -> nn.Module:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    return network.to(memory_format=torch.channels_last)


def batches(count: int):
    generator = torch.Generator().manual_seed(5)
    for _ in range(count):
        images = torch.randn(8, 1, 6, 6, generator=generator)
        yield images, torch.randint(0, 3, (8,), generator=generator)


RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.001]


def optimiser_of(network: nn.Module, name: str, **training) -> Optimiser:
    betas = {"betas": (0.8, 0.99), "epsilon": 1e-6} if name.startswith("adam") else {}
    return Optimiser(TrainingRecipe(optimizer={"name": name} | betas, **training), network)


@pytest.mark.parametrize(
    ("name", "momentum", "weight_decay"),
    [
        *(("sgd", 0.9, 5e-4), ("sgd", 0.0, 0.0), ("sgd", 0.5, 0.1)),
        *((name, 0.9, decay) for name in ("adam", "adamw") for decay in (0.0, 0.1)),
    ],
)
def test_the_bits_are_torchs_for_every_parameter(name, momentum, weight_decay):
    ours, theirs = small_network(), small_network()
    optimiser = optimiser_of(ours, name, momentum=momentum, weight_decay=weight_decay)
    options = {"lr": 1.0, "weight_decay": weight_decay, "fused": True}
    if name == "sgd":
        reference = torch.optim.SGD(theirs.parameters(), momentum=momentum, **options)
    else:
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        reference = kind(theirs.parameters(), betas=(0.8, 0.99), eps=1e-6, **options)
    kept = {"sgd": ("momentum", "momentum_buffer")}.get(name, ("adam_mean", "exp_avg"))
    for rate, (images, labels) in zip(RATES, batches(len(RATES)), strict=True):
        nn.functional.cross_entropy(ours(images), labels).backward()
        optimiser.step(rate)
        reference.zero_grad()
        nn.functional.cross_entropy(theirs(images), labels).backward()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        for (key, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.equal(own, other), key
            assert own.grad is None
            if momentum:
                buffer = reference.state[other][kept[1]]
                assert torch.equal(optimiser.state()[f"{kept[0]}.{key}"], buffer), key


def test_sgd_with_decoupled_decay_is_the_definition_in_float64():
    network = small_network()
    sgdw = optimiser_of(network, "sgdw", momentum=0.9, weight_decay=0.5)
    weights = {n: p.detach().double().numpy().copy() for n, p in network.named_parameters()}
    speeds = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for rate, (images, labels) in zip(RATES, batches(len(RATES)), strict=True):
        nn.functional.cross_entropy(network(images), labels).backward()
        for name, parameter in network.named_parameters():
            speeds[name] = 0.9 * speeds[name] + parameter.grad.double().numpy()
            weights[name] = (1 - rate * 0.5) * weights[name] - rate * speeds[name]
        sgdw.step(rate)
    for name, parameter in network.named_parameters():
        np.testing.assert_allclose(
            parameter.detach().double().numpy(), weights[name], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_rate_as_a_tensor_steps_as_a_number_does(name):
    """As CUDA graphs give it."""
    ours, theirs = small_network(), small_network()
    one, other = (optimiser_of(network, name, weight_decay=0.1) for network in (ours, theirs))
    for rate in RATES:
        for own, another in zip(ours.parameters(), theirs.parameters(), strict=True):
            own.grad, another.grad = (torch.cos(7 * own).detach() for _ in range(2))
        one.step(rate)
        other.step(torch.tensor(rate))
    for own, another in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, another, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_frozen_or_unused_parameter_stays_as_it_is(name):
    network = small_network()
    network[0].weight.requires_grad_(False)
    network.unused = nn.Parameter(torch.ones(2))
    frozen = network[0].weight.clone()
    optimiser = optimiser_of(network, name, weight_decay=0.5)
    images, labels = next(batches(1))
    nn.functional.cross_entropy(network[:6](images), labels).backward()
    moved = network[5].weight.clone()
    optimiser.step(0.1)
    assert torch.equal(network[0].weight, frozen)
    assert torch.equal(network.unused, torch.ones(2))
    assert not torch.equal(network[5].weight, moved)


# ------------------------------------------------------------------------------------- order


@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.integers(1, 10**6))
@settings(max_examples=60, deadline=None)
def test_an_order_is_a_permutation(examples, seed, epoch):
    order = epoch_order(examples, seed, epoch)
    assert sorted(order.tolist()) == list(range(examples))


def test_orders_of_other_epochs_and_seeds_have_nothing_to_do_with_each_other():
    orders = [epoch_order(2000, s, e) for s, e in itertools.product(range(4), range(1, 5))]
    for one, other in itertools.combinations(orders, 2):
        # Two random permutations agree in about one place.
        assert (one == other).sum() < 12


def test_an_order_has_not_changed():
    # Else resumed runs would go on in another order: raise versions.TRAINING with it.
    assert epoch_order(8, 0, 1).tolist() == [5, 6, 4, 3, 1, 7, 2, 0]
    assert epoch_order(8, 5, 350).tolist() == [3, 2, 0, 5, 1, 7, 6, 4]
