"""Checksums and archives: reading members as a stream, packing files again, verifying content.

Archives are never unpacked to disk.
"""

from __future__ import annotations

import gzip
import hashlib
import io
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
AGAIN = "delete it and download the dataset again"


def digests(handle: BinaryIO, algorithms: Iterable[str]) -> dict[str, str]:
    """Checksums of a stream by algorithm, each "<algorithm> <digest>", read once."""
    found = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    while block := handle.read(BLOCK_BYTES):
        for digest in found.values():
            digest.update(block)
    return {name: f"{name} {digest.hexdigest()}" for name, digest in found.items()}


def _algorithm(checksum: str) -> str:
    return checksum.partition(" ")[0]


# --------------------------------------------------------------------------- archives


def _members(path: str | Path, names: Iterable[str]) -> Iterator[tuple[str, BinaryIO]]:
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


def read_members(
    path: str | Path, names: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, bytes]:
    """The bytes of members of a .tar.gz by base name, without unpacking it; raises UserError."""
    names = set(names)
    with reading(path, "a .tar.gz archive", AGAIN):
        found = {name: handle.read() for name, handle in _members(path, {*names, *optional})}
    missing = sorted(names - found.keys())
    if missing:
        raise UserError(f"{path}: holds no {missing[0]}; it is not the published archive")
    return found


def pack(source: Path, file: SourceFile, target: Path) -> None:
    """Write `source`, which is `file` packed, not packed, or the folder it unpacks to, as `file`.

    What is packed here gets the fastest compression and no times, so the same bytes each time.
    """
    with open(target, "wb") as raw:
        if source.is_dir():
            with (
                gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
            ):
                for name in (*file.content, *file.optional):
                    if name in file.optional and not (source / name).is_file():
                        continue
                    member = tarfile.TarInfo(f"{source.name}/{name}")
                    member.size = (source / name).stat().st_size
                    with open(source / name, "rb") as handle:
                        archive.addfile(member, handle)
            return
        with open(source, "rb") as handle:
            is_packed = handle.read(2) == b"\x1f\x8b"
            handle.seek(0)
            if "" in file.content and not is_packed:
                with gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
                    shutil.copyfileobj(handle, packed, BLOCK_BYTES)
            else:
                shutil.copyfileobj(handle, raw, BLOCK_BYTES)


# --------------------------------------------------------------------------- verification


def content_checksums(path: str | Path, file: SourceFile) -> dict[str, str]:
    """Checksums of what is inside a packed file, by the names of `file.content`."""
    found: Any
    if "" in file.content:
        with reading(path, "a gzip file", AGAIN), gzip.open(path, "rb") as handle:
            (found,) = digests(handle, [_algorithm(file.content[""])]).values()
            return {"": found}
    found = {}
    with reading(path, "a .tar.gz archive", AGAIN):
        for name, handle in _members(path, file.content):
            (found[name],) = digests(handle, [_algorithm(file.content[name])]).values()
    return found


def check_content(data: bytes, expected: str, where: str | Path) -> None:
    """Raise UserError unless `data` has the checksum `expected`."""
    (found,) = digests(io.BytesIO(data), [_algorithm(expected)]).values()
    if found != expected:
        raise UserError(f"{where}: is not the published file: expected {expected}, found {found}")


def verify_file(path: Path, file: SourceFile) -> dict[str, Any]:
    """Check one raw file against what is published; returns its record for source.json.

    The file's own checksum suffices.  Where it differs, the content's does: an archive packed
    again holds the same data.  Raises UserError with expected and found checksum.
    """
    algorithms = {"sha256", *([_algorithm(file.checksum)] if file.checksum else [])}
    with reading(path, "a file", AGAIN), open(path, "rb") as handle:
        found = digests(handle, algorithms)
        size = path.stat().st_size
    as_published = file.checksum in found.values()
    content: dict[str, str] = {}
    # The content of a single packed file is cheap to read, so its checksum is always recorded.
    if "" in file.content or (file.content and not as_published):
        content = content_checksums(path, file)
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
            f"{found[_algorithm(file.checksum)]} ({size} bytes)"
        )
    return {
        "name": file.name,
        "size_bytes": size,
        "sha256": found["sha256"].partition(" ")[2],
        "content": content,
        "verified_by": "file checksum" if as_published else "content checksum",
    }
