"""Every network of config.yaml, at its real depth and image size, through what its jobs do: a step
of training, an evaluation, its features' moments, an attack. Images are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from neural_collapse.collapse.attacks import robustness
from neural_collapse.collapse.features import extract
from neural_collapse.collapse.result import compute_statistics
from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.data.registry import DATASETS
from neural_collapse.experiment.config import load_config, resolve_recipe
from neural_collapse.networks.build import build_network
from neural_collapse.training.devices import set_determinism
from neural_collapse.training.trainer import Trainer

CONFIG = load_config(Path(__file__).parents[2] / "config.yaml")
CELLS = {}
for dataset in CONFIG.datasets:
    for architecture in CONFIG.architectures:
        recipe, entry = resolve_recipe(CONFIG, dataset, architecture), DATASETS[dataset]
        size = entry.image_size_px + 2 * recipe.data.padding_pixels
        form = recipe.network.model_dump_json(), entry.channels, size, entry.num_classes
        CELLS.setdefault(form, (recipe, entry.channels, size))


def images_of(recipe, channels: int, size: int) -> PreparedDataset:
    """Four train images and a test image of four classes."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 4), ("test", 1)):
        arrays[f"{split}_images"] = random.integers(
            0, 256, (count, channels, size, size), dtype=np.uint8
        )
        arrays[f"{split}_labels"] = np.arange(count) % 4
    return PreparedDataset(
        name=recipe.dataset,
        label=recipe.dataset,
        num_classes=4,
        class_names=tuple("abcd"),
        channels=channels,
        image_size_px=size,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        data_hash="made up",
        card={},
        **arrays,
    )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "cuda":
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        set_determinism(True)
    yield torch.device(request.param)
    if request.param == "cuda":
        set_determinism(False)
        torch.backends.cudnn.benchmark = False


def named(cell) -> str:
    recipe, channels, size = cell
    return f"{recipe.dataset}-{recipe.architecture}-{channels}x{size}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DeepFool found no perturbation")
@pytest.mark.parametrize("cell", CELLS.values(), ids=named)
def test_a_network_of_the_paper_passes_every_stage(cell, device):
    recipe, channels, size = cell
    data = images_of(*cell)
    few = {"batch_size": 4, "evaluation_batch_size": 4}
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=few)})
    trainer = Trainer(recipe, data, 0.01, 0, device)
    loss = trainer.train_epoch(1)
    record = trainer.evaluate(1)
    assert np.isfinite([loss.item(), record.train_loss, record.test_loss]).all()
    network = build_network(
        recipe.network, channels=channels, num_classes=4, image_size_px=size, seed=0
    )
    network.load_state_dict({k: v.cpu() for k, v in trainer.network.state_dict().items()})
    (moments,), _ = extract(
        network,
        data.train_images,
        data.train_labels,
        data.mean,
        data.std,
        batch_size=4,
        device=device,
        num_classes=4,
    )
    accuracy = compute_statistics(moments)["network_accuracy"]
    assert accuracy == pytest.approx(1 - record.train_error)
    ratios = robustness(
        network, data.test_images, data.mean, data.std, device=device, candidates=2, max_steps=1
    )
    # After a step of training most decisions are out of an attack's reach.
    assert ratios.shape == (1,) and not (ratios <= 0).any()
