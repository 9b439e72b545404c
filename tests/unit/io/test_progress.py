"""What a job says of how far it is, and what a result says of where it came from."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import neural_collapse
from neural_collapse.experiment import provenance
from neural_collapse.io import progress


@pytest.fixture
def watch(monkeypatch):
    """A progress whose clock the test turns, and the lines it has said."""
    clock, lines = [100.0], []
    monkeypatch.setattr(progress, "say", lines.append)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def watch(total: int, done: int = 0):
        job = progress.Progress("digits", "epoch", total, done)

        def step(done: int, after: float, **values: str) -> None:
            clock[0] += after
            job.step(done, **values)

        return step, lines

    return watch


def test_the_first_the_last_and_one_an_interval_are_said(watch):
    step, lines = watch(total=100)
    for done in range(1, 101):
        step(done, after=1.0)
    said = [int(line.split()[2].split("/")[0]) for line in lines]
    assert said == [1, *range(6, 100, 5), 100]


def test_a_line_says_which_how_far_what_and_how_long(watch):
    step, lines = watch(total=350)
    step(100, after=200.0, train_loss="1.2e-03", test_error="0.50 %")
    assert lines == ["digits  epoch 100/350  train loss 1.2e-03  test error 0.50 %  8:20 left"]
    step(350, after=100.0)
    assert lines[-1] == "digits  epoch 350/350  done in 5:00"


def test_time_left_counts_only_this_process(watch):
    step, lines = watch(total=100, done=90)
    step(95, after=50.0)
    assert lines[-1].endswith("0:50 left")  # ten seconds each, five to go


def test_nothing_made_yet_promises_nothing(watch):
    step, lines = watch(total=10)
    step(0, after=3.0)
    assert lines == ["digits  epoch  0/10"]


# ------------------------------------------------------------------------------- provenance


def test_provenance_is_json_and_names_what_decides_numbers():
    facts = json.loads(json.dumps(provenance.provenance(torch.device("cpu"))))
    assert facts["versions"]["torch"] == metadata.version("torch")
    assert facts["versions"]["neural_collapse"] == neural_collapse.__version__
    assert facts["machine"]["device"] == "cpu"
    assert facts["machine"]["threads"] == torch.get_num_threads()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with a copy of provenance.py in it, and the function `commit` of it."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git("init", "-q")
    copy = tmp_path / "library" / "__init__.py"
    copy.parent.mkdir()
    copy.write_text("")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(provenance, "LIBRARY", copy.parent)
    return git, copy, provenance.commit.__wrapped__


def test_the_commit_is_that_of_the_library(repository):
    git, copy, commit = repository
    assert commit() is None  # below a repository, but none of its files
    git("add", "library")
    git("commit", "-q", "-m", "two")
    assert commit() == git("rev-parse", "HEAD")
    copy.write_text("changed = True\n")
    assert commit() == git("rev-parse", "HEAD") + "+changes"


def test_no_git_is_no_mistake(repository, monkeypatch):
    _, _, commit = repository
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit() is None


def test_a_code_hash_follows_the_files_it_is_of(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "LIBRARY", tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.py").write_text("a")
    (tmp_path / "b.py").write_text("b")
    first = provenance.code_hash("folder", "b.py")
    assert first == provenance.code_hash("folder", "b.py")
    (tmp_path / "folder" / "data.txt").write_text("no code")
    assert first == provenance.code_hash("folder", "b.py")
    (tmp_path / "folder" / "a.py").write_text("changed")
    assert first != provenance.code_hash("folder", "b.py")


def test_the_library_hashes_itself():
    library = Path(neural_collapse.__file__).parent
    assert (library / "collapse" / "statistics.py").exists()
    assert len(provenance.code_hash("collapse/statistics.py", "training")) == 12
