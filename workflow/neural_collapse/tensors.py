"""Tensors in safetensors files: whole or not there, unable to run code, equal bytes for equal
content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .errors import UserError
from .files import atomic_path


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
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload[8 + length :]


def from_bytes(payload: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file's bytes; ValueError where they are broken."""
    try:
        tensors = load(payload)
        length = int.from_bytes(payload[:8], "little")
        return tensors, json.loads(payload[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        # Besides its own error: a type that this torch does not know, a shape too large for it.
        raise ValueError(str(error)) from None


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    file_format: str,
) -> None:
    """Write tensors and metadata, whole or not at all."""
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
    try:
        tensors, metadata = from_bytes(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {kind}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: is truncated or no {kind} ({reason}); delete it and run again"
        ) from None
    if metadata.pop("format", None) != file_format:
        raise UserError(f"{path}: is no {kind} of this version, {file_format!r}")
    return tensors, metadata
