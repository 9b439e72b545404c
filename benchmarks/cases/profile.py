"""Where the time of an epoch and of a measurement goes, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from .. import data
from ..harness import Results, Settings, case, torch_threads
from ..networks import BATCH, OURS, measurement_of, our_epochs, trainer

SHOWN = 6


def shares(work: Callable[[], object], device: str) -> list[tuple[str, float]]:
    """The operations that take most of the device's time, and their shares of it."""
    work()
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        work()

    def seconds(event) -> float:
        return event.self_device_time_total if device == "cuda" else event.self_cpu_time_total

    events = sorted(found.key_averages(), key=seconds, reverse=True)
    total = sum(map(seconds, events)) or 1.0  # nothing ran on the device
    return [(event.key.split("(")[0], seconds(event) / total) for event in events[:SHOWN]]


@case("profile", forms=("full", "gpu"))
def profiles(settings: Settings, results: Results) -> None:
    raw = data.subset(data.mnist(settings.mirror), 4 * BATCH, BATCH)
    network = "ResNet18" if settings.device == "cuda" else "ResNet18 width 8"
    with torch_threads(1):
        work = {
            "epoch": our_epochs(trainer(network, raw, "float32", settings.device)),
            "measurement": measurement_of(OURS, network, raw, settings.device),
        }
        for name, run in work.items():
            for operation, share in shares(run, settings.device):
                results.value(f"{network}, {name}: {operation}", 100 * share, unit="%")
