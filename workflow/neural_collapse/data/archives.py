"""Archives and checksums: reading members as a stream, packing files again, verifying content.

Archives are never unpacked to disk.
"""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..io.errors import UserError
from ..io.files import reading
from .sources import SourceFile

BLOCK_BYTES = 1 << 20
AGAIN = "replace it"


def _members(path: Path, names: Iterable[str]) -> Iterator[tuple[str, BinaryIO]]:
    """The first member of a .tar.gz with each of these base names, as a stream."""
    wanted = set(names)
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            name = posixpath.basename(member.name)
            if member.isreg() and name in wanted:
                handle = archive.extractfile(member)
                assert handle is not None
                yield name, handle
                wanted.remove(name)
                if not wanted:
                    return


def read_members(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The bytes of members of a .tar.gz by base name; raises UserError."""
    with reading(path, "a .tar.gz archive", AGAIN):
        return {name: handle.read() for name, handle in _members(path, names)}


def pack(source: Path, file: SourceFile, target: Path) -> None:
    """Write `source`, that is `file` packed, not packed, or the folder it unpacks to, as `file`."""
    if source.is_file() and ("" not in file.content or source.read_bytes()[:2] == b"\x1f\x8b"):
        shutil.copyfile(source, target)
        return
    # The fastest compression, and no times, so the same bytes each time.
    with open(target, "wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
        if source.is_file():
            packed.write(source.read_bytes())
            return
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for name in (*file.content, *file.optional):
                if name in file.optional and not (source / name).is_file():
                    continue
                member = tarfile.TarInfo(f"{source.name}/{name}")
                member.size = (source / name).stat().st_size
                with open(source / name, "rb") as handle:
                    archive.addfile(member, handle)


def _digests(handle: BinaryIO, algorithms: Iterable[str]) -> dict[str, str]:
    """Checksums of a stream by algorithm, each "<algorithm> <digest>", read once."""
    found = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    while block := handle.read(BLOCK_BYTES):
        for digest in found.values():
            digest.update(block)
    return {name: f"{name} {digest.hexdigest()}" for name, digest in found.items()}


def _checksum(handle: BinaryIO, expected: str) -> str:
    """The checksum of a stream by the algorithm of an expected one."""
    (found,) = _digests(handle, [expected.split()[0]]).values()
    return found


def _content_checksums(path: Path, file: SourceFile) -> dict[str, str]:
    """Checksums of what is inside a packed file, by the names of `file.content`."""
    with reading(path, "a .gz archive", AGAIN):
        if "" in file.content:
            with gzip.open(path, "rb") as handle:
                return {"": _checksum(handle, file.content[""])}
        members = _members(path, file.content)
        return {name: _checksum(handle, file.content[name]) for name, handle in members}


def verify_file(path: Path, file: SourceFile) -> dict[str, Any]:
    """The record for source.json of a file that is the published one, or holds the same data.

    Raises UserError with expected and found checksum.
    """
    algorithms = {"sha256", *(file.checksum or "").split()[:1]}
    with reading(path, "a file", AGAIN), open(path, "rb") as handle:
        size = path.stat().st_size
        if not file.content and file.size_bytes not in (None, size):
            # Saves reading 148 GB of a copy that was cut off.
            raise UserError(
                f"{path}: is not the published file: it should have {file.size_bytes} bytes, found "
                f"{size}"
            )
        found = _digests(handle, algorithms)
    as_published = file.checksum in found.values()
    content: dict[str, str] = {}
    # The content of a single packed file is cheap to read, so its checksum is always recorded.
    if "" in file.content or (file.content and not as_published):
        content = _content_checksums(path, file)
        for name, expected in file.content.items():
            if content.get(name) != expected:
                what = f"its member {name}" if name else "its decoded content"
                raise UserError(
                    f"{path}: is not the published file: {what} should have {expected}, found "
                    f"{content.get(name, 'no such member')}"
                )
    elif not as_published and file.checksum is not None:
        raise UserError(
            f"{path}: is not the published file: it should have {file.checksum}, found "
            f"{found[file.checksum.split()[0]]}"
        )
    return {
        "name": file.name,
        "size_bytes": size,
        "sha256": found["sha256"].split()[1],
        "content": content,
        "verified_by": "file checksum" if as_published else "content checksum",
    }
