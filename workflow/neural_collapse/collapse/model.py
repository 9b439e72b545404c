"""Neural collapse of any PyTorch model: a hook on a layer's input, and measurement over loaders.

Shape suffixes: B examples of a batch, d (D) feature dimension.
"""

from __future__ import annotations

import io
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.data import Dataset, IterableDataset

from ..io.errors import UserError
from .arrays import flat_examples
from .features import DEFAULT_MEMORY_LIMIT_BYTES, measurement_mode
from .measure import moments_of_rows
from .result import CollapseResult


def watch(model: nn.Module, layer: str | nn.Module | None = None) -> LayerInput:
    """Capture the input of one layer at every forward pass inside a `with` block.

    Args:
        model: any nn.Module; the wrappers of DataParallel, DistributedDataParallel and
            torch.compile are unwrapped.
        layer: a name in `model.named_modules()`, or the module itself. Default: the last
            nn.Linear.

    Returns:
        A `LayerInput`, whose `value` is the input at the most recent forward pass.

    Raises:
        UserError: the model has no such layer, or no nn.Linear if `layer` is None.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with watch(model) as features:
    ...     logits = model(torch.ones(5, 2, 2))
    ...     features.name, tuple(features.value.shape)
    ('3', (5, 3))
    """
    return LayerInput(*find_layer(model, layer))


class LayerInput:
    """A context manager that captures the input of one layer; made by `watch`.

    A forward pass raises UserError if the layer's first positional argument is not a tensor.

    Attributes:
        name: name of the layer in the model.
        layer: the module.
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        self.name, self.layer = name, layer
        self._value: Tensor | None = None
        self._hook: Any = None

    def __enter__(self) -> LayerInput:
        self._hook = self.layer.register_forward_pre_hook(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _take(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not inputs or not isinstance(inputs[0], Tensor):
            raise UserError(
                f"The first argument of the layer {self.name!r} is not a tensor; name "
                "another layer: layer=..."
            )
        self._value = inputs[0].detach().clone()  # later layers may overwrite it in place

    @property
    def value(self) -> Tensor:
        """The layer's input at the most recent forward pass, detached, with its original shape,
        dtype and device.

        Raises:
            UserError: the layer has not been called yet.
        """
        if self._value is None:
            raise UserError(
                f"The layer {self.name!r} has not been called: run the model first (a model that "
                "ran compiled before ignores `watch`), or name another layer: layer=..."
            )
        return self._value


def find_layer(model: nn.Module, layer: str | nn.Module | None = None) -> tuple[str, nn.Module]:
    """The name and module of a layer, by default the last nn.Linear; arguments as in `watch`."""
    model = _unwrapped(model)
    if not isinstance(model, nn.Module):
        raise UserError(f"The model is a {type(model).__name__}; an nn.Module is needed.")
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        names = [name for name, module in modules.items() if module is layer]
        if not names:
            raise UserError(f"The layer {type(layer).__name__} is not part of the model.")
        return names[0], layer
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if layer is None:
        if not linear:
            raise UserError(
                f"{type(model).__name__} has no nn.Linear; name the layer whose input is to be "
                f"measured: layer=..., such as {list(modules)[-1]!r}."
            )
        return linear[-1], modules[linear[-1]]
    if layer not in modules:
        known = ", ".join((linear or list(modules))[-5:])
        raise UserError(f"{type(model).__name__} has no layer {layer!r}; it has {known}, ...")
    return layer, modules[layer]


def _unwrapped(model: Any) -> Any:
    """The module inside the wrappers of torch.compile and of several GPUs."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def last_layer_of(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """The weight (C, d) and bias (C,) of a linear layer, dequantised.

    The bias is None if the layer has none; (None, None) for a layer that is not linear.
    """
    values = []
    for name in ("weight", "bias"):
        value = getattr(layer, name, None)
        value = value() if callable(value) else value  # quantised layers have methods
        if isinstance(value, Tensor):
            value = value.detach()
            value = value.dequantize() if value.is_quantized else value
        values.append(value)
    weight, bias = values
    if not isinstance(weight, Tensor) or weight.dim() != 2 or isinstance(layer, nn.Embedding):
        return None, None
    return weight, bias


def measure_model(
    model: nn.Module,
    train_loader: Iterable[Any],
    test_loader: Iterable[Any] | None = None,
    *,
    layer: str | nn.Module | list[str] | tuple[str, ...] | None = None,
    device: str | torch.device | None = None,
    inputs_key: str | None = None,
    labels_key: str = "labels",
    num_classes: int | None = None,
    scatter: str = "projected",
    pool: str | None = None,
    ignore_index: int | None = None,
    memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
) -> Any:
    """Measure the neural collapse of a model on a train set, and optionally on a test set.

    The model runs once over each loader, in eval mode, without TF32, autocast or torch.compile.
    Inputs of a floating point dtype that no parameter has are converted to that of the first
    parameter. Its train/eval mode and the states of the generators of torch, numpy, random and the
    loaders are restored, so measuring does not change a training in progress, unless its loaders
    have persistent workers. Features are stored in float32 (float64 features, and means over maps,
    in float64) until the statistics are computed.

    Args:
        model: any nn.Module; the wrappers of DataParallel, DistributedDataParallel and
            torch.compile are left out.
        train_loader: yields pairs (inputs, labels), or dicts.
        test_loader: likewise. Its nearest-class-centre decisions (NC4) use the class means of the
            train set; all other statistics use those of the test set.
        layer: the layer whose input is measured, as in `watch`; or a list of names.
        device: the model is moved there and runs there. Default: the device of its parameters.
        inputs_key: for dicts, the key of the model's input. Default: all keys except the labels
            are passed as keyword arguments.
        labels_key: for dicts, the key of the labels.
        num_classes: C. Default: the outputs of the last nn.Linear, or the largest train label + 1
            if there is none or it has one output.
        scatter: as in `measure`.
        pool: as in `measure`.
        ignore_index: as in `measure`.
        memory_limit_bytes: if the features of one split and layer are larger than this (by default
            8 GiB), they are stored in a temporary file.

    Returns:
        The `CollapseResult` of the train set, whose attribute `test` is that of the test set; for
        a list of layers, a dict from name to result. Statistics of the classifier are present if
        the layer computes W h + b with C outputs.

    Raises:
        UserError: an unknown layer, by default a last nn.Linear with other outputs than the model
            has, a loader without batches, batches of another structure, no disk space for the
            temporary file, and all cases of `measure`.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> batches = [(torch.randn(8, 4), torch.arange(8) % 2) for _ in range(3)]
    >>> measure_model(model, batches).moments.num_examples
    24
    """
    layers = list(layer) if isinstance(layer, (list, tuple)) else [layer]
    if not layers:
        raise UserError("layer is an empty list; name layers, or leave it out.")
    loaders = [train_loader] if test_loader is None else [train_loader, test_loader]
    model = _unwrapped(model)
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # compiled code may ignore hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        watched = [stack.enter_context(watch(model, one)) for one in layers]
        noted: dict[nn.Module, bool] = {}
        for one in watched:
            hook = one.layer.register_forward_hook(partial(_note_linear, noted))
            stack.callback(hook.remove)
        # Some may be: those that accelerate offloads are filled in by hooks.
        if {parameter.is_meta for parameter in model.parameters()} == {True}:
            raise UserError("The model is on the device 'meta', which holds no numbers.")
        if device is not None:
            model.to(device)
        rows = [
            [stack.enter_context(closing(_Rows(memory_limit_bytes))) for _ in layers]
            for _ in loaders
        ]
        stack.enter_context(measurement_mode(model))
        stack.enter_context(_random_states_restored(loaders, model))
        for loader, kept in zip(loaders, rows, strict=True):
            for inputs, labels in _batches(loader, inputs_key, labels_key):
                outputs = _call(model, inputs, device)
                if layer is None:
                    _check_classifier(watched[0], outputs)
                for one, rows_of_one in zip(watched, kept, strict=True):
                    h_BD, c_B = flat_examples(one.value, labels, pool)
                    if ignore_index is not None:
                        kept_B = c_B != ignore_index
                        h_BD, c_B = h_BD[kept_B], c_B[kept_B]
                    rows_of_one.add(h_BD, c_B)
        if num_classes is None:
            num_classes = _num_classes(model, rows[0][0].largest_label)
        options = {"num_classes": num_classes, "scatter": scatter}
        results = {
            one.name: _result(one.layer if noted.get(one.layer, True) else None, splits, options)
            for one, *splits in zip(watched, *rows, strict=True)
        }
    return results if isinstance(layer, (list, tuple)) else results[watched[0].name]


@contextmanager
def _random_states_restored(loaders: Sequence[Any], model: nn.Module) -> Iterator[None]:
    """Restore the generators of torch, on the CPU and the model's GPUs, of numpy and random, from
    which datasets draw, and those of the loaders, from which iterators draw."""
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    owners = [*loaders, *(getattr(loader, "sampler", None) for loader in loaders)]
    found = [getattr(owner, "generator", None) for owner in owners]
    generators = [one for one in found if isinstance(one, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    of_numpy, of_random = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[gpu.index for gpu in gpus]):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_random)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _note_linear(
    noted: dict[nn.Module, bool], layer: nn.Module, inputs: tuple[Any, ...], output: Any
) -> None:
    """A forward hook that notes whether a layer with a weight W computes W h + b, which that of a
    cosine classifier does not; by a few rows of its first call."""
    if layer in noted or not isinstance(output, Tensor):
        return
    weight, bias = last_layer_of(layer)
    if weight is None:
        return
    # A quantised layer rounds its input; a weight that a hook filled in may be gone again.
    if callable(layer.weight) or weight.device != output.device:
        return
    h, logits = inputs[0][:8], output[:8]
    noted[layer] = weight.is_floating_point() and weight.shape == (logits.shape[-1], h.shape[-1])
    if noted[layer]:
        computed = linear(h.to(weight), weight) + (0 if bias is None else bias)
        noted[layer] = not (computed - logits).norm() > 0.01 * logits.norm()


def _result(
    layer: nn.Module | None, splits: list[_Rows], options: dict[str, Any]
) -> CollapseResult:
    weight, bias = (None, None) if layer is None else last_layer_of(layer)
    if weight is not None and len(weight) != options["num_classes"]:  # of a hidden layer
        weight = bias = None

    def measured(rows: _Rows, split: str, **more: Any) -> CollapseResult:
        h_ND, c_N = rows.arrays()
        moments = moments_of_rows(h_ND, c_N, weight, bias, split=split, **options, **more)
        return CollapseResult.of(moments, split)

    result = measured(splits[0], "train")
    for test in splits[1:]:
        result.test = measured(test, "test", train_means=result.moments.centres)
    return result


def _num_classes(model: nn.Module, largest_label: int) -> int:
    if any(isinstance(module, nn.Linear) for module in model.modules()):
        weight, _ = last_layer_of(find_layer(model)[1])
        if weight is not None and len(weight) > 1:  # one output tells two classes apart
            return len(weight)
    return largest_label + 1


def _batches(
    loader: Iterable[Any], inputs_key: str | None, labels_key: str
) -> Iterator[tuple[Any, Any]]:
    """Inputs and labels of a loader's batches."""
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise UserError("The loader is a dataset; give DataLoader(dataset, batch_size=100).")
    batch = None
    for batch in loader:
        if isinstance(batch, Mapping):
            named = dict(batch)
            for key in filter(None, (labels_key, inputs_key)):
                if key not in named:
                    raise UserError(
                        f"The loader's batches have no {key!r} but {', '.join(map(str, named))}; "
                        "name inputs_key and labels_key."
                    )
            labels = named.pop(labels_key)
            yield (named if inputs_key is None else named[inputs_key]), labels
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            yield batch[0], batch[1]
        else:
            parts = f" of {len(batch)} parts" if isinstance(batch, (tuple, list)) else ""
            raise UserError(
                f"The loader yields {type(batch).__name__}{parts}; pairs (inputs, labels) or dicts "
                "are needed, such as ((x, y) for x, y, *_ in loader)."
            )
    if batch is None:
        raise UserError("The loader yields no batches; a generator can be used only once.")


@torch.no_grad()
def _call(model: nn.Module, inputs: Any, device: str | torch.device | None) -> Any:
    """The model's outputs for inputs, moved to the device or to where its parameters are."""
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), "cpu")
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    inputs = _to(inputs, torch.device(device), dtypes)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _check_classifier(watched: LayerInput, outputs: Any) -> None:
    """Raise UserError if the last nn.Linear has not as many outputs as the model has logits: it is
    then a hidden layer, as where the model computes its logits by `x @ weight.T`."""
    logits = getattr(outputs, "logits", outputs)
    weight, _ = last_layer_of(watched.layer)
    if not isinstance(logits, Tensor) or logits.dim() not in (2, 3) or weight is None:
        return
    # As many in all: transposed (B, C, T), flattened, or squeezed by the model.
    own = watched.value[..., 0].numel() * len(weight)
    if len(weight) != logits.shape[-1] and own != logits.numel():
        raise UserError(
            f"The last nn.Linear, {watched.name!r}, has {len(weight)} outputs, but the model has "
            f"{logits.shape[-1]}; name the layer whose input is to be measured: layer=..."
        )


def _to(values: Any, device: torch.device, dtypes: list[torch.dtype]) -> Any:
    if isinstance(values, Tensor):
        foreign = values.is_floating_point() and dtypes and values.dtype not in dtypes
        return values.to(device, dtypes[0] if foreign else None, non_blocking=True)
    if isinstance(values, Mapping):
        return {key: _to(value, device, dtypes) for key, value in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)(_to(value, device, dtypes) for value in values)
    return values


@contextmanager
def _room_for_features() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{tempfile.gettempdir()} has no room for the features ({error.strerror or error}); "
            "set TMPDIR to a larger disk or raise memory_limit_bytes."
        ) from None


class _Rows:
    """Rows of features in float32 (float64 stays), in memory or, beyond a limit, in a file."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._file: io.BytesIO | IO[bytes] = io.BytesIO()
        self._labels: list[np.ndarray] = []
        self._dtype, self._dim = torch.float32, 0

    def close(self) -> None:
        if not isinstance(self._file, io.BytesIO):
            with suppress(OSError):  # on a full disk it would write once more
                self._file.close()

    def add(self, h_BD: Tensor, c_B: Tensor) -> None:
        dim = h_BD.shape[1]
        if not self._labels:
            self._dtype = torch.float64 if h_BD.dtype == torch.float64 else torch.float32
            self._dim = dim
        if dim != self._dim:
            raise UserError(
                f"The features have {dim} columns in one batch and {self._dim} in another."
            )
        rows = h_BD.to("cpu", self._dtype).contiguous().numpy().data
        with _room_for_features():
            if isinstance(self._file, io.BytesIO) and self._file.tell() + rows.nbytes > self._limit:
                in_memory = self._file
                self._file = tempfile.TemporaryFile(prefix="features-")  # noqa: SIM115
                # Not getbuffer(): Python 3.12 crashes if it collects one in a cycle of references.
                self._file.write(in_memory.getvalue())
            self._file.write(rows)
        self._labels.append(c_B.cpu().numpy())

    @property
    def largest_label(self) -> int:
        return max(int(labels.max(initial=-1)) for labels in self._labels)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, d) and (N,)."""
        labels = np.concatenate(self._labels)
        dtype = np.float64 if self._dtype == torch.float64 else np.float32
        shape = (len(labels), self._dim)
        if isinstance(self._file, io.BytesIO):
            return np.frombuffer(self._file.getvalue(), dtype).reshape(shape), labels
        with _room_for_features():  # it writes what is buffered
            return np.memmap(self._file, dtype, mode="r", shape=shape), labels
