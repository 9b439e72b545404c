"""The reference loops do the same work as the library: equal losses, statistics, perturbations."""

import numpy as np
import pytest
import torch
from benchmarks import data, networks
from benchmarks.cases.gpu import convolution_flops, forward_flops, gemm_flops
from benchmarks.cases.statistics import peak_beyond_features
from benchmarks.jobs import (
    BY_CLASS,
    ONE_BY_ONE,
    REFERENCES,
    Job,
    features_near_collapse,
    last_layer,
)
from benchmarks.references import deepfool as per_sample
from benchmarks.references import measurement as notebook_measurement
from benchmarks.references import oracle
from benchmarks.references import training as notebook
from benchmarks.references.accumulators import accumulated_statistics
from benchmarks.references.statistics import (
    batches_of,
    notebook_mismatch,
    notebook_statistics,
    per_class_nc1,
)
from benchmarks.worker import take_turns

from neural_collapse.collapse.attacks import deepfool
from neural_collapse.collapse.measure import measure
from neural_collapse.data.images import Normalisation
from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.training.trainer import epoch_order

NETWORK = "ResNet18 width 8"
NC1 = "nc1_within_class_variability"


@pytest.fixture(scope="module")
def images():
    return data.subset(data.mnist(None), 4 * networks.BATCH, 64)


def test_data_is_what_the_library_takes(images):
    prepared = data.prepared(images)
    assert isinstance(prepared, PreparedDataset)
    assert prepared.train_images.shape == (512, 1, 32, 32)
    normalise = Normalisation(prepared.mean, prepared.std, "cpu")
    ours = normalise(torch.from_numpy(prepared.train_images[:3]))
    dataset = networks.notebook_dataset(images)
    for image, (theirs, label), truth in zip(ours, dataset, images.train_labels, strict=False):
        torch.testing.assert_close(image, theirs, atol=1e-5, rtol=0)
        assert label == truth


def test_training_gives_the_same_losses(images, monkeypatch):
    # Small: at a large rate the two orders of rounding drift apart within a few steps.
    monkeypatch.setattr(networks, "LEARNING_RATE", 1e-3)
    trained = networks.trainer(NETWORK, images, "float32")
    losses, step = [], trained.step

    def recorded(*arguments):
        losses.append(step(*arguments))
        return losses[-1]

    monkeypatch.setattr(trained, "step", recorded)
    trained.train_epoch(1)
    net = networks.fresh_network(NETWORK)
    order = epoch_order(len(images.train_labels), seed=0, epoch=1).tolist()
    batches = notebook.loader(
        networks.notebook_dataset(images), networks.BATCH, shuffle=False, sampler=order
    )
    theirs, accuracies = notebook.train_epoch(
        net, notebook.optimiser(net, networks.LEARNING_RATE), batches
    )
    assert len(theirs) == 4 and all(0 <= accuracy <= 1 for accuracy in accuracies)
    np.testing.assert_allclose(theirs, [loss.item() for loss in losses], rtol=1e-4)


def test_statistics_agree_on_a_benign_case():
    features, labels = features_near_collapse(600, 32, 5, nc1=0.1)
    weight, bias = last_layer(32, 5)
    ours = measure(features, labels, weight, bias)
    batches = batches_of(torch.from_numpy(features), torch.from_numpy(labels), weight, bias)
    theirs, means = notebook_statistics(batches, weight)
    accumulated = accumulated_statistics(batches, weight)
    assert len(theirs) >= 10 and len(accumulated) >= 9
    for name, value in [*theirs.items(), *accumulated.items()]:
        assert value == pytest.approx(ours[name], rel=1e-3, abs=1e-6), name
    assert notebook_mismatch(batches, means) == pytest.approx(ours["nc4_ncc_mismatch"])
    assert per_class_nc1(features, labels, 5) == pytest.approx(ours[NC1], rel=1e-9)


def test_jobs_of_their_own_processes_take_turns_and_agree():
    variants = (networks.OURS, *(v for v in REFERENCES if v not in (ONE_BY_ONE, BY_CLASS)))
    jobs = {v: [Job("statistics", v, "16x4", 200)] * (1 + (v == networks.OURS)) for v in variants}
    times, results = take_turns(jobs, None, rounds=2, seconds=0.0)
    assert list(times) == list(results) == list(variants)
    assert all(len(t.seconds) == 2 and min(t.seconds) > 0 for t in times.values())
    values = list(results.values())
    assert values == pytest.approx([values[0]] * len(values), rel=1e-3) and values[0] > 0


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_planted_features_have_the_planted_nc1_and_condition(condition):
    features, labels = features_near_collapse(20_000, 20, 5, nc1=1e-4, condition=condition)
    assert oracle.nc1(features, labels, 5) == pytest.approx(1e-4, rel=0.05)
    means = np.stack([features[labels == c].mean(0, dtype=np.float64) for c in range(5)])
    singular = np.linalg.svd(means - means.mean(0), compute_uv=False)[:4]
    assert (singular[0] / singular[-1]) ** 2 == pytest.approx(condition, rel=0.2)


def test_oracle_equals_its_definition():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    features = rng.standard_normal((4, 6))[labels] + 0.3 * rng.standard_normal((40, 6))
    assert oracle.nc1(features, labels, 4) == pytest.approx(
        per_class_nc1(features, labels, 4), rel=1e-10
    )


def test_a_whole_measurement_agrees(images):
    ours, ours_of_test = networks.measurement_of(networks.OURS, NETWORK, images)()
    loaders = [
        notebook.loader(networks.notebook_dataset(images, split), 64, drop_last=False)
        for split in ("train", "test")
    ]
    theirs = notebook_measurement.measure(networks.fresh_network(NETWORK), *loaders)
    for name in ("nc2_equinorm_means", "nc3_self_duality", "network_accuracy"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-2, abs=1e-3), name
    assert theirs["test_nc4_ncc_mismatch"] == pytest.approx(
        ours_of_test["nc4_ncc_mismatch"], abs=0.04
    )


def test_deepfool_finds_the_same_class_and_norm():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5)
    )
    inputs = torch.randn(8, 1, 4, 4)
    ours = deepfool(network, inputs, candidates=5)
    for i, image in enumerate(inputs):
        r, steps, decided = per_sample.deepfool(network, image, candidates=5)
        assert decided == ours.adversarial_class[i] and steps == ours.steps[i]
        # Theirs adds 1e-4 to each step.
        norm = ours.perturbation[i].norm().item()
        assert r.norm().item() == pytest.approx(norm, rel=1e-2)


def test_flops_of_a_network_are_twice_its_multiplications():
    assert gemm_flops(10) == 2000
    assert convolution_flops(1, 2, 4) == 2 * 2 * 2 * 9 * 16
    # ResNet18 on 32 px: 0.56e9 multiplications an image.
    assert forward_flops("ResNet18", 1) / 2 == pytest.approx(0.555e9, rel=0.02)


def test_peak_memory_sees_an_allocation():
    """Whole blocks in float64 are seen, whatever the size of the process that started it."""
    few, many = (peak_beyond_features(examples, 2048, 2) for examples in (300, 8000))
    assert few < 2048 * 512 * 8 <= many
