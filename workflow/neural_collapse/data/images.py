"""Images on a device: bytes in, normalised floats out, bit-identical on every device.

A dataset is kept on the device as bytes if it fits. Otherwise its batches are read from the memory
map while the device computes on earlier ones.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch

COPIED_BYTES = 2**28
CPU_BATCH = 128  # images a pass through a network on the CPU: more of them leave its caches
READERS = 4  # threads that read a batch for a GPU: a disk answers several questions at once


class Normalisation:
    """(x / 255 - mean) / std for each channel, on the device of the images.

    Args:
        mean, std: one number per channel, of images scaled to [0, 1], as in the data card.
        device: device of the images.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str):
        # Folded in float64, rounded once.
        mean64, std64 = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        shape = (1, len(mean64), 1, 1)
        scale, shift = 1 / (255 * std64), -mean64 / std64
        self.scale = torch.tensor(scale, dtype=torch.float32, device=device).view(shape)
        self.shift = torch.tensor(shift, dtype=torch.float32, device=device).view(shape)

    def __call__(self, images_u8_NCHW: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) uint8 -> the same shape, float32, in channels-last layout."""
        floats = images_u8_NCHW.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self.shift, floats, self.scale)


def to_device(images: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """A uint8 array, memory-mapped or not, as a tensor (N, C, H, W) on the device."""
    if torch.device(device).type == "cpu":
        return torch.from_numpy(np.array(images))
    tensor = torch.empty(images.shape, dtype=torch.uint8, device=device)
    # In pieces: main memory need not hold all of it.
    step = max(1, COPIED_BYTES // max(1, images[:1].nbytes))
    for first in range(0, len(images), step):
        tensor[first : first + step] = torch.from_numpy(np.array(images[first : first + step]))
    return tensor


class ResidentImages:
    """All images on the device. images_u8: (N, C, H, W)."""

    def __init__(self, images_u8: torch.Tensor):
        self.images = images_u8

    def batches(self, rows: torch.Tensor, sizes: Sequence[int]) -> Iterator[torch.Tensor]:
        """The images `rows` in batches of the given sizes, which add up to all of them."""
        for batch in rows.to(self.images.device).split(list(sizes)):
            yield self.images[batch]

    def in_order(self, rows: range, batch_size: int) -> Iterator[torch.Tensor]:
        """The images of a contiguous range, in batches of `batch_size`."""
        for first in rows[::batch_size]:
            yield self.images[first : min(first + batch_size, rows.stop)]


class StreamedImages:
    """Images that stay in a memory map; threads read the next batch while one is in use.

    On a GPU, batches go through two pinned buffers and are copied on a separate CUDA stream. The
    interface and the returned values are those of :class:`ResidentImages`, but a batch is valid
    only until the next one is requested.

    Args:
        images: uint8 (N, C, H, W), in C order.
        device: where batches are returned.
        readers: threads that share the reading of a batch.
    """

    def __init__(self, images: np.ndarray, device: torch.device | str, readers: int | None = None):
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self.readers = readers or (READERS if on_gpu else 1)
        # One for good: the memory that a stream used is kept for it.
        self._copies = torch.cuda.Stream(self.device) if on_gpu else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the map is read-only, and nobody writes to it
            self.images = torch.from_numpy(images)

    def batches(self, rows: torch.Tensor, sizes: Sequence[int]) -> Iterator[torch.Tensor]:
        """As :meth:`ResidentImages.batches`."""
        return self._stream(rows.cpu().split(list(sizes)))

    def in_order(self, rows: range, batch_size: int) -> Iterator[torch.Tensor]:
        """As :meth:`ResidentImages.in_order`."""
        return self._stream(torch.arange(rows.start, rows.stop).split(batch_size) if rows else ())

    def _stream(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        if not batches:
            return
        shape = (max(map(len, batches)), *self.images.shape[1:])
        slot_of = _Slot if self._copies is None else partial(_PinnedSlot, stream=self._copies)
        with torch.inference_mode(False):  # other threads could not write to inference tensors
            slots = [slot_of(shape) for _ in range(2)]
        with ThreadPoolExecutor(1 + self.readers) as pool:  # one waits for those that read
            following = pool.submit(self._read, batches[0], slots[0], pool)
            for number, rows in enumerate(batches):
                following.result()
                slot, other = slots[number % 2], slots[1 - number % 2]
                if number + 1 < len(batches):
                    following = pool.submit(self._read, batches[number + 1], other, pool)
                yield slot.take(len(rows))
                slot.release()

    def _read(self, rows: torch.Tensor, slot: _Slot, pool: ThreadPoolExecutor) -> None:
        slot.wait()
        places = slot.host[: len(rows)].chunk(self.readers)
        reads = [
            pool.submit(torch.index_select, self.images, 0, part, out=place)
            for part, place in zip(rows.chunk(self.readers), places, strict=True)
        ]
        for read in reads:
            read.result()
        slot.send(len(rows))


class _Slot:
    """A buffer of one batch in main memory."""

    def __init__(self, shape: tuple[int, ...]):
        self.host = torch.empty(shape, dtype=torch.uint8)

    def wait(self) -> None:
        """Until the buffer may be written."""

    def send(self, count: int) -> None:
        """Start to copy its first `count` images to the device."""

    def take(self, count: int) -> torch.Tensor:
        """The images for the caller's stream."""
        return self.host[:count]

    def release(self) -> None:
        """What the caller's stream has been given is all that it does with them."""


class _PinnedSlot(_Slot):
    """A pinned buffer and its twin on a GPU, which a stream of their own copies it to."""

    def __init__(self, shape: tuple[int, ...], stream: torch.cuda.Stream):
        self.stream = stream
        self.host = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        with torch.cuda.stream(stream):
            self.twin = torch.empty(shape, dtype=torch.uint8, device=stream.device)
        self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()

    def wait(self) -> None:
        # A new thread has the first GPU, whichever this process computes on.
        torch.cuda.set_device(self.stream.device)
        self.copied.synchronize()

    def send(self, count: int) -> None:
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.used)
            self.twin[:count].copy_(self.host[:count], non_blocking=True)
            self.copied.record(self.stream)

    def take(self, count: int) -> torch.Tensor:
        current = torch.cuda.current_stream(self.twin.device)
        current.wait_event(self.copied)
        self.twin.record_stream(current)  # it must not be given away while that still reads it
        return self.twin[:count]

    def release(self) -> None:
        self.used.record(torch.cuda.current_stream(self.twin.device))


Images = ResidentImages | StreamedImages


def place_images(
    splits: Mapping[str, np.ndarray],
    device: torch.device | str,
    stream: bool | None = None,
    processes: int = 1,
) -> dict[str, Images]:
    """Each split as images on the device if they fit into its memory, otherwise streamed.

    Args:
        splits: uint8 images (N, C, H, W) by split.
        device: where batches are used.
        stream: True or False forces one of the two. Default: by the free memory.
        processes: number of processes on a CPU that share the main memory.
    """
    device = torch.device(device)
    room = room_bytes(device) // (processes if device.type == "cpu" else 1)
    placed: dict[str, Images] = {}
    for name, images in splits.items():
        if images.nbytes > room if stream is None else stream:
            placed[name] = StreamedImages(images, device)
        else:
            placed[name] = ResidentImages(to_device(images, device))
            room -= images.nbytes
    return placed


def room_bytes(device: torch.device) -> int:
    """Bytes of memory that images may use: a quarter of a GPU's free memory, because networks need
    most of it; on a CPU, half of the main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError, IndexError):
        # What the job was given, where that is less: its control group, and those it is in.
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").split("0::/", 1)[1].split()
        folder = Path("/sys/fs/cgroup", *own[:1])
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):
                memory = min(memory, int((group / "memory.max").read_text(encoding="utf-8")))
    return memory // 2
