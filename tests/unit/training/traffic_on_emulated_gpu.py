"""How much crosses between host and device; runs on the emulated GPU alone, which counts it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from neural_collapse.training.trainer import Trainer

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.mark.parametrize("training", [{}, {"precision": "bfloat16"}, {"cuda_graphs": True}])
@pytest.mark.parametrize("steps", [2, 9])
def test_an_epoch_waits_for_the_device_once_whatever_its_steps(
    make_data, make_recipe, traffic, training, steps
):
    trainer = Trainer(make_recipe(**training), make_data(16 * steps), 0.05, 0, GPU)
    assert trainer.data.steps == steps
    traffic.clear()
    loss = trainer.train_epoch(1)
    assert traffic == {"to the device": 2}  # the order, for images and for labels
    traffic.clear()
    assert loss.item() > 0
    trainer.evaluate(1)
    assert traffic == {"read": 1, "to the host": 2}  # the loss; losses and errors of both sets


def test_a_streamed_epoch_reads_nothing_from_the_device(make_data, make_recipe, traffic):
    data = dataclasses.replace(make_data(16 * 9), name="streamed")
    trainer = Trainer(make_recipe(), data, 0.05, 0, GPU, stream=True)
    traffic.clear()
    trainer.train_epoch(1)
    # The reader's thread sends the images, on a stream of its own.
    assert traffic == {"to the device": 1}


def test_tensors_on_two_devices_are_refused_as_by_a_gpu():
    with pytest.raises(RuntimeError, match="tensors on CPU and GPU"):
        torch.ones(3, device=GPU) + torch.ones(3)


def test_reading_while_a_graph_is_recorded_is_refused_as_by_a_gpu():
    with (
        pytest.raises(RuntimeError, match="not permitted"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        torch.ones(3, device=GPU).sum().item()


def test_an_operation_without_a_deterministic_kernel_is_refused_as_by_a_gpu(deterministic):
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.ones(3, device=GPU).histc()
