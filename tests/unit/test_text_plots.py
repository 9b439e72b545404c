"""`neural-collapse show`: curves as text."""

import sys
from pathlib import Path

import numpy as np
import pytest

from neural_collapse.cli import main
from neural_collapse.tables import write_table
from neural_collapse.text_plots import text_plot

sys.path.insert(0, str(Path(__file__).parent / "figures"))
from sample_tables import make_tables


def body(lines, height):
    return [line.split("|", 1)[1] for line in lines[1 : 1 + height]]


def test_points_stand_where_their_values_are():
    x = np.arange(11)
    lines = text_plot("rising", [("", x, x.astype(float))], width=31, height=6)
    rows = body(lines, 6)
    assert rows[0].rstrip().endswith("o") and rows[0].count("o") == 1
    columns = [row.rstrip().rfind("o") for row in rows]
    assert columns == sorted(columns, reverse=True), "it rises to the right"
    assert rows[-1].startswith("o")
    assert lines[1].split("|")[0].strip() == "10" and lines[6].split("|")[0].strip() == "0"
    assert lines[-1].endswith("epoch 10") and max(map(len, lines)) <= 31


def test_a_logarithmic_axis_is_even_in_decades_and_leaves_zeros_out():
    x = np.arange(5)
    y = np.array([1000.0, 100, 10, 1, 0])
    rows = body(text_plot("falling", [("", x, y)], width=49, height=4, log_y=True), 4)
    assert [row.strip() for row in rows] == ["o"] * 4


def test_two_lines_have_two_signs_and_one_where_they_meet():
    x = np.array([0, 1, 2])
    lines = text_plot(
        "two", [("train", x, np.array([2.0, 1, 0])), ("test", x, np.array([2.0, 2, 0]))], width=30
    )
    assert lines[0] == "two   o train  x test"
    text = "\n".join(body(lines, 8))
    assert text.count("*") == 2 and text.count("o") == 1 and text.count("x") == 1


def test_nothing_to_show_and_a_constant_are_shown():
    assert text_plot("none", [("", np.array([0]), np.array([np.nan]))]) == ["none: not measured"]
    assert "o" in "".join(text_plot("flat", [("", np.arange(3), np.zeros(3))]))


def test_the_start_of_the_terminal_phase_is_marked():
    lines = text_plot("m", [("", np.arange(11), np.arange(11.0))], width=29, height=5, mark=5)
    assert all(row[round(5 / 10 * 19)] in ":o" for row in body(lines, 5))


@pytest.fixture
def folder(tmp_path):
    tables = make_tables(("digits",), ("vgg", "resnet"), last=30)
    for name, table in tables.items():
        write_table(table, tmp_path / "tables" / f"{name}.parquet", name)
    return tmp_path


def test_a_run_is_chosen_by_name(folder, capsys):
    command = ["show", str(folder), "--architecture", "vgg", "--width", "70"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith("digits x vgg, seed 0; the dots mark the start")
    for title in ("loss (log)", "error", "NC1", "NC2 equinorm", "NC3", "NC4", "robustness"):
        assert f"\n{title}" in text
    assert max(map(len, text.splitlines()[1:])) <= 70
    assert main([*command[:-1], "150"]) == 0
    wide = capsys.readouterr().out
    assert len(wide.splitlines()) < len(text.splitlines()) * 0.6, "two beside each other"


def test_several_runs_or_none_are_one_sentence(folder, tmp_path, capsys):
    assert main(["show", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "choose one training with --dataset, --architecture and --seed" in said
    assert "digits x vgg, seed 0; digits x resnet, seed 0" in said
    assert main(["show", str(folder), "--dataset", "svhn"]) == 2
    assert "choose one training" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["show", str(tmp_path / "empty")]) == 2
    assert "holds no finished training" in capsys.readouterr().err
