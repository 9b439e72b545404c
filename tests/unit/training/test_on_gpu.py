"""What a GPU computes, against the CPU and against itself.

Where there is none, `tests/gpu_emulator` runs these tests on an emulated one.
"""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from neural_collapse.cli.main import main
from neural_collapse.collapse.attacks import deepfool
from neural_collapse.collapse.features import extract
from neural_collapse.collapse.measure import compute_moments
from neural_collapse.collapse.moments import load_moments
from neural_collapse.collapse.result import compute_statistics
from neural_collapse.data.download import download_dataset
from neural_collapse.data.prepare import prepare_dataset
from neural_collapse.data.recipe import DataRecipe
from neural_collapse.experiment.recipe import Recipe, write_recipe
from neural_collapse.inspect.gpu_checks import PRECISIONS
from neural_collapse.io.errors import UserError
from neural_collapse.networks.arithmetic import arithmetic
from neural_collapse.networks.build import build_network
from neural_collapse.networks.registry import resolve_network
from neural_collapse.results.tables import read_table
from neural_collapse.training.devices import set_determinism
from neural_collapse.training.loop import train
from neural_collapse.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("deterministic"),
]

EMULATED = torch.cuda.is_available() and torch.cuda.get_device_name() == "Emulated GPU"
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
@pytest.mark.parametrize("precision", PRECISIONS)
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


@pytest.mark.parametrize("layer", [torch.nn.functional.linear, torch.nn.functional.conv2d])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-6), ("tf32", 2e-3)]
)
def test_products_of_float32_are_as_exact_as_asked_for(layer, precision, tolerance):
    """In bfloat16 as well, whose last layer is true float32. TF32 as PyTorch comes errs by 3e-4."""
    generator = torch.Generator().manual_seed(0)
    last = (3, 3) if layer is torch.nn.functional.conv2d else ()
    inputs = torch.randn(8, 128, *(4 * size for size in last), generator=generator)
    weights = torch.randn(64, 128, *last, generator=generator)
    expected = layer(inputs.double(), weights.double())
    with arithmetic(precision):
        found = layer(inputs.to(GPU), weights.to(GPU)).cpu()
    assert (found - expected).norm() / expected.norm() < tolerance


def test_batch_norm_of_channels_last_is_float64s():
    generator = torch.Generator().manual_seed(0)
    values = 3 + 0.1 * torch.randn(16, 8, 5, 5, generator=generator)
    towards = torch.randn(16, 8, 5, 5, generator=generator)
    found = []
    for device, dtype in ((GPU, torch.float32), (CPU, torch.float64)):
        inputs = values.to(device, dtype, memory_format=torch.channels_last).requires_grad_()
        norm = torch.nn.BatchNorm2d(8).to(device, dtype)
        outputs = norm(inputs)
        (outputs * towards.to(device, dtype)).sum().backward()
        tensors = outputs, inputs.grad, norm.weight.grad, norm.running_mean, norm.running_var
        found.append([tensor.detach().cpu().double() for tensor in tensors])
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).norm() / exact.norm() < 1e-4


def test_memory_that_runs_out_halves_an_evaluation_and_ends_a_training(make_data, make_recipe):
    recipe = make_recipe(width=64, batch_size=1000, evaluation_batch_size=1000)
    trainer = Trainer(recipe, make_data(1000), 0.01, 0, GPU)
    expected = trainer.evaluate(0)
    assert trainer.evaluation_batch_size == 1000
    torch.cuda.empty_cache()
    # A layer's output is 16 MiB.
    limit = torch.cuda.memory_reserved() + 40 * 2**20
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    try:
        found = trainer.evaluate(0)
        assert trainer.evaluation_batch_size < 1000
        assert vars(found) == pytest.approx(vars(expected), rel=1e-5)
        with pytest.raises(UserError, match=r"training\.batch_size: 1000 examples"):
            trainer.train_epoch(1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_kernels_that_need_not_be_deterministic_train_as_well(recipe_of, make_data):
    set_determinism(False)
    found = first_losses(recipe_of(), make_data(), GPU)
    expected = first_losses(recipe_of(), make_data(), CPU)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(EMULATED, reason="needs kernels that are compiled")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_step_is_the_step(recipe_of, make_data, precision):
    steps = [
        first_losses(recipe_of(precision=precision, compile=compiled), make_data(), GPU)
        for compiled in (False, True)
    ]
    torch.testing.assert_close(*steps, rtol=5e-2, atol=5e-2)


def test_jobs_of_the_command_line_compute_on_a_leased_gpu(make_recipe, tmp_path, capfd):
    """A training, its features and an attack, as the pipeline's rules call them."""
    changes = {"dataset": "digits", "robustness": {"images": 10, "max_steps": 5}}
    recipe, data = make_recipe().model_dump() | changes, tmp_path / "data"
    arguments = {"examples_per_class": 20, "test_examples_per_class": 5}
    write_recipe(Recipe.model_validate(recipe), tmp_path / "recipe.json")
    download_dataset("digits", tmp_path / "raw")
    prepare_dataset("digits", tmp_path / "raw", data, DataRecipe(**arguments))
    losses = {}
    for device, gpus in (("cuda", "1"), ("cpu", "0")):
        out = tmp_path / device
        common = ["--recipe", tmp_path / "recipe.json", "--data-folder", data, "--gpus", gpus]
        common += ["--checkpoint-folder", out / "checkpoints", "--device", device]
        for job, *own in (
            ("train-model", "--seed", "0", "--history", out / "h", "--run-facts", out / "run.json"),
            ("extract-features", "--seed", "0", "--output-folder", out / "features"),
            ("measure-robustness", "--seed", "0", "--output", out / "robustness"),
        ):
            line = [job, *common, *own, "--state-root", out / "state" / job]
            assert main([str(word) for word in line]) == 0, capfd.readouterr().err
        said = capfd.readouterr().err
        assert said.count("runs on GPU-") == (3 if device == "cuda" else 0)
        history = read_table(out / "h", "history")
        losses[device] = history[history["statistic"] == "loss"]["value"].to_numpy()
        moments = [load_moments(path).train for path in sorted((out / "features").iterdir())]
        assert len(moments) == 4 and all(torch.isfinite(m.class_means).all() for m in moments)
        assert json.loads((out / "run.json").read_text())["machine"]["device"] == device
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-2)


RECORDED = [{"name": name, "precision": p} for name in NETWORKS for p in PRECISIONS]
RECORDED += [{"optimizer": {"name": name}} for name in ("sgdw", "adam", "adamw")]
RECORDED += [{"loss": name} for name in ("mse", "label_smoothing", "focal")]


@pytest.mark.parametrize("changes", RECORDED, ids=str)
def test_a_recorded_step_is_the_step(recipe_of, make_data, changes):
    rate, tolerance = (0.02, 1e-5) if "precision" in changes else (1e-3, 1e-3)
    steps = [
        first_losses(recipe_of(cuda_graphs=graphs, **changes), make_data(), GPU, 8, rate)
        for graphs in (False, True)
    ]
    torch.testing.assert_close(*steps, rtol=tolerance, atol=0.1 * tolerance)
    assert steps[1][-1] != steps[1][0]


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


@pytest.mark.parametrize(
    "changes",
    [
        {"cuda_graphs": False},
        {"cuda_graphs": True},
        {"cuda_graphs": True, "precision": "tf32"},
        {"cuda_graphs": False, "optimizer": {"name": "adam"}},
        {"cuda_graphs": True, "optimizer": {"name": "adam"}},
    ],
    ids=str,
)
def test_resumed_training_is_bit_identical(recipe_of, make_data, tmp_path, interrupted, changes):
    recipe = recipe_of(epochs=4, **changes)
    common = {"learning_rate": 0.05, "seed": 0, "device": GPU}
    whole, network = train(recipe, make_data(), state_root=tmp_path / "whole", **common)

    with interrupted(3):
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
        (moments,), rows = extract(
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
