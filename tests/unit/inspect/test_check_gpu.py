"""check-gpu with the CPU in the GPU's place, and what `plan` makes of its file.

The GPU's own branches run in ``tests/gpu_emulator``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from neural_collapse.cli.main import main
from neural_collapse.experiment.config import check_config
from neural_collapse.experiment.plan import plan
from neural_collapse.inspect import check_gpu as program
from neural_collapse.inspect import gpu_checks, gpu_speed
from neural_collapse.inspect.gpu_speed import ceilings, networks_of
from neural_collapse.io.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path):
    values = yaml.safe_load((ROOT / "config/tiny.yaml").read_text())
    return check_config(values | {"results_folder": str(tmp_path), "device": "cuda"})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(gpu_checks, "FAMILIES", {"VGG": gpu_checks.FAMILIES["VGG"]})
    monkeypatch.setattr("neural_collapse.inspect.gpu_speed.MOST_STEPS", 3)


def test_check_gpu_compares_and_times_every_network(config, tmp_path):
    text = program.check_gpu(config, quick=True, output=None, device="cpu")
    written = json.loads((tmp_path / "check-gpu.json").read_text())
    checks = written["checks"]
    assert len(checks) == 15 and all(check["passed"] for check in checks)
    assert f"{len(checks)} of {len(checks)} checks passed" in text
    networks = written["networks"]
    assert len(networks) == len(networks_of(config, quick=True)) * 3, "none in NCHW"
    for network in networks:
        assert network["images_per_second"] > 0 and network["failure"] == ""
    assert written["ceilings"]["copy_bytes_per_second"] > 0
    assert "of float32's time" in text


@pytest.mark.gpu
def test_check_gpu_checks_and_times_a_gpu(config, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "ceilings", lambda device, seconds, _: ceilings(device, 0.1, 256))
    text = program.check_gpu(config, quick=True, output=None)
    written = json.loads((tmp_path / "check-gpu.json").read_text())
    assert len(written["checks"]) == 18 and written["machine"]["gpu"]
    assert {network["cuda_graphs"] for network in written["networks"]} == {True, False}
    assert all(network["failure"] == "" for network in written["networks"])
    assert "cuda_graphs  " in text and "gpu_slots    4 by memory" in text


@pytest.mark.parametrize(
    ("program_text", "driver"),
    [("#!/bin/sh\necho 580.159.04", "580.159.04"), ("#!/bin/sh\nexit 9", None), (None, None)],
)
def test_check_gpu_names_the_driver(
    checked, config, tmp_path, monkeypatch, capsys, program_text, driver
):
    if program_text is not None:
        (tmp_path / "nvidia-smi").write_text(program_text)
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program._driver() == driver
    monkeypatch.setattr(program, "networks_of", lambda *_: [])
    monkeypatch.setattr(program, "ceilings", lambda *_: {})
    monkeypatch.setattr(
        program, "machine", lambda _: {"processor": "", "gpu": "Card", "driver": driver}
    )
    program.check_gpu(config, quick=True, output=None, device="cpu")
    said = "Card, driver 580.159.04, torch" if driver else "Card, torch"
    assert said in capsys.readouterr().err


def test_check_gpu_that_finds_a_difference_writes_all_and_fails(config, tmp_path, monkeypatch):
    losses = iter(range(1000))

    def drifting(trainer, count=4):
        return torch.full((count,), 2.0 ** next(losses))

    monkeypatch.setattr(gpu_checks, "first_losses", drifting)
    monkeypatch.setattr(program, "networks_of", lambda config, quick: [])
    with pytest.raises(UserError, match="3 checks failed, the first one: VGG, first steps in"):
        program.check_gpu(config, quick=True, output=tmp_path / "own.json", device="cpu")


@pytest.mark.parametrize(("error", "failed"), [(0.0, []), (1e-4, ["float32"] * 2)])
def test_products_that_are_not_float32_fail(monkeypatch, error, failed):
    """TF32 in float32's place errs by 3e-4."""
    rough = [
        lambda *tensors, layer=layer: (
            layer(*tensors) * (1 + error * (tensors[0].dtype.itemsize < 8))
        )
        for layer in (torch.nn.functional.linear, torch.nn.functional.conv2d)
    ]
    monkeypatch.setattr(gpu_checks.functional, "linear", rough[0])
    monkeypatch.setattr(gpu_checks.functional, "conv2d", rough[1])
    monkeypatch.setattr(gpu_checks, "FAMILIES", {})
    found = gpu_checks.run_checks(torch.device("cpu"))
    assert [check.name.split()[2] for check in found if not check.passed] == failed
    assert len(found) == 4


@pytest.fixture
def checked(monkeypatch):
    """One check, which has passed, and no network."""
    monkeypatch.setattr(program, "run_checks", lambda _: [gpu_checks.Check("bits", 0.0, 0.0)])
    monkeypatch.setattr(program, "networks_of", lambda config, quick: [])


def raises(error):
    def function(*_):
        raise error

    return function


def test_check_gpu_that_is_cut_off_leaves_its_checks(checked, config, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "ceilings", raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        program.check_gpu(config, quick=True, output=None, device="cpu")
    written = json.loads((tmp_path / "check-gpu.json").read_text())
    assert [check["name"] for check in written["checks"]] == ["bits"]


def test_check_gpu_times_networks_where_its_ceilings_run_out_of_memory(
    checked, config, tmp_path, monkeypatch, capsys
):
    networks = networks_of(config, quick=True)[:1]
    monkeypatch.setattr(program, "networks_of", lambda config, quick: networks)
    monkeypatch.setattr(program, "ceilings", raises(RuntimeError("CUDA error: out of memory")))
    program.check_gpu(config, quick=True, output=None, device="cpu")
    assert "ceilings: left out" in capsys.readouterr().err
    written = json.loads((tmp_path / "check-gpu.json").read_text())
    assert written["ceilings"] == {} and len(written["networks"]) == 3


def test_check_gpu_times_the_other_ways_where_one_fails(checked, config, tmp_path, monkeypatch):
    networks, steps = networks_of(config, quick=True)[:1], gpu_speed._steps

    def failing(trainer, channels_last, seconds):
        if trainer.training.precision == "tf32":
            raise RuntimeError("no kernel\nfor this")
        return steps(trainer, channels_last, seconds)

    monkeypatch.setattr(program, "networks_of", lambda config, quick: networks)
    monkeypatch.setattr(gpu_speed, "_steps", failing)
    assert "no kernel" in program.check_gpu(config, quick=False, output=None, device="cpu")
    written = json.loads((tmp_path / "check-gpu.json").read_text())["networks"]
    failures = ["", "", "no kernel", "no kernel", "", ""]
    assert [network["failure"] for network in written] == failures


def test_steps_in_nchw_get_images_of_one_channel_in_nchw(config):
    """By the strides of images and weights cuDNN chooses the layout of all maps."""
    recipe, size = networks_of(config, quick=True)[0]
    data = gpu_checks.made_up_data(16, 1, size.side_px, size.num_classes)
    changed = recipe.training.model_copy(update={"batch_size": 16})
    recipe = recipe.model_copy(update={"training": changed})
    trainer = gpu_speed.Trainer(recipe, data, 1e-4, 0, torch.device("cpu"), stream=False)
    strides, step, side = [], trainer.step, size.side_px

    def noted(batch, learning_rate):
        strides.append(batch.inputs.stride())
        return step(batch, learning_rate)

    trainer.step = noted
    for channels_last in (False, True):
        gpu_speed._steps(trainer, channels_last, 0.01)
    assert set(strides[: len(strides) // 2]) == {(side**2, side**2, side, 1)}
    assert set(strides[len(strides) // 2 :]) == {(side**2, 1, side, 1)}


@pytest.mark.parametrize(
    ("run_s", "runs", "rate"),
    [(1.0, 2, 1.0), (0.2, 2, 5.0), (0.1, 2 + 2, 10.0), (0.02, 2 + 9, 50.0)],
)
def test_a_run_longer_than_the_time_is_timed_once(monkeypatch, run_s, runs, rate):
    clock, done = [0.0], []

    def run():
        clock[0] += run_s
        done.append(run_s)

    monkeypatch.setattr(gpu_speed.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(gpu_speed, "MOST_STEPS", 30)
    found = gpu_speed.runs_per_second(run, torch.device("cpu"), 0.15)
    assert len(done) == runs and found == pytest.approx(rate)


def test_check_gpu_compares_steps_of_one_batch_size(checked, config, monkeypatch):
    ways = [(64, False, 100.0), (64, True, 200.0), (128, False, 1000.0), (128, True, 1010.0)]
    timed = [
        gpu_speed.Speed("a", "b", "VGG", "vgg", 8, size, "float32", graph, True, rate)
        for size, graph, rate in ways
    ]
    monkeypatch.setattr(program, "networks_of", lambda *_: networks_of(config, quick=True)[:1])
    monkeypatch.setattr(program, "speeds", lambda *_, **__: timed)
    text = program.check_gpu(config, quick=True, output=None, device="cpu")
    assert "cuda_graphs  true for VGG 8 px, batch 64 (2.00x in float32)\n" in text


def test_check_gpu_recommends_graphs_and_precisions_by_the_faster_way(checked, config, monkeypatch):
    rates = {("float32", False): 100.0, ("float32", True): 101.0}
    rates |= {("tf32", False): 80.0, ("tf32", True): 400.0}
    timed = [
        gpu_speed.Speed("a", "b", "VGG", "vgg", 8, 64, *way, True, rate, 0.0, 10**9)
        for way, rate in rates.items()
    ]
    way = ("ResNet", "resnet", 8, 64, "tf32", True, True)
    timed.append(gpu_speed.Speed("a", "b", *way, failure="operation not permitted"))
    monkeypatch.setattr(program, "networks_of", lambda *_: networks_of(config, quick=True)[:1])
    monkeypatch.setattr(program, "speeds", lambda *_, **__: timed)
    facts = {"processor": "a", "memory_bytes": 10**10}
    monkeypatch.setattr(program, "machine", lambda _: facts)
    text = program.check_gpu(config, quick=True, output=None, device="cpu")
    assert "precision    tf32 takes 0.25 of float32's time" in text
    assert "cuda_graphs  true for VGG 8 px, batch 64 (5.00x in tf32)\n" in text
    failed = "cuda_graphs  false for ResNet 8 px, batch 64 in tf32: operation not permitted"
    assert failed in text and "gpu_slots    4 by memory, 1.0 GB" in text


def test_check_gpu_without_a_network_of_known_size_says_so(checked, config, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "ceilings", lambda *_: {"copy_bytes_per_second": 1.0})
    text = program.check_gpu(config, quick=True, output=None, device="cpu")
    assert "no network was timed" in text and "gpu_slots" not in text
    written = json.loads((tmp_path / "check-gpu.json").read_text())
    assert written["ceilings"] and written["checks"] and not written["networks"]


def test_check_gpu_gives_cublas_the_same_room_as_a_training(config, monkeypatch):
    def machine(_):
        raise UserError(f"CUDA starts with {os.environ['CUBLAS_WORKSPACE_CONFIG']}")

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is as before afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda _: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(program, "machine", machine)
    with pytest.raises(UserError, match="CUDA starts with :4096:8"):
        program.check_gpu(config, quick=True, output=None)


def test_check_gpu_without_a_gpu_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["check-gpu", "--config", str(ROOT / "config/tiny.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: check-gpu: torch finds no GPU here; ")


def speed(network: str, flops: float, **changes) -> dict:
    values = {"network": network, "kind": network.split()[0].lower(), "side_px": 8}
    values |= {"precision": "float32", "cuda_graphs": False, "channels_last": True, "failure": ""}
    return values | {"flops_per_second": flops} | changes


def test_plan_takes_its_hours_from_what_check_gpu_measured(config, tmp_path):
    def time_of(speeds):
        (tmp_path / "check-gpu.json").write_text(json.dumps({"networks": speeds}))
        return next(line for line in plan(config).splitlines() if line.startswith("time"))

    assert "as an H100 reached" in time_of([])
    kinds = [network.network.family for network, _ in networks_of(config, quick=False)]
    every = [speed(kind, 4e9, kind=kind) for kind in kinds]
    assert "at 0.004 TFLOP/s, as check-gpu measured;" in time_of(every)
    slower = [*every, *(speed(kind, 1.0, kind=kind, precision="tf32") for kind in kinds)]
    assert "at 0.004 TFLOP/s, as check-gpu measured;" in time_of(slower)
    assert "as an H100 reached" in time_of([speed("other", 1.0)])
    # A way that failed is estimated from the other one, not from another card.
    graphs = [speed(kind, 4e9, kind=kind, cuda_graphs=True) for kind in kinds]
    assert "at 0.004 TFLOP/s, as check-gpu measured;" in time_of(graphs)
    (tmp_path / "check-gpu.json").write_text("{")
    assert "as an H100 reached" in plan(config)
