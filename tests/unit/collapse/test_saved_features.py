"""`neural-collapse statistics`: saved arrays in, a table out, one sentence for every mistake."""

import argparse

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from neural_collapse.cli.main import main
from neural_collapse.collapse.measure import measure
from neural_collapse.collapse.registry import OF_MOMENTS
from neural_collapse.collapse.saved_features import measure_files
from neural_collapse.io.errors import UserError


@pytest.fixture
def arrays():
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 30)
    weight = generator.standard_normal((4, 16))
    return {
        "features": 2 * weight[labels] + generator.standard_normal((120, 16)),
        "labels": labels,
        "classifier": weight,
        "bias": generator.standard_normal(4),
    }


@pytest.fixture
def model(arrays, tmp_path):
    np.savez(tmp_path / "model.npz", **arrays)
    return tmp_path / "model.npz"


def run(*options):
    return main(["statistics", *map(str, options)])


def whole(model, *more):
    names = ("features", "labels", "classifier")
    return run(*(part for name in names for part in (f"--{name}", model)), *more)


def test_the_table_is_what_the_library_says(model, arrays, tmp_path, capsys):
    assert whole(model, "--bias", model, "--output", tmp_path / "t.parquet") == 0
    table = pd.read_parquet(tmp_path / "t.parquet").set_index("statistic")
    expected = measure(*arrays.values())
    assert table.value.to_dict() == expected
    of_balanced = {name for name, entry in OF_MOMENTS.items() if not entry.unbalanced}
    assert set(expected) == of_balanced - {"vci"} and (table["what it is"] != "").all()
    printed = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    for name, value in expected.items():
        assert float(printed[name]) == pytest.approx(value, rel=1e-3)


WRITERS = {
    ".npy": lambda array, path: np.save(path, array),
    ".npz": lambda array, path: np.savez(path, anything=array),
    ".pt": lambda array, path: torch.save({"labels": torch.as_tensor(array), "epoch": 3}, path),
    ".safetensors": lambda array, path: save_file({"weight": torch.as_tensor(array)}, path),
    ".csv": lambda array, path: pd.DataFrame(array).to_csv(path),
    ".CSV": lambda array, path: np.savetxt(path, array, delimiter=",", fmt="%.17g"),  # no header
    ".parquet": lambda array, path: pd.DataFrame(array).rename(columns=str).to_parquet(path),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_statistics_of_a_file_an_array_are_those_of_one_file(
    ending, arrays, model, tmp_path, capsys
):
    whole(model)
    expected = capsys.readouterr().out
    options = []
    for name in ("features", "labels", "classifier"):
        path = tmp_path / f"{name}{ending}"
        WRITERS[ending](arrays[name], path)
        options += [f"--{name}", path]
    assert run(*options) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64", "float32"])
def test_without_a_classifier_labels_may_have_any_dtype(dtype, arrays, tmp_path, capsys):
    features, labels = tmp_path / "h.npy", tmp_path / "c.npy"
    np.save(features, arrays["features"])
    np.save(labels, arrays["labels"].astype(dtype))
    found = measure_files(features, labels)
    assert found == measure(arrays["features"], arrays["labels"])
    if dtype == "float32":
        np.save(labels, np.full(len(arrays["labels"]), np.nan))
        assert run("--features", features, "--labels", labels) == 2
        assert "float64 with fractions or NaN, not integers" in capsys.readouterr().err


def test_a_column_of_lists_and_no_classifier(arrays, tmp_path, capsys):
    rows = {"features": list(arrays["features"]), "labels": arrays["labels"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "m.parquet")
    files = [tmp_path / "m.parquet", tmp_path / "t.csv"]
    names = ("features", "labels", "test-features", "test-labels")
    assert run(*(part for n in names for part in (f"--{n}", files[0])), "--output", files[1]) == 0
    found = pd.read_csv(files[1]).query("split == 'test'").set_index("statistic").value
    expected = measure(arrays["features"], arrays["labels"])
    assert found.to_dict() == pytest.approx(expected.to_dict())
    assert "one row per class" in capsys.readouterr().out
    rows["features"] = [row[:2] for row in rows["features"]]
    pd.DataFrame(rows).to_parquet(files[0])
    assert run(*(part for n in names for part in (f"--{n}", files[0]))) == 0
    assert capsys.readouterr().err.count("4 classes in 2 dimensions") == 1  # of both splits
    rows["features"][3] = [1.0]
    pd.DataFrame(rows).to_parquet(files[0])
    assert run("--features", files[0], "--labels", files[0]) == 2
    assert "m.parquet: the rows of 'features' differ in length" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".csv"])
def test_arrays_of_one_file_are_found_by_their_names(ending, arrays, model, tmp_path, capsys):
    whole(model)
    expected = capsys.readouterr().out
    path = tmp_path / f"m{ending}"
    if ending == ".csv":  # columns beside the features'
        pd.DataFrame(arrays["features"]).assign(labels=arrays["labels"]).to_csv(path)
    else:
        tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
        (torch.save if ending == ".pt" else save_file)(tensors, path)
    classifier = model if ending == ".csv" else path
    assert run("--features", path, "--labels", path, "--classifier", classifier) == 0
    assert capsys.readouterr().out == expected


def test_a_test_set_is_measured_with_the_train_sets_centres(arrays, tmp_path):
    # Centres of the test features themselves would agree with the network nowhere else.
    shifted = arrays["features"] + 5 * np.roll(arrays["classifier"], 1, axis=0)[arrays["labels"]]
    np.savez(tmp_path / "m.npz", **arrays, test_features=shifted, test_labels=arrays["labels"])
    model, table = tmp_path / "m.npz", tmp_path / "t.csv"
    whole(model, "--bias", model, "--test-features", model, "--test-labels", model,
          "--output", table)  # fmt: skip
    found = pd.read_csv(table).query("split == 'test'").set_index("statistic").value
    means = np.stack([arrays["features"][arrays["labels"] == c].mean(axis=0) for c in range(4)])
    expected = measure(
        shifted, arrays["labels"], arrays["classifier"], arrays["bias"], train_means=means
    )
    assert found["ncc_accuracy"] == pytest.approx(expected["ncc_accuracy"])
    assert found["ncc_accuracy"] != measure(*arrays.values())["ncc_accuracy"]


def test_a_test_set_may_lack_a_class(arrays, tmp_path):
    kept = arrays["labels"] != 1
    features, labels = arrays["features"][kept], arrays["labels"][kept]
    np.savez(tmp_path / "m.npz", **arrays, test_features=features, test_labels=labels)
    model, table = tmp_path / "m.npz", tmp_path / "t.csv"
    whole(model, "--bias", model, "--test-features", model, "--test-labels", model,
          "--output", table)  # fmt: skip
    found = pd.read_csv(table).query("split == 'test'").set_index("statistic").value
    assert 0 <= found["nc4_ncc_mismatch"] <= 1 and np.isnan(found["cdnv"])


def test_labels_that_are_identifiers_are_one_sentence(arrays, tmp_path, capsys):
    path = tmp_path / "m.npz"
    np.savez(path, features=arrays["features"], labels=arrays["labels"] * 10**12)
    assert run("--features", path, "--labels", path) == 2
    assert "number them from 0: numpy.unique" in capsys.readouterr().err
    with pytest.raises(UserError, match="number them from 0"):
        measure(arrays["features"], arrays["labels"] * 10**12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": np.zeros(120, int)}, "train split has no example of class 1"),
        ({"labels": np.arange(7)}, "labels of shape (7,)"),
        ({"classifier": np.zeros(4)}, "m.npz: weight has shape (4,); (C, d) is needed"),
        ({"features": np.array(["a"] * 120)}, "m.npz: The features are <U1, not numbers"),
        ({"bias": np.zeros(9)}, "bias has shape (9,)"),
    ],
    ids=["one class", "too few labels", "flat classifier", "text", "long bias"],
)
def test_wrong_arrays_are_one_sentence(change, sentence, arrays, tmp_path, capsys):
    np.savez(tmp_path / "m.npz", **arrays | change)
    model = tmp_path / "m.npz"
    assert whole(model, "--bias", model) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and len(said.splitlines()) == 1 and sentence in said


def test_wrong_files_are_one_sentence(model, tmp_path, capsys):
    (tmp_path / "text.npy").write_text("no numbers")
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    torch.save({"features": torch.ones(3), "run": argparse.Namespace()}, tmp_path / "run.pt")
    torch.save({}, tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("no tensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "words.csv").write_text("a,b\nx,y\n")
    (tmp_path / "matrix.mat").write_text("")
    for file, words in [
        ("nowhere.npy", "cannot be read"),
        ("text.npy", "corrupt"),
        ("two.npz", "contains a, b; name the array of the features 'features'"),
        ("objects.npy", "of plain numbers"),
        ("run.pt", "contains Python objects besides tensors"),
        ("empty.pt", "contains no array"),
        ("text.pt", "is corrupt"),
        ("text.safetensors", "is corrupt"),
        ("text.parquet", "is corrupt"),
        ("words.csv", "the column 'a' of the features contains no numbers"),
        ("matrix.mat", "its suffix is not one of .npy, .npz"),
    ]:
        assert run("--features", tmp_path / file, "--labels", model, "--classifier", model) == 2
        said = capsys.readouterr().err
        assert words in said and file in said and len(said.splitlines()) == 1
    assert whole(model, "--output", tmp_path / "t.xlsx") == 2
    assert "must end in .parquet or .csv" in capsys.readouterr().err
    assert whole(model, "--output", "/proc/t.csv") == 2
    assert "/proc/t.csv: cannot be written" in capsys.readouterr().err
    narrow = tmp_path / "narrow.npy"
    np.save(narrow, np.ones((120, 5)))
    assert whole(model, "--test-features", narrow, "--test-labels", model) == 2
    said = capsys.readouterr().err
    assert "narrow.npy" in said and "features of the test split have 5 columns" in said
    assert whole(model, "--test-features", model) == 2
    assert "or neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "change", "said"),
    [
        ("train", {"labels": np.zeros(120, int)}, "has no example of class"),
        ("test", {"test_labels": np.full(120, 9)}, "run from 9 to 9"),
    ],
)
def test_what_is_wrong_names_its_set(split, change, said, arrays, tmp_path, capsys):
    arrays |= {"test_features": arrays["features"], "test_labels": arrays["labels"]} | change
    np.savez(tmp_path / "m.npz", **arrays)
    model = tmp_path / "m.npz"
    assert whole(model, "--test-features", model, "--test-labels", model) == 2
    error = capsys.readouterr().err
    assert f"{split} split" in error and said in error
