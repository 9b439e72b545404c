"""Safetensors files: equal bytes for equal content, and no broken one is taken for whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_collapse.io.errors import UserError
from neural_collapse.io.tensors import from_bytes, read_tensors, to_bytes, write_tensors

FORMAT = "neural_collapse.test/1"
TENSORS = {
    "weight": torch.arange(24, dtype=torch.float32).reshape(1, 2, 3, 4),
    "mean": torch.tensor([0.1, 0.2], dtype=torch.float64),
    "count": torch.tensor(7),
}


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "a b" / "ü.safetensors"
    write_tensors(path, TENSORS, {"epoch": "3", "größe": "ä"}, FORMAT)
    tensors, metadata = read_tensors(path, "test file", FORMAT)
    assert metadata == {"epoch": "3", "größe": "ä"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_safetensors_library_reads_it_too(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"epoch": "3"}, FORMAT)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata().items() >= {"epoch": "3", "format": FORMAT}.items()
        assert torch.equal(file.get_tensor("weight"), TENSORS["weight"])


def test_memory_layout_and_gradients_do_not_matter():
    last = TENSORS["weight"].contiguous(memory_format=torch.channels_last).requires_grad_()
    assert to_bytes({"w": last}, {}) == to_bytes({"w": TENSORS["weight"]}, {})


def test_bytes_are_the_same_in_every_process():
    program = (
        "import sys, torch; from neural_collapse.io.tensors import to_bytes;"
        "tensors = {n: torch.ones(2) for n in 'cab'};"
        "sys.stdout.buffer.write(to_bytes(tensors, {k: k for k in 'zyxwvutsrq'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (0, 1)
    }
    assert len(found) == 1


def test_tensors_that_share_memory_are_kept_whole():
    weight = torch.arange(6.0)
    tensors, _ = from_bytes(to_bytes({"a": weight, "b": weight, "part": weight[2:4]}, {}))
    assert torch.equal(tensors["a"], tensors["b"])
    assert tensors["part"].tolist() == [2.0, 3.0]


def _with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "payload",
    [
        *(to_bytes(TENSORS, {"format": FORMAT})[:keep] for keep in (0, 7, 8, 40, -1)),
        b"PK\x03\x04 a pickle of torch.save",
        _with_header(b"[]"),
        _with_header(b"{}", b"more"),
        _with_header(b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        _with_header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
        _with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9]}}', bytes(4)),
        _with_header(b'{"__metadata__":{"a":3}}'),
        (2**63).to_bytes(8, "little") + b"{}",
    ],
)
def test_what_is_no_safetensors_file_is_one_sentence(tmp_path, payload):
    path = tmp_path / "x.safetensors"
    path.write_bytes(payload)
    with pytest.raises(UserError, match=f"{path}: is corrupt or not a test file") as error:
        read_tensors(path, "test file", FORMAT)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("; delete its folder and run again")


def test_another_format_a_missing_file_and_a_folder_are_one_sentence(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {}, "neural_collapse.other/1")
    with pytest.raises(UserError, match="is not a test file of this version"):
        read_tensors(path, "test file", FORMAT)
    path.write_bytes(_with_header(b'{"__metadata__":null}'))
    with pytest.raises(UserError):
        read_tensors(path, "test file", FORMAT)
    with pytest.raises(UserError, match="none: does not exist"):
        read_tensors(tmp_path / "none", "test file", FORMAT)
    with pytest.raises(UserError, match="Is a directory"):
        read_tensors(tmp_path, "test file", FORMAT)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_damaged_bytes_never_end_in_another_exception(data):
    payload = bytearray(to_bytes(TENSORS, {"epoch": "3"}))
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of it in the header, where damage is interesting.
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors, metadata = from_bytes(bytes(payload))
    except ValueError:
        return
    assert isinstance(metadata, dict)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


TYPES = ["BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64"]
TYPES += ["F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64"]


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_the_format_is_read_or_refused(kind):
    for size in (1, 2, 4, 8):
        header = {"a": {"dtype": kind, "shape": [8], "data_offsets": [0, 8 * size]}}
        try:
            tensors, _ = from_bytes(_with_header(json.dumps(header).encode(), bytes(8 * size)))
        except ValueError:
            continue
        assert tensors["a"].shape == (8,)
