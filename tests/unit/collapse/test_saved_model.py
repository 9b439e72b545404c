"""`neural-collapse measure`: a model and images from files in, a table out."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import neural_collapse as nc
from neural_collapse.cli.main import main

MODEL = """
from torch import nn
def small(num_classes):
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(5, num_classes))
class Viewer(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x).view(len(x), -1))
def viewer():
    return Viewer(nn.Conv2d(3, 5, 3), nn.Linear(180, 3))
def broken():
    raise ValueError("no such width")
def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model's code, weights in three forms, and one dataset as .npz and as a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_to_measure.py").write_text(MODEL)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    )
    state = network.state_dict()
    save_file(state, "w.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, "w.pt")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("test", 12)):
        labels = np.arange(count) // (count // 3)
        images = rng.integers(0, 128, (count, 8, 8, 3)) + 40 * labels[:, None, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
        for i, (image, label) in enumerate(zip(images.astype(np.uint8), labels, strict=True)):
            path = tmp_path / "images" / split / f"class{label}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    np.savez("data.npz", **arrays)
    return network, arrays


NORM = ["--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]


def run(*options):
    return main(["measure", *options])


def given(**changes):
    options = {"model": "nets_to_measure:small", "weights": "w.safetensors", "data": "data.npz"}
    return [part for key, value in (options | changes).items() for part in (f"--{key}", value)]


@pytest.mark.parametrize(
    "changes", [{}, {"weights": "w.pt"}, {"data": "images"}], ids=["npz", "torch file", "folder"]
)
def test_the_table_is_that_of_features_taken_by_hand(folder, changes, capsys):
    network, arrays = folder
    assert run(*given(**changes), *NORM, "--output", "t.csv", "--batch-size", "7") == 0
    table = pd.read_csv("t.csv").set_index(["split", "statistic"]).value
    means = None
    for split in ("train", "test"):
        x = torch.from_numpy(arrays[f"{split}_images"].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.2
        with torch.no_grad():
            h = network[:-1](x.float())
        layer = network[-1]
        labels = arrays[f"{split}_labels"]
        expected = nc.measure(h, labels, layer.weight, layer.bias, train_means=means)
        means = expected.moments.class_means if means is None else means
        assert table[split].to_dict() == pytest.approx(expected.to_dict(), rel=1e-3)
    said = capsys.readouterr()
    assert "normalised by mean [0.5, 0.5, 0.5]" in said.err and "train  image 30/30" in said.err
    assert "nc1_within_class_variability" in said.out


def test_a_model_may_flatten_by_view(folder, capsys):
    assert run("--model", "nets_to_measure:viewer", "--data", "data.npz", *NORM) == 0
    assert "nc1_within_class_variability" in capsys.readouterr().out


def test_torchvisions_models_have_imagenets_normalisation(folder, capsys):
    assert run(*given(model="torchvision:squeezenet1_1")[:2], "--data", "data.npz") == 2
    said = capsys.readouterr().err
    assert "mean [0.485, 0.456, 0.406]" in said and "has no nn.Linear; name the layer" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (given(model="small"), "pass torchvision:NAME or MODULE:FUNCTION"),
        (given(model="torchvision:resnet17"), "torchvision has no model 'resnet17'"),
        (given(model="nets_to_measure:broken"), "ValueError: no such width"),
        (given(model="nets_to_measure:number"), "it returned int; an nn.Module"),
        (given(model="nowhere_at_all:x"), "No module named 'nowhere_at_all'"),
        (given(weights="data.npz"), "its suffix is not one of .pt, .pth"),
        (given(weights="absent.pt"), "absent.pt: cannot be read"),
        (given(data="w.pt"), "neither a folder of images nor a .npz file"),
        (given(), "Pass --mean and --std"),
        ([*given(), *NORM, "--crop-px", "4"], "are for folders of images"),
        ([*given(), *NORM, "--layer", "fc"], "has no layer 'fc'"),
        ([*given(), "--mean", "0.5", "--std", "0.2"], "mean and std have 1 and 1 numbers"),
        ([*given(), *NORM, "--output", "t.txt"], "must end in .parquet or .csv"),
    ],
)
def test_mistakes_are_one_sentence(folder, options, sentence, capsys):
    assert run(*options) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("pixels")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and sentence in errors[0]


def test_weights_of_another_shape_are_named(folder, capsys):
    save_file({"0.weight": torch.zeros(5, 3, 3, 3)}, "w.safetensors")
    assert run(*given(), *NORM) == 2
    assert "w.safetensors: does not fit Sequential: Missing key" in capsys.readouterr().err
