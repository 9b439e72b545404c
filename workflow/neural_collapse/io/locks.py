"""Who works on a folder of resume states, and which of them are no longer needed. No torch."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import socket
from pathlib import Path

FINISHED = "finished"  # a file that says: the job of these states has succeeded


def clear_finished(root: str | Path) -> None:
    """Delete the states below `root` of jobs that have succeeded; all others stay."""
    for marker in Path(root).glob(f"*/{FINISHED}"):
        folder = marker.parent
        with contextlib.suppress(OSError):  # another job is at work there after all
            held = lock(Path(f"{folder}.lock"))
            with held:
                delete(folder)


def delete(folder: Path) -> None:
    """Delete a folder of states and its lock, which the caller holds."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        Path(f"{folder}.lock").unlink()
        folder.parent.rmdir()  # only when no other state lies there


def lock(path: Path):
    """An open file with an exclusive lock; BlockingIOError says who holds it."""
    for attempt in itertools.count():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        except FileNotFoundError:
            if attempt < 100:
                continue  # another job finished and took the empty folder away
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise BlockingIOError(error.errno, holder) from None
        except OSError:
            file.close()
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
        file.close()  # its holder finished and deleted it meanwhile: lock the new one
