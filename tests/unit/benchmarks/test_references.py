"""The reference loops do the same work as the library: equal losses, statistics, perturbations."""

import numpy as np
import pytest
import torch
from benchmarks import data, networks
from benchmarks.cases import streaming
from benchmarks.cases.statistics import features_near_collapse, last_layer
from benchmarks.references import deepfool as per_image
from benchmarks.references import training as notebook
from benchmarks.references.accumulators import accumulated_statistics
from benchmarks.references.statistics import batches_of, notebook_mismatch, notebook_statistics

from neural_collapse.collapse.attacks import deepfool
from neural_collapse.collapse.measure import measure
from neural_collapse.data.images import Normalisation
from neural_collapse.training.trainer import epoch_order

NETWORK = "ResNet18 width 8"


@pytest.fixture(scope="module")
def images():
    return data.mnist(None, 2 * networks.BATCH, 64)


def test_the_notebooks_images_are_the_librarys(images):
    normalise = Normalisation(images.mean, images.std, "cpu")
    ours = normalise(torch.from_numpy(images.train_images[:3]))
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
    assert len(theirs) == 2 and all(0 <= accuracy <= 1 for accuracy in accuracies)
    np.testing.assert_allclose(theirs, [loss.item() for loss in losses], rtol=1e-4)


def test_statistics_agree_on_a_benign_case():
    features, labels = features_near_collapse(600, 32, 5, nc1=0.1)
    weight, bias = last_layer(32, 5)
    ours = measure(features, labels, weight, bias)
    assert ours["nc1_within_class_variability"] == pytest.approx(0.1, rel=0.1)
    batches = batches_of(torch.from_numpy(features), torch.from_numpy(labels), weight, bias)
    theirs, means = notebook_statistics(batches, weight)
    accumulated = accumulated_statistics(batches, weight)
    assert len(theirs) >= 10 and len(accumulated) >= 9
    for name, value in [*theirs.items(), *accumulated.items()]:
        assert value == pytest.approx(ours[name], rel=1e-3, abs=1e-6), name
    assert notebook_mismatch(batches, means) == pytest.approx(ours["nc4_ncc_mismatch"])


def test_a_whole_measurement_agrees(images):
    ours, ours_of_test = networks.our_measurement(NETWORK, images)()
    theirs = networks.notebook_measurement(NETWORK, images)()
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
        r, steps, decided = per_image.deepfool(network, image, candidates=5)
        assert decided == ours.adversarial_class[i] and steps == ours.steps[i]
        # Theirs adds 1e-4 to each step.
        norm = ours.perturbation[i].norm().item()
        assert r.norm().item() == pytest.approx(norm, rel=1e-2)


def test_accumulators_of_streamed_features_are_the_scatter():
    features, labels = map(torch.from_numpy, features_near_collapse(600, 32, 5, nc1=0.1))
    batches = streaming.batches_of(features, labels)
    means = torch.stack([features[labels == c].double().mean(0) for c in range(5)])
    deviations = features.double() - means[labels]
    expected = deviations.T @ deviations / 600
    for accumulate in (streaming.one_pass, streaming.two_passes):
        found = accumulate(batches, 5, 32)
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
