import os
import signal
import time

import pytest
import torch
from benchmarks import layers
from benchmarks.layer_trials import Case, Taps, Trial, Variant, sample

CASE = Case("1x1 stride 2", 2, 3, 4, 6)


class FakeTrial:
    """At fault in a way for each number of threads."""

    def __init__(self, case):
        pass

    def errors(self, variant, repeats):
        match variant.threads:
            case 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case 2:
                time.sleep(60)
            case 3:
                raise RuntimeError("no such kernel")
        return {"output": 0.0, "weight": 1.0 if variant.threads == 4 else 1e-6}


def test_layers_with_a_fault_are_named(monkeypatch):
    monkeypatch.setattr(layers, "Trial", FakeTrial)
    monkeypatch.setattr(layers, "SECONDS", 0.5)
    tasks = [(CASE, Variant("torch", "float32", "last", threads)) for threads in range(1, 6)]
    rows = list(layers.tried(tasks, repeats=1))
    assert [row["fault"] for row in rows] == ["crash", "hang", "error", "wrong", ""]
    assert [row["threads"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[3]["where"] == "weight"


@pytest.mark.parametrize(("kernel", "stride", "padding", "groups"), [(3, 2, 1, 1), (1, 2, 0, 3)])
def test_taps_are_a_convolution(kernel, stride, padding, groups):
    layer = Taps(6, 9, kernel, stride, padding, 1, groups).double()
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.nn.Conv2d.forward(layer, x))


def test_layers_that_are_right_pass():
    trial = Trial(CASE)
    variant = Variant("project", "float32", "last", 1)
    assert max(trial.errors(variant, 2).values()) < 1e-5


def test_same_sample_each_time():
    assert sample(quick=True) == sample(quick=True)
