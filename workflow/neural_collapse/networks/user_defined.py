"""User-defined networks, wrapped to provide ``features`` and ``classifier``."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from ..io.errors import UserError
from .convolutions import make_safe
from .network import Network
from .recipes import CustomRecipe


class CustomNetwork(Network):
    """Any network that ends in an ``nn.Linear``, cut in two there.

    Args:
        network: maps (B, C, P, P) to logits (B, K), which must be the very output of an
            ``nn.Linear``. It is changed: an identity replaces its last linear layer.
        example: images (B, C, P, P) for one pass in eval mode, which finds that layer.
        name: what error sentences call it.

    Raises:
        UserError: the output is not a (B, K) tensor, or no linear layer makes it, or the network
            uses that layer in a way that prevents separating it.
    """

    def __init__(self, network: nn.Module, example: Tensor, name: str = "the network") -> None:
        super().__init__()
        outputs: dict[nn.Module, Tensor] = {}

        def remember(module: nn.Module, _: Any, output: Tensor) -> None:
            outputs[module] = output

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
                f"{name} returns {found} and not one row of logits an image; let its forward "
                "return a tensor of shape (images, classes)"
            )
        last = next((module for module, output in outputs.items() if output is logits), None)
        if last is None:
            raise UserError(
                f"{name} does not end in a linear layer, from which the classifier and the "
                "features are read; let its forward return the output of an nn.Linear itself, "
                "without softmax"
            )
        self.body = make_safe(_replace(network, last, nn.Identity()))
        self.classifier = last
        self._check(example, logits, name)
        self.train()

    def features(self, x: Tensor) -> Tensor:
        """(B, C, P, P) -> (B, d): the input of the network's own last linear layer."""
        return self.body(x)

    def _check(self, example: Tensor, logits: Tensor, name: str) -> None:
        self.eval()
        try:
            with torch.no_grad():
                same = torch.allclose(self(example), logits, equal_nan=True)
        except Exception:
            same = False
        if not same:
            raise UserError(
                f"the last linear layer of {name} cannot be separated from the rest (is it called "
                "twice, or are its weights used elsewhere, or is the network random in eval "
                "mode?); call a layer of its own as the last step of forward"
            )


def call_function(recipe: CustomRecipe, numbers: dict[str, int]) -> nn.Module:
    """What the recipe's function returns.

    Args:
        recipe: the function and its arguments.
        numbers: what the placeholders stand for, ``{"$num_classes": 10, ...}``.

    Raises:
        UserError: no such module or function, or the call fails or returns no ``nn.Module``.
    """
    module_name, _, path = recipe.function.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        reason = (
            "cannot be found; put its folder on PYTHONPATH or install its package"
            if f"{module_name}.".startswith(f"{missing}.")
            else f"needs the module {missing!r}, which cannot be found; install it"
        )
        raise UserError(f"function {recipe.function!r}: module {module_name!r} {reason}") from error
    except Exception as error:
        raise UserError(
            f"function {recipe.function!r}: importing {module_name!r} fails with "
            f"{_brief(error)}; fix the module"
        ) from error
    for attribute in path.split("."):
        if not hasattr(target, attribute):
            raise UserError(
                f"function {recipe.function!r}: the module {module_name!r} has no {path!r}; "
                "correct the name after the colon"
            )
        target = getattr(target, attribute)
    if not callable(target):
        raise UserError(
            f"function {recipe.function!r} is a {type(target).__name__}, not a function; name a "
            "function that returns the network"
        )
    arguments = _substitute(recipe.arguments, numbers)
    try:
        network = target(**arguments)
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


def _brief(error: Exception) -> str:
    """Kind and first line of somebody else's exception; the whole is in the error's cause."""
    first, *_ = str(error).splitlines() or ["(no message)"]
    return f"{type(error).__name__}: {first}"


def _substitute(value: Any, numbers: dict[str, int]) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, numbers) for item in value]
    return numbers.get(value, value) if isinstance(value, str) else value


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """``network`` with every mention of ``old`` made ``new`` (one module may have two names)."""
    if network is old:
        return new
    # named_children and modules() would name a module once only, however often it is held.
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, new)
    return network
