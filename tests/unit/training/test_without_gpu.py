"""What a GPU would refuse, found without one: fake CUDA tensors have shapes, dtypes and a device
but no numbers. So they refuse tensors of two devices, wrong dtypes, and that a value is read.

Backward passes and bfloat16 autocast need a GPU, a real or an emulated one.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest
import torch
from recording import RecordedGraph, record
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from neural_collapse.data import images
from neural_collapse.io.errors import UserError
from neural_collapse.networks.build import build_network
from neural_collapse.training import trainer
from neural_collapse.training.trainer import Trainer

GPU = torch.device("cuda")


def build_on_gpu(recipe, data, seed, device):
    network = build_network(recipe.network, channels=1, num_classes=3, image_size_px=8, seed=seed)
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(value.shape, device=device)))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(value.shape, dtype=value.dtype, device=device))
    return network


class Copies(TorchDispatchMode):
    """Counts copies from one device to another."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        source = {"_to_copy": 0, "copy_": 1}.get(name)
        self.count += source is not None and args[source].device != result.device
        return result


@pytest.fixture
def on_fake_gpu(monkeypatch, make_data, make_recipe):
    """`on_fake_gpu(steps, precision=...)`: a trainer of fake CUDA tensors."""

    def backward(loss):
        assert loss.device.type == "cuda" and loss.dtype == torch.float64
        for parameter in made[-1].network.parameters():
            parameter.grad = torch.empty_like(parameter)

    def update(*tensors, **_):
        """Torch's kernel of the update knows no tensors without numbers."""
        kinds = {(tensor.device.type, tensor.dtype) for listed in tensors for tensor in listed}
        assert kinds == {("cuda", torch.float32)}

    def make(steps: int, **training) -> Trainer:
        made.append(Trainer(make_recipe(**training), make_data(16 * steps), 0.05, 0, GPU))
        return made[-1]

    made: list[Trainer] = []
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch, "_fused_sgd_", update)
    monkeypatch.setattr(trainer, "build", build_on_gpu)
    monkeypatch.setattr(images, "room_bytes", lambda device: 2**30)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield make


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("steps", [2, 7])
def test_an_epoch_mixes_no_devices_and_waits_for_none(on_fake_gpu, precision, steps):
    trained = on_fake_gpu(steps, precision=precision)
    assert trained.data.steps == steps
    with Copies() as copies:
        loss = trained.train_epoch(1)
    assert copies.count == 2  # the order, for images and for labels
    assert loss.device.type == "cuda" and loss.dtype == torch.float64
    assert {tensor.device.type for tensor in trained.state().values()} == {"cuda"}
    with pytest.raises(DataDependentOutputException):
        loss.item()  # so that a read within the epoch would have been noticed


class Cuda:
    """What a recorded step asks of torch.cuda, on the CPU; keeps which stream waited for which."""

    CUDAGraph, graph = RecordedGraph, staticmethod(record)

    def __init__(self):
        self.waits: list[tuple[str, str]] = []

    def graph_pool_handle(self):
        return (0, 7)

    def Stream(self, device):
        return Stream("own", self.waits)

    def current_stream(self, device):
        return Stream("current", self.waits)

    def stream(self, stream):
        self.waits.append((stream.name, "entered"))
        return nullcontext()


class Stream(NamedTuple):
    name: str
    waits: list[tuple[str, str]]

    def wait_stream(self, other):
        self.waits.append((self.name, other.name))


@pytest.mark.parametrize("training", [{}, {"keep_incomplete_batch": True}])
def test_a_recorded_step_gives_the_bits_of_the_step(monkeypatch, make_data, make_recipe, training):
    cuda = Cuda()
    monkeypatch.setattr(trainer, "cuda", cuda)
    recipe, data = make_recipe(**training), make_data(40)
    plain, recorded = (Trainer(recipe, data, 0.05, 0, torch.device("cpu")) for _ in range(2))
    recorded.graphed = True
    for epoch in (1, 2, 3):
        losses = [trained.train_epoch(epoch) for trained in (plain, recorded)]
        assert torch.equal(*losses)
    assert recorded.graph is not None and len(recorded.graph.graph.operations) > 50
    state = recorded.state()
    assert all(torch.equal(value, state[name]) for name, value in plain.state().items())
    assert cuda.waits == [("own", "current"), ("own", "entered"), ("current", "own")]


@pytest.mark.parametrize("known", [True, False], ids=["torch 2.15", "without the private function"])
def test_a_recording_that_fails_leaves_its_stream_and_its_pool(
    known, monkeypatch, make_data, make_recipe
):
    """In torch, cuda.graph does not: an error at the recording's end comes before that."""
    left = []

    def end(device, pool):
        left.append(pool)
        raise RuntimeError("not currently recording")

    class Failing(Cuda):
        @contextmanager
        def stream(self, stream):
            try:
                yield
            finally:
                left.append(stream.name)

        def graph(self, *_, **__):
            raise RuntimeError("the recording was invalidated")

    monkeypatch.setattr(trainer, "cuda", Failing())
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    if not known:
        monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    trained = Trainer(make_recipe(), make_data(40), 0.05, 0, torch.device("cpu"))
    trained.graphed = True
    with pytest.raises(UserError, match="cannot be recorded"):
        trained.train_epoch(1)
    assert left == [(0, 7), "own"] if known else ["own"]
