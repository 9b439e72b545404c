"""The tables of a run: their columns, and checked reading and writing.

Every table is a parquet file in long format.  The file's metadata contain the name and version of
its schema.  Writing and reading check columns, types, missing values and duplicate keys; an error
raises :class:`~neural_collapse.io.errors.UserError` with the file and the column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..io.errors import UserError
from ..io.files import atomic_path, reading

METADATA_NAME = b"neural_collapse.table"
METADATA_VERSION = b"neural_collapse.version"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    type: str
    """`string`, `int64`, `float64` or `bool`."""
    description: str
    nullable: bool = False
    """Whether values may be missing; a float64 column holds nan instead."""
    choices: tuple[str, ...] = ()
    """The only values of a string column; empty allows any."""
    default: str | None = None
    """Value of a string column in a table that was written without it."""


@dataclass(frozen=True)
class TableSchema:
    """Columns of a table, in the order in which they are stored."""

    name: str
    version: int
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    """Columns whose values together are unique; empty if rows may repeat."""

    @property
    def names(self) -> list[str]:
        """The columns' names, in order."""
        return [column.name for column in self.columns]


SPLITS = ("train", "test")
OWN, REFERENCE = ORIGINS = ("own", "reference")
RUN_KEY = ["dataset", "architecture", "seed"]
HOLDS, DOES_NOT, CANNOT_SAY = VERDICTS = ("holds", "does not", "cannot say")


def _text(name: str, description: str, **more: Any) -> Column:
    return Column(name, "string", description, **more)


def _whole(name: str, description: str, **more: Any) -> Column:
    return Column(name, "int64", description, **more)


def _real(name: str, description: str) -> Column:
    return Column(name, "float64", description)


def _flag(name: str, description: str) -> Column:
    return Column(name, "bool", description)


_CELL = (
    _text("dataset", "name of the dataset: a column of the figures"),
    _text("architecture", "name of the architecture: a row of the figures"),
)
_LABELS = (
    _text("dataset_label", "how the dataset is titled"),
    _text("architecture_label", "how the architecture is titled"),
)
_SEED = _whole("seed", "seed of the training")
_WHOSE = "own: a run of this experiment; reference: one of results/reference"
_ORIGIN = _text("origin", _WHOSE, choices=ORIGINS, default=OWN)
_STATISTIC = (
    "what was measured; neural_collapse.collapse.registry; name@layer: of that layer's output"
)
_MEASURED = (
    _whole("epoch", "passes over the train set so far; 0 is before training"),
    _text("split", "examples it was measured on", choices=(*SPLITS, "held_out")),
    _text("statistic", _STATISTIC),
    _real("value", "the value; nan where it is not defined"),
)
_RATE = _real("learning_rate", "initial learning rate")
_DIVERGED = _flag("diverged", "whether the training ended early in nan or inf")
_MEASURED_KEY = ("epoch", "split", "statistic")
_CURVE_KEY = (*RUN_KEY, "learning_rate", *_MEASURED_KEY)

_SCHEMAS = (
    TableSchema(
        "measurements",
        1,
        (*_CELL, _SEED, _ORIGIN, *_MEASURED),
        ("origin", *RUN_KEY, *_MEASURED_KEY),
    ),
    TableSchema("history", 1, (*_CELL, _SEED, _RATE, *_MEASURED, _DIVERGED), _CURVE_KEY),
    TableSchema(
        "sweep",
        1,
        (
            *(*_CELL, _SEED, _ORIGIN, _RATE, *_MEASURED, _DIVERGED),
            _flag("selected", "whether this learning rate was chosen"),
        ),
        ("origin", *_CURVE_KEY),
    ),
    TableSchema(
        "runs",
        1,
        (
            *(*_CELL, _SEED, _ORIGIN, *_LABELS),
            _text("network", "the network's name, e.g. ResNet18"),
            _RATE,
            _text(
                "learning_rate_origin",
                "how the learning rate was found",
                choices=("sweep", "pinned"),
            ),
            _whole("epochs", "epochs that the recipe asks for"),
            _real(
                "terminal_phase_accuracy",
                "train accuracy (0 to 1) at which the terminal phase of training starts",
            ),
            _whole(
                "terminal_phase_epoch",
                "first epoch with that train accuracy; missing where none reached it",
                nullable=True,
            ),
            _DIVERGED,
            _whole("num_classes", "classes"),
            _whole("train_examples", "images trained on"),
            _whole("test_examples", "images tested on"),
            _text("recipe", "what it was trained and measured with, as JSON", default="{}"),
        ),
        ("origin", *RUN_KEY),
    ),
    TableSchema(
        "activations",
        1,
        (
            *(*_CELL, _SEED, _ORIGIN),
            _whole("epoch", "epoch of the checkpoint"),
            _text(
                "kind",
                "what the point is",
                choices=("feature", "class_mean", "classifier", "etf_vertex"),
            ),
            _whole("class_index", "class of the point, from 0"),
            _real("x", "first coordinate; class means have unit norm on average"),
            _real("y", "second coordinate"),
            _real("z", "third coordinate"),
        ),
    ),
    TableSchema(
        "claims",
        2,
        (
            *(*_CELL, _ORIGIN, *_LABELS),
            _text("phenomenon", "which of the paper's findings"),
            _text("statistic", "the statistic whose values these are, or 1 - error"),
            _text("split", "examples it was measured on", choices=SPLITS),
            _whole("seeds", "trainings whose mean the values are"),
            _text("epoch_at_start", "epoch taken as start of the terminal phase"),
            _text("epoch_at_end", "last measured epoch"),
            _real("at_epoch_0", "value before training"),
            _real("at_start", "value at the start of the terminal phase"),
            _real("at_end", "value at the last epoch"),
            _real("change", "at_end - at_start"),
            _real("noise", "how large a change may be by chance"),
            _text("holds", "the verdict", choices=VERDICTS),
            _text("criterion", "when the claim holds, in words"),
            _text("reason", "the numbers put into the criterion, or what is missing"),
            _text("paper", "what the paper found, where a number is known"),
        ),
        ("origin", "dataset", "architecture", "phenomenon", "statistic"),
    ),
    TableSchema(
        "table_1",
        1,
        (
            *(*_CELL, _ORIGIN, *_LABELS),
            _text("network", "our network"),
            _real("paper_start", "paper, start of the terminal phase, %"),
            _real("paper_end", "paper, last epoch, %"),
            _real("ours_start", "ours, start of the terminal phase, %, seed mean"),
            _real("ours_end", "ours, last epoch, %, seed mean"),
            _real("difference_start", "ours - paper, start, percentage points"),
            _real("difference_end", "ours - paper, end, percentage points"),
            _whole("seeds", "our trainings; 0 where the cell was not run"),
            _whole("seeds_terminal", "those that reached the terminal phase"),
            _text("deviations", "where our recipe is not the paper's; or empty"),
        ),
        ("origin", "dataset", "architecture"),
    ),
)
SCHEMAS: dict[str, TableSchema] = {schema.name: schema for schema in _SCHEMAS}


def empty_table(name: str) -> pd.DataFrame:
    """A table of `name` without rows."""
    schema = SCHEMAS[name]
    columns = {column.name: pa.array([], _TYPES[column.type][0]) for column in schema.columns}
    return _to_frame(pa.table(columns), schema)


def check_frame(frame: pd.DataFrame, name: str, where: str | Path = "table") -> pd.DataFrame:
    """`frame` with the columns of table `name` in order and in their types; raises UserError."""
    return _checked(frame, SCHEMAS[name], where)[1]


def write_table(frame: pd.DataFrame, path: str | Path, name: str) -> None:
    """Write `frame` as the table `name`, atomically; raises UserError.

    The same rows in the same order give the same bytes.
    """
    schema = SCHEMAS[name]
    table, _ = _checked(frame, schema, path)
    table = table.replace_schema_metadata(
        {METADATA_NAME: schema.name.encode(), METADATA_VERSION: str(schema.version).encode()}
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: str | Path, name: str) -> pd.DataFrame:
    """Read the table `name`; raises UserError if the file is not exactly that."""
    schema = SCHEMAS[name]
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: this {name} table does not exist; run the rule that makes it, "
            "or give the folder that holds it"
        )
    # ParquetFile, not read_table: a folder called "key=value" must not add a column.
    with (
        reading(path, "a parquet file", "delete it and make it again"),
        pq.ParquetFile(path) as file,
    ):
        metadata = file.schema_arrow.metadata or {}
        found, version = (
            metadata.get(key, b"").decode("utf-8", "replace")
            for key in (METADATA_NAME, METADATA_VERSION)
        )
        if found != name:
            what = f"holds a {found!r} table" if found else "is not a table of this project"
            raise UserError(f"{path}: {what}, but a {name!r} table is needed here")
        if version != str(schema.version):
            raise UserError(
                f"{path}: has version {version or 'unknown'} of the {name} columns, but "
                f"this program reads version {schema.version}; make the table again"
            )
        table = file.read(use_threads=False)
    return check_frame(table.to_pandas(), name, path)


def concat_tables(frames: Iterable[pd.DataFrame], name: str) -> pd.DataFrame:
    """All rows as one table in the order of its key; a duplicate row raises UserError."""
    schema = SCHEMAS[name]
    parts = [check_frame(frame, name, f"{name} table") for frame in frames]
    parts = [part for part in parts if len(part)]
    if not parts:
        return empty_table(name)
    joined = pd.concat(parts, ignore_index=True)
    _check_values(joined, schema, f"{name} table")
    if schema.key:
        joined = joined.sort_values(list(schema.key), kind="stable", ignore_index=True)
    return joined


def concat_files(paths: Iterable[str | Path], name: str) -> pd.DataFrame:
    """The tables of several files as one; see :func:`concat_tables`."""
    return concat_tables([read_table(path, name) for path in paths], name)


# --------------------------------------------------------------------------- conversions


def _is_real(series: pd.Series) -> bool:
    types = pd.api.types
    return types.is_numeric_dtype(series) and not types.is_bool_dtype(series)


_TYPES: dict[str, tuple[pa.DataType, Callable[[pd.Series], bool]]] = {
    "string": (pa.string(), pd.api.types.is_string_dtype),  # of objects, looks at each
    "int64": (pa.int64(), pd.api.types.is_integer_dtype),
    "float64": (pa.float64(), _is_real),
    "bool": (pa.bool_(), pd.api.types.is_bool_dtype),
}
"""By a column's type: that of pyarrow, and whether a series fits it without guessing."""


def _checked(
    frame: pd.DataFrame, schema: TableSchema, where: str | Path
) -> tuple[pa.Table, pd.DataFrame]:
    """The frame as a table of this schema, and that as a frame again."""
    kind = schema.name
    for column in schema.columns:
        if column.name not in frame and column.default is not None:
            frame = frame.assign(**{column.name: column.default})
    for name in [*schema.names, *frame]:
        if name not in frame:
            raise UserError(f"{where}: the column {name!r} is missing from this {kind} table")
        if name not in schema.names:
            raise UserError(f"{where}: the column {name!r} does not belong in a {kind} table")
    arrays = [_array(frame[column.name], column, where) for column in schema.columns]
    fields = [pa.field(c.name, _TYPES[c.type][0], nullable=c.nullable) for c in schema.columns]
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    frame = _to_frame(table, schema)
    _check_values(frame, schema, where)
    return table, frame


def _array(series: pd.Series, column: Column, where: str | Path) -> pa.Array:
    """The column in its type."""
    type, fits = _TYPES[column.type]
    if series.empty:
        return pa.array([], type)
    if series.isna().any() and column.type != "float64" and not column.nullable:
        raise UserError(f"{where}: the column {column.name!r} has missing values")
    try:
        if column.nullable:
            return pa.array(series.astype("Int64"), type)
        if column.type == "string" and fits(series):
            return pa.array(series, type)
        if column.type != "string" and fits(series):
            # An array of numpy's, so that nan stays nan instead of becoming a missing value.
            return pa.array(series.to_numpy(dtype=type.to_pandas_dtype()), type)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{where}: the column {column.name!r} must hold {column.type} values only")


def _to_frame(table: pa.Table, schema: TableSchema) -> pd.DataFrame:
    columns = {}
    for column in schema.columns:
        values = table.column(column.name)
        if column.nullable:
            columns[column.name] = pd.array(values.to_pylist(), dtype="Int64")
        elif column.type == "string":
            columns[column.name] = pd.Series(values.to_pylist(), dtype="str")
        else:
            columns[column.name] = values.to_numpy().copy()
    return pd.DataFrame(columns, columns=schema.names)


def _check_values(frame: pd.DataFrame, schema: TableSchema, where: str | Path) -> None:
    for column in schema.columns:
        if column.choices:
            strange = sorted(set(frame[column.name].unique()) - set(column.choices))
            if strange:
                raise UserError(
                    f"{where}: the column {column.name!r} holds {strange[0]!r}; "
                    f"known: {', '.join(column.choices)}"
                )
        if column.name == "epoch" and (frame["epoch"] < 0).any():
            raise UserError(f"{where}: the column 'epoch' holds a negative number")
    if schema.key:
        doubled = frame.duplicated(list(schema.key))
        if doubled.any():
            row = frame[doubled].iloc[0]
            values = ", ".join(f"{name} {row[name]}" for name in schema.key)
            raise UserError(f"{where}: two rows for {values}")


def where(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values, by column."""
    chosen = np.ones(len(frame), dtype=bool)
    for column, value in values.items():
        chosen &= np.asarray(frame[column].array == value, dtype=bool)
    return frame[chosen]


def run_recipe(run: Mapping[str, Any] | pd.Series) -> dict[str, Any]:
    """The recipe of a run of the table `runs`; empty if the table has none."""
    return json.loads(run.get("recipe", "{}"))


def recipe_values(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe in a runs table by dotted key, such as training.epochs."""
    parts = {part: values for part, values in recipe.items() if isinstance(values, Mapping)}
    return {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}


def terminal_phase_epoch(curve: pd.DataFrame, accuracy: float | pd.Series) -> int | None:
    """The start of the terminal phase of training in one run's learning curve.

    curve: rows of epoch, split, statistic and value. Returns the first epoch whose accuracy on the
    train set, 1 - error, is at least `accuracy` (0 to 1; one for all rows, or a column of theirs);
    None if there is none.
    """
    judged = (curve["split"] == "train") & (curve["statistic"] == "error")
    # 1 - 0.07 is below 0.93 in float64; counts of fewer than 10^9 examples differ by more.
    reached = curve.loc[judged & (1 - curve["value"] >= accuracy - 1e-12), "epoch"]
    return int(reached.min()) if len(reached) else None
