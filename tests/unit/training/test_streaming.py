"""Images that are streamed from a memory map give the bytes, and the bits, of resident ones."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from neural_collapse.data import images as images_module
from neural_collapse.data.images import (
    ResidentImages,
    StreamedImages,
    place_images,
    room_bytes,
    to_device,
)
from neural_collapse.training.loop import train
from neural_collapse.training.trainer import Trainer

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


@pytest.fixture
def mapped(tmp_path):
    """200 images in a file."""
    random = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", random.integers(0, 256, (200, 3, 5, 5), dtype=np.uint8))
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.fixture
def on_disk(make_data, tmp_path):
    """The tiny dataset with its images in memory maps."""
    data, maps = make_data(), {}
    for split in ("train_images", "test_images"):
        np.save(tmp_path / f"{split}.npy", getattr(data, split))
        maps[split] = np.load(tmp_path / f"{split}.npy", mmap_mode="r")
    return dataclasses.replace(data, **maps)


def cut(total, seed):
    random, sizes = np.random.default_rng(seed), []
    while sum(sizes) < total:
        sizes.append(min(int(random.integers(1, 40)), total - sum(sizes)))
    return sizes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_batches_are_the_bytes_of_the_array_in_order(mapped, device, readers, seed):
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[: 150 + seed]
    sizes = cut(len(rows), seed)
    expected = torch.from_numpy(np.array(mapped))[rows].split(sizes)
    streamed = StreamedImages(mapped, device, readers)
    for images in (ResidentImages(to_device(mapped, device)), streamed, streamed):
        got = [batch.clone() for batch in images.batches(rows, sizes)]
        assert [len(batch) for batch in got] == sizes
        assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, got, strict=True))
        assert all(batch.device.type == device.type for batch in got)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [range(200), range(13, 199), range(7, 8), range(5, 5)])
def test_a_range_comes_in_order_and_whole(mapped, device, rows):
    expected = np.array(mapped[rows.start : rows.stop])
    for images in (ResidentImages(to_device(mapped, device)), StreamedImages(mapped, device)):
        batches = [batch.clone().cpu() for batch in images.in_order(rows, 64)]
        assert [len(batch) for batch in batches[:-1]] == [64] * (len(batches) - 1)
        assert len(batches) == -(-len(rows) // 64)
        if rows:
            assert np.array_equal(torch.cat(batches).numpy(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_in_use_is_not_overwritten(mapped, device):
    rows = torch.arange(200).flip(0)
    batches = StreamedImages(mapped, device).batches(rows, [10] * 20)
    for part, batch in zip(rows.split(10), batches, strict=True):
        time.sleep(0.005)  # the reader has long finished whatever it may do
        assert np.array_equal(batch.cpu().numpy(), mapped[part.numpy()])


def test_the_map_is_used_where_it_lies(mapped):
    streamed = StreamedImages(mapped, CPU)
    assert streamed.images.data_ptr() == mapped.__array_interface__["data"][0]


def test_an_iteration_that_is_given_up_ends_its_thread(mapped):
    before = threading.active_count()
    batches = StreamedImages(mapped, CPU).batches(torch.arange(200), [10] * 20)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_an_error_of_the_reader_arrives(mapped):
    batches = StreamedImages(mapped, CPU).batches(torch.tensor([0, 1, 200]), [2, 1])
    next(batches)
    with pytest.raises(IndexError):
        next(batches)


def test_what_fits_is_resident_and_the_rest_is_streamed(mapped, monkeypatch):
    def kinds(room, **more):
        monkeypatch.setattr(images_module, "room_bytes", lambda device: room)
        placed = place_images({"train": mapped, "test": mapped[:40]}, CPU, **more)
        return [type(images).__name__[:8] for images in placed.values()]

    whole = mapped.nbytes
    assert kinds(2 * whole) == ["Resident", "Resident"]
    assert kinds(whole) == ["Resident", "Streamed"]  # the first one has taken the room
    assert kinds(whole - 1) == ["Streamed", "Resident"]
    assert kinds(1000) == ["Streamed", "Streamed"]
    assert kinds(2 * whole, processes=3) == ["Streamed", "Resident"]
    assert kinds(2 * whole, stream=True) == ["Streamed", "Streamed"]
    assert kinds(0, stream=False) == ["Resident", "Resident"]


def test_images_take_a_quarter_of_a_gpus_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8000, 10_000))
    assert room_bytes(torch.device("cuda")) == 2000


def test_room_is_at_most_half_of_the_main_memory():
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    assert 0 < room_bytes(CPU) <= total // 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_streamed_training_has_the_same_bits(
    on_disk, make_data, make_recipe, tmp_path, device, precision, deterministic
):
    recipe = make_recipe(precision=precision, keep_incomplete_batch=True)

    def run(data, stream):
        history, network = train(
            recipe,
            data,
            learning_rate=0.05,
            seed=0,
            device=device,
            state_root=tmp_path / str(stream),
            stream=stream,
        )
        return history.records, network.state_dict()

    resident, streamed = run(make_data(), False), run(on_disk, True)
    assert resident[0] == streamed[0]
    assert all(torch.equal(value, streamed[1][name]) for name, value in resident[1].items())


def test_a_trainer_streams_what_does_not_fit(on_disk, make_recipe, monkeypatch):
    monkeypatch.setattr(images_module, "room_bytes", lambda device: 100)
    trainer = Trainer(make_recipe(), on_disk, 0.05, 0, CPU)
    assert all(isinstance(images, StreamedImages) for images in trainer.data.images.values())
