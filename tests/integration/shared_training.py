"""What the processes of a shared training run in these tests: they import this module."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import distributed, nn

from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.experiment.recipe import Recipe
from neural_collapse.io.errors import UserError
from neural_collapse.training import trainer as trainers

NETWORKS = {
    "resnet": {"family": "resnet", "block": "basic", "blocks": [1, 1], "width": 8},
    "vgg": {"family": "vgg", "convolutions": [1, 1], "width": 8, "hidden_width": 32},
    "densenet": {
        "family": "densenet",
        "blocks": [2, 2],
        "growth": 4,
        "bottleneck": True,
        "memory_efficient": True,
    },
    "etf": {"family": "mlp", "depth": 1, "width": 12, "classifier": "etf"},
    "custom": {"family": "custom", "function": "shared_training:troubled_network"},
}
RATE = 0.02


def recipe_of(network, **training) -> Recipe:
    """Nine batches of 33 and one of 3 an epoch: no two processes have equal parts."""
    training = {
        "epochs": 2,
        "batch_size": 33,
        "keep_incomplete_batch": True,
        "evaluation_batch_size": 64,
    } | training
    return Recipe(
        dataset="digits",
        architecture="network",
        network=NETWORKS[network],
        training=training,
        sweep={"learning_rate": RATE},
        measurement={"epochs": [1, training["epochs"]], "activation_epochs": 1},
    )


def digits(folder) -> PreparedDataset:
    """300 train and 101 test images, in memory maps."""
    loaded = load_digits()
    images = (loaded.images * 15).astype(np.uint8)[:, None]
    arrays = {}
    for split, rows in (("train", slice(0, 300)), ("test", slice(300, 401))):
        np.save(folder / f"{split}.npy", images[rows])
        arrays[f"{split}_images"] = np.load(folder / f"{split}.npy", mmap_mode="r")
        arrays[f"{split}_labels"] = loaded.target[rows].astype(np.int64)
    return PreparedDataset(
        name="digits",
        label="Digits",
        num_classes=10,
        class_names=tuple("0123456789"),
        channels=1,
        image_size_px=8,
        mean=(0.3,),
        std=(0.37,),
        data_hash="digits",
        card={},
        **arrays,
    )


def in_float64(ranks, device, data):
    """Every network's state and last record after two epochs in float64, where rounding cannot
    hide a fault."""
    build, normalisation = trainers.build, trainers.Normalisation

    class Wide(normalisation):
        def __call__(self, images):
            return super().__call__(images).double()

    trainers.build = lambda *arguments: build(*arguments).double()
    trainers.Normalisation = Wide
    try:
        found = {}
        for name in ("resnet", "vgg", "densenet", "etf"):
            recipe = recipe_of(name, oversample=name == "etf")
            trainer = trainers.Trainer(recipe, data, RATE, 0, device, ranks)
            trainer.train_epoch(1)
            trainer.train_epoch(2)
            found[name] = trainer.state(), trainer.evaluate(2)
        return found
    finally:
        trainers.build, trainers.Normalisation = build, normalisation


def in_two_goes(ranks, device, data):
    """A training's state after two epochs, and that of one which was taken up after the first."""
    recipe = recipe_of("resnet")

    def trainer():
        return trainers.Trainer(recipe, data, RATE, 0, device, ranks)

    whole, first, second = trainer(), trainer(), trainer()
    whole.train_epoch(1)
    whole.train_epoch(2)
    first.train_epoch(1)
    second.restore({name: value.clone() for name, value in first.state().items()})
    second.train_epoch(2)
    return whole.state(), second.state()


def everything(ranks, device, data, descriptor):
    """All that one start of two processes can show."""
    total = ranks.sum(torch.full((1,), 1.0 + ranks.rank))
    print("this must not get into the report")
    return {
        "sum": total.item(),
        "descriptor": os.path.exists(f"/proc/self/fd/{descriptor}"),
        "threads": torch.get_num_threads(),
        "map": isinstance(data.train_images, np.memmap),
        "float64": in_float64(ranks, device, data),
    }


def fail(ranks, device, how):
    """The second process fails while the first one waits for it."""
    if ranks.rank == 1:
        trouble(how)
    distributed.all_reduce(torch.zeros(1))


def trouble(how):
    """raise, refuse, kill or abort."""
    if how == "refuse":
        raise UserError("data: are not there; fetch them")
    if how == "raise":
        raise ZeroDivisionError("a fault of ours\nin two lines")
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGABRT)


class Troubled(nn.Module):
    """A small network that, shared between processes, is slow, or fails in its tenth step."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)
        )
        self.steps = 0

    def forward(self, x):
        if self.training and distributed.is_initialized():
            self.steps += 1
            how = os.environ.get("TEST_TROUBLE")
            if how == "slow":
                time.sleep(0.05)
            elif how and self.steps == 10 and distributed.get_rank() == 1:
                trouble(how)
        return self.body(x)


def troubled_network():
    return Troubled()
