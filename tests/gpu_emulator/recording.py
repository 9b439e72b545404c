"""What stands for a CUDA graph on the CPU: operations recorded once, computed again in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves


class RecordedGraph:
    """Operations on CPU tensors with the tensors that received their results."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, tuple, dict, Any]] = []

    def replay(self) -> None:
        """Compute all again, into the same memory."""
        with _disable_current_modes(), torch.no_grad():
            for function, args, kwargs, results in self.operations:
                found = tree_leaves(function(*args, **kwargs))
                for place, value in zip(tree_leaves(results), found, strict=True):
                    if isinstance(value, torch.Tensor) and value.numel():
                        place.copy_(value)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: RecordedGraph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        self.graph.operations.append((function, args, kwargs or {}, results))
        return results


@contextlib.contextmanager
def record(graph: RecordedGraph, **_: Any) -> Iterator[None]:
    """As torch.cuda.graph has it, for CPU tensors; unlike there, what is recorded is computed."""
    with _Recorder(graph):
        yield
