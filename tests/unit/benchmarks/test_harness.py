"""The benchmarks' arithmetic, on a clock that only moves when a variant runs."""

import pandas as pd
import pytest
import torch
from benchmarks import __main__ as program
from benchmarks import cases, data, harness
from benchmarks.cases import precision, statistics, streaming, training
from benchmarks.harness import Results, Settings, Times, Variant, interleave

from neural_collapse.experiment.recipe import Recipe

FULL = Settings("full")  # three rounds


class Clock:
    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def variant(self, name, durations, work=1.0):
        """Takes the durations in turn, the last one for ever after."""
        left = list(durations)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return Variant(run, work)


def test_variants_take_turns_and_the_warm_up_does_not_count():
    clock = Clock()
    variants = {"a": clock.variant("a", [9, 3, 2, 4], 2), "b": clock.variant("b", [9, 1, 5, 2])}
    times = interleave(variants, FULL, clock=clock)
    assert clock.calls == ["a", "b"] * 4
    assert times == {"a": Times((1.5, 1, 2)), "b": Times((1, 5, 2))}  # of a unit of work


def test_short_pieces_are_repeated_until_they_last(monkeypatch):
    monkeypatch.setattr(harness, "MINIMUM_SECONDS", 0.5)
    clock = Clock()
    times = interleave({"a": clock.variant("a", [0.0625])}, FULL, clock=clock)
    assert len(clock.calls) == 2 + 3 * 8  # two to find out, then eight a round
    assert times["a"].seconds == (0.0625,) * 3


def test_files_hold_the_machine_rates_ratio_of_best_rounds_and_spread_of_single_ones(tmp_path):
    results = Results("case", say=lambda text: None)
    ours, theirs = Times((0.5, 1.0, 2.0)), Times((1.5, 4.0, 2.0))
    results.compare("ours|best", ours, "theirs", theirs, "images", note="quick")
    results.value("share", 0.01)
    frame = harness.table(results.rows)
    assert list(frame.columns) == list(harness.COLUMNS)
    harness.write(frame, {"processor": "a processor"}, tmp_path, "short")
    stored = pd.read_parquet(tmp_path / "short.parquet")
    assert stored.loc[0, ["value", "ratio", "ratio_low", "ratio_high"]].tolist() == [2, 3, 1, 4]
    assert stored["processor"].tolist() == ["a processor"] * 2
    text = (tmp_path / "short.md").read_text()
    assert "- processor: a processor" in text
    row = "| case | ours/best (quick) | theirs | 0.667 images/s | 2 images/s | 3x | 1..4 |"
    assert row in text and "| case | share |  |  | 0.01 |  |  |" in text


def test_every_case_belongs_to_a_form():
    cases.load_all()
    forms = {form for case in harness.CASES.values() for form in case.forms}
    assert forms == set(program.FORMS)


CASES = [
    *("training", "measurement of a checkpoint", "deepfool", "statistics"),
    *("streaming, speed", "streaming, share of the forward pass"),
    "precision of the training step",
]


@pytest.mark.parametrize("name", CASES)
def test_a_case_runs_and_its_table_is_written(name, tmp_path, monkeypatch, capsys):
    """On few images and features, which say nothing about speed."""
    images = data.mnist(None, 160, 40)
    recipe = {"dataset": "mnist", "architecture": "network", "sweep": {"learning_rate": 0.01}}
    recipe["network"] = {"family": "mlp", "depth": 1, "width": 8}
    recipe["measurement"] = {"epochs": [1], "activation_epochs": 1}
    cell = Recipe(**recipe, training={"epochs": 1, "batch_size": 32})
    near_collapse = statistics.features_near_collapse(40, 20, 4, 1e-3)
    monkeypatch.setattr(harness, "MINIMUM_SECONDS", 0.0)
    monkeypatch.setattr(data, "mnist", lambda *_: images)
    monkeypatch.setattr(training, "sizes", lambda *_: {"VGG11 width 16": 128})
    monkeypatch.setattr(statistics, "last_layer", lambda *_: (torch.ones(4, 20), torch.ones(4)))
    monkeypatch.setattr(statistics, "features_near_collapse", lambda *_: near_collapse)
    monkeypatch.setattr(streaming, "SHAPES", [(2000, 20, 4)])
    monkeypatch.setattr(streaming, "fresh_network", lambda _: torch.nn.Flatten())
    monkeypatch.setattr(precision, "digits_cells", lambda _: [(cell, images)])
    monkeypatch.setattr(precision, "SEEDS_CPU", range(2))
    monkeypatch.setattr(program, "OUTPUT", tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", name])
    assert program.main() == 0, capsys.readouterr().err
    stored = pd.read_parquet(tmp_path / "short.parquet")
    assert set(stored["case"]) == {name} and (stored["value"] >= 0).all()
    assert "| case | ours |" in (tmp_path / "short.md").read_text()


def test_an_unknown_case_and_a_missing_gpu_are_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "nonsense"])
    with pytest.raises(SystemExit):
        program.main()
    assert "no case is called 'nonsense'" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmarks", "--form", "gpu"])
    assert program.main() == 1
    assert capsys.readouterr().err.startswith("--form gpu: torch finds no GPU here")
