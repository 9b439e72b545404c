"""Statistics of a model of one's own, from the arrays that it was saved as."""

from __future__ import annotations

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from ..io.errors import UserError
from ..io.files import atomic_path
from ..results.tables import STATISTICS

# How an array may be called in a .npz file that holds several.
NAMES = {
    "features": ("features",),
    "labels": ("labels",),
    "classifier": ("classifier", "weight"),
    "bias": ("bias",),
    "test features": ("test_features",),
    "test labels": ("test_labels",),
}


def read_array(path: Path, what: str) -> np.ndarray:
    """The array of a .npy file, or of a .npz file that holds one alone or one called `what`."""
    array = _read_array(path, what)
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: the {what} are {array.dtype}, not numbers")
    return array


def _read_array(path: Path, what: str) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
    except OSError as error:
        reason = error.strerror or "it is no .npy or .npz file"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    except (ValueError, EOFError, OverflowError, BadZipFile):
        raise UserError(f"{path}: is damaged, or no .npy or .npz file of plain numbers") from None
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        found = [name for name in NAMES[what] if name in loaded.files] or loaded.files
        if len(found) != 1:
            raise UserError(
                f"{path}: holds {', '.join(loaded.files) or 'nothing'}; "
                f"call the array of the {what} {NAMES[what][0]!r}"
            )
        try:
            return loaded[found[0]]
        except (ValueError, OSError, EOFError, OverflowError, BadZipFile, zlib.error):
            raise UserError(f"{path}: {found[0]} is damaged, or not of plain numbers") from None


def statistics_of_files(
    features: Path,
    labels: Path,
    classifier: Path,
    bias: Path | None = None,
    test_features: Path | None = None,
    test_labels: Path | None = None,
) -> pd.DataFrame:
    """Every statistic as a table: split, statistic, value, what it is.

    Args:
        features: (N, d), the input of the last linear layer, one row an example.
        labels: (N,), classes from 0.
        classifier: (C, d), the last layer's weight.
        bias: (C,), or None where the layer has none.
        test_features: (N', d) of a test set, measured as well; NC4 uses the train set's means.
        test_labels: (N',).
    """
    from . import compute_moments, compute_statistics

    if (test_features is None) != (test_labels is None):
        raise UserError("test features and test labels belong together; give both or none")
    weight = read_array(classifier, "classifier")
    if weight.ndim != 2:
        raise UserError(f"{classifier}: the classifier's shape is {weight.shape}, not (C, d)")
    offset = None if bias is None else read_array(bias, "bias")
    train = compute_moments(
        read_array(features, "features"),
        read_array(labels, "labels"),
        len(weight),
        weight,
        offset,
        split="train",
    )
    measured = {"train": train}
    if test_features is not None:
        measured["test"] = compute_moments(
            read_array(test_features, "test features"),
            read_array(test_labels, "test labels"),
            len(weight),
            weight,
            offset,
            reference_means=train.class_means,
            split="test",
        )
    rows = [
        {
            "split": split,
            "statistic": statistic,
            "value": value,
            "what it is": STATISTICS.get(statistic, ""),
        }
        for split, moments in measured.items()
        for statistic, value in compute_statistics(moments).items()
    ]
    return pd.DataFrame(rows)


def write_statistics(table: pd.DataFrame, path: Path) -> None:
    """Write the table as parquet or CSV, by the file's ending."""
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"{path}: the table's file must end in .parquet or .csv")
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False, lineterminator="\n")
        else:
            table.to_parquet(temporary, index=False)


def render_statistics(table: pd.DataFrame) -> str:
    """The table as text, a column of values for each split."""
    splits = list(dict.fromkeys(table["split"]))
    wide = table.pivot(index="statistic", columns="split", values="value")
    known = dict(zip(table["statistic"], table["what it is"], strict=True))
    width = max(map(len, known))
    lines = [f"{'statistic':{width}}" + "".join(f"{split:>13}" for split in splits)]
    for name, what in known.items():
        values = "".join(f"{wide.loc[name, split]:>13.5g}" for split in splits)
        lines.append(f"{name:{width}}{values}  {what}".rstrip())
    return "\n".join(lines)
