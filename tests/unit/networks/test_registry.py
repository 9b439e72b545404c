"""From config entries to recipes: what is accepted, what is said about the rest."""

import json
import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from neural_collapse.io.errors import UserError
from neural_collapse.networks.recipes import FAMILIES, NetworkRecipe
from neural_collapse.networks.registry import NAMED, label, resolve_network


def test_reading_recipes_does_not_load_torch():
    code = (
        "import sys; from neural_collapse.networks.registry import resolve_network, label;"
        "label(resolve_network({'name': 'resnet18'}));"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def _depth(recipe) -> int:
    """Layers with weights on the longest path, as the papers count them (shortcuts left out)."""
    match recipe.family:
        case "vgg":
            return sum(recipe.convolutions) + 3
        case "resnet":
            return 1 + {"basic": 2, "bottleneck": 3}[recipe.block] * sum(recipe.blocks) + 1
        case "densenet":
            layer = 2 if recipe.bottleneck else 1
            return 1 + layer * sum(recipe.blocks) + (len(recipe.blocks) - 1) + 1


@pytest.mark.parametrize("name", NAMED)
def test_number_in_a_published_name_is_its_depth(name):
    assert name == f"{NAMED[name].family}{_depth(NAMED[name])}"


@pytest.mark.parametrize("name", NAMED)
def test_recipe_through_json_is_equal(name):
    recipe = resolve_network({"name": name})
    assert recipe == NAMED[name]
    assert resolve_network(json.loads(recipe.model_dump_json())) == recipe


def test_other_keys_override_the_published_ones():
    recipe = resolve_network(
        {"name": "resnet18", "width": 8, "blocks": [1, 1, 1, 1], "stem": "imagenet"}
    )
    assert (recipe.width, recipe.blocks, recipe.stem) == (8, (1, 1, 1, 1), "imagenet")
    assert recipe.block == "basic"
    assert NAMED["resnet18"].width == 64


def test_family_alone_is_enough():
    recipe = resolve_network({"family": "densenet", "blocks": [4, 4, 4], "growth": 6})
    assert (recipe.bottleneck, recipe.compression, recipe.initial_width) == (False, 1.0, 16)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "resnet81"}, "unknown network 'resnet81'; did you mean 'resnet18'?"),
        ({"name": "ResNet18"}, "did you mean 'resnet18'?"),
        ({"name": "alexnet"}, "known: vgg11, vgg13"),
        ({"name": ["vgg11"]}, "unknown network"),
        (
            {"family": "resnets"},
            "unknown family 'resnets'; did you mean 'resnet'?",
        ),
        ({"family": ["resnet"]}, "unknown family"),
        ({"width": 3}, "neither 'name' nor 'family'"),
        ("resnet18", "write a mapping"),
        ({"name": "resnet18", "family": "vgg"}, "is of the family 'resnet', not 'vgg'"),
        (
            {"name": "resnet18", "widht": 8},
            "unknown key 'widht' for resnet18; did you mean 'width'?",
        ),
        (
            {"name": "vgg11", "stem": "small"},
            "known: classifier, family, convolutions, width",
        ),
        ({"family": "resnet", "block": "basic"}, "needs the key 'blocks'"),
        ({"family": "resnet", "block": "basic", "block_counts": [1]}, "unknown key 'block_counts'"),
        ({"name": "resnet18", "width": 0}, "'width' is 0: input should be greater than or equal"),
        ({"name": "resnet18", "width": "8"}, "'width' is '8': input should be a valid integer"),
        ({"name": "resnet18", "width": True}, "'width' is True"),
        ({"name": "resnet18", "blocks": 3}, "'blocks' is 3: write a list of whole numbers"),
        ({"name": "resnet18", "blocks": []}, "'blocks' is []"),
        ({"name": "resnet18", "blocks": [1, 0]}, "'blocks' is [1, 0]"),
        ({"name": "resnet18", "stem": "tiny"}, "'small' or 'imagenet'"),
        ({"name": "vgg11", "convolutions": [1] * 6}, "'convolutions' is"),
        ({"name": "densenet40", "compression": 1.5}, "'compression' is 1.5"),
        ({"name": "densenet40", "compression": float("nan")}, "'compression' is nan"),
        ({"name": "densenet40", "memory_efficient": 1}, "'memory_efficient' is 1"),
        ({"family": "custom", "function": "nets.mlp"}, 'write "module:function"'),
        ({"family": "custom", "function": "nets.py:mlp"}, "write the module's name without .py"),
        ({"family": "custom"}, "needs the key 'function'"),
        (
            {"family": "custom", "function": "a:b", "arguments": {"x": [{"y": "$classes"}]}},
            "unknown placeholder $classes; known: $channels",
        ),
        (
            {"family": "custom", "function": "a:b", "arguments": {"x": "$xé"}},
            "unknown placeholder $xé",
        ),
    ],
)
def test_mistakes_are_answered_in_one_sentence(spec, said):
    with pytest.raises(UserError) as error:
        resolve_network(spec)
    sentence = str(error.value)
    assert said in sentence
    assert "\n" not in sentence and "pydantic" not in sentence


def test_keys_and_quoted_words_are_no_placeholders():
    arguments = {"opts": {"$x": 1}, "text": 'say "$x"', "count": "$channels"}
    recipe = resolve_network({"family": "custom", "function": "a:b", "arguments": arguments})
    assert recipe.arguments == arguments


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"name": "resnet18"}, "ResNet18"),
        ({"name": "resnet152", "stem": "imagenet"}, "ResNet152"),
        ({"name": "vgg19", "pooled_size_px": 7}, "VGG19"),
        ({"name": "densenet250", "memory_efficient": True}, "DenseNet250"),
        ({"family": "densenet", "blocks": [12, 12, 12], "growth": 12}, "DenseNet40"),
        ({"name": "resnet18", "width": 8, "blocks": [1] * 4}, "ResNet (1,1,1,1) width 8"),
        ({"name": "resnet50", "width": 8}, "ResNet50 width 8"),
        ({"name": "vgg11", "width": 16}, "VGG11 width 16"),
        ({"name": "densenet40", "blocks": [4] * 3, "growth": 6}, "DenseNet (4,4,4) growth 6"),
        ({"name": "densenet250", "growth": 12}, "DenseNet250 growth 12"),
        (
            {"name": "densenet40", "compression": 0.5, "bottleneck": True, "initial_width": 24},
            "DenseNet (12,12,12) bottleneck growth 12 compression 0.5 initial width 24",
        ),
        (
            {"name": "vgg11", "width": 8, "hidden_width": 64, "pooled_size_px": 7},
            "VGG11 width 8 hidden 64",
        ),
        ({"name": "vgg11", "convolutions": [1] * 5}, "VGG (1,1,1,1,1) width 64 hidden 4096"),
        ({"family": "custom", "function": "nets:mlp"}, "nets:mlp"),
    ],
)
def test_label_of_each_recipe_says_what_differs(spec, expected):
    assert label(resolve_network(spec)) == expected


def test_recipes_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        NAMED["vgg11"].width = 3
    with pytest.raises(TypeError):
        NAMED["mine"] = NAMED["vgg11"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_is_described_in_the_schema(family):
    schema = FAMILIES[family].model_json_schema()
    assert all(entry.get("description") for entry in schema["properties"].values())
    assert schema["additionalProperties"] is False


def test_union_is_told_apart_by_family():
    class Row(BaseModel):
        network: NetworkRecipe

    row = Row.model_validate({"network": {"family": "vgg", "convolutions": [1, 1]}})
    assert type(row.network) is FAMILIES["vgg"]
    mapping = Row.model_json_schema()["properties"]["network"]["discriminator"]["mapping"]
    assert set(mapping) == set(FAMILIES)
