"""Atomic files: kills, full disks, and places that cannot be written to."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neural_collapse.io.errors import UserError
from neural_collapse.io.files import (
    atomic_path,
    deliver,
    remove_temporaries,
    require_writable,
    write_text_atomically,
)


def test_a_file_takes_its_place_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "deep" / "er" / "table.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(RuntimeError, match="stop"), atomic_path(path) as temporary:
        temporary.write_text("two")
        raise RuntimeError("stop")
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["table.txt"]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    write_text_atomically(path, "x")
    assert path.read_text() == "x"


# Killed by itself after each step of writing: nothing is ever half there.
WRITER = """
import os, signal, sys
from neural_collapse.io import files

step, path = sys.argv[1], sys.argv[2]
real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if step == "in the block":
    with files.atomic_path(path) as temporary:
        temporary.write_text("ne")
        die()
elif step == "before fsync":
    os.fsync = die
elif step == "after fsync":
    os.replace = die
elif step == "after replace":
    os.replace = lambda *names: (real["replace"](*names), die())
files.write_text_atomically(path, "new")
"""


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize(
    ("step", "arrives"),
    [
        ("in the block", False),
        ("before fsync", False),
        ("after fsync", False),
        ("after replace", True),
    ],
)
def test_a_kill_between_any_two_steps_leaves_a_whole_file(tmp_path, step, arrives, before):
    path = tmp_path / "file.txt"
    if before is not None:
        path.write_text(before)
    done = subprocess.run([sys.executable, "-c", WRITER, step, str(path)])
    assert done.returncode == -signal.SIGKILL
    left = path.read_text() if path.exists() else None
    assert left == ("new" if arrives else before)
    remove_temporaries(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {"file.txt"}


def test_only_temporaries_are_removed(tmp_path):
    kept = [tmp_path / "a.tmp", tmp_path / ".hidden", tmp_path / "folder" / "b"]
    lost = [tmp_path / ".a.1.tmp", tmp_path / "folder" / ".b.2.tmp"]
    for path in [*kept, *lost]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_temporaries(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in lost)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError("100 requested and 7 written"), "the disk is full"),
        (OSError("[Errno 28] Error writing bytes. Detail: No space left on device"), "is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), "Connection timed out"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "not connected"),
    ],
)
def test_what_keeps_a_file_from_being_written_is_one_sentence(tmp_path, error, said):
    path = tmp_path / "größe 1.txt"
    with pytest.raises(UserError) as raised, atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert str(path) in str(raised.value)
    assert said in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "results").write_text("not a folder")
    (tmp_path / "folder").mkdir()
    source = tmp_path / "source"
    source.touch()
    for attempt in (
        lambda: write_text_atomically(tmp_path / "results" / "x", ""),
        lambda: write_text_atomically(tmp_path / "results" / "deeper" / "x", ""),
        lambda: write_text_atomically(tmp_path / "folder", ""),
        lambda: write_text_atomically(tmp_path / ("n" * 256), ""),
        lambda: deliver({"x": source}, tmp_path / "results"),
        lambda: deliver({"folder": source}, tmp_path),
    ):
        with pytest.raises(UserError, match="cannot be written"):
            attempt()
    assert (tmp_path / "results").read_text() == "not a folder"


@pytest.mark.parametrize("small_disk", [1024], indirect=True)
def test_a_full_disk_leaves_the_old_file_and_takes_the_new_one_when_room_is_made(small_disk):
    path, filler = small_disk / "file", small_disk / "filler"
    write_text_atomically(path, "old")
    filler.write_bytes(bytes(900_000))
    array = np.zeros(400_000, np.uint8)

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, array)

    for write in (save, lambda temporary: temporary.write_bytes(array.tobytes())):
        full = pytest.raises(UserError, match="the disk is full; make room")
        with full, atomic_path(path) as temporary:
            write(temporary)
        assert path.read_text() == "old"
        assert sorted(p.name for p in small_disk.iterdir()) == ["file", "filler"]
    filler.unlink()
    with atomic_path(path) as temporary:
        save(temporary)
    assert np.array_equal(np.load(path), array)


def test_nothing_is_delivered_as_an_empty_folder(tmp_path):
    for _ in range(2):
        deliver({}, tmp_path / "a" / "out")
        assert [*tmp_path.rglob("*")] == [tmp_path / "a", tmp_path / "a" / "out"]


def test_delivering_links_or_copies_and_replaces(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "out" / "target"
    source.write_text("new")
    for _ in range(2):
        deliver({"target": source}, target.parent)
        assert target.stat().st_ino == source.stat().st_ino
    assert target.read_text() == "new"

    def no_links(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    target.unlink()
    target.write_text("old")
    deliver({"target": source}, target.parent)
    assert target.read_text() == "new"
    assert target.stat().st_ino != source.stat().st_ino


def test_a_delivered_folder_appears_whole(tmp_path, monkeypatch):
    sources = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for source in sources.values():
        source.write_text(source.name)
    folder = tmp_path / "results" / "features"
    link, seen = os.link, []

    def killed_at_b(source, target):
        seen.append(folder.exists())
        if source.name == "b" and len(seen) == 2:
            raise KeyboardInterrupt
        link(source, target)

    monkeypatch.setattr(os, "link", killed_at_b)
    with pytest.raises(KeyboardInterrupt):
        deliver(sources, folder)
    deliver(sources, folder)
    assert seen == 4 * [False]
    assert [path.name for path in folder.parent.iterdir()] == ["features"]
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_a_folder_that_exists_keeps_its_other_files(tmp_path):
    folder, source = tmp_path / "folder", tmp_path / "source"
    folder.mkdir()
    source.touch()
    (folder / "other").touch()
    deliver({"target": source}, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["other", "target"]


def test_require_writable_makes_no_folder(tmp_path):
    (tmp_path / "file").touch()
    require_writable(tmp_path / "new" / "er" / "x", tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deeper" / "x"):
        with pytest.raises(UserError, match="cannot be written"):
            require_writable(path)
    with pytest.raises(UserError, match="is a folder"):
        require_writable(tmp_path)
