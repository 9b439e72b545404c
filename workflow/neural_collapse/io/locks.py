"""Locks on files, and the states of finished jobs. Does not import torch.

The kernel releases a lock when its last holder ends, also after kill -9.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
FINISHED = "finished"  # a file that says: the job of these states has succeeded


def acquire(path: str | Path, *, wait: bool = False, everyone: bool = False) -> int:
    """A descriptor that holds the lock of the file `path`, which is made where it is missing.

    A child process that inherits the descriptor holds the lock as well. The holder may delete the
    file, with its folder: the next one then locks a new file. wait: until it is free. everyone:
    every user of this machine may lock the file. Raises BlockingIOError where another process holds
    it, OSError where the file cannot be made or its file system has no locks.
    """
    while True:
        descriptor = _open(Path(path), everyone)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path, everyone: bool) -> int:
    # Not with O_CREAT where it is there: in a sticky folder like /tmp Linux refuses that for
    # another user's file (fs.protected_regular).
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        path.parent.mkdir(parents=True, exist_ok=True)
        # FileNotFoundError: another job finished and deleted the empty folder.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if everyone:
                os.fchmod(descriptor, 0o666)  # open's mode is cut by the umask
            return descriptor
    raise FileNotFoundError(2, os.strerror(2), str(path))


@contextlib.contextmanager
def one_at_a_time(lock: str | Path) -> Iterator[None]:
    """Wait until no other process is in such a block for the file `lock`, then keep others out.

    Where the file system has no locks, nobody waits.
    """
    descriptor = None
    try:
        descriptor = acquire(lock)
    except BlockingIOError:
        log.warning("%s: another process is at work here; waiting for it", Path(lock).parent)
        descriptor = acquire(lock, wait=True)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def lock(path: Path):
    """An open file with an exclusive lock, which names its holder.

    Raises BlockingIOError, whose text says who holds it.
    """
    try:
        file = os.fdopen(acquire(path), "r+", encoding="utf-8")
    except BlockingIOError as error:
        holder = ""
        with contextlib.suppress(FileNotFoundError):
            holder = path.read_text(encoding="utf-8").strip()
        raise BlockingIOError(error.errno, holder or "another process") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


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
