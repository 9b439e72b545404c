"""Statistics of features saved in array files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from ..io.errors import UserError
from ..io.files import atomic_path, require_writable
from .arrays import classes_of, real_array
from .measure import compute_moments
from .registry import REGISTRY
from .result import CollapseResult

# Names of an array in a file that contains several.
NAMES = {
    "features": ("features",),
    "labels": ("labels",),
    "classifier": ("classifier", "weight"),
    "bias": ("bias",),
    "test features": ("test_features", "features"),
    "test labels": ("test_labels", "labels"),
}


def read_array(path: Path, what: str) -> np.ndarray:
    """Read one array of numbers: the only one of the file, or that named as in `NAMES[what]`; of a
    table, one row per example. No code in the file is executed."""
    array = _chosen(_read(path, _READERS), path, what)
    try:
        array = real_array(array, what)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if isinstance(array, np.ndarray):
        return array
    return (array.double() if array.is_floating_point() else array).cpu().numpy()


def read_tensor_file(path: Path) -> Any:
    """The content of a .safetensors or torch file; no code in the file is executed."""
    return _read(path, _TENSOR_READERS)


def _read(path: Path, readers: Mapping[str, Callable[[Path], Any]]) -> Any:
    kind = path.suffix.lower()
    if kind not in readers:
        raise UserError(f"{path}: its suffix is not one of {', '.join(readers)}")
    try:
        return readers[kind](path)
    except ImportError as error:
        raise UserError(f"{path}: reading it needs the package {error.name}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'it is corrupt'}") from None
    except Exception as error:  # each format's library has errors of its own
        reason = "is corrupt"
        if readers[kind] is _torch and "GLOBAL" in str(error):
            reason = (
                "contains Python objects besides tensors (save only the tensors or the state dict)"
            )
        raise UserError(f"{path}: {reason}, or is not a {kind} file of plain numbers") from None


def _numpy(path: Path) -> Any:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        return dict(loaded)


def _torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _csv(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    if pd.to_numeric(pd.Series(table.columns), errors="coerce").notna().all():
        table = pd.read_csv(path, header=None)  # its first line is numbers, not names
    return table


_TENSOR_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _torch),
    ".safetensors": load_file,
}
_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".npy", ".npz"), _numpy),
    **_TENSOR_READERS,
    ".csv": _csv,
    ".parquet": pd.read_parquet,
}


def _chosen(found: Any, path: Path, what: str) -> Any:
    """The array with one of its names, or the only one."""
    if isinstance(found, pd.DataFrame):
        return _columns(found, path, what)
    if not isinstance(found, Mapping):
        return found
    arrays = {name: value for name, value in found.items() if hasattr(value, "shape")}
    names = [name for name in NAMES[what] if name in arrays][:1] or list(arrays)
    if len(names) != 1:
        listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(
            f"{path}: contains {listed or 'no array'}; name the array of the {what} "
            f"{NAMES[what][0]!r}"
        )
    return arrays[names[0]]


def _columns(table: pd.DataFrame, path: Path, what: str) -> np.ndarray:
    """The column of that name, or all feature columns; an index that pandas wrote is dropped."""
    table = table.loc[:, [not str(name).startswith("Unnamed:") for name in table.columns]]
    if "features" in what or what == "classifier":
        table = table.drop(columns=["labels", "test_labels"], errors="ignore")
        lists = [name for name in NAMES[what] if name in table and table[name].dtype == object]
        if lists:  # one column, a list per example
            try:
                return np.stack(table[lists[0]].to_numpy())
            except ValueError:
                raise UserError(f"{path}: the rows of {lists[0]!r} differ in length") from None
        text = [str(name) for name in table.columns if table[name].dtype.kind not in "fiu"]
        if text:
            raise UserError(f"{path}: the column {text[0]!r} of the {what} contains no numbers")
        return table.to_numpy()
    named = [name for name in NAMES[what] if name in table.columns]
    if not named and table.shape[1] != 1:
        raise UserError(f"{path}: has {table.shape[1]} columns; name one {NAMES[what][0]!r}")
    return table[named[0] if named else table.columns[0]].to_numpy()


def measure_files(
    features: Path,
    labels: Path,
    classifier: Path | None = None,
    bias: Path | None = None,
    test_features: Path | None = None,
    test_labels: Path | None = None,
) -> CollapseResult:
    """Every statistic of arrays in files, with the shapes of `measure`; the result's attribute
    `test` is that of the test set, whose NC4 uses the class means of the train set. Without
    a classifier there are as many classes as the largest train label + 1."""
    if (test_features is None) != (test_labels is None):
        raise UserError("Pass both --test-features and --test-labels, or neither.")
    weight = None if classifier is None else read_array(classifier, "classifier")
    offset = None if bias is None else read_array(bias, "bias")

    def measured(split: str, features: Path, labels: Path, what: str, means: Any) -> CollapseResult:
        h = read_array(features, f"{what}features")
        c = read_array(labels, f"{what}labels")
        classes = classes_of(c, weight, means)
        try:
            moments = compute_moments(
                h,
                c,
                classes,
                weight,
                offset,
                train_means=means,
                allow_empty=means is not None,
                split=split,
            )
        except UserError as error:
            raise UserError(
                f"{', '.join(map(str, filter(None, (features, classifier))))}: {error}"
            ) from None
        return CollapseResult.of(moments, split)

    result = measured("train", features, labels, "", None)
    if test_features is not None and test_labels is not None:
        means = result.moments.class_means
        result.test = measured("test", test_features, test_labels, "test ", means)
    return result


def check_table_path(path: Path) -> None:
    """Raise UserError if `write_result` cannot write to the path."""
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"{path}: the table's file must end in .parquet or .csv")
    require_writable(path)


def write_result(result: CollapseResult, path: Path) -> None:
    """Write split, statistic, value and description as Parquet or CSV, by the file's suffix."""
    splits = {"train": result} | ({} if result.test is None else {"test": result.test})
    rows = [
        {"split": split, "statistic": name, "value": value, "what it is": REGISTRY[name].what}
        for split, of_split in splits.items()
        for name, value in of_split.items()
    ]
    table = pd.DataFrame(rows)
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False, lineterminator="\n")
        else:
            table.to_parquet(temporary, index=False)
