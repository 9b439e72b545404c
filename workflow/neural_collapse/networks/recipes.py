"""Descriptions of networks, as in a config and in ``recipe.json``.

A recipe is plain data. This module must stay light (no torch): the Snakefile imports it each time
it is parsed, by every job.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

# Strict: ``width: "64"`` or ``memory_efficient: 1`` in a YAML file is an error, not a guess.
Count = Annotated[int, Field(strict=True, ge=1, le=100_000)]
Layers = Annotated[int, Field(strict=True, ge=1, le=1000)]
Flag = Annotated[bool, Field(strict=True)]
BlockCounts = Annotated[tuple[Layers, ...], Field(min_length=1, max_length=20)]
Stem = Literal["small", "imagenet"]

PLACEHOLDERS = ("$channels", "$num_classes", "$image_size_px")
"""Placeholders in a custom recipe's arguments, replaced by values of the dataset."""


class _Recipe(BaseModel):
    # Not a `Model`, whose validator of all fields pydantic does not allow in a discriminator.
    # The text beneath a field becomes its description in the config's JSON schema.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    LATER: ClassVar[frozenset[str]] = frozenset({"classifier"})
    """As in `Model`."""

    classifier: Literal["learned", "etf"] = "learned"
    """The last layer: learned, or a fixed simplex ETF with random rotation and without bias."""

    @model_serializer(mode="wrap")
    def _without_default_classifier(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Results from before this key was there stay those of the same recipe.
        values = write(self)
        return {k: v for k, v in values.items() if (k, v) != ("classifier", "learned")}


class VGGRecipe(_Recipe):
    """VGG with batch normalisation and without dropout (Simonyan and Zisserman 2015).

    Stages of convolution, batch normalisation, ReLU, each stage closed by a 2x2 max-pool; then two
    hidden linear layers, each followed by ReLU and, instead of torchvision's dropout, batch
    normalisation; then the classifier.
    """

    family: Literal["vgg"]
    """Marks this as a VGG."""
    convolutions: Annotated[tuple[Layers, ...], Field(min_length=1, max_length=5)]
    """Number of 3x3 convolutions in each stage, one to five stages; (1, 1, 2, 2, 2) is VGG11."""
    width: Count = 64
    """Channels of the first stage; the following have 2, 4, 8 and 8 times as many."""
    hidden_width: Count = 4096
    """Outputs of each of the two hidden linear layers; also the dimension of the features."""
    pooled_size_px: Count = 1
    """Height and width of the map that enters the first linear layer: 1 on small images, 7 (as in
    torchvision) on 224 px."""


class ResNetRecipe(_Recipe):
    """Residual network as in torchvision (He et al. 2016; the bottleneck is version 1.5)."""

    family: Literal["resnet"]
    """Marks this as a ResNet."""
    block: Literal["basic", "bottleneck"]
    """Residual block: two 3x3 convolutions, or 1x1, 3x3 and a 1x1 to 4 times the channels."""
    blocks: BlockCounts
    """Number of residual blocks in each stage; every stage but the first halves the image."""
    width: Count = 64
    """Channels of the first stage, doubled with every stage."""
    stem: Stem = "small"
    """First layer: "small" (3x3, stride 1, no pooling: images up to about 96 px) or "imagenet"
    (7x7, stride 2, then a max-pool of stride 2)."""


class DenseNetRecipe(_Recipe):
    """Densely connected network (Huang et al. 2017)."""

    family: Literal["densenet"]
    """Marks this as a DenseNet."""
    blocks: BlockCounts
    """Number of layers in each dense block; (12, 12, 12) without bottleneck is DenseNet40."""
    growth: Count
    """Channels that each layer adds (k in the paper)."""
    bottleneck: Flag = False
    """Whether a 1x1 convolution to 4 * growth channels precedes each 3x3 convolution ("B")."""
    compression: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    """Fraction of the channels that a transition between two blocks keeps ("C"): 1.0 or 0.5."""
    initial_width: Count = 16
    """Channels of the first convolution: 16, or 2 * growth with bottleneck and compression."""
    stem: Stem = "small"
    """First layer: "small" (3x3, stride 1, no pooling) or "imagenet" (7x7, stride 2, batch
    normalisation, ReLU, max-pool of stride 2)."""
    memory_efficient: Flag = False
    """Recompute concatenations and normalisations in the backward pass instead of storing them:
    same results, up to 8 times less memory, 15 to 50 % slower."""


class MLPRecipe(_Recipe):
    """Multilayer perceptron on the image's pixels.

    Hidden layers, each a linear layer, batch normalisation and an activation; then the classifier.
    """

    family: Literal["mlp"]
    """Marks this as a multilayer perceptron."""
    depth: Layers
    """Number of hidden layers, without the classifier."""
    width: Count
    """Outputs of each hidden layer; also the dimension of the features."""
    batch_norm: Flag = True
    """Whether batch normalisation follows each hidden linear layer."""
    activation: Literal["relu", "identity"] = "relu"
    """Activation of each hidden layer; with "identity" the network is linear in eval mode."""


def _strings(value: JsonValue) -> Iterator[str]:
    """Every string inside a JSON value, without the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


class CustomRecipe(_Recipe):
    """Any function that returns a network ending in a linear layer."""

    family: Literal["custom"]
    """Marks this as a network from your own code."""
    function: Annotated[str, Field(pattern=r"^[^\W\d][\w.]*:[^\W\d][\w.]*$")]
    """The function, as "module:function", for example "torchvision.models:mobilenet_v2"."""
    arguments: dict[str, JsonValue] = {}
    """Keyword arguments of the function. $channels, $num_classes and $image_size_px are
    replaced by values of the dataset."""

    @field_validator("function")
    @classmethod
    def _module(cls, function: str) -> str:
        if function.partition(":")[0].endswith(".py"):
            raise ValueError("write the module's name without .py")
        return function

    @field_validator("arguments")
    @classmethod
    def _known_placeholders(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for word in _strings(arguments):
            if word.startswith("$") and word not in PLACEHOLDERS:
                raise ValueError(f"unknown placeholder {word}; known: {', '.join(PLACEHOLDERS)}")
        return arguments


NetworkRecipe = Annotated[
    VGGRecipe | ResNetRecipe | DenseNetRecipe | MLPRecipe | CustomRecipe,
    Field(discriminator="family"),
]
"""Any of the recipes, discriminated by ``family``; for use as a type of a pydantic field."""

FAMILIES: dict[str, type[_Recipe]] = {
    "vgg": VGGRecipe,
    "resnet": ResNetRecipe,
    "densenet": DenseNetRecipe,
    "mlp": MLPRecipe,
    "custom": CustomRecipe,
}
