import numpy as np
import torch
from numpy.testing import assert_allclose

from neural_collapse.data.images import Normalisation, to_device


def test_normalisation_is_by_channel_in_units_of_one():
    images = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).view(1, 2, 2, 1)
    got = Normalisation((0.5, 0.2), (0.5, 0.1), "cpu")(images)
    assert got.dtype == torch.float32
    assert_allclose(got.flatten(), [-1, 1, 0, 2], atol=1e-6)


def test_normalisation_is_exact_to_float32():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 3, 5, 5), dtype=np.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    by_channel = (1, 3, 1, 1)
    expected = (images / 255 - np.reshape(mean, by_channel)) / np.reshape(std, by_channel)
    got = Normalisation(mean, std, "cpu")(torch.from_numpy(images))
    assert_allclose(got, expected, rtol=0, atol=6e-7)


def test_the_batch_does_not_matter():
    images = torch.arange(256, dtype=torch.uint8).view(16, 1, 4, 4)
    normalise = Normalisation((0.1307,), (0.3081,), "cpu")
    assert torch.equal(normalise(images)[3:5], normalise(images[3:5]))


def test_a_read_only_memory_map_is_copied(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.ones((2, 1, 3, 3), np.uint8))
    tensor = to_device(np.load(path, mmap_mode="r"), "cpu")
    tensor += 1
    assert np.load(path).max() == 1
