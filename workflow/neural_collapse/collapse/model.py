"""Neural collapse of any PyTorch model: a hook on a layer's input, and measurement of loaders.

Shape suffixes: B examples of a batch, d (D) feature dimension.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..io.errors import UserError
from .arrays import flat_examples
from .features import DEFAULT_MEMORY_LIMIT_BYTES, measurement_mode
from .measure import measure
from .result import CollapseResult


def watch(model: nn.Module, layer: str | nn.Module | None = None) -> LayerInput:
    """The input of one layer at every forward pass, inside a `with` block.

    Args:
        model: any module; DistributedDataParallel and compiled ones are looked into.
        layer: its name in `model.named_modules()`, or the module itself; by default the last
            nn.Linear.

    Raises:
        UserError: no such layer.

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
    """What `watch` gives.

    Attributes:
        name: the layer's name.
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
            raise UserError(f"The layer {self.name!r} is called without a tensor to watch.")
        self._value = inputs[0].detach()

    @property
    def value(self) -> Tensor:
        """The layer's newest input, detached, as it came: (B, d), maps, or tokens.

        Raises:
            UserError: the model has not been run yet.
        """
        if self._value is None:
            raise UserError(f"The layer {self.name!r} has not been called; run the model first.")
        return self._value


def find_layer(model: nn.Module, layer: str | nn.Module | None = None) -> tuple[str, nn.Module]:
    """The name and module of a layer; by default the last nn.Linear."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        names = [name for name, module in modules.items() if module is layer]
        if not names:
            raise UserError(f"The layer {type(layer).__name__} is not a part of the model.")
        return names[0], layer
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if layer is None:
        if not linear:
            raise UserError(
                f"{type(model).__name__} has no nn.Linear; name the layer whose input is to be "
                "measured: layer=..."
            )
        return linear[-1], modules[linear[-1]]
    if layer not in modules:
        known = ", ".join((linear or list(modules))[-5:])
        raise UserError(f"{type(model).__name__} has no layer {layer!r}; it has {known}, ...")
    return layer, modules[layer]


def last_layer_of(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """The weight (C, d) and bias (C,) of a linear layer, dequantised; None, None of others."""
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
    """Neural collapse of a model on a train set, and on a test set by the train set's means.

    The model runs once over each loader, in eval mode and true float32, and is left as it was; so
    are torch's random numbers, so that a training goes on as if nothing had been measured.
    The features are kept in float32, since both passes of the statistics must see the same ones.

    Args:
        model: any module.
        train_loader: yields (inputs, labels), or dicts; `test_loader` likewise.
        layer: whose input is measured, see `watch`; or a list of names.
        device: where the model runs; by default where its parameters are.
        inputs_key: of dicts, what the model is called with; by default all but the labels, named.
        labels_key: of dicts, the labels.
        num_classes: C; by default the outputs of the last nn.Linear, else the largest label + 1.
        scatter: as in `measure`; `pool` and `ignore_index` likewise.
        memory_limit_bytes: features larger than this go to a temporary file.

    Returns:
        The train set's `CollapseResult`, with the test set's as its `test`, or a dict of them by
        layer. What needs a classifier is there where the layer is an nn.Linear with C outputs.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> batches = [(torch.randn(8, 4), torch.arange(8) % 2) for _ in range(3)]
    >>> measure_model(model, batches).moments.num_examples
    24
    """
    layers = list(layer) if isinstance(layer, (list, tuple)) else [layer]
    run = _Run(model, device, inputs_key, labels_key)
    with ExitStack() as stack:
        watched = [stack.enter_context(watch(model, one)) for one in layers]
        kept = [stack.enter_context(_Kept(memory_limit_bytes)) for _ in (*layers, *layers)]
        stack.enter_context(measurement_mode(model))
        stack.enter_context(_random_numbers_kept(train_loader, test_loader))
        run.over(train_loader, watched, kept[: len(layers)], pool)
        if test_loader is not None:
            run.over(test_loader, watched, kept[len(layers) :], pool)
        classes = _num_classes(model, num_classes, kept[0].largest_label)
        options = {"num_classes": classes, "scatter": scatter, "ignore_index": ignore_index}
        of_test = kept[len(layers) :] if test_loader is not None else [None] * len(layers)
        results = {
            one.name: _result(one.layer, train, test, options)
            for one, train, test in zip(watched, kept, of_test, strict=False)
        }
    return results if isinstance(layer, (list, tuple)) else results[watched[0].name]


@contextmanager
def _random_numbers_kept(*loaders: Any) -> Iterator[None]:
    """torch's random numbers and those of the loaders, which an iterator draws from, as before."""
    owners = [*loaders, *(getattr(loader, "sampler", None) for loader in loaders)]
    found = [getattr(owner, "generator", None) for owner in owners]
    generators = [one for one in found if isinstance(one, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _result(
    layer: nn.Module, train: _Kept, test: _Kept | None, options: dict[str, Any]
) -> CollapseResult:
    weight, bias = last_layer_of(layer)
    if weight is not None and len(weight) != options["num_classes"]:  # of a hidden layer
        weight = bias = None
    result = measure(*train.arrays(), weight, bias, **options)
    if test is not None:
        moments = result.moments
        # A class that the train set lacks has no mean to be near to.
        means = moments.class_means.masked_fill(moments.counts[:, None] == 0, torch.nan)
        result.test = measure(*test.arrays(), weight, bias, train_means=means, **options)
    return result


def _num_classes(model: nn.Module, given: int | None, largest_label: int) -> int:
    if given is not None:
        return given
    if any(isinstance(module, nn.Linear) for module in model.modules()):
        weight, _ = last_layer_of(find_layer(model)[1])
        if weight is not None:
            return len(weight)
    return largest_label + 1


class _Run:
    """A model on a device, called with the batches of a loader."""

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device | None,
        inputs_key: str | None,
        labels_key: str,
    ) -> None:
        self.model, self.inputs_key, self.labels_key = model, inputs_key, labels_key
        if device is not None:
            model.to(device)
        first = next(model.parameters(), None)
        self.device = torch.device(
            device if device is not None else "cpu" if first is None else first.device
        )

    def over(
        self,
        loader: Iterable[Any],
        watched: Sequence[LayerInput],
        kept: Sequence[_Kept],
        pool: str | None,
    ) -> None:
        batches = 0
        with torch.no_grad():
            for batch in loader:
                inputs, labels = self._split(batch)
                self._call(_to(inputs, self.device))
                for one, rows in zip(watched, kept, strict=True):
                    rows.add(*flat_examples(one.value, labels, pool))
                batches += 1
        if not batches:
            raise UserError("The loader gave no batches.")

    def _split(self, batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, Mapping):
            named = dict(batch)
            for key in filter(None, (self.labels_key, self.inputs_key)):
                if key not in named:
                    raise UserError(
                        f"The loader's batches have no {key!r} but {', '.join(map(str, named))}; "
                        "name inputs_key and labels_key."
                    )
            labels = named.pop(self.labels_key)
            return (named if self.inputs_key is None else named[self.inputs_key]), labels
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[0], batch[1]
        raise UserError(
            f"The loader gave a {type(batch).__name__}; pairs (inputs, labels) or dicts are needed."
        )

    def _call(self, inputs: Any) -> None:
        if isinstance(inputs, Mapping):
            self.model(**inputs)
        elif isinstance(inputs, (tuple, list)):
            self.model(*inputs)
        else:
            self.model(inputs)


def _to(values: Any, device: torch.device) -> Any:
    if isinstance(values, Tensor):
        return values.to(device, non_blocking=True)
    if isinstance(values, Mapping):
        return {key: _to(value, device) for key, value in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)(_to(value, device) for value in values)
    return values


class _Kept:
    """Rows of features in float32 (float64 stays), in memory or, beyond a limit, in a file."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        # To Python a limit of 0 is none.
        self._rows = tempfile.SpooledTemporaryFile(max(limit_bytes, 1), prefix="features-")  # noqa: SIM115
        self._labels: list[np.ndarray] = []
        self._wide, self._dim = False, 0

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def add(self, h_BD: Tensor, c_B: Tensor) -> None:
        if not self._labels:
            self._wide, self._dim = h_BD.dtype == torch.float64, h_BD.shape[1]
        if (dim := h_BD.shape[1]) != self._dim:
            raise UserError(
                f"The features have {dim} columns in one batch and {self._dim} in another."
            )
        rows_BD = h_BD.to("cpu", torch.float64 if self._wide else torch.float32)
        self._rows.write(np.ascontiguousarray(rows_BD.numpy()).data)
        self._labels.append(c_B.cpu().numpy())

    @property
    def largest_label(self) -> int:
        return max(int(labels.max(initial=-1)) for labels in self._labels)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        labels, dtype = np.concatenate(self._labels), np.float64 if self._wide else np.float32
        shape = (len(labels), self._dim)
        if self._rows.tell() > self._limit:
            return np.memmap(self._rows, dtype, mode="r", shape=shape), labels
        self._rows.seek(0)
        return np.frombuffer(self._rows.read(), dtype).reshape(shape), labels
