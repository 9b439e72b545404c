"""The streaming metric against accumulators in float32, its share of a forward pass, and the
language-model case: tens of thousands of classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from neural_collapse import CollapseMetric

from ..harness import Results, Settings, Variant, case, interleave, torch_threads
from ..networks import fresh_network
from ..references.accumulators import Means, WithinScatter
from .statistics import features_near_collapse

BATCH = 256
SHAPES = ((50_000, 512, 10), (50_000, 512, 100), (50_000, 2048, 1000))  # N, d, C


def batches_of(features: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(features.split(BATCH), labels.split(BATCH), strict=True))


def one_pass(batches: list[tuple[Tensor, Tensor]], classes: int, dim: int) -> Tensor:
    """Sigma_W from raw float32 moments, sum h h^T less the means': cancels near collapse."""
    sums, counts = torch.zeros(classes, dim), torch.zeros(classes)
    second = torch.zeros(dim, dim)
    for h, c in batches:
        sums.index_add_(0, c, h)
        counts += torch.bincount(c, minlength=classes)
        second.addmm_(h.T, h)
    means = sums / counts[:, None]
    return (second - means.T @ sums) / counts.sum()


def two_passes(batches: list[tuple[Tensor, Tensor]], classes: int, dim: int) -> Tensor:
    """Class means, then one d x d product of the deviations a batch, in float32."""
    means = Means(classes, dim)
    for h, c in batches:
        means.add(h, c)
    within = WithinScatter(means.result())
    for h, c in batches:
        within.add(h, c)
    return within.result()


def streamed(batches: list[tuple[Tensor, Tensor]], classes: int, dim: int, scatter: str) -> None:
    metric = CollapseMetric(classes, dim, scatter)
    for h, c in batches:
        metric.update(h, c)


@case("streaming, speed")
def speed(settings: Settings, results: Results) -> None:
    share = 1 if settings.full else 5
    for examples, dim, classes in SHAPES:
        count = examples // share if dim < 2048 else examples // (5 * share)
        features, labels = features_near_collapse(count, dim, classes, 1e-3)
        batches = batches_of(torch.from_numpy(features), torch.from_numpy(labels))
        with torch_threads(1):
            times = interleave(
                {
                    "full": Variant(partial(streamed, batches, classes, dim, "full"), count),
                    "none": Variant(partial(streamed, batches, classes, dim, "none"), count),
                    "one": Variant(partial(one_pass, batches, classes, dim), count),
                    "two": Variant(partial(two_passes, batches, classes, dim), count),
                },
                settings,
            )
        for mode in ("full", "none"):
            for name, title in (("one", "raw moments in one pass"), ("two", "two passes")):
                results.compare(
                    f"scatter={mode}: N={count}, d={dim}, C={classes}, 1 thread",
                    times[mode],
                    f"float32 d x d accumulator, {title}",
                    times[name],
                    "examples",
                )


@case("streaming, share of the forward pass")
def share(settings: Settings, results: Results) -> None:
    count = 1024 if settings.full else 256
    network = fresh_network("ResNet18").eval()
    images = torch.randn(count, 1, 32, 32)
    features, labels = features_near_collapse(4096, 512, 10, 1e-3)
    batches = batches_of(torch.from_numpy(features), torch.from_numpy(labels))

    def forward() -> None:
        with torch.no_grad():
            for batch in images.split(BATCH):
                network(batch)

    with torch_threads(1):
        times = interleave(
            {
                "forward": Variant(forward, count),
                "update": Variant(lambda: streamed(batches, 10, 512, "full"), 4096),
            },
            settings,
        )
    results.value(
        "ResNet18 at 32 px: one update with scatter=full / forward pass, an example",
        times["update"].best / times["forward"].best,
    )


@case("streaming, many classes")
def many_classes(settings: Settings, results: Results) -> None:
    tokens = 2_000_000 if settings.full else 200_000
    for mode in ("metric", "accumulator"):
        found = json.loads(
            subprocess.run(
                [sys.executable, "-m", __name__, mode, str(tokens)],
                capture_output=True,
                text=True,
                check=True,
                cwd=Path(__file__).parents[2],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            ).stdout
        )
        title = "scatter=none" if mode == "metric" else "float32 d x d accumulator, two passes"
        results.value(
            f"C=50000, d=768, {tokens} tokens, {title}: seconds a million tokens",
            found["seconds"] * 1e6 / tokens,
            unit="s",
            note=f"{found['mib']} MiB"
            + (f"; CDNV and NC2 {found['compute']:.0f} s" if "compute" in found else ""),
        )


def _run_many(mode: str, tokens: int) -> dict[str, float]:
    """Seconds and memory of a process that sees tokens of 50,000 words, most of them rare."""
    classes, dim, rows = 50_000, 768, 4096
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frequency = 1 / torch.arange(1, classes + 1).double()
    before, seconds = _resident_mib(), 0.0
    metric = CollapseMetric(classes, dim, "none")
    means, within = Means(classes, dim), None
    for number in range(1 if mode == "metric" else 2):
        if number:
            within = WithinScatter(means.result())
        for _ in range(0, tokens, rows):
            labels = torch.multinomial(frequency, rows, replacement=True)
            features = torch.randn(rows, dim)
            started = time.process_time()  # of one thread: other work on the core does not count
            if mode == "metric":
                metric.update(features, labels)
            elif within is None:  # a one-hot product would take minutes
                means.totals.index_add_(0, labels, features)
                means.counts += torch.bincount(labels, minlength=classes)
            else:
                within.add(features, labels)
            seconds += time.process_time() - started
    found = {"seconds": seconds}
    if mode == "metric":
        started = time.process_time()
        metric.compute(min_count=5)
        found["compute"] = time.process_time() - started
    return found | {"mib": round(_resident_mib() - before)}


def _resident_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:", 1)[1].split()[0]) / 1024


if __name__ == "__main__":
    print(json.dumps(_run_many(sys.argv[1], int(sys.argv[2]))))
