"""Checkpoints: whole, of this network, or refused in one sentence."""

from __future__ import annotations

import pytest
import torch

from neural_collapse.io.errors import UserError
from neural_collapse.io.tensors import read_tensors
from neural_collapse.networks.build import build_network
from neural_collapse.training.checkpoints import (
    FORMAT,
    checkpoint_name,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


@pytest.fixture
def network(make_recipe):
    def of(width: int = 4, seed: int = 0):
        recipe = make_recipe(width=width).network
        return build_network(recipe, channels=1, num_classes=3, image_size_px=8, seed=seed)

    return of


def weights(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_holds_weights_buffers_and_facts(tmp_path, network):
    original = network(seed=1).to(memory_format=torch.channels_last)
    original(torch.randn(4, 1, 8, 8))  # moves the running statistics
    path = tmp_path / checkpoint_name(7)
    save_checkpoint(path, original.state_dict(), {"epoch": "7"})
    other = network(seed=2)
    load_checkpoint(path, other)
    assert equal(weights(other), weights(original))
    assert read_tensors(path, "checkpoint", FORMAT)[1] == {"epoch": "7"}
    assert path.name == "epoch-0007.safetensors"


def changed(state: dict, how: str) -> dict:
    state = dict(state)
    if how == "missing":
        del state["classifier.bias"]
    elif how == "more":
        state["extra"] = torch.zeros(1)
    elif how == "renamed":
        state["klassifier.bias"] = state.pop("classifier.bias")
    elif how == "shape":
        state["classifier.bias"] = torch.zeros(4)
    elif how == "type":
        state["classifier.bias"] = state["classifier.bias"].double()
    return state


@pytest.mark.parametrize("how", ["missing", "more", "renamed", "shape", "type"])
def test_another_networks_checkpoint_is_refused_and_changes_nothing(tmp_path, network, how):
    path = tmp_path / "epoch-0001.safetensors"
    save_checkpoint(path, changed(network(seed=1).state_dict(), how), {})
    own = network(seed=2)
    before = weights(own)
    with pytest.raises(UserError, match="holds another network than the recipe's") as error:
        load_checkpoint(path, own)
    assert "\n" not in str(error.value)
    assert equal(weights(own), before)


def test_checkpoints_are_listed_by_epoch(tmp_path):
    for epoch in (10, 2, 0, 12345):
        (tmp_path / checkpoint_name(epoch)).touch()
    for other in ("epoch-x.safetensors", ".epoch-0003.safetensors.1.tmp", "epoch-0004.pt"):
        (tmp_path / other).touch()
    assert list(list_checkpoints(tmp_path)) == [0, 2, 10, 12345]
    for empty in (tmp_path / "none", tmp_path / "epoch-0004.pt"):
        with pytest.raises(UserError, match="holds no checkpoints"):
            list_checkpoints(empty)
