"""Numbers, amounts, durations and columns as text."""

import pytest

from neural_collapse.io.text import aligned, clock_text, counted, duration_text, size_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (0.4, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (61, "1:01"), (3599.5, "1:00:00"),
     (7384, "2:03:04"), (360000, "100:00:00")],
)  # fmt: skip
def test_clock_text_whole_seconds(seconds, text):
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2.5e6, "2.5 MB"), (3e9, "3.0 GB"),
     (4e15, "4000.0 TB")],
)  # fmt: skip
def test_size_text_unit_fits(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"),
     (4e6, "1,111.1 h"), (float("nan"), "unknown")],
)  # fmt: skip
def test_duration_text_unit_fits(seconds, text):
    assert duration_text(seconds) == text


def test_counted_one_and_many():
    assert [counted(n, "job") for n in (0, 1, 2, 1000)] == [
        "0 jobs",
        "1 job",
        "2 jobs",
        "1,000 jobs",
    ]


def test_aligned_columns_left_then_right():
    assert aligned([("a", "bcd"), ("efg", "h")], left=1) == ["a    bcd", "efg    h"]
