"""`neural-collapse watch`: what it draws of the files, and that it ends when the jobs do."""

import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from traces import done, jobs_in, lock, log, make_config

from neural_collapse.cli.main import main
from neural_collapse.inspect import watch

LINE = "digits x vgg  seed 0  epoch  4/9  train loss 1.50e-03  train error 0.25 %  1:30 left\n"


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path, architectures=["vgg"], seeds=[0])


@pytest.fixture
def jobs(config):
    return {rule: job for (rule, _), job in jobs_in(config).items()}


def text_of(picture, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(picture)
    return console.file.getvalue()


def drawn(config, width=200):
    return text_of(watch.draw(Path(config.folder), config, width)[0], width)


def start(job, text=LINE):
    log(job, text)
    lock(job)


def finish(job):
    done(job)
    if job.output.suffix == ".parquet":
        rows = {"epoch": [0, 9], "split": "train", "statistic": watch.NC1, "value": [3.0, 0.0125]}
        pd.DataFrame(rows).to_parquet(job.output)


def test_draw_running_training_shows_its_line_of_progress(config, jobs):
    start(jobs["train_model"], f"runs on GPU-5d5ba0d6-1111-2222\n{LINE}")
    picture, unfinished = watch.draw(Path(config.folder), config, 200)
    text = text_of(picture)
    row = next(line for line in text.splitlines() if line.startswith("digits"))
    for value in ("vgg", "running", "epoch  4/9", "1:30", "1.50e-03", "0.25 %", "GPU-5d5ba0d6"):
        assert value in row
    assert unfinished and "0 of 4 jobs done; left:" in text


def test_draw_in_a_narrow_window_leaves_out_no_part_of_a_value(config, jobs):
    start(jobs["train_model"])
    text = drawn(config, width=50)
    assert "…" not in text
    for value in ("digits", "vgg", "1:30", "1.50e-03", "0.25 %"):
        assert value in text


@pytest.mark.parametrize("width", [30, 50, 80])
def test_draw_in_any_window_splits_no_word(width, config, jobs):
    start(jobs["train_model"], f"runs on GPU-5d5ba0d6-1111-2222\n{LINE}")
    text = drawn(config, width)
    table = text[text.index("cell") : text.index("rm -r") if "rm -r" in text else None]
    known = set(drawn(config).split()) | {"cell"}
    assert set(table.split()) <= known and {"digits", "vgg", "training", "running"} < known


def test_draw_cells_at_work_come_before_the_others(tmp_path):
    config = make_config(tmp_path, architectures=["vgg", "resnet"], seeds=[0])
    start(jobs_in(config, "resnet")["train_model", "seed-0"])
    text = drawn(config)
    assert 0 < text.index("digits x resnet") < text.index("digits x vgg")


def test_draw_failed_job_shows_its_error(config, jobs):
    log(jobs["train_model"], "error: the disk is full\n")
    assert "failed: digits x vgg, training seed-0: the disk is full" in drawn(config)


def test_draw_resume_state_that_no_job_can_use_is_listed(config, jobs):
    state = jobs["train_model"].state.parent / "no_such_job" / "abc"
    state.mkdir(parents=True)
    text = drawn(config)
    assert "resume states that no job can use any more" in text
    assert f"rm -r {state}*" in text.replace("\n", "")


def test_draw_measured_run_shows_nc1_of_its_last_epoch(config, jobs):
    for job in jobs.values():
        finish(job)
    picture, unfinished = watch.draw(Path(config.folder), config, 200)
    assert not unfinished and "1.25e-02" in text_of(picture)


def test_watch_in_a_terminal_ends_with_the_last_job(config, jobs, monkeypatch):
    start(jobs["train_model"])
    waited = []

    def wait(seconds):
        waited.append(seconds)
        finish(list(jobs.values())[len(waited) - 1])

    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(watch.time, "sleep", wait)
    monkeypatch.setattr(watch, "Console", lambda: screen)
    watch.watch(Path(config.folder), None)
    assert waited == [2, 2, 2, 2]
    assert "4 of 4 jobs done" in screen.file.getvalue()


def test_watch_without_a_terminal_draws_once(config, jobs, capsys):
    start(jobs["train_model"])
    assert main(["watch", str(config.folder)]) == 0
    assert "running" in capsys.readouterr().out
