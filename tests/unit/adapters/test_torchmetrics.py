"""`CollapseMetric` inside torchmetrics: the same numbers, also from several processes."""

import copy

import pytest
import torch
from torch import distributed, nn

pytest.importorskip("torchmetrics")

from neural_collapse import CollapseMetric
from neural_collapse.adapters.torchmetrics import NeuralCollapse


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(90) % 3
    centres = 5 * torch.randn(3, 6, generator=generator)
    return centres[labels] + 0.1 * torch.randn(90, 6, generator=generator), labels


def expected(examples, classifier):
    metric = CollapseMetric(3, 6)
    metric.update(*examples)
    return metric.compute(classifier.weight, classifier.bias).to_dict()


def test_metric_in_batches_gives_the_statistics_of_all_examples(examples):
    classifier = nn.Linear(6, 3)
    metric = NeuralCollapse(3, 6, classifier=classifier)
    features, labels = examples
    first_batch = metric(features[:40], labels[:40])
    metric.update(features[40:], labels[40:])
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx(expected(examples, classifier), rel=1e-9, abs=1e-15)
    assert {"nc1_within_class_variability", "nc3_self_duality"} <= found.keys()
    assert float(first_batch["cdnv"]) != found["cdnv"]
    assert list(metric.parameters()) == []


def test_a_clone_reads_the_classifier_and_a_copied_model_its_own(examples):
    model = nn.Module()
    model.fc = nn.Linear(6, 3)
    model.metric = NeuralCollapse(3, 6, classifier=model.fc)
    clone, copied = model.metric.clone(), copy.deepcopy(model)
    with torch.no_grad():
        model.fc.weight.mul_(-1)
    for metric, classifier in ((clone, model.fc), (copied.metric, copied.fc)):
        metric.update(*examples)
        found = {name: float(value) for name, value in metric.compute().items()}
        assert found == pytest.approx(expected(examples, classifier), rel=1e-9, abs=1e-15)


def test_metric_after_reset_has_seen_nothing(examples):
    features, labels = examples
    metric = NeuralCollapse(3, 6)
    metric.update(features + 7, labels.flip(0))
    metric.reset()
    metric.update(features, labels)
    again = NeuralCollapse(3, 6)
    again.update(features, labels)
    assert metric.compute() == again.compute()


def measure_share(rank, folder):
    """What each of two processes does with its share."""
    torch.set_num_threads(1)
    place = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    features, labels = torch.load(folder / "examples.pt")
    metric = NeuralCollapse(3, 6)
    mine = slice(0, 35) if rank else slice(35, None)
    metric.update(features[mine], labels[mine])
    torch.save(metric.compute(), folder / f"found-{rank}.pt")
    distributed.destroy_process_group()


def test_metric_in_two_processes_gives_what_one_does(examples, tmp_path):
    torch.save(examples, tmp_path / "examples.pt")
    torch.multiprocessing.spawn(measure_share, (tmp_path,), nprocs=2)
    metric = CollapseMetric(3, 6)
    metric.update(*examples)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"found-{rank}.pt")
        values = {name: float(value) for name, value in found.items()}
        assert values == pytest.approx(metric.compute().to_dict(), rel=1e-9, abs=1e-15)
