"""User-defined networks, wrapped to provide ``features`` and ``classifier``."""

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..io.errors import UserError
from .convolutions import make_safe
from .network import Network
from .randomness import isolated_randomness
from .recipes import CustomRecipe


class CustomNetwork(Network):
    """The network that a recipe's function returns, split before its last ``nn.Linear``.

    The network must return the output of that layer itself as logits (B, K). The layer is found by
    one pass over two images in eval mode.

    Raises:
        UserError: the function fails or returns no such network, or the network uses that layer in
            a way that prevents separating it.
    """

    def __init__(
        self, recipe: CustomRecipe, channels: int, num_classes: int, image_size_px: int
    ) -> None:
        super().__init__()
        name = f"the network of {recipe.function!r}"
        numbers = {
            "$channels": channels,
            "$num_classes": num_classes,
            "$image_size_px": image_size_px,
        }
        network = _call(recipe, numbers)
        # Two unlike images without any randomness; not zeros, which a network may divide by.
        shape = (2, channels, image_size_px, image_size_px)
        example = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
        last, logits = _last_layer(network, example, name)
        trains = _works_in_training(network, last, example, name)
        self.body = make_safe(_without(network, last))
        self.classifier = last
        self.eval()
        try:
            with torch.no_grad():
                h = self.body(example)
                same = torch.allclose(last(h), logits, equal_nan=True)
        except Exception:
            same = False
        if not same:
            raise UserError(
                f"the last linear layer of {name} cannot be separated from the rest (is it called "
                "twice, or are its weights used elsewhere, or is the network random in eval "
                "mode?); call a layer of its own as the last step of forward"
            )
        with torch.no_grad():
            computed = linear(h, last.weight, last.bias)
        if not torch.allclose(computed, logits, equal_nan=True):
            raise UserError(
                f"the last layer of {name}, a {type(last).__name__}, does not compute W h + b, of "
                "which the classifier's statistics are; end the network in a plain nn.Linear"
            )
        if last.out_features != num_classes:
            raise UserError(
                f"{name} has {last.out_features} outputs, but the data has {num_classes} classes; "
                "let its arguments say so, for example num_classes: $num_classes"
            )
        if not self._takes_channels_last(example, trains):
            self.memory_format = torch.contiguous_format

    def features(self, x: Tensor) -> Tensor:
        """(B, C, P, P) -> (B, d): the input of the network's own last linear layer."""
        if self.memory_format == torch.contiguous_format:
            # `contiguous` would leave the strides of one channel as they are.
            x = x.clone(memory_format=torch.contiguous_format)
        return self.body(x)

    def _takes_channels_last(self, example: Tensor, trains: bool) -> bool:
        """Whether it works in that layout, in which `view` cannot flatten feature maps."""
        example = example.clone(memory_format=torch.channels_last)
        try:
            self.to(memory_format=torch.channels_last)
            with torch.no_grad(), isolated_randomness(0), _buffers_restored(self):
                self.eval()(example)
                if trains:
                    self.train()(example)
        except Exception:
            return False
        finally:
            self.train().to(memory_format=torch.contiguous_format)
        return True


@contextmanager
def _buffers_restored(network: nn.Module) -> Iterator[None]:
    """Undo what a pass in train mode does to buffers, as to running means and variances."""
    held = [(module._buffers, dict(module._buffers)) for module in network.modules()]
    values = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffers, before in held:  # which it may have replaced
            buffers.update(before)
        for buffer, value in values:
            buffer.copy_(value)


def _call(recipe: CustomRecipe, numbers: dict[str, int]) -> nn.Module:
    """Call the recipe's function; numbers: values of the placeholders."""
    function = imported_function(recipe.function)
    arguments = _substitute(recipe.arguments, numbers)
    try:
        network = function(**arguments)
    except Exception as error:
        raise UserError(
            f"function {recipe.function!r} called with {arguments} fails with "
            f"{_brief(error)}; correct 'arguments' or the function"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"function {recipe.function!r} returns a {type(network).__name__}; let it return a "
            "torch.nn.Module"
        )
    return network


def imported_function(name: str) -> Callable:
    """The function of the name "module:function"."""
    module_name, _, path = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if not missing:
            reason = f"fails with {_brief(error)}; fix the module"
        elif f"{module_name}.".startswith(f"{missing}."):
            reason = "cannot be found; put its folder on PYTHONPATH or install its package"
        else:
            reason = f"needs the module {missing!r}; install it"
        raise UserError(f"function {name!r}: the module {module_name!r} {reason}") from error
    try:
        function = attrgetter(path)(module)
    except AttributeError as error:
        raise UserError(f"function {name!r}: {error}; correct its name after the colon") from error
    if not callable(function):
        raise UserError(
            f"function {name!r} is a {type(function).__name__}, not a function; name a function "
            "that returns the network"
        )
    return function


def _last_layer(network: nn.Module, example: Tensor, name: str) -> tuple[nn.Linear, Tensor]:
    """The linear layer whose output the network's logits of `example` are, and these logits."""
    outputs: dict[nn.Linear, Tensor] = {}

    def remember(layer: nn.Linear, _: Any, output: Tensor) -> None:
        outputs[layer] = output

    hooks = [
        module.register_forward_hook(remember)
        for module in network.modules()
        if isinstance(module, nn.Linear)
    ]
    network.eval()
    try:
        with torch.no_grad():
            logits = network(example)
    except Exception as error:
        raise UserError(
            f"{name} fails on images of shape {tuple(example.shape)}: "
            f"{_brief(error)}; adapt its arguments or the image size"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{name} returns {found} and not one row of logits per image; let its forward "
            "return a tensor of shape (images, classes)"
        )
    for layer, output in outputs.items():
        if output is logits:
            return layer, logits
    raise UserError(
        f"{name} does not end in a linear layer, from which the classifier and the features are "
        "read; let its forward return the output of an nn.Linear itself, without softmax"
    )


def _works_in_training(network: nn.Module, last: nn.Linear, example: Tensor, name: str) -> bool:
    """Whether a pass in train mode works; raises UserError if it does not return the output of the
    last layer."""
    outputs: list[Any] = []
    hook = last.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        with torch.no_grad(), isolated_randomness(0), _buffers_restored(network):
            logits = network.train()(example)
    except Exception:
        return False  # two images may be too few, or a layer work on GPUs alone
    finally:
        hook.remove()
    if not any(output is logits for output in outputs):
        raise UserError(
            f"{name} returns something else in train mode than in eval mode; let its forward "
            "return the logits alone (for torchvision's networks: aux_logits: false)"
        )
    return True


def _brief(error: Exception) -> str:
    """Type and first line of an exception; the error's cause has all of it."""
    first, *_ = str(error).splitlines() or ["(no message)"]
    return f"{type(error).__name__}: {first}"


def _substitute(value: Any, numbers: dict[str, int]) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, numbers) for item in value]
    return numbers.get(value, value) if isinstance(value, str) else value


def _without(network: nn.Module, layer: nn.Module) -> nn.Module:
    """``network`` with an identity in every place of ``layer`` (one module may have two names)."""
    if network is layer:
        return nn.Identity()
    # named_children and modules() would name a module once only, however often it is held.
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if module is layer:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, nn.Identity())
    return network
