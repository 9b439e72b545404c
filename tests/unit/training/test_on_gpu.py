"""What a GPU computes, against the CPU and against itself. All skipped where there is none."""

from __future__ import annotations

import itertools

import pytest
import torch

from neural_collapse.collapse.attacks import deepfool
from neural_collapse.collapse.features import extract
from neural_collapse.collapse.measure import compute_moments
from neural_collapse.collapse.result import compute_statistics
from neural_collapse.experiment.recipe import Recipe
from neural_collapse.networks import build_network, resolve_network
from neural_collapse.networks.arithmetic import arithmetic
from neural_collapse.training.loop import train
from neural_collapse.training.trainer import Trainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("deterministic"),
]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RATES = (0.01, 0.03, 0.05)

NETWORKS = {
    "resnet": {"name": "resnet18", "blocks": [1, 1], "width": 8},
    "bottleneck": {"name": "resnet50", "blocks": [1, 1], "width": 4},
    "vgg": {"name": "vgg11", "convolutions": [1, 2], "width": 8, "hidden_width": 16},
    "vgg of ImageNet": {"name": "vgg11", "convolutions": [1, 2], "width": 8, "hidden_width": 16}
    | {"pooled_size_px": 2},
    "densenet": {"name": "densenet250", "blocks": [2, 2], "growth": 4, "memory_efficient": True},
}


@pytest.fixture
def recipe_of(make_recipe):
    """`recipe_of("vgg", precision="tf32", ...)`: keys are training's."""

    def of(name: str = "resnet", **training) -> Recipe:
        values = make_recipe(**training).model_dump()
        return Recipe.model_validate(values | {"network": resolve_network(NETWORKS[name])})

    return of


def first_losses(recipe, data, device, steps=4, learning_rate=0.02):
    trainer = Trainer(recipe, data, learning_rate, 0, device)
    trainer.network.train()
    with arithmetic(recipe.training.precision):
        batches = itertools.islice(itertools.cycle(trainer.data.batches(0, 1)), steps)
        return torch.stack([trainer.step(batch, learning_rate).clone() for batch in batches]).cpu()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), ("tf32", 5e-2), ("bfloat16", 0.2)]
)
def test_the_first_steps_are_the_cpus(recipe_of, make_data, name, precision, tolerance):
    found = first_losses(recipe_of(name, precision=precision), make_data(), GPU)
    expected = first_losses(recipe_of(name), make_data(), CPU)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_the_same_recipe_gives_the_same_bits(recipe_of, make_data, tmp_path, name, precision):
    def run(number):
        return train(
            recipe_of(name, precision=precision),
            make_data(),
            learning_rate=0.05,
            seed=0,
            device=GPU,
            state_root=tmp_path / str(number),
        )

    (first, network), (again, other) = run(1), run(2)
    assert first.records == again.records
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_the_last_layer_is_true_float32_in_bfloat16(recipe_of, make_data):
    with arithmetic("bfloat16"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    with arithmetic("tf32"):
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_recorded_step_is_the_step(recipe_of, make_data, name, precision):
    steps = [
        first_losses(recipe_of(name, precision=precision, cuda_graphs=graphs), make_data(), GPU, 8)
        for graphs in (False, True)
    ]
    torch.testing.assert_close(*steps, rtol=1e-5, atol=1e-6)


def test_a_recorded_training_goes_through_an_incomplete_batch(recipe_of, make_data, tmp_path):
    records = []
    for graphs in (False, True):
        recipe = recipe_of(cuda_graphs=graphs, keep_incomplete_batch=True)
        history, _ = train(
            recipe,
            make_data(),
            learning_rate=0.02,
            seed=0,
            device=GPU,
            state_root=tmp_path / str(graphs),
        )
        records.append([record.train_loss for record in history.records])
    assert records[1] == pytest.approx(records[0], rel=1e-3)


def test_a_training_goes_on_with_the_same_bits(recipe_of, make_data, tmp_path, monkeypatch):
    from neural_collapse.training import loop

    recipe = recipe_of(epochs=4)
    common = {"learning_rate": 0.05, "seed": 0, "device": GPU}
    whole, network = train(recipe, make_data(), state_root=tmp_path / "whole", **common)

    class Killed(BaseException):
        pass

    evaluate = loop.Trainer.evaluate

    def until_the_third_epoch(trainer, epoch):
        if epoch == 3:
            raise Killed
        return evaluate(trainer, epoch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Trainer, "evaluate", until_the_third_epoch)
        train(recipe, make_data(), state_root=tmp_path / "cut", **common)
    resumed, other = train(recipe, make_data(), state_root=tmp_path / "cut", **common)
    assert resumed.records == whole.records
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("name", NETWORKS)
def test_features_and_statistics_are_the_cpus(make_data, name):
    data = make_data()
    network = build_network(
        resolve_network(NETWORKS[name]), channels=1, num_classes=3, image_size_px=8, seed=0
    )
    found = {}
    for device in (CPU, GPU):
        moments, rows = extract(
            network,
            data.train_images,
            data.train_labels,
            data.mean,
            data.std,
            batch_size=32,
            device=device,
            num_classes=3,
            keep_rows=range(20),
        )
        found[device.type] = compute_statistics(moments), torch.from_numpy(rows)
    torch.testing.assert_close(found["cuda"][1], found["cpu"][1], rtol=1e-4, atol=1e-5)
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-3, abs=1e-4, nan_ok=True)


def test_moments_of_given_features_are_the_cpus():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 7
    means = torch.randn(7, 40, generator=generator) + 3
    features = means[labels] + 1e-4 * torch.randn(3000, 40, generator=generator)
    layer = torch.randn(7, 40, generator=generator), torch.randn(7, generator=generator)
    found, expected = (
        compute_moments(features.to(where), labels, 7, *layer, device=where) for where in (GPU, CPU)
    )
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("name", NETWORKS)
def test_deepfool_finds_the_cpus_perturbations(make_data, name):
    network = build_network(
        resolve_network(NETWORKS[name]), channels=1, num_classes=3, image_size_px=8, seed=0
    )
    inputs = torch.from_numpy(make_data().test_images / 255 - 0.5).float()
    lengths = []
    for device in (CPU, GPU):
        result = deepfool(network.to(device), inputs.to(device))
        lengths.append(result.perturbation.cpu().double().flatten(1).norm(dim=1))
    close = torch.isclose(*lengths, rtol=1e-2, atol=1e-5)
    assert close.double().mean() > 0.9  # a path may fork where two boundaries are as near
