"""Atomic files: written under another name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

PREFIX, SUFFIX = ".", ".tmp"  # of a file that is not whole yet


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    The data reach the disk before the rename, and the rename before the end, so that after a
    power cut the file is the old one or the new one. A full disk or a folder that cannot be
    written to becomes a UserError.
    """
    path = Path(path)
    # Short, since a file system limits names to 255 bytes, and `path` may be close to it.
    temporary = path.with_name(f"{PREFIX}{path.name[:60]}.{os.getpid()}{SUFFIX}")
    try:
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every file system can flush a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def with_home(path: str) -> str:
    """`path` with a leading ~ as the home folder, which not every program takes it for."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"{path.split('/')[0]} is no user's home folder; write out the whole path")
    return expanded


def path_text(value: str) -> str:
    """`value` as a path that a config may name; raises ValueError."""
    if not value.strip():
        raise ValueError("must not be empty; leave the key out instead")
    value = with_home(value)
    if "{" in value or "}" in value:
        raise ValueError("must not hold { or }, which stand for wildcards in Snakemake")
    if len(value) > 2000 or max(len(part.encode()) for part in value.split("/")) > 255:
        raise ValueError("is too long for a file system; shorten it")
    return value


def remove_temporaries(folder: str | Path) -> None:
    """Delete what killed processes left half-written under a folder that nobody else writes to."""
    for path in Path(folder).rglob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (
    *(errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EIO),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),  # of network file systems
)


@contextlib.contextmanager
def written(path: str | Path) -> Iterator[None]:
    """What goes wrong in the block while `path` is written, as a UserError in one sentence."""
    try:
        yield
    except OSError as error:
        # NumPy says how many of its values were written, and no more.
        text = str(error)
        if error.errno in FULL or "No space left" in text or "requested and" in text:
            raise UserError(
                f"{path}: the disk is full; make room and start again, finished work is kept"
            ) from None
        # Pseudo file systems such as /proc say that the file to be made does not exist.
        beside = Path(str(error.filename)).parent == Path(path).parent
        if error.errno in UNWRITABLE or (error.errno == errno.ENOENT and beside):
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); check the folder's permissions and "
                "its file system"
            ) from None
        raise


def require_writable(*paths: str | Path) -> None:
    """Raise UserError where a file cannot be written to one of `paths`, before a job begins.

    No folder is made: one that is a job's output would make the job look done.
    """
    for path in map(Path, paths):
        if path.is_dir():
            raise UserError(f"{path}: is a folder, but a file is to be written there")
        new = path  # the file, or the first of its folders that is missing
        while not os.path.lexists(new.parent):
            new = new.parent
        probe = new.with_name(f"{PREFIX}{new.name[:60]}.{os.getpid()}{SUFFIX}")
        with written(path):
            new.parent.mkdir(exist_ok=True)  # fails where it is a file
            probe.touch()
            probe.unlink()


@contextlib.contextmanager
def reading(path: object, kind: str, remedy: str = "delete it and run again") -> Iterator[None]:
    """Turn any failure to read `path` as a `kind` into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"{path}: does not exist, or is a link to a file that does not; {remedy}"
        ) from None
    except PermissionError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a corrupt file can make a decoder fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: is corrupt or not {kind} ({reason}); {remedy}") from None


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def deliver(sources: Mapping[str, Path], folder: str | Path) -> None:
    """Make `folder` hold `sources` by their names, and nothing that a killed job left there.

    The sources stay where they are, so that nothing is lost when Snakemake deletes the outputs of a
    job that dies half-way. A hard link where the file system has them, otherwise a copy. A new
    folder gets its name once it is whole; in one that exists, other files stay.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        filled = folder
        remove_temporaries(folder)
    else:
        filled = folder.with_name(f"{PREFIX}{folder.name[:60]}{SUFFIX}")
        shutil.rmtree(filled, ignore_errors=True)
        with written(folder):
            filled.mkdir(parents=True)
    for name, source in sources.items():
        target = filled / name
        with written(folder / name):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
    if filled != folder:
        with written(folder):
            os.replace(filled, folder)


def tree_digest(folder: str | Path) -> str:
    """A short hash of the names, sizes and times of all files below a folder; none is read."""
    digest = hashlib.blake2b(digest_size=8)
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):  # deleted meanwhile
                found = os.stat(path)
                own = os.path.relpath(path, folder), found.st_size, found.st_mtime_ns
                digest.update(repr(own).encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_json(path: str | Path, kind: str, of: type = dict) -> Any:
    """What a JSON file of this project holds, an object or a list; raises UserError."""
    with reading(path, kind):
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, of):
            raise ValueError(f"it holds no {of.__name__}")
    return values
