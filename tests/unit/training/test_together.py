"""Learning rates trained together have the curves of trainings by themselves."""

from __future__ import annotations

import itertools
import sys
import types

import pytest
import torch
from torch import nn

from neural_collapse.experiment.config import Recipe
from neural_collapse.training import together
from neural_collapse.training.loop import train
from neural_collapse.training.together import Grouped, SideBySide, choose_method, train_together
from neural_collapse.training.trainer import DeviceData, Trainer

CPU = torch.device("cpu")
RATES = (0.01, 0.05, 0.2)

NETWORKS = {
    "resnet": {"family": "resnet", "block": "basic", "blocks": [1, 1], "width": 4},
    "vgg": {"family": "vgg", "convolutions": [1, 1], "width": 4, "hidden_width": 16},
    "densenet": {"family": "densenet", "blocks": [2, 2], "growth": 3, "bottleneck": True},
}


def changed(recipe: Recipe, **parts) -> Recipe:
    values = recipe.model_dump()
    for name, change in parts.items():
        values[name] = change if name == "network" else values[name] | change
    return Recipe.model_validate(values)


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("kind", [SideBySide, Grouped])
def test_the_first_steps_are_those_of_separate_trainings(kind, family, make_recipe, make_data):
    recipe = changed(make_recipe(), network=NETWORKS[family])
    data = DeviceData(recipe, make_data(), CPU)
    alone = [Trainer(recipe, data, rate, 0, CPU) for rate in RATES]
    joint = kind(recipe, data, RATES, 0)
    for batch in itertools.islice(data.batches(0, 1), 3):
        expected = torch.stack([trainer.step(batch, trainer.learning_rate) for trainer in alone])
        losses = torch.zeros(len(RATES), dtype=torch.float64)
        joint.step(batch, 1, losses)
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)


def test_side_by_side_has_the_bits_of_trainings_by_themselves(make_recipe, make_data, tmp_path):
    recipe, data = make_recipe(), make_data()
    joint, method = train_together(
        recipe,
        data,
        learning_rates=RATES,
        seed=0,
        device=CPU,
        state_root=tmp_path,
        method="side_by_side",
    )
    assert method == "side_by_side"
    for rate, history in zip(RATES, joint, strict=True):
        alone, _ = train(
            recipe, data, learning_rate=rate, seed=0, device=CPU, state_root=tmp_path / "alone"
        )
        assert history.records == alone.records
    assert not list(tmp_path.rglob("state-*"))


@pytest.mark.parametrize("method", ["side_by_side", "one_network"])
def test_who_diverges_or_is_halved_leaves_the_others_alone(
    method, make_recipe, make_data, tmp_path
):
    def run(rates, halving=()):
        recipe = make_recipe(epochs=4)
        if halving:
            recipe = changed(recipe, sweep={"together": 4, "halving_epochs": halving})
        histories, _ = train_together(
            recipe,
            make_data(),
            learning_rates=rates,
            seed=0,
            device=CPU,
            state_root=tmp_path,
            method=method,
        )
        return histories

    quiet = run(RATES)
    wild = run((*RATES, 1e30))
    assert wild[3].diverged and wild[3].records[-1].epoch < 4
    halved = run(RATES, halving=(2,))
    lasts = [history.records[-1].epoch for history in halved]
    order = sorted(quiet, key=lambda h: (h.records[2].test_error, h.records[2].test_loss))
    stopped = order[-1].learning_rate
    assert [last for last, rate in zip(lasts, RATES, strict=True) if rate == stopped] == [2]
    assert sorted(lasts) == [2, 4, 4]
    for history, other, cut in zip(quiet, wild, halved, strict=False):
        for record, theirs, its in itertools.zip_longest(
            history.records, other.records, cut.records
        ):
            assert theirs.train_loss == pytest.approx(record.train_loss, rel=1e-3)
            if its is not None:
                assert its.train_loss == pytest.approx(record.train_loss, rel=1e-3)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_kernel_carries_a_divergence_over(width, precision, make_recipe, make_data, tmp_path):
    """Some multiply a neighbour's NaN by zero: odd widths in bfloat16 do."""
    recipe = make_recipe(epochs=3, width=width, precision=precision)

    def run(rates):
        return train_together(
            recipe,
            make_data(),
            learning_rates=rates,
            seed=0,
            device=CPU,
            state_root=tmp_path,
            method="one_network",
        )[0]

    quiet, wild = run(RATES), run((*RATES, 1e30))
    assert wild[3].diverged
    for expected, found in zip(quiet, wild, strict=False):
        assert not found.diverged and found.records[-1].epoch == 3
        assert found.records[1].train_loss == pytest.approx(
            expected.records[1].train_loss, rel=0.05 if precision == "bfloat16" else 1e-4
        )


@pytest.mark.parametrize("method", ["side_by_side", "one_network"])
def test_an_interrupted_sweep_goes_on_with_the_same_bits(
    method, make_recipe, make_data, tmp_path, monkeypatch
):
    recipe = changed(make_recipe(epochs=5), sweep={"together": 3, "halving_epochs": (2,)})
    arguments = {"learning_rates": RATES, "seed": 0, "device": CPU}
    monkeypatch.setattr(together, "choose_method", lambda *_: together.METHODS[method])
    quiet, _ = train_together(recipe, make_data(), state_root=tmp_path / "quiet", **arguments)
    kind = together.METHODS[method]
    train_epoch = kind.train_epoch

    for stop in (2, 4):

        def interrupted(self, epoch, stop=stop):
            if epoch == stop:
                raise KeyboardInterrupt
            return train_epoch(self, epoch)

        monkeypatch.setattr(kind, "train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_together(recipe, make_data(), state_root=tmp_path, **arguments)
    monkeypatch.setattr(kind, "train_epoch", train_epoch)
    # Which method a resumed sweep takes is its state's to say, not another probe's.
    monkeypatch.delattr(together, "choose_method")
    resumed, taken = train_together(recipe, make_data(), state_root=tmp_path, **arguments)
    assert taken == method
    assert [history.resumed_after for history in resumed] == [3, 3, 3]
    assert [history.records for history in resumed] == [history.records for history in quiet]


def test_only_the_asked_epochs_are_evaluated(make_recipe, make_data, tmp_path):
    arguments = {"seed": 0, "device": CPU, "evaluated_epochs": (2,)}
    recipe, data = make_recipe(epochs=4), make_data()
    alone, _ = train(recipe, data, learning_rate=0.05, state_root=tmp_path / "alone", **arguments)
    joint, _ = train_together(recipe, data, learning_rates=[0.05], state_root=tmp_path, **arguments)
    whole, _ = train(*(recipe, data), learning_rate=0.05, state_root=tmp_path, seed=0, device=CPU)
    assert alone.records == joint[0].records == [whole.records[epoch] for epoch in (0, 2, 4)]


@pytest.mark.parametrize(("grouped_seconds", "expected"), [(0.5, Grouped), (0.95, SideBySide)])
def test_the_probe_takes_a_group_only_where_it_is_faster(
    grouped_seconds, expected, make_recipe, make_data, monkeypatch
):
    seconds = itertools.cycle([1.0, grouped_seconds])

    def timed(self, work):
        work()
        return next(seconds)

    monkeypatch.setattr(together._Clock, "seconds", timed)
    recipe = make_recipe()
    assert choose_method(recipe, DeviceData(recipe, make_data(), CPU), RATES, 0) is expected


def test_networks_of_unknown_layers_are_never_grouped(make_recipe, make_data, monkeypatch):
    own = types.ModuleType("own_networks")
    own.linear = lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    monkeypatch.setitem(sys.modules, "own_networks", own)
    network = {
        "family": "custom",
        "function": "own_networks:linear",
        "arguments": {"classes": "$num_classes"},
    }
    recipe = changed(make_recipe(), network=network)
    data = DeviceData(recipe, make_data(), CPU)
    assert choose_method(recipe, data, RATES, 0) is SideBySide
    with pytest.raises(ValueError, match="only VGG, ResNet and DenseNet"):
        Grouped(recipe, data, RATES, 0)
