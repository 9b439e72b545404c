"""Trainings with a fixed classifier and with oversampling: what stays, what is seen how often."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from neural_collapse.io.tensors import read_tensors
from neural_collapse.training import trainer as trainers
from neural_collapse.training.checkpoints import FORMAT, list_checkpoints
from neural_collapse.training.loop import train
from neural_collapse.training.trainer import Trainer, oversampled

CPU = torch.device("cpu")


def with_etf(recipe):
    return recipe.model_copy(
        update={"network": recipe.network.model_copy(update={"classifier": "etf"})}
    )


def checkpoints(folder):
    found = list_checkpoints(folder).values()
    return [read_tensors(path, "checkpoint", FORMAT)[0] for path in found]


@pytest.mark.parametrize("name", ["sgd", "sgdw", "adam", "adamw"])
def test_a_fixed_classifier_keeps_its_bits_whatever_the_optimiser(
    tmp_path, make_data, make_recipe, interrupted, name
):
    """With a decay that would halve it, in one go and in two."""
    recipe = with_etf(make_recipe(optimizer={"name": name}, weight_decay=0.5))
    ends = []
    for resumed in (False, True):
        options = {
            "learning_rate": 0.05,
            "seed": 3,
            "device": CPU,
            "state_root": tmp_path / f"state-{resumed}",
            "checkpoint_folder": tmp_path / f"out-{resumed}",
            "checkpoint_epochs": recipe.measured_epochs,
        }
        if resumed:
            with interrupted(3):
                train(recipe, make_data(), **options)
        history, _ = train(recipe, make_data(), **options)
        assert history.resumed_after == (2 if resumed else 0)
        kept = checkpoints(tmp_path / f"out-{resumed}")
        for epoch in kept:
            assert torch.equal(epoch["classifier.weight"], kept[0]["classifier.weight"])
            assert not epoch["classifier.bias"].any()
        assert not torch.equal(kept[-1]["conv1.weight"], kept[0]["conv1.weight"])
        ends.append(kept[-1])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def unequal(data, counts=(30, 7, 1)):
    """The data with so many train images of each class, in mixed order."""
    labels = np.asarray(data.train_labels)
    rows = [np.flatnonzero(labels == c)[:count] for c, count in enumerate(counts)]
    kept = np.random.default_rng(1).permutation(np.concatenate(rows))
    return dataclasses.replace(
        data, train_images=data.train_images[kept], train_labels=labels[kept]
    )


def test_oversampling_gives_every_class_as_many_rows_and_each_image_as_often():
    labels = np.array([1, 0, 2, 0, 2, 0, 0, 2, 0])  # 5, 1 and 3 of them
    rows = oversampled(labels).numpy()
    assert np.bincount(labels[rows]).tolist() == [5, 5, 5]
    of_class = [np.bincount(rows, minlength=9)[labels == c] for c in range(3)]
    assert [sorted(times) for times in of_class] == [[1] * 5, [5], [1, 2, 2]]


def test_an_oversampled_epoch_sees_all_classes_alike_and_is_measured_once(
    monkeypatch, make_data, make_recipe
):
    data = unequal(make_data())
    trainer = Trainer(make_recipe(oversample=True, batch_size=10), data, 0.05, 0, CPU)
    assert trainer.data.steps == 9
    orders = []
    for epoch in (1, 2):
        seen = torch.cat([batch.labels for batch in trainer.data.batches(0, epoch)])
        assert torch.bincount(seen).tolist() == [30, 30, 30]
        orders.append(seen)
    assert not torch.equal(*orders)
    # every image once after an epoch: the error is a whole number of 38ths
    errors = 38 * trainer.evaluate(1).train_error
    assert errors == pytest.approx(round(errors), abs=1e-9)
    # the images are those of the labels, streamed or not
    for stream in (False, True):
        other = Trainer(
            make_recipe(oversample=True, batch_size=10), data, 0.05, 0, CPU, stream=stream
        )
        rows = oversampled(np.asarray(data.train_labels))[trainers.epoch_order(90, 0, 1)]
        seen = torch.cat([batch.inputs for batch in other.data.batches(0, 1)])
        expected = torch.from_numpy(data.train_images[rows].astype(np.float32) / 255 - 0.5) / 0.25
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)
    plain = Trainer(make_recipe(batch_size=10), data, 0.05, 0, CPU)
    seen = torch.cat([batch.labels for batch in plain.data.batches(0, 1)])
    order = trainers.epoch_order(38, 0, 1)[:30]
    assert torch.equal(seen, torch.from_numpy(np.asarray(data.train_labels))[order])
