"""A GPU emulated on the CPU: every operation on CUDA tensors is computed by the CPU's kernel on the
same memory, which the stub of the CUDA runtime (``runtime.cpp``) takes from main memory.

It shows mixed devices, wrong dtypes, what waits for the device, operations without a deterministic
kernel where one is asked for, and that every CUDA branch runs. It cannot show speed, races, the
rounding and determinism of a GPU's own kernels, cuDNN, cuBLAS, NCCL.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from recording import RecordedGraph
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

MEMORY_ALONE = {
    *("alias", "detach", "empty", "empty_like", "empty_strided", "is_pinned", "_is_any_true"),
    *("is_same_size", "new_empty", "new_empty_strided", "_pin_memory", "record_stream", "resize_"),
    *("_resize_output_", "set_", "squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_"),
}
"""Operations that compute nothing: torch's own, on the stub."""
READS = {"_local_scalar_dense", "equal", "nonzero"}
"""Operations whose result the CPU waits for."""
TAKES_BOTH_DEVICES = {"copy_", "_to_copy", "index", "index_put_", "_index_put_impl_"}

BY_ANOTHER_LIBRARY = {
    *("addmm", "addmm_", "addmv", "baddbmm", "bmm", "convolution", "convolution_backward", "dot"),
    *("linalg_eigh", "mm", "mv", "nonzero"),
}
"""Operations that the stub cannot do: cuBLAS, cuDNN, or a number read from the device."""
ACCEPTED: set[tuple] = set()
"""Operations that CUDA has a deterministic kernel for, with kinds of arguments."""


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the memory of a CUDA tensor."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    count = storage.nbytes() // tensor.element_size()
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=count)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def on_gpu(tensor: Any) -> Any:
    """A CUDA tensor of the same numbers and strides; anything else as it is."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    if tensor.numel():
        on_host(copy).copy_(tensor)
    return copy


class Emulated(TorchDispatchMode):
    """Within the block CUDA tensors can be computed with, in the thread that entered it."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic: Counter[str] = Counter()
        """What has crossed between host and device: "to the device", "to the host", "read"."""
        self.graph: RecordedGraph | None = None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        target = kwargs.get("device")
        target = None if target is None else torch.device(target).type
        if target != "cuda" and not any(tensor.is_cuda for tensor in tensors):
            return function(*args, **kwargs)
        if _is_composite(function):
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = function.overloadpacket.__name__
        if name in MEMORY_ALONE or _is_view(function):
            return function(*args, **kwargs)
        if name not in TAKES_BOTH_DEVICES:
            mixed = [t for t in tensors if not t.is_cuda and t.dim() > 0]
            if mixed and any(tensor.is_cuda for tensor in tensors):
                raise RuntimeError(f"emulated GPU: {name}: tensors on CPU and GPU")
        self._count(name, args, target)
        if torch.are_deterministic_algorithms_enabled() and self.graph is None:
            _refuse_as_cuda_does(function, name, args, kwargs)
        return self._compute(function, name, args, kwargs, target)

    def _count(self, name: str, args: tuple, target: str | None) -> None:
        kind = "read" if name in READS else None
        if name == "_to_copy" and target not in (None, args[0].device.type):
            kind = "to the device" if target == "cuda" else "to the host"
        elif name == "copy_" and args[0].device.type != args[1].device.type:
            kind = "to the device" if args[0].is_cuda else "to the host"
        if kind is None:
            return
        if self.graph is not None and kind != "to the device":
            raise RuntimeError(f"emulated GPU: {name}: not permitted when stream is capturing")
        self.traffic[kind] += 1

    def _compute(self, function, name: str, args: tuple, kwargs: dict, target: str | None) -> Any:
        host_args, host_kwargs = tree_map(
            lambda x: on_host(x) if isinstance(x, torch.Tensor) and x.is_cuda else x,
            (args, kwargs),
        )
        device = target or ("cuda" if name != "_to_copy" else args[0].device.type)
        if target is not None:
            host_kwargs["device"] = "cpu"
        if host_kwargs.get("pin_memory"):
            host_kwargs["pin_memory"] = False
        if name == "_to_copy":
            host_kwargs.pop("non_blocking", None)
        with _disable_current_modes():
            found = function(*host_args, **host_kwargs)
        written = [x for x in function._schema.arguments if x.alias_info and x.alias_info.is_write]
        returned = function._schema.returns
        if written and not (returned and returned[0].alias_info is None):
            index = function._schema.arguments.index(written[0])
            own = kwargs[written[0].name] if written[0].name in kwargs else args[index]
            result, places = (own if returned else None), found
        else:
            result = found if device == "cpu" else tree_map(on_gpu, found)
            places = tree_map(lambda x: on_host(x) if isinstance(x, torch.Tensor) else x, result)
        if self.graph is not None:
            # With the CUDA tensors, whose memory is used again as long as the graph lives.
            self.graph.operations.append((function, host_args, host_kwargs, places))
            self.graph.kept.append((args, kwargs, result))
        return result


def _is_composite(function) -> bool:
    """Whether an operation is made of others, for CUDA as for every device."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    name = function.name()
    return has_kernel(name, "CompositeImplicitAutograd") and not has_kernel(name, "CUDA")


def _is_view(function) -> bool:
    """Whether the result is the argument's memory, and nothing is written."""
    arguments, returns = function._schema.arguments, function._schema.returns
    return any(r.alias_info and not r.alias_info.is_write for r in returns) and not any(
        a.alias_info and a.alias_info.is_write for a in arguments
    )


def _refuse_as_cuda_does(function, name: str, args: tuple, kwargs: dict) -> None:
    """Call torch's CUDA code, whose kernels do nothing, once for each kind of arguments, for what
    it says of determinism."""
    if name in BY_ANOTHER_LIBRARY | READS | {"copy_", "_to_copy"}:
        return
    kind = (function, *map(_kind, tree_leaves((args, kwargs))))
    if kind in ACCEPTED:
        return
    with _disable_current_modes(), torch.no_grad():
        # Copies, since it may move memory.
        args, kwargs = tree_map(
            lambda x: x.clone() if isinstance(x, torch.Tensor) and x.is_cuda else x, (args, kwargs)
        )
        try:
            function(*args, **kwargs)
        except RuntimeError as error:
            if "deterministic" in str(error):
                raise
    ACCEPTED.add(kind)


def _kind(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return f"{argument.dtype} {argument.dim()} {argument.device}"
    return repr(argument)


class _Graph(RecordedGraph):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []


EMULATED = Emulated()


@contextlib.contextmanager
def _record(graph: _Graph, **_: Any) -> Iterator[None]:
    EMULATED.graph = graph
    try:
        yield
    finally:
        EMULATED.graph = None


def install() -> Emulated:
    """Have CUDA graphs recorded here, and no library asked for what the stub does not have."""
    torch.cuda.CUDAGraph, torch.cuda.graph = _Graph, _record
    torch.backends.cudnn.enabled = False  # batch norms then take the kernels that the CPU has
    torch.backends.mkldnn.enabled = False
    return EMULATED
