"""Tensors in safetensors files: written atomically, with a checksum, and with equal bytes for
equal content. Loading them cannot run code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .errors import UserError
from .files import atomic_path, reading
from .progress import say

CHECKSUM = "blake2b"  # of header and tensors, in the metadata of a file


def to_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file's bytes, its metadata in order: the library's own order is random."""
    seen: set[int] = set()
    whole = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        # The library refuses tensors that share memory, as tied weights do.
        memory = tensor.untyped_storage().data_ptr()
        whole[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    payload = save(whole, metadata=dict(metadata))
    header, data = _parts(payload)
    header["__metadata__"] = dict(sorted(metadata.items()))
    header["__metadata__"][CHECKSUM] = _checksum(header, data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, data])


def _parts(payload: bytes) -> tuple[dict, memoryview]:
    """A file's header, and the bytes of its tensors."""
    length = int.from_bytes(payload[:8], "little")
    return json.loads(payload[8 : 8 + length]), memoryview(payload)[8 + length :]


def _checksum(header: dict, data: memoryview) -> str:
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    digest.update(data)
    return digest.hexdigest()


def from_bytes(payload: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file's bytes; ValueError where they are broken."""
    try:
        tensors = load(payload)
        header, data = _parts(payload)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        # Besides its own error: a type that this torch does not know, a shape too large for it.
        raise ValueError(str(error)) from None
    metadata = header.get("__metadata__") or {}
    # Files of other programs have none.
    checksum = metadata.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(header, data):
        raise ValueError("its checksum does not fit")
    return tensors, metadata


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    file_format: str,
) -> None:
    """Write tensors and metadata, atomically."""
    payload = to_bytes(tensors, {**metadata, "format": file_format})
    with atomic_path(path) as temporary:
        temporary.write_bytes(payload)


def read_tensors(
    path: str | Path, kind: str, file_format: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What :func:`write_tensors` wrote.

    kind: what the file is called in messages. Raises UserError where it is missing, truncated or
    of another format.
    """
    remedy = "delete its folder and run again"  # Snakemake watches the folder, not the file
    with reading(path, f"a {kind}", remedy):
        tensors, metadata = from_bytes(Path(path).read_bytes())
    if metadata.pop("format", None) != file_format:
        raise UserError(f"{path}: is not a {kind} of this version, {file_format!r}; {remedy}")
    return tensors, metadata


def keep_if_whole(path: Path) -> bool:
    """Whether a file is there and not corrupt; a corrupt one is deleted.

    For files in a state folder: their hard links are the results that a user deletes as corrupt.
    """
    if not path.exists():
        return False
    with reading(path, "a result"):
        payload = path.read_bytes()
    try:
        from_bytes(payload)
    except ValueError as error:
        say(f"{path}: is corrupt ({error}); it is made again")
        path.unlink(missing_ok=True)
        return False
    return True
