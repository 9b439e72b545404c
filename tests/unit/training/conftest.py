"""A dataset and a network so small that a training takes a tenth of a second."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.experiment.recipe import Recipe
from neural_collapse.training import loop
from neural_collapse.training.devices import set_determinism


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Another thread count gives other bits."""
    torch.set_num_threads(1)


@pytest.fixture
def deterministic(monkeypatch):
    """GPUs' kernels, as in a job."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_determinism(True)
    yield
    set_determinism(False)
    torch.backends.cudnn.benchmark = False


@pytest.fixture
def make_data():
    """`make_data(examples=90)`: three classes of noisy 8-pixel patterns that can be told apart."""

    def of(examples: int = 90, seed: int = 0) -> PreparedDataset:
        random = np.random.default_rng(seed)
        patterns = random.integers(40, 216, (3, 1, 8, 8))
        arrays = {}
        for split, count in (("train", examples), ("test", 31)):
            labels = np.arange(count) % 3
            noise = random.integers(-40, 40, (count, 1, 8, 8))
            arrays[f"{split}_images"] = (patterns[labels] + noise).astype(np.uint8)
            arrays[f"{split}_labels"] = labels.astype(np.int64)
        return PreparedDataset(
            name="patterns",
            label="Patterns",
            num_classes=3,
            class_names=("a", "b", "c"),
            channels=1,
            image_size_px=8,
            mean=(0.5,),
            std=(0.25,),
            data_hash=f"patterns-{examples}-{seed}",
            card={},
            **arrays,
        )

    return of


@pytest.fixture
def make_recipe():
    """`make_recipe(epochs=3, width=4, ...)`: a small ResNet; other keys are training's."""

    def of(width: int = 4, measured=(1, 2, 3), **training) -> Recipe:
        training = {"epochs": 3, "batch_size": 16, "evaluation_batch_size": 64} | training
        measured = [epoch for epoch in measured if epoch <= training["epochs"]]
        return Recipe(
            dataset="patterns",
            architecture="resnet",
            network={"family": "resnet", "block": "basic", "blocks": [1, 1], "width": width},
            training=training,
            sweep={"learning_rate": 0.05},
            measurement={"epochs": measured, "activation_epochs": 1},
        )

    return of


class _Stop(Exception):
    pass


@pytest.fixture
def interrupted(monkeypatch):
    """`interrupted(epoch)`: a context in which a training ends when it begins that epoch."""

    @contextlib.contextmanager
    def until(stop_epoch):
        train_epoch = loop.Trainer.train_epoch

        def stop(trainer, epoch):
            if epoch == stop_epoch:
                raise _Stop
            return train_epoch(trainer, epoch)

        with monkeypatch.context() as patch, pytest.raises(_Stop):
            patch.setattr(loop.Trainer, "train_epoch", stop)
            yield

    return until
