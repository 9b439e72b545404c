"""Published networks by name, and resolution of a config entry to a recipe.

This module does not import torch: the Snakefile imports it while it is parsed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from ..io.errors import UserError
from ..io.text import did_you_mean
from .recipes import (
    FAMILIES,
    CustomRecipe,
    DenseNetRecipe,
    MLPRecipe,
    NetworkRecipe,
    ResNetRecipe,
    VGGRecipe,
)


def _vgg(*convolutions: int) -> VGGRecipe:
    return VGGRecipe(family="vgg", convolutions=convolutions)


def _resnet(block: str, *blocks: int) -> ResNetRecipe:
    return ResNetRecipe(family="resnet", block=block, blocks=blocks)


def _densenet_bc(growth: int, *blocks: int) -> DenseNetRecipe:
    return DenseNetRecipe(
        family="densenet",
        blocks=blocks,
        growth=growth,
        bottleneck=True,
        compression=0.5,
        initial_width=2 * growth,
    )


NAMED: Mapping[str, NetworkRecipe] = MappingProxyType(
    {
        # Simonyan and Zisserman 2015, table 1: columns A, B, D, E
        "vgg11": _vgg(1, 1, 2, 2, 2),
        "vgg13": _vgg(2, 2, 2, 2, 2),
        "vgg16": _vgg(2, 2, 3, 3, 3),
        "vgg19": _vgg(2, 2, 4, 4, 4),
        # He et al. 2016, table 1
        "resnet18": _resnet("basic", 2, 2, 2, 2),
        "resnet34": _resnet("basic", 3, 4, 6, 3),
        "resnet50": _resnet("bottleneck", 3, 4, 6, 3),
        "resnet101": _resnet("bottleneck", 3, 4, 23, 3),
        "resnet152": _resnet("bottleneck", 3, 8, 36, 3),
        # Huang et al. 2017: table 2 (40 and 250, small images) and table 1 (121 and 201, ImageNet)
        "densenet40": DenseNetRecipe(family="densenet", blocks=(12, 12, 12), growth=12),
        "densenet121": _densenet_bc(32, 6, 12, 24, 16),
        "densenet201": _densenet_bc(32, 6, 12, 48, 32),
        "densenet250": _densenet_bc(24, 41, 41, 41),
    }
)
"""Published networks, in their form for small images; the form for ImageNet adds
``stem: imagenet`` (ResNet, DenseNet) or ``pooled_size_px: 7`` (VGG)."""

_DISPLAY = {"vgg": "VGG", "resnet": "ResNet", "densenet": "DenseNet", "mlp": "MLP"}

# Keys that adapt a network to an image size or a machine; they do not change its name.
_FITTINGS = frozenset({"stem", "pooled_size_px", "memory_efficient"})

# Sizes that leave a published network its name; a changed one is appended to it.
_SIZES = {
    "width": "width",
    "hidden_width": "hidden",
    "growth": "growth",
    "initial_width": "initial width",
}


def resolve_network(spec: Mapping[str, Any]) -> NetworkRecipe:
    """The network recipe of a config entry.

    Args:
        spec: ``{"name": "resnet18", "width": 8}``, a published network in which the other keys
            replace its own values; or ``{"family": "resnet", ...}`` with all required keys of the
            family.

    Returns:
        A validated recipe, the input of `build_network`.

    Raises:
        UserError: an unknown name, family or key (the message suggests valid ones), a missing
            key, or an invalid value.
    """
    if not isinstance(spec, Mapping):
        raise UserError(
            f"the network is {spec!r}; write a mapping, for example {{name: resnet18}} or "
            "{family: resnet, block: basic, blocks: [1, 1, 1, 1]}"
        )
    given = dict(spec)
    if "name" in given:
        title = given.pop("name")
        base = _chosen("network", title, NAMED)
        if given.get("family", base.family) != base.family:
            raise UserError(
                f"{title} is of the family {base.family!r}, not {given['family']!r}; "
                "remove the key 'family' or choose another name"
            )
        given = base.model_dump() | given
    elif "family" in given:
        title = f"the family {given['family']!r}"
    else:
        raise UserError(
            f"the network has neither 'name' nor 'family'; add a name "
            f"({', '.join(NAMED)}) or a family ({', '.join(FAMILIES)})"
        )
    model = _chosen("family", given["family"], FAMILIES)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError(_sentence(error, title, given, list(model.model_fields))) from error


def label(recipe: NetworkRecipe) -> str:
    """A short name for titles: ``ResNet18``, ``ResNet18 width 8`` or ``ResNet (1,1,1,1) width 8``.

    ``stem``, ``pooled_size_px`` and ``memory_efficient`` do not change the name; all other keys do.
    """
    if recipe.classifier == "etf":
        return f"{label(recipe.model_copy(update={'classifier': 'learned'}))}, fixed ETF classifier"
    free = _FITTINGS | _SIZES.keys()
    for name, published in NAMED.items():
        if recipe.model_dump(exclude=free) == published.model_dump(exclude=free):
            changed = [
                f"{word} {getattr(recipe, key)}"
                for key, word in _SIZES.items()
                if getattr(recipe, key, None) != getattr(published, key, None)
            ]
            return " ".join([name.replace(recipe.family, _DISPLAY[recipe.family]), *changed])
    match recipe:
        case VGGRecipe():
            counts, rest = recipe.convolutions, f"width {recipe.width} hidden {recipe.hidden_width}"
        case ResNetRecipe():
            counts, rest = recipe.blocks, f"width {recipe.width}"
            if recipe.block == "bottleneck":
                rest = f"bottleneck {rest}"
        case DenseNetRecipe():
            counts, rest = recipe.blocks, f"growth {recipe.growth}"
            if recipe.bottleneck:
                rest = f"bottleneck {rest}"
            if recipe.compression != 1:
                rest += f" compression {recipe.compression:g}"
            if recipe.initial_width != DenseNetRecipe.model_fields["initial_width"].default:
                rest += f" initial width {recipe.initial_width}"
        case MLPRecipe():
            counts, rest = (recipe.depth,), f"width {recipe.width}"
            if not recipe.batch_norm:
                rest += " without batch norm"
            if recipe.activation != "relu":
                rest += f" {recipe.activation}"
        case CustomRecipe():
            return recipe.function
    return f"{_DISPLAY[recipe.family]} ({','.join(map(str, counts))}) {rest}"


def _chosen(kind: str, name: object, known: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in known:
        raise UserError(f"unknown {kind} {name!r}; {did_you_mean(str(name).lower(), known)}")
    return known[name]


def _sentence(
    error: ValidationError, title: str, given: Mapping[str, Any], fields: list[str]
) -> str:
    """Pydantic's first error as one clause with the key and what to write."""
    # An unknown key comes first: a misspelt one also makes the right one "missing".
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    key = str(problem["loc"][0])
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r} for {title}; {did_you_mean(key, fields)}"
        case "missing":
            return f"{title} needs the key {key!r}; add it"
        case "string_pattern_mismatch":
            message = 'write "module:function", for example "my_networks:small_mlp"'
        case "tuple_type":
            message = "write a list of whole numbers, for example [1, 1, 1, 1]"
        case _:
            message = problem["msg"].removeprefix("Value error, ")
    return f"{key!r} is {given.get(key)!r}: {message[0].lower()}{message[1:]}"
