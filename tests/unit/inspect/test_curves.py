"""`neural-collapse show`: curves as text."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sample_tables import make_tables
from traces import jobs_in, log, make_config

from neural_collapse.cli.main import main
from neural_collapse.inspect.curves import text_plot
from neural_collapse.results.tables import write_table
from neural_collapse.training.history import EpochRecord
from neural_collapse.training.state import StateFolder


def body(lines):
    return [line.split("|", 1)[1] for line in lines if "|" in line]


def test_text_plot_rising_points_stand_at_their_values():
    lines = text_plot("rising", {"": pd.Series(np.arange(11.0))}, width=31, height=6)
    rows = body(lines)
    assert rows[0].rstrip().endswith("o") and rows[0].count("o") == 1
    columns = [row.rstrip().rfind("o") for row in rows]
    assert columns == sorted(columns, reverse=True), "it rises to the right"
    assert rows[-1].startswith("o")
    assert lines[1].split("|")[0].strip() == "10" and lines[6].split("|")[0].strip() == "0"
    assert lines[-1].endswith("epoch 10") and max(map(len, lines)) <= 31


@pytest.mark.parametrize(("before", "shown"), [(1.4, True), (1.6, False)])
def test_text_plot_leaves_out_epoch_0_where_it_presses_the_others_flat(before, shown):
    lines = text_plot("error", {"": pd.Series([before, 1.0, 0.5, 0.1])}, width=30, height=6)
    assert lines[0].strip() == ("error" if shown else "error, epoch 0 not shown")
    assert lines[1].split("|")[0].strip() == ("1.4" if shown else "1")
    assert "".join(body(lines)).count("o") == 3 + shown


def test_text_plot_logarithmic_axis_is_even_in_decades():
    y = pd.Series([1000.0, 100, 10, 1, 0])
    rows = body(text_plot("falling", {"": y}, width=49, height=4, log_y=True))
    assert [row.strip() for row in rows] == ["o"] * 4


def test_text_plot_two_lines_have_two_signs():
    series = {"train": pd.Series([2.0, 1, 0]), "test": pd.Series([2.0, 2, 0])}
    lines = text_plot("two", series, width=30)
    assert lines[0] == "two   o train  x test"
    text = "\n".join(body(lines))
    assert text.count("*") == 2 and text.count("o") == 1 and text.count("x") == 1


def test_text_plot_nan_or_constant_is_shown():
    assert text_plot("none", {"": pd.Series([np.nan])}) == ["none: not measured"]
    assert "o" in "".join(text_plot("flat", {"": pd.Series([0.0, 0, 0])}))


def test_text_plot_mark_is_a_column_of_dots():
    lines = text_plot("m", {"": pd.Series(np.arange(11.0))}, width=29, height=5, mark=5)
    assert all(row[round(5 / 10 * 19)] in ":o" for row in body(lines))


@pytest.fixture
def folder(tmp_path):
    tables = make_tables(("digits",), ("vgg", "resnet"), last=30)
    for name, table in tables.items():
        write_table(table, tmp_path / "tables" / f"{name}.parquet", name)
    return tmp_path


def test_show_run_named_is_drawn(folder, capsys):
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


def test_show_several_runs_or_none_is_one_sentence(folder, tmp_path, capsys):
    assert main(["show", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "choose one training with --dataset, --architecture and --seed" in said
    assert "digits x vgg, seed 0; digits x resnet, seed 0" in said
    assert main(["show", str(folder), "--dataset", "svhn"]) == 2
    assert "choose one training" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["show", str(tmp_path / "empty")]) == 2
    assert "contains no training" in capsys.readouterr().err


@pytest.fixture
def begun(tmp_path):
    """An experiment whose training and sweep have ended a few epochs; nothing is finished."""
    config = make_config(tmp_path, seeds=[3])
    jobs = {(a, *name): job for a in ("vgg", "resnet") for name, job in jobs_in(config, a).items()}
    log(jobs["vgg", "train_model", "seed-3"], "")
    return tmp_path / "e", jobs


def end_epochs(job, last, key="0123456789abcdef"):
    """Resume states as a training leaves them after each epoch up to `last`."""
    curve = [EpochRecord(e, 2.0 / (1 + e), 0.5 * (e < 3), 2.5 / (1 + e), 0.25) for e in range(99)]
    with StateFolder(job.state, key) as states:
        for epoch in range(last + 1):
            records = [vars(record) for record in curve[: epoch + 1]]
            states.write(epoch, {"weight": torch.zeros(2)}, [records, False])


def test_show_unfinished_training_is_its_curve_so_far(begun, capsys):
    folder, jobs = begun
    assert main(["show", str(folder)]) == 2
    assert "contains no training with a finished epoch" in capsys.readouterr().err
    job = jobs["vgg", "train_model", "seed-3"]
    end_epochs(job, 5)
    before = sorted(folder.rglob("*"))
    for path in (folder, job.output.parent):
        assert main(["show", str(path), "--width", "60"]) == 0
        text = capsys.readouterr().out
        head = "digits x vgg, seed 3 (not finished: epoch 5 of 9); the dots mark the start"
        assert text.startswith(head) and "terminal phase, epoch 3\n" in text
        assert "\nloss (log)   o train  x test" in text and "\nerror   o" in text
        assert "NC1" not in text and text.count("epoch 5\n") == 2
    assert sorted(folder.rglob("*")) == before


def test_show_corrupt_state_is_the_one_before(begun, capsys):
    _, jobs = begun
    job = next(j for (a, rule, _), j in jobs.items() if (a, rule) == ("resnet", "train_candidate"))
    end_epochs(job, 2, "an older recipe")
    end_epochs(job, 4)
    newest = max(job.state.glob("*/state-000004.*"))
    payload = newest.read_bytes()
    assert main(["show", str(job.output)]) == 0
    assert "(not finished: epoch 4 of 9)" in capsys.readouterr().out
    newest.write_bytes(payload[:20])
    assert main(["show", str(job.output)]) == 0
    assert "(not finished: epoch 3 of 9)" in capsys.readouterr().out


def test_show_training_that_runs_again_replaces_its_last_results(begun, capsys):
    folder, jobs = begun
    tables = make_tables(("digits",), ("vgg", "resnet"), seeds=(3,), last=30)
    for name, table in tables.items():
        write_table(table, folder / "tables" / f"{name}.parquet", name)
    end_epochs(jobs["vgg", "train_model", "seed-3"], 1)
    assert main(["show", str(folder), "--architecture", "vgg"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("digits x vgg, seed 3 (not finished: epoch 1 of 9)\n")
    assert "epoch 30" not in text and "NC1" not in text
    assert main(["show", str(folder), "--architecture", "resnet"]) == 0
    assert "not finished" not in capsys.readouterr().out


def test_show_state_without_records_is_the_one_before(begun, capsys):
    _, jobs = begun
    job = jobs["vgg", "train_model", "seed-3"]
    end_epochs(job, 2)
    with StateFolder(job.state, "0123456789abcdef") as states:
        states.write(3, {"weight": torch.zeros(2)}, {"no": "records"})
    assert main(["show", str(job.output.parent)]) == 0
    assert "(not finished: epoch 2 of 9)" in capsys.readouterr().out


def test_show_status_and_watch_load_no_torch(begun):
    folder, jobs = begun
    end_epochs(jobs["vgg", "train_model", "seed-3"], 2)
    code = (
        "import sys, neural_collapse.inspect.watch; from neural_collapse.cli.main import main; "
        f"done = main(['show', {str(folder)!r}]), main(['status', {str(folder)!r}]); "
        "sys.exit(f'{done} torch' if any(done) or 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not finished: epoch 2 of 9" in done.stdout
