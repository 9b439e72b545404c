"""The tables of a run: their columns, and checked reading and writing.

Every table is a parquet file in long format.  The file's metadata contain the name and version of
its schema.  Writing and reading check columns, types, missing values and duplicate keys; an error
raises :class:`~neural_collapse.io.errors.UserError` with the file and the column.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..io.errors import UserError
from ..io.files import atomic_path

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
    """What a string column holds where a table comes without it."""


@dataclass(frozen=True)
class TableSchema:
    """Columns of a table, in the order in which they are stored."""

    name: str
    version: int
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    """Columns whose values together occur once; empty where rows may repeat."""

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
    return _to_frame(
        pa.table({c.name: pa.array([], _ARROW[c.type]) for c in schema.columns}), schema
    )


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
    """Read the table `name`; raises UserError where the file is not exactly that."""
    schema = SCHEMAS[name]
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: this {name} table does not exist; run the rule that makes it")
    try:
        # ParquetFile, not read_table: a folder called "key=value" must not add a column.
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            found = metadata.get(METADATA_NAME, b"").decode("utf-8", "replace")
            version = metadata.get(METADATA_VERSION, b"").decode("utf-8", "replace")
            if found != name:
                what = f"holds a {found!r} table" if found else "is not a table of this project"
                raise UserError(f"{path}: {what}, but a {name!r} table is needed here")
            if version != str(schema.version):
                raise UserError(
                    f"{path}: has version {version or 'unknown'} of the {name} columns, but "
                    f"this program reads version {schema.version}; make the table again"
                )
            table = file.read(use_threads=False)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: is corrupt or not a parquet file ({reason}); delete it and make it again"
        ) from None
    return check_frame(table.to_pandas(), name, path)


def concat_tables(frames: Iterable[pd.DataFrame], name: str) -> pd.DataFrame:
    """All rows as one table in the order of its key; a row that comes twice is a UserError."""
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

_ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}


def _checked(
    frame: pd.DataFrame, schema: TableSchema, where: str | Path
) -> tuple[pa.Table, pd.DataFrame]:
    """The frame as a table of this schema, and that as a frame again."""
    absent = {c.name: c.default for c in schema.columns if c.name not in frame.columns}
    frame = frame.assign(**{name: value for name, value in absent.items() if value is not None})
    missing = [name for name, value in absent.items() if value is None]
    if missing:
        raise UserError(
            f"{where}: the column {missing[0]!r} is missing from this {schema.name} table"
        )
    surplus = [name for name in frame.columns if name not in schema.names]
    if surplus:
        raise UserError(
            f"{where}: the column {surplus[0]!r} does not belong in a {schema.name} table"
        )
    arrays = [_array(frame[column.name], column, where) for column in schema.columns]
    fields = [pa.field(c.name, _ARROW[c.type], nullable=c.nullable) for c in schema.columns]
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    frame = _to_frame(table, schema)
    _check_values(frame, schema, where)
    return table, frame


def _array(series: pd.Series, column: Column, where: str | Path) -> pa.Array:
    """The column in its type; a type that would have to be guessed is refused."""
    types = pd.api.types
    wrong = UserError(f"{where}: the column {column.name!r} must hold {column.type} values only")
    if len(series) == 0:
        return pa.array([], _ARROW[column.type])
    if column.type == "float64":
        if types.is_bool_dtype(series) or not types.is_numeric_dtype(series):
            raise wrong
        # An array of numpy's, so that nan stays nan instead of becoming a missing value.
        return pa.array(series.to_numpy(dtype=np.float64, na_value=np.nan))
    if column.nullable:
        try:
            return pa.array(series.astype("Int64"), type=pa.int64())
        except (TypeError, ValueError):
            raise wrong from None
    if series.isna().any():
        raise UserError(f"{where}: the column {column.name!r} has missing values")
    if column.type == "string":
        if types.is_string_dtype(series):  # of objects, looks at each
            return pa.array(series, pa.string())
        raise wrong
    fits = types.is_bool_dtype if column.type == "bool" else types.is_integer_dtype
    if not fits(series):
        raise wrong
    try:
        return pa.array(series.to_numpy(), _ARROW[column.type])
    except pa.ArrowInvalid:
        raise wrong from None


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


def verdict_of(margin: float, noise: float) -> str:
    """Of a claim that holds where `margin` is above zero: within the noise nothing is decided."""
    if margin < -noise:
        return DOES_NOT
    return HOLDS if margin > noise else CANNOT_SAY


def run_recipe(run: Mapping[str, Any] | pd.Series) -> dict[str, Any]:
    """The recipe of a run of the table `runs`; empty if the table has none."""
    return json.loads(run.get("recipe", "{}"))


def recipe_values(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe, as a runs table's JSON holds it, by their name: training.epochs."""
    parts = {part: values for part, values in recipe.items() if isinstance(values, Mapping)}
    return {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}


def terminal_phase_epoch(curve: pd.DataFrame, accuracy: float | pd.Series) -> int | None:
    """The start of the terminal phase of training in one run's learning curve.

    curve: rows of epoch, split, statistic and value. Returns the first epoch whose accuracy on the
    train set, 1 - error, is at least `accuracy` (0 to 1; one for all rows, or a column of theirs);
    None where none is.
    """
    judged = (curve["split"] == "train") & (curve["statistic"] == "error")
    reached = curve.loc[judged & (1 - curve["value"] >= accuracy), "epoch"]
    return int(reached.min()) if len(reached) else None
