"""Training on the CPU against the notebook's loop, and what an epoch costs besides."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

from neural_collapse.training.state import BackgroundWriter, StateFolder

from .. import data
from ..harness import Goal, Results, Settings, Variant, case, cores, interleave, torch_threads
from ..jobs import NOTEBOOK, Job, one_thread, whole_machine
from ..networks import BATCH, NETWORKS, notebook_epochs, our_epochs, trainer
from ..worker import take_turns

FLOAT32_NARROW, FLOAT32_FULL, BFLOAT16 = Goal(1.4), Goal(1.25), Goal(2.5)
SNAPSHOT_SHARE = Goal(0.01, at_most=True)

PRECISIONS = ("float32", "bfloat16")
NARROW = [name for name in NETWORKS if "width" in name and "px" not in name]
FULL = [name for name in NETWORKS if "width" not in name]
SHORT = ["ResNet18 width 8", "VGG11 width 16", "ResNet18"]
SECONDS_FULL = 1.5  # of one timed round of a network at full width


def steps(network: str, settings: Settings) -> int:
    """Of a timed epoch."""
    if network in FULL:
        return 4 if settings.full else 1
    return 20 if settings.full else 8


def goal_of(network: str, precision: str) -> Goal:
    if precision == "bfloat16":
        return BFLOAT16
    return FLOAT32_NARROW if network in NARROW else FLOAT32_FULL


@case("training")
def training(settings: Settings, results: Results) -> None:
    """The notebook's loop with torch's own threads, and jobs of ours, one a core."""
    for network in [*NARROW, *FULL] if settings.full else SHORT:
        compare(network, settings, results, whole_machine)


@case("training, one thread", forms=("full",))
def one_thread_each(settings: Settings, results: Results) -> None:
    """What each side makes of one core."""
    for network in [*NARROW, *FULL]:
        compare(network, settings, results, one_thread)


def compare(
    network: str,
    settings: Settings,
    results: Results,
    sides: Callable[[str, str, dict[str, int]], dict[str, list[Job]]],
) -> None:
    count = BATCH * steps(network, settings)
    jobs = sides("training", network, dict.fromkeys((NOTEBOOK, *PRECISIONS), count))
    seconds = SECONDS_FULL if network in FULL else 1.0
    times, _ = take_turns(jobs, settings.mirror, settings.rounds, seconds)
    alone = sides is one_thread
    for precision in PRECISIONS:
        results.compare(
            f"{network}, {precision}" + ("" if alone else f", {cores()} jobs of 1 thread"),
            times[precision],
            "notebook, 1 thread" if alone else "notebook, torch's own threads",
            times[NOTEBOOK],
            unit="images",
            goal=None if alone else goal_of(network, precision),
        )


@case("training, loader of 8 workers", forms=("full",))
def loader_workers(settings: Settings, results: Results) -> None:
    raw = data.mnist(settings.mirror)
    for network in ("ResNet18 width 8", "VGG11 width 16"):
        count = BATCH * 20
        images = data.subset(raw, count)
        with torch_threads(1):
            times = interleave(
                {
                    NOTEBOOK: Variant(notebook_epochs(network, images, workers=8), count),
                    "float32": Variant(our_epochs(trainer(network, images, "float32")), count),
                },
                settings.rounds,
            )
        results.compare(
            f"{network}, float32",
            times["float32"],
            "notebook, loader of 8 workers",
            times[NOTEBOOK],
            unit="images",
            note="1 training thread each; the workers use other cores",
        )


@case("an epoch's other parts")
def other_parts(settings: Settings, results: Results) -> None:
    """What the evaluation and a written state add to an epoch of MNIST."""
    raw = data.mnist(settings.mirror)
    train, test = 50_000, 10_000  # MNIST as the paper balances it
    for network in ["ResNet18 width 8", *(FULL if settings.full else [])]:
        count = BATCH * steps(network, settings)
        images = data.subset(raw, count, BATCH)
        trained = trainer(network, images, "float32")
        with (
            torch_threads(1),
            tempfile.TemporaryDirectory() as root,
            BackgroundWriter() as writer,
            StateFolder(root, "benchmark") as folder,
        ):

            def snapshot(folder=folder, trained=trained, writer=writer) -> None:
                tensors = writer.snapshot(trained.state())
                writer.submit(folder.write, 1, tensors, [])
                writer.finish()  # in training nothing waits for this until the epoch after

            times = interleave(
                {
                    "training": Variant(our_epochs(trained), count),
                    "evaluation": Variant(lambda t=trained: t.evaluate(1), count + BATCH),
                    "snapshot": Variant(snapshot),
                },
                settings.rounds,
            )
        epoch = times["training"].best * (train // BATCH * BATCH)
        results.value(
            f"{network}, evaluation of both sets / training of an epoch",
            times["evaluation"].best * (train + test) / epoch,
            unit="",
            note="per image, times MNIST's counts",
        )
        results.value(
            f"{network}, snapshot / training of an epoch",
            times["snapshot"].best / epoch,
            unit="",
            goal=SNAPSHOT_SHARE,
            note="copied, written and flushed, as if nothing ran beside it",
        )
