"""Statistics on given features: speed, accuracy, growth with N, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from neural_collapse.collapse.features import measurement_mode
from neural_collapse.collapse.measure import compute_moments, measure
from neural_collapse.collapse.result import compute_statistics
from neural_collapse.data.images import Normalisation
from neural_collapse.networks.folding import fold_batch_norms

from .. import data
from ..harness import Goal, Results, Settings, Variant, case, cores, interleave, torch_threads
from ..jobs import (
    ACCUMULATORS,
    BY_CLASS,
    NC1,
    NOTEBOOK,
    features_near_collapse,
    last_layer,
    whole_machine,
)
from ..networks import OURS, fresh_network
from ..references import oracle
from ..references.accumulators import accumulated_statistics
from ..references.statistics import batches_of, notebook_statistics, per_class_nc1
from ..worker import environment, take_turns

LOOPS, ACCUMULATED = Goal(94), Goal(5)
ACCURACY = Goal(1e-6, at_most=True)
EXPONENT = Goal(1.1, at_most=True)
EXTRA_BYTES = Goal(512, at_most=True)  # a quarter of the example's features
FORWARD_SHARE = Goal(0.05, at_most=True)


@case("statistics, speed")
def speed(settings: Settings, results: Results) -> None:
    # The notebook's loops take time in proportion to the examples, but for svds: (N, d, C, as many
    # as are enough to know how much; 0 where svds alone takes a minute). There, with half as many
    # classes as features, a C x C scatter saves little on d x d, and no goal was set.
    shapes = [(10_000, 512, 10, 10_000), (20_000, 1024, 10, 400)]
    if settings.full:
        shapes += [
            (60_000, 512, 10, 10_000),
            (50_000, 512, 100, 10_000),
            (20_000, 2048, 100, 2000),  # ResNet50 on CIFAR100
            (20_000, 2048, 1000, 0),  # ResNet152 on ImageNet, a thirtieth of its examples
        ]
    for examples, dim, classes, few in shapes:
        amounts = {OURS: examples, ACCUMULATORS: examples} | ({NOTEBOOK: few} if few else {})
        if settings.full and few:
            amounts[BY_CLASS] = examples
        jobs = whole_machine("statistics", f"{dim}x{classes}", amounts)
        times, _ = take_turns(jobs, settings.mirror, settings.rounds, 0.5)
        references = [
            (
                NOTEBOOK,
                "notebook's loops",
                LOOPS,
                f"loops on {few} examples" if few < examples else "",
            ),
            (
                ACCUMULATORS,
                "streaming accumulators, d x d, float32 pinv",
                ACCUMULATED if few else None,
                "",
            ),
            (BY_CLASS, "NC1 alone by class, d x d, float64 pinv", None, ""),
        ]
        for variant, title, goal, note in references:
            if variant not in times:
                continue
            results.compare(
                f"N={examples}, d={dim}, C={classes}, {cores()} jobs of 1 thread",
                times[OURS],
                f"{title}, torch's own threads",
                times[variant],
                unit="examples",
                goal=goal,
                note=note,
            )


@case("statistics, accuracy")
def accuracy(settings: Settings, results: Results) -> None:
    examples, dim, classes = 2000, 128, 10
    weight, bias = last_layer(dim, classes)
    for condition in (1.0, 1e4):
        for planted in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10):
            features, labels = features_near_collapse(examples, dim, classes, planted, condition)
            with torch_threads(1):
                true = oracle.nc1(features, labels, classes)
                batches = batches_of(
                    torch.from_numpy(features), torch.from_numpy(labels), weight, bias
                )
                found = {
                    "ours": measure(features, labels, weight, bias)[NC1],
                    "float64 pinv": per_class_nc1(features, labels, classes),
                    "float32 pinv": per_class_nc1(features, labels, classes, np.float32),
                    "notebook": notebook_statistics(batches, weight)[0][NC1],
                    "accumulators": accumulated_statistics(batches, weight)[NC1],
                }
            errors = {name: abs(value / true - 1) for name, value in found.items()}
            others = ", ".join(f"{k} {v:.1e}" for k, v in errors.items() if k != "ours")
            results.value(
                f"NC1 = {true:.1e}, condition {condition:g}: relative error",
                errors["ours"],
                unit="",
                goal=ACCURACY if planted >= 1e-8 else None,
                note=others,
            )


@case("statistics, growth")
def growth(settings: Settings, results: Results) -> None:
    dim, classes = 512, 10
    sizes = (5_000, 10_000, 20_000, 40_000, 80_000)
    features, labels = features_near_collapse(sizes[-1], dim, classes, 1e-3)
    weight, bias = last_layer(dim, classes)
    with torch_threads(1):
        times = interleave(
            {
                str(n): Variant(lambda n=n: measure(features[:n], labels[:n], weight, bias))
                for n in sizes
            },
            settings.rounds,
        )
    best = [times[str(n)].best for n in sizes]
    exponent = np.polyfit(np.log(sizes), np.log(best), 1)[0]
    results.value(
        f"exponent of the time in N, {sizes[0]} to {sizes[-1]}",
        float(exponent),
        unit="",
        goal=EXPONENT,
        note=f"d={dim}, C={classes}; " + ", ".join(f"{1000 * s:.0f} ms" for s in best),
    )
    small, large = 20_000, 80_000
    # The allocator's own habits are of tens of MiB: the least of some processes.
    processes = 3 if settings.full else 2
    used = {
        n: min(peak_beyond_features(n, dim, classes) for _ in range(processes))
        for n in (small, large)
    }
    results.value(
        "memory beyond the features, more for each more example",
        max(0.0, (used[large] - used[small]) / (large - small)),
        unit="bytes",
        goal=EXTRA_BYTES,
        note=f"labels and decisions are O(N); {used[small] / 2**20:.0f} MiB at N={small}, "
        f"{used[large] / 2**20:.0f} MiB at N={large}",
    )


def peak_beyond_features(examples: int, dim: int, classes: int) -> int:
    """Bytes by which a process's largest resident size grows while it computes statistics."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(examples), str(dim), str(classes)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=environment(),
    )
    return json.loads(done.stdout)


def _measure_peak(examples: int, dim: int, classes: int) -> int:
    torch.set_num_threads(1)
    weight, bias = last_layer(dim, classes)
    labels = np.arange(examples) % classes
    features = np.empty((examples, dim), np.float32)
    np.random.default_rng(0).standard_normal(out=features, dtype=np.float32)
    # What the first use loads is not counted.
    measure(features[:200], labels[:200], weight, bias)
    before = _largest_resident_bytes()
    measure(features, labels, weight, bias)
    return _largest_resident_bytes() - before


def _largest_resident_bytes() -> int:
    # Not resource.getrusage: its ru_maxrss begins with the size of the process that started this.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:", 1)[1].split()[0])


@case("statistics, share of the forward pass")
def share(settings: Settings, results: Results) -> None:
    count = 2000 if settings.full else 256
    images = data.prepared(data.subset(data.mnist(settings.mirror), count))
    network = fresh_network("ResNet18")

    normalise = Normalisation(images.mean, images.std, "cpu")

    def forward() -> None:
        with measurement_mode(network), torch.inference_mode():
            folded = fold_batch_norms(network)
            for start in range(0, count, 128):
                batch = torch.from_numpy(np.array(images.train_images[start : start + 128]))
                folded.features(normalise(batch))

    examples = 10_000
    features, labels = features_near_collapse(examples, 512, 10, 1e-3)
    layer = network.classifier
    with torch_threads(1):
        times = interleave(
            {
                "forward": Variant(forward, count),
                "statistics": Variant(
                    lambda: compute_statistics(
                        compute_moments(features, labels, 10, layer.weight, layer.bias)
                    ),
                    examples,
                ),
            },
            settings.rounds,
        )
    results.value(
        "ResNet18: moments and statistics / forward pass, an example",
        times["statistics"].best / times["forward"].best,
        unit="",
        goal=FORWARD_SHARE,
    )


if __name__ == "__main__":
    print(_measure_peak(*map(int, sys.argv[1:])))
