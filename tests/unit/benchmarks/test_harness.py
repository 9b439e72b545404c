"""The benchmarks' arithmetic, on a clock that only moves when a variant runs."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from benchmarks import cases, harness
from benchmarks.harness import Goal, Results, Times, Variant, interleave


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
    variants = {"a": clock.variant("a", [9, 3, 2, 4]), "b": clock.variant("b", [9, 1, 5, 2])}
    times = interleave(variants, 3, clock=clock)
    assert clock.calls == ["a", "b"] * 4
    assert times == {"a": Times((3, 2, 4)), "b": Times((1, 5, 2))}


def test_short_pieces_are_repeated_until_they_last():
    clock = Clock()
    times = interleave({"a": clock.variant("a", [0.0625])}, 2, clock=clock, minimum_seconds=0.5)
    assert len(clock.calls) == 2 + 2 * 8  # two to find out, then eight a round
    assert times["a"].seconds == (0.0625, 0.0625)


def test_times_are_of_a_unit_of_work():
    clock = Clock()
    times = interleave({"a": clock.variant("a", [8.0], work=4)}, 1, clock=clock)
    assert times["a"].best == 2.0


def test_ratio_is_of_best_rounds_and_spread_of_single_ones():
    ours, theirs = Times((1.0, 2.0, 4.0)), Times((3.0, 8.0, 4.0))
    assert ours.ratio_to(theirs) == (3.0, 1.0, 4.0)


def test_a_comparison_is_a_row_with_rates_ratio_and_verdict():
    results = Results("case", say=lambda text: None)
    results.compare(
        "ours", Times((0.5, 1.0)), "theirs", Times((2.0, 3.0)), unit="images", goal=Goal(4.5)
    )
    results.value("share", 0.01, unit="", goal=Goal(0.05, at_most=True))
    results.skip("nothing there")
    frame = harness.table(results.rows)
    assert list(frame.columns) == list(harness.COLUMNS)
    assert frame.loc[
        0, ["reference_value", "value", "ratio", "ratio_low", "ratio_high"]
    ].tolist() == [*(0.5, 2.0, 4.0, 3.0, 4.0)]
    assert frame["goal"].tolist()[:2] == [">= 4.5x", "<= 0.05"]
    assert frame["reached"].tolist()[:2] == [False, True] and pd.isna(frame["reached"][2])


def test_files_hold_the_table_and_the_machine(tmp_path):
    results = Results("case", say=lambda text: None)
    results.compare("ours|best", Times((1.0,)), "theirs", Times((3.0,)), unit="", goal=Goal(4))
    frame = harness.table(results.rows)
    harness.write(frame, {"processor": "a processor"}, tmp_path, "short")
    stored = pd.read_parquet(tmp_path / "short.parquet")
    assert stored["ratio"].tolist() == [3.0] and stored["processor"].tolist() == ["a processor"]
    text = (tmp_path / "short.md").read_text()
    assert "- processor: a processor" in text
    assert "| case | ours/best | theirs | 3 s | 1 s | 3x | 3..3 | >= 4x | no |" in text
    assert "0 of 1 goals reached." in text


def test_cores_are_limited_for_this_process_and_those_it_starts():
    code = """
import subprocess, sys
from benchmarks import harness
harness.limit_cores(1)
print(harness.cores())
print(subprocess.check_output([sys.executable, "-c", "import os;print(os.sched_getaffinity(0))"]))
"""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind processes to cores")
    own = {min(os.sched_getaffinity(0))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.split("\n")[:2] == ["1", f"b'{own}\\n'"]


def test_every_case_belongs_to_a_form():
    cases.load_all()
    forms = {form for case in harness.CASES.values() for form in case.forms}
    assert forms == {"short", "full", "gpu"}
    assert {"training", "deepfool", "pipeline"} <= harness.CASES.keys()


def test_a_new_case_is_one_decorated_function(monkeypatch):
    monkeypatch.setattr(harness, "CASES", {})

    @harness.case("mine", forms=("full",))
    def mine(settings, results):
        results.value("it", 1.0, unit="s")

    found = harness.CASES["mine"]
    results = Results(found.name, say=lambda text: None)
    found.run(harness.Settings("full"), results)
    assert found.forms == ("full",) and results.rows[0]["value"] == 1.0


def test_profile_in_which_nothing_ran_on_the_device_has_shares_of_zero(monkeypatch):
    from benchmarks.cases import profile

    class Idle(contextlib.nullcontext):
        def key_averages(self):
            return [SimpleNamespace(key="aten::add", self_device_time_total=0)]

    monkeypatch.setattr(profile, "profile", lambda activities: Idle(Idle()))
    assert profile.shares(lambda: None, "cuda") == [("aten::add", 0.0)]


def test_an_unknown_case_and_a_missing_gpu_are_one_sentence(capsys, monkeypatch):
    import torch
    from benchmarks import __main__ as program

    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "nonsense"])
    with pytest.raises(SystemExit):
        program.main()
    assert "no case is called 'nonsense'" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmarks", "--form", "gpu"])
    assert program.main() == 1
    assert capsys.readouterr().err.startswith("--form gpu: torch finds no GPU here")
