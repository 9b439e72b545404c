"""Tables keep what was written, and refuse what is not exactly themselves."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_tables import RUN

from neural_collapse.io.errors import UserError
from neural_collapse.results.run_facts import recipe_of
from neural_collapse.results.tables import (
    METADATA_NAME,
    METADATA_VERSION,
    SCHEMAS,
    concat_files,
    concat_tables,
    empty_table,
    read_table,
    terminal_phase_epoch,
    write_table,
)


def measurements(**changes):
    values = {
        "dataset": ["digits"] * 3,
        "architecture": ["vgg"] * 3,
        "seed": [0, 0, 0],
        "epoch": [0, 1, 2],
        "split": ["train"] * 3,
        "statistic": ["error"] * 3,
        "value": [0.9, np.nan, 0.1],
    }
    return pd.DataFrame(values | changes)


def run(**changes):
    return pd.DataFrame([RUN | {"dataset": "digits", "architecture": "vgg", **changes}])


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "sub" / "measurements.parquet"
    write_table(measurements(), path, "measurements")
    frame = read_table(path, "measurements")
    pd.testing.assert_frame_equal(frame.drop(columns="origin"), measurements(), check_dtype=False)
    assert set(frame.origin) == {"own"}, "own, where nothing else is said"
    assert [str(kind) for kind in frame.dtypes] == [
        "str", "str", "int64", "str", "int64", "str", "str", "float64",
    ]  # fmt: skip
    assert np.isnan(frame.value[1]), "nan stays a value"


def test_the_same_rows_give_the_same_bytes_and_no_other_file(tmp_path):
    for name in "ab":
        write_table(measurements(), tmp_path / name, "measurements")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_the_order_of_columns_does_not_matter(tmp_path):
    write_table(measurements()[list(measurements())[::-1]], tmp_path / "t", "measurements")
    assert list(read_table(tmp_path / "t", "measurements")) == SCHEMAS["measurements"].names


def test_an_epoch_that_was_not_reached_is_missing_not_a_number(tmp_path):
    frame = pd.concat([run(), run(seed=1, terminal_phase_epoch=None)], ignore_index=True)
    write_table(frame, tmp_path / "runs", "runs")
    back = read_table(tmp_path / "runs", "runs")
    assert str(back.terminal_phase_epoch.dtype) == "Int64"
    assert back.terminal_phase_epoch.tolist() == [40, pd.NA]
    assert back.diverged.dtype == bool


@pytest.mark.parametrize("name", SCHEMAS)
def test_tables_without_rows_keep_their_types(name, tmp_path):
    write_table(empty_table(name), tmp_path / "t", name)
    frame = read_table(tmp_path / "t", name)
    assert len(frame) == 0
    assert frame.dtypes.tolist() == empty_table(name).dtypes.tolist()


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_is_described(name):
    assert all(column.description for column in SCHEMAS[name].columns)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (measurements().drop(columns="value"), "column 'value' is missing"),
        (measurements(extra=1), "column 'extra' does not belong"),
        (measurements(value="x"), "column 'value' must hold float64"),
        (measurements(value=True), "column 'value' must hold float64"),
        (measurements(epoch=[0.5, 1, 2]), "column 'epoch' must hold int64"),
        (measurements(epoch=[0, -1, 2]), "column 'epoch' holds a negative"),
        (measurements(dataset=["a", None, "b"]), "column 'dataset' has missing"),
        (measurements(dataset=1), "column 'dataset' must hold string"),
        (measurements(split="validation"), "column 'split' holds 'validation'; known: train, test"),
        (measurements(epoch=[0, 1, 1]), "two rows for origin own, dataset digits.*epoch 1"),
    ],
)
def test_wrong_frames_are_not_written(frame, message, tmp_path):
    path = tmp_path / "measurements.parquet"
    with pytest.raises(UserError, match=f"measurements.parquet: .*{message}") as caught:
        write_table(frame, path, "measurements")
    assert "\n" not in str(caught.value)
    assert not path.exists()


def test_a_wrong_origin_is_refused(tmp_path):
    with pytest.raises(UserError, match="learning_rate_origin"):
        write_table(run(learning_rate_origin="guess"), tmp_path / "runs", "runs")
    with pytest.raises(UserError, match="terminal_phase_epoch"):
        write_table(run(terminal_phase_epoch="five"), tmp_path / "runs", "runs")


def stored(path, table, name="measurements", version="1"):
    metadata = {METADATA_NAME: name.encode(), METADATA_VERSION: version.encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(measurements(), path, "measurements")
    table = pq.ParquetFile(path).read().replace_schema_metadata(None)
    path.unlink()

    with pytest.raises(UserError, match=r"t\.parquet: this measurements table does not exist"):
        read_table(path, "measurements")
    pq.write_table(table, path)
    with pytest.raises(UserError, match="is not a table of this project"):
        read_table(path, "measurements")
    write_table(run(), path, "runs")
    with pytest.raises(UserError, match="holds a 'runs' table, but a 'measurements'"):
        read_table(path, "measurements")
    stored(path, table, version="2")
    with pytest.raises(UserError, match=r"version 2 .* reads version 1"):
        read_table(path, "measurements")
    stored(path, table.drop_columns("split"))
    with pytest.raises(UserError, match=r"t\.parquet: the column 'split' is missing"):
        read_table(path, "measurements")
    stored(path, table.drop_columns("origin"))
    assert set(read_table(path, "measurements").origin) == {"own"}, "made before there were others"
    stored(path, table.set_column(3, "origin", pa.array(["own", "borrowed", "own"])))
    with pytest.raises(UserError, match="'origin' holds 'borrowed'; known: own, reference"):
        read_table(path, "measurements")
    stored(path, table.append_column("odd", table["value"]))
    with pytest.raises(UserError, match="the column 'odd' does not belong"):
        read_table(path, "measurements")
    stored(path, table.set_column(4, "epoch", pa.array([0.0, 1.0, 2.0])))
    with pytest.raises(UserError, match="the column 'epoch' must hold int64 values"):
        read_table(path, "measurements")
    stored(path, table.set_column(2, "seed", pa.array([0, None, 0])))
    with pytest.raises(UserError, match="the column 'seed' has missing values"):
        read_table(path, "measurements")


def test_corrupt_files_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(measurements(), path, "measurements")
    whole = path.read_bytes()
    for corrupt in (b"", b"not parquet at all", whole[: len(whole) // 2], whole[:4] + whole[-40:]):
        path.write_bytes(corrupt)
        with pytest.raises(UserError, match=r"t\.parquet: .*corrupt") as caught:
            read_table(path, "measurements")
        assert "\n" not in str(caught.value)


def test_a_folder_called_key_value_adds_no_column(tmp_path):
    path = tmp_path / "seed=7" / "t.parquet"
    write_table(measurements(), path, "measurements")
    assert read_table(path, "measurements").seed.tolist() == [0, 0, 0]


def test_joined_tables_are_in_the_order_of_their_key(tmp_path):
    write_table(measurements(), tmp_path / "b", "measurements")
    write_table(measurements(dataset=["a"] * 3), tmp_path / "a", "measurements")
    joined = concat_files([tmp_path / "b", tmp_path / "a"], "measurements")
    assert joined.dataset.tolist() == ["a"] * 3 + ["digits"] * 3
    assert concat_tables([], "measurements").equals(empty_table("measurements"))
    with pytest.raises(UserError, match="two rows for origin own, dataset digits"):
        concat_tables([measurements(), measurements()], "measurements")


def test_the_terminal_phase_starts_at_the_first_epoch_that_is_accurate_enough():
    def curve(*errors):
        rows = [(i, "train", "error", error) for i, error in enumerate(errors)]
        others = [(0, "train", "loss", 0.0), (0, "test", "error", 0.0)]
        frame = pd.DataFrame(rows + others, columns=["epoch", "split", "statistic", "value"])
        return frame.iloc[::-1]

    assert terminal_phase_epoch(curve(0.9, 0.002, 0.001, 0.002), 0.999) == 2
    assert terminal_phase_epoch(curve(0.9, 0.002), 0.999) is None
    assert terminal_phase_epoch(curve(0.9, 0.5, 0.0), 1.0) == 2
    assert terminal_phase_epoch(curve(), 0.5) is None
    several = curve(0.9, 0.002, 0.001)
    assert terminal_phase_epoch(several, pd.Series(0.99, index=several.index)) == 1


@pytest.mark.parametrize("examples", [1000, 50_000, 1_281_000])
def test_the_terminal_phase_starts_at_exactly_its_accuracy_for_any_threshold(examples):
    for thousandths in range(1, 1001):
        most_wrong = examples * (1000 - thousandths) // 1000
        errors = [(most_wrong + 1) / examples, most_wrong / examples]
        frame = pd.DataFrame({"epoch": [1, 2], "split": "train", "statistic": "error"})
        frame["value"] = errors
        assert terminal_phase_epoch(frame, thousandths / 1000) == 2


@pytest.mark.parametrize(
    ("machine", "precision", "done"),
    [
        ({"device": "cpu"}, "tf32", "float32"),
        ({"device": "cuda"}, "tf32", "tf32"),
        ({"device": "cuda", "compute_capability": "7.5"}, "tf32", "float32"),
        ({"device": "cuda", "compute_capability": "12.0"}, "tf32", "tf32"),
        ({"device": "cpu"}, "bfloat16", "bfloat16"),
    ],
)
def test_recipe_of_a_run_names_the_arithmetic_that_was_computed(machine, precision, done):
    training = {"precision": precision, "epochs": 3}
    run = {"machine": machine, "recipe": {"training": training, "robustness": {}}}
    assert recipe_of(run) == {"training": {"precision": done, "epochs": 3}}
    assert training["precision"] == precision
