"""The streaming pass against a plain forward pass, and what it must leave untouched."""

import gc
import os
import tempfile
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from neural_collapse.collapse.features import (
    Watched,
    extract,
    extract_splits,
    in_batches,
    measurement_mode,
)
from neural_collapse.collapse.measure import compute_moments
from neural_collapse.io.errors import UserError
from neural_collapse.networks.build import build_network
from neural_collapse.networks.registry import resolve_network

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class SmallNet(nn.Module):
    """Convolution, batch norm, a linear layer; counts its calls."""

    def __init__(self, classes=3, dim=6, bias=True):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5)
        )
        self.squeeze = nn.Linear(5, dim)
        self.classifier = nn.Linear(dim, classes, bias=bias)
        self.batches = []

    def features(self, x):
        self.batches.append(len(x))
        return self.squeeze(self.body(x).mean((2, 3)))

    def forward(self, x):
        return self.classifier(self.features(x))


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = SmallNet()
    with torch.no_grad():
        network.body[1].running_mean.uniform_(-0.5, 0.5)
        network.body[1].running_var.uniform_(0.5, 2)
    return network


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(37) % 3)
    images = rng.integers(0, 256, (37, 3, 8, 8)) // 2 + 40 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def run(network, data, **changes):
    arguments = dict(batch_size=10, device="cpu", num_classes=3, keep_rows=range(37))
    (moments,), kept = extract(network, *data, MEAN, STD, **{**arguments, **changes})
    return moments, kept


def run_both(network, train, test, **changes):
    """Of pairs (images, labels)."""
    data = SimpleNamespace(mean=MEAN, std=STD, num_classes=3)
    data.train_images, data.train_labels = train
    data.test_images, data.test_labels = test
    return extract_splits(network, data, batch_size=10, device="cpu", **changes)


def plain_features(network, images):
    network = network.eval().double()
    x = torch.from_numpy(images.astype(float)) / 255
    x = (x - torch.tensor(MEAN).double()[:, None, None]) / torch.tensor(STD).double()[:, None, None]
    with torch.no_grad():
        features = network.features(x).numpy()
    network.float()
    return features


def same(a, b):
    tensors = ("counts", "class_means", "class_variances", "scatter_projected", "weight", "bias")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors) and all(
        map(torch.equal, a.decisions, b.decisions)
    )


def test_splits_test_set_without_a_class_keeps_its_decisions(network, data):
    """Nearest class centres are the train set's, so NC4 needs no test image of every class."""
    images, labels = data
    whole = run_both(network, data, data).test
    present = labels != 1
    test = run_both(network, data, (images[present], labels[present])).test
    assert test.counts.tolist() == [whole.counts[0], 0, whole.counts[2]]
    for name, counts in test.decisions._asdict().items():
        expected = getattr(whole.decisions, name) * torch.tensor([1, 0, 1])
        assert torch.equal(counts, expected), name
    with pytest.raises(UserError, match="train split has no example of class 1"):
        run_both(network, (images[present], labels[present]), data)


def test_extract_gives_features_and_moments_of_a_plain_pass(network, data):
    moments, rows = run(network, data)
    assert rows.dtype == np.float32 and rows.shape == (37, 6)
    assert_allclose(rows, plain_features(network, data[0]), rtol=1e-4, atol=1e-6)
    layer = network.classifier
    assert same(moments, compute_moments(rows, data[1], 3, layer.weight, layer.bias))
    with torch.no_grad():
        right = layer(torch.from_numpy(rows)).argmax(1).numpy() == data[1]
    assert_array_equal(moments.decisions.network_correct, np.bincount(data[1][right], minlength=3))


@pytest.mark.parametrize("batch_size", [1, 7, 36, 37, 1000])
def test_batch_size_does_not_change_features(network, data, batch_size):
    rows = run(network, data, batch_size=batch_size)[1]
    assert_allclose(rows, run(network, data)[1], rtol=1e-5, atol=1e-7)


def test_train_means_and_chosen_rows(network, data):
    centres = torch.roll(run(network, data)[0].class_means, 1, 0)
    chosen = [5, 0, 5, 36]
    moments, rows = run(network, data, train_means=[centres], keep_rows=chosen)
    everything = run(network, data)[1]
    assert_array_equal(rows, everything[chosen])
    distances = np.linalg.norm(everything[:, None] - centres.numpy(), axis=2)
    right = distances.argmin(1) == data[1]
    assert_array_equal(moments.decisions.ncc_correct, np.bincount(data[1][right], minlength=3))
    assert run(network, data, keep_rows=None)[1] is None
    assert run(network, data, keep_rows=[])[1].shape == (0, 6)


def test_both_splits_are_what_each_is_by_itself(network, data):
    images, labels = data
    of_train = images[:20], labels[:20]
    # Labels moved on, so that the nearest of the test set's own means is another class's.
    of_test = images[20:], (labels[20:] + 1) % 3
    train, test, kept, _, no_rows = run_both(network, of_train, of_test, keep_rows=[4])
    alone, rows = run(network, of_train, keep_rows=[4])
    assert same(train, alone) and np.array_equal(kept, rows) and no_rows is None
    by_itself = partial(run, network, of_test, keep_rows=None)
    assert same(test, by_itself(train_means=[alone.class_means])[0])
    assert not same(test, by_itself()[0])  # which decides by the test means


def test_test_rows_are_those_of_the_test_split_in_its_order(network, data):
    images, labels = data
    halves = (images[:20], labels[:20]), (images[20:], labels[20:])
    splits = run_both(network, *halves, keep_test=True)
    assert splits.kept is None
    assert_array_equal(splits.test_rows, run(network, halves[1], keep_rows=range(17))[1])


def test_another_datasets_features_are_of_both_splits_whatever_its_classes(network, data):
    """Normalised as the network's own images; nearest class centres are of its own train split."""
    images, _ = data
    labels = np.arange(37) % 5  # the network has three classes
    other = SimpleNamespace(name="other", num_classes=5)
    other.train_images, other.test_images = images[:20], images[20:]
    other.train_labels, other.test_labels = labels[:20], labels[20:]
    options = dict(trained_on=SimpleNamespace(mean=MEAN, std=STD), batch_size=6, device="cpu")
    found = extract_splits(network, other, keep_rows=range(20), keep_test=True, **options)
    rows = plain_features(network, images)
    assert_allclose(found.kept, rows[:20], rtol=1e-4, atol=1e-6)
    assert_allclose(found.test_rows, rows[20:], rtol=1e-4, atol=1e-6)
    centres = np.stack([found.kept[labels[:20] == c].mean(0) for c in range(5)])
    distances = np.linalg.norm(found.test_rows[:, None] - centres, axis=2)
    right = distances.argmin(1) == labels[20:]
    assert found.test.share(lambda d: d.ncc_correct) == right.mean()
    assert found.test.weight is None and found.test.class_means.shape == (5, 6)
    other.train_labels = labels[:20] % 4
    with pytest.raises(UserError, match="other train split has no example of class 4"):
        extract_splits(network, other, **options)


def test_file_buffer_gives_the_same_bits_and_goes_away(network, data, tmp_path, monkeypatch):
    in_memory = run(network, data)
    seen = []
    original = network.features
    network.features = lambda x: (seen.append(len(list(tmp_path.rglob("*.float32")))), original(x))[
        1
    ]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    on_disk = run(network, data, memory_limit_bytes=100)
    assert set(seen) == {1} and os.listdir(tmp_path) == []
    assert same(in_memory[0], on_disk[0])
    assert_array_equal(in_memory[1], on_disk[1])
    gc.collect()
    assert on_disk[1].sum() == in_memory[1].sum()  # rows outlive the closed map


def test_file_buffer_goes_away_after_an_error(network, data, tmp_path, monkeypatch):
    def fails(x):
        raise KeyboardInterrupt

    network.features = fails
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(network, data, memory_limit_bytes=0)
    assert os.listdir(tmp_path) == []


def test_full_disk_is_one_sentence(network, data, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no room"):
        run(network, data, memory_limit_bytes=0)


def test_images_may_be_a_read_only_memory_map(network, data, tmp_path, recwarn):
    np.save(tmp_path / "x.npy", data[0])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert same(run(network, (mapped, data[1]))[0], run(network, data)[0])
    assert not recwarn.list


# ------------------------------------------------------------------------------ out of memory


def limit_batch(network, limit):
    original = network.features

    def features(x):
        if len(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return original(x)

    network.features = features


def test_batch_is_halved_when_memory_runs_out(network, data):
    expected, expected_rows = run(network, data, batch_size=4)
    network.batches.clear()
    limit_batch(network, 4)
    moments, rows = run(network, data, batch_size=16)
    assert network.batches == [4] * 9 + [1]
    assert same(moments, expected)
    assert_array_equal(rows, expected_rows)


def test_one_image_that_does_not_fit_is_an_error(network, data):
    limit_batch(network, 0)
    with pytest.raises(UserError, match=r"not even one image fits .*CUDA out of memory"):
        run(network, data)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
    ],
)
def test_in_batches_covers_the_range_once(error):
    done, failures = [], [3, 2]

    def work(start, stop):
        if failures and len(done) == failures[-1]:
            failures.pop()
            raise error
        done.append((start, stop))

    in_batches(100, 16, work)
    assert [start for start, _ in done] == [0, *[stop for _, stop in done][:-1]]
    assert done[-1][1] == 100
    assert [stop - start for start, stop in done[:4]] == [16, 16, 8, 4]
    with pytest.raises(UserError, match="batch_size"):
        in_batches(10, 0, work)


def test_in_batches_passes_another_error_on():
    def work(start, stop):
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        in_batches(100, 16, work)


# -------------------------------------------------------------------------- nothing left behind


def switches():
    b = torch.backends
    return [
        b.cuda.matmul.fp32_precision,
        b.cudnn.conv.fp32_precision,
        b.cudnn.rnn.fp32_precision,
        b.mkldnn.matmul.fp32_precision,
        b.mkldnn.conv.fp32_precision,
        b.cudnn.benchmark,
        b.cudnn.deterministic,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    ]


def test_network_and_process_are_left_as_they_were(network, data):
    network.train()
    network.squeeze.eval()
    modes = [module.training for module in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pointers = [p.data_ptr() for p in network.parameters()]
    strides = [p.stride() for p in network.parameters()]
    before = switches()
    run(network, data)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
    assert [p.data_ptr() for p in network.parameters()] == pointers
    assert [p.stride() for p in network.parameters()] == strides
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert switches() == before
    # and it still trains
    network(torch.randn(4, 3, 8, 8)).sum().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()


@pytest.mark.parametrize("api", ["allow_tf32", "fp32_precision"])
def test_true_float32_whichever_api_set_tf32(network, api):
    b = torch.backends
    before = switches()
    try:
        if api == "allow_tf32":
            b.cuda.matmul.allow_tf32 = b.cudnn.allow_tf32 = True
        else:
            b.cuda.matmul.fp32_precision = b.cudnn.conv.fp32_precision = "tf32"
        chosen = switches()
        with (
            pytest.raises(ZeroDivisionError),
            torch.autocast("cpu", dtype=torch.bfloat16),
            measurement_mode(network),
        ):
            assert switches()[:2] == ["ieee", "ieee"]
            x = torch.randn(2, 3, 8, 8)
            assert network(x).dtype == torch.float32
            assert not any(module.training for module in network.modules())
            raise ZeroDivisionError
        assert switches() == chosen
    finally:
        b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32 = False, True
        b.cuda.matmul.fp32_precision, b.cudnn.conv.fp32_precision = before[:2]
        b.cudnn.rnn.fp32_precision = before[2]
        b.mkldnn.matmul.fp32_precision, b.mkldnn.conv.fp32_precision = before[3:5]


# ------------------------------------------------------------------------------ a user's mistakes


def test_extract_wrong_input_is_one_sentence(network, data):
    images, labels = data

    def mistake(match, data=data, mean=MEAN, std=STD, network=network, **changes):
        arguments = dict(batch_size=10, device="cpu", num_classes=3, split="train")
        with pytest.raises(UserError, match=match):
            extract(network, *data, mean, std, **{**arguments, **changes})

    mistake("uint8", (images.astype(np.float32), labels))
    mistake("uint8", (images[0], labels))
    mistake("labels of shape", (images, labels[1:]))
    mistake("mean and std", mean=(0.5,))
    mistake("greater than zero", std=(0.2, 0.0, 0.3))
    mistake("classes", num_classes=4)
    mistake("Sequential is not a network of this project", network=nn.Sequential(nn.Linear(4, 3)))
    mistake("batch_size", batch_size=0)
    mistake("keep_rows run from", keep_rows=[37])
    mistake("keep_rows are", keep_rows=[0.5])
    mistake("no example of class 2", (images, np.minimum(labels, 1)))
    with torch.no_grad():
        network.squeeze.weight[0, 0] = torch.nan
    mistake("37 of the 37 examples of the train split have NaN")
    network.features = lambda x: x.flatten(1)
    mistake(r"network.features gave shape \(10, 192\)")


# ------------------------------------------------------------------------------- further layers


def mlp():
    recipe = resolve_network({"family": "mlp", "depth": 2, "width": 6})
    net = build_network(recipe, channels=3, num_classes=3, image_size_px=8, seed=0)
    net.train()
    with torch.no_grad():  # running means and variances that differ from those of a batch
        net(torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return net


@pytest.mark.parametrize("examples", [None, 18])
def test_layers_have_the_moments_of_their_own_outputs(data, examples):
    images, labels = (array[:36] for array in data)
    net = mlp()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    layers = ["input", "hidden.0", "hidden.1"]
    splits = run_both(
        net,
        (images, labels),
        (images[::-1], labels[::-1]),
        watched=Watched(tuple(layers), batch_norm_examples=examples),
    )
    assert list(splits.layers) == layers and net.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks for module in net.modules())
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (MEAN, STD))
    for images_of, labels_of, place in ((images, labels, 0), (images[::-1], labels[::-1], 1)):
        x = (torch.from_numpy(images_of.copy()).double() / 255 - mean) / std
        found, net64 = [], mlp().double().train(examples is not None)
        with torch.no_grad():
            for batch in x.split(examples or 36):
                h = [batch.flatten(1)]
                for layer in net64.hidden:
                    h.append(layer(h[-1]))
                found.append(h)
        for name, rows in zip(layers, map(torch.cat, zip(*found, strict=True)), strict=True):
            means = torch.stack([rows[torch.from_numpy(labels_of == c)].mean(0) for c in range(3)])
            moments = splits.layers[name][place]
            torch.testing.assert_close(moments.class_means, means, rtol=1e-5, atol=1e-5)
            assert moments.weight is None
    torch.testing.assert_close(splits.train.class_means, splits.layers["hidden.1"][0].class_means)


def test_layers_leave_the_features_moments_as_they_are(data):
    net = mlp()
    plain, more = (
        run_both(net, data, data),
        run_both(net, data, data, watched=Watched(("hidden.0",))),
    )
    assert same(plain.train, more.train) and same(plain.test, more.test)


def test_batches_that_leave_one_image_are_refused(data):
    with pytest.raises(UserError, match="batch_norm_examples: 36 leaves a last batch of one image"):
        run_both(mlp(), data, data, watched=Watched(batch_norm_examples=36))


def test_batches_that_decide_the_result_are_not_halved_where_memory_runs_out(data):
    def limited(_module, args):
        if len(args[0]) > 8:
            raise torch.OutOfMemoryError

    net = mlp()
    net.hidden[0].register_forward_pre_hook(limited)
    with pytest.raises(UserError, match="batch_norm_examples: 20 images per batch do not fit"):
        run_both(net, data, data, watched=Watched(batch_norm_examples=20))
    assert net.training
