"""Training on a GPU: the machine's ceilings, then the notebook's loops and this project's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from neural_collapse.networks.arithmetic import arithmetic
from neural_collapse.training.devices import set_determinism

from .. import data
from ..harness import AS_IT_COMES, Goal, Results, Settings, Variant, case, interleave
from ..networks import BATCH, fresh_network, notebook_epochs, our_epochs, trainer

NOTEBOOK_GOALS = {"ResNet18": Goal(4), "VGG11": Goal(8)}
WORKERS_GOAL = Goal(2)
GEMM_SHARE = Goal(0.25)  # ResNet18 alone: most of VGG11's images are 8 px and smaller
IMAGES = 20_000
PRECISIONS = ("float32", "tf32", "bfloat16")


def gemm_flops(size: int) -> float:
    return 2.0 * size**3


def convolution_flops(batch: int, channels: int, pixels: int) -> float:
    """A 3x3 convolution of as many channels out as in."""
    return 2.0 * batch * channels**2 * 9 * pixels**2


def forward_flops(network: str, batch: int = BATCH) -> float:
    """Of one batch; training counts as three times as many."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        inputs = torch.empty(batch, 1, 32, 32)
    net = fresh_network(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(inputs)
    return float(counter.get_total_flops())


@contextmanager
def switches(*, deterministic: bool, benchmark: bool) -> Iterator[None]:
    """As the pipeline sets them for a job; PyTorch's defaults are both False."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    set_determinism(deterministic)
    torch.backends.cudnn.benchmark = benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def as_pipeline(epoch: Callable[[], None], deterministic: bool) -> Callable[[], None]:
    def run() -> None:
        with switches(deterministic=deterministic, benchmark=not deterministic):
            epoch()

    return run


def _rate(run: Callable[[], object], work: float, settings: Settings) -> float:
    """Work a second, by the best round."""

    def often() -> None:
        for _ in range(10):
            run()

    times = interleave(
        {"it": Variant(often, 10 * work)}, settings.rounds, synchronise=settings.synchronise
    )
    return 1 / times["it"].best


def gemm_rate(dtype: torch.dtype, precision: str, settings: Settings, size: int = 8192) -> float:
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    with arithmetic(precision):
        return _rate(lambda: a @ b, gemm_flops(size), settings)


@case("GPU, ceilings", forms=("gpu",))
def ceilings(settings: Settings, results: Results) -> None:
    for name, dtype, precision in [
        ("bfloat16", torch.bfloat16, "bfloat16"),
        ("TF32", torch.float32, "tf32"),
        ("float32", torch.float32, "float32"),
    ]:
        rate = gemm_rate(dtype, precision, settings)
        results.value(f"matrix product 8192^3, {name}", rate / 1e12, unit="TFLOP/s")
    inputs = torch.randn(128, 256, 32, 32, device="cuda", dtype=torch.bfloat16)
    layer = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False, device="cuda", dtype=torch.bfloat16)
    inputs = inputs.to(memory_format=torch.channels_last)
    layer = layer.to(memory_format=torch.channels_last)
    with torch.no_grad(), switches(deterministic=False, benchmark=True):
        rate = _rate(lambda: layer(inputs), convolution_flops(128, 256, 32), settings)
    results.value(
        "convolution 3x3, 128 x 256 x 32 x 32, channels-last, bfloat16", rate / 1e12, unit="TFLOP/s"
    )
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    rate = _rate(lambda: target.copy_(source), 2 * source.nbytes, settings)
    results.value("copy on the device, read and written", rate / 1e9, unit="GB/s")
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    part = target[: 2**28]
    rate = _rate(lambda: part.copy_(host, non_blocking=True), host.nbytes, settings)
    results.value("copy from pinned main memory", rate / 1e9, unit="GB/s")


@case("GPU, training", forms=("gpu",))
def training(settings: Settings, results: Results) -> None:
    raw = data.subset(data.mnist(settings.mirror), IMAGES)
    count = IMAGES // BATCH * BATCH
    ceiling = gemm_rate(torch.bfloat16, "bfloat16", settings)
    for network, notebook_goal in NOTEBOOK_GOALS.items():
        variants = {
            "notebook": Variant(notebook_epochs(network, raw, "cuda"), count),
            "notebook, loader of 8 workers": Variant(
                notebook_epochs(network, raw, "cuda", workers=8), count
            ),
        }
        for precision in PRECISIONS:
            epoch = our_epochs(trainer(network, raw, precision, "cuda"))
            variants[precision] = Variant(as_pipeline(epoch, deterministic=True), count)
        free = our_epochs(trainer(network, raw, "bfloat16", "cuda"))
        variants["bfloat16, not deterministic"] = Variant(as_pipeline(free, False), count)
        times = interleave(variants, settings.rounds, synchronise=settings.synchronise)
        flops = 3 * forward_flops(network) / BATCH
        for variant in [*PRECISIONS, "bfloat16, not deterministic"]:
            for reference, goal in [
                ("notebook", notebook_goal),
                ("notebook, loader of 8 workers", WORKERS_GOAL),
            ]:
                results.compare(
                    f"{network}, {variant}",
                    times[variant],
                    reference,
                    times[reference],
                    unit="images",
                    goal=goal,
                    note=AS_IT_COMES,
                )
            achieved = flops / times[variant].best
            results.value(
                f"{network}, {variant}: share of the bfloat16 matrix product's rate",
                achieved / ceiling,
                unit="",
                goal=GEMM_SHARE if network == "ResNet18" and "bfloat16" in variant else None,
                note=f"{achieved / 1e12:.1f} of {ceiling / 1e12:.0f} TFLOP/s",
            )
