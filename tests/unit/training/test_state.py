"""Resume states: corrupt, foreign or locked ones; kills within a write; a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from neural_collapse.experiment.recipe import Recipe
from neural_collapse.io import versions
from neural_collapse.io.errors import UserError
from neural_collapse.io.locks import clear_finished
from neural_collapse.networks.registry import resolve_network
from neural_collapse.training import loop
from neural_collapse.training.loop import train, training_fingerprint
from neural_collapse.training.state import BackgroundWriter, StateFolder, state_interval_seconds

CPU = torch.device("cpu")
KEY = "0123456789abcdef"


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3, 2), value), "steps": torch.tensor(int(value))}


def write(folder: StateFolder, *epochs: int) -> None:
    for epoch in epochs:
        folder.write(epoch, tensors(epoch), {"of": epoch, "loss": float("nan")})


def files(root) -> list:
    return sorted((root / KEY).glob("state-*"))


def test_the_newest_state_is_read(tmp_path):
    with StateFolder(tmp_path, KEY) as folder:
        assert folder.read() is None
        write(folder, 8, 9, 10, 11)
    assert len(files(tmp_path)) == 2  # and no more disk than that
    (tmp_path / KEY / f".{files(tmp_path)[0].name}.12345.tmp").touch()  # of a killed job
    with StateFolder(tmp_path, KEY) as folder:
        epoch, state, facts = folder.read()
    assert epoch == facts["of"] == 11
    assert all(torch.equal(state[name], value) for name, value in tensors(11).items())
    assert not list((tmp_path / KEY).glob(".*"))


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "other bytes"])
def test_a_corrupt_state_gives_way_to_the_one_before(tmp_path, damage, capsys):
    with StateFolder(tmp_path, KEY) as folder:
        write(folder, 1, 2)
    newest = files(tmp_path)[-1]
    payload = bytearray(newest.read_bytes())
    if damage == "one bit":
        payload[-1] ^= 1
    newest.write_bytes(
        {"empty": b"", "cut": payload[:-5], "one bit": payload, "other bytes": b"x" * 99}[damage]
    )
    with StateFolder(tmp_path, KEY) as folder:
        epoch, state, _ = folder.read()
        assert epoch == 1
        assert torch.equal(state["weight"], tensors(1)["weight"])
        assert "corrupt" in capsys.readouterr().err
        write(folder, 2)
        assert folder.read()[0] == 2


def test_states_that_are_all_corrupt_are_none(tmp_path):
    with StateFolder(tmp_path, KEY) as folder:
        write(folder, 1, 2)
        for path in files(tmp_path):
            path.write_bytes(b"")
        assert folder.read() is None


def test_everything_that_decides_a_training_is_in_its_fingerprint(make_recipe, monkeypatch):
    def of(recipe=None, data="d", rate=0.1, seed=0, epochs=(0, 3)):
        return training_fingerprint(recipe or make_recipe(), data, rate, seed, epochs)

    others = [
        of(make_recipe(width=5)), of(make_recipe(epochs=4)), of(make_recipe(batch_size=8)),
        of(make_recipe(weight_decay=1e-3)), of(make_recipe(threads=2)),
        of(make_recipe(learning_rate_milestones=["1/2"])), of(data="e"), of(rate=0.1 + 1e-12),
        of(seed=1), of(epochs=(0, 2, 3)), of(make_recipe(optimizer={"name": "sgdw"})),
        of(make_recipe(optimizer={"name": "adam"})),
        of(make_recipe(optimizer={"name": "adam", "betas": [0.9, 0.99]})),
    ]  # fmt: skip
    others.append(of())
    assert len(set(others)) == 14
    assert of() == others[-1]
    assert of(make_recipe(evaluation_batch_size=7)) == of()
    assert of(epochs=(3, 0)) == of()
    monkeypatch.setattr(versions, "TRAINING", versions.TRAINING + 1)
    assert of() not in others


def test_a_key_that_came_later_leaves_the_fingerprints_of_its_default_alone(make_recipe):
    network = resolve_network({"name": "resnet18"})
    recipe = Recipe(dataset="mnist", architecture="resnet", network=network)
    # Of the paper's recipe before there were other optimisers and losses: finished trainings of it
    # must not run again.
    assert training_fingerprint(recipe, "data", 0.05, 0, (1, 350)) == "996d009d387eb210"
    assert "optimizer" not in recipe.model_dump_json()
    assert "adamw" in make_recipe(optimizer={"name": "adamw"}).model_dump_json()


@pytest.mark.parametrize(
    ("key", "value", "chosen", "others"),
    [("smoothing", 0.3, {"loss": "label_smoothing"}, [{}, {"loss": "mse"}, {"loss": "focal"}]),
     ("focal_gamma", 1.0, {"loss": "focal"}, [{}, {"loss": "label_smoothing"}]),
     ("mse_reduction", "half_sum", {"loss": "mse"}, [{}, {"loss": "focal"}])],
)  # fmt: skip
def test_a_key_of_another_loss_changes_no_training(make_recipe, key, value, chosen, others):
    for training in others:
        assert make_recipe(**training, **{key: value}) == make_recipe(**training)
    changed, usual = (make_recipe(**chosen, **given) for given in ({key: value}, {}))
    assert changed.training.model_dump()[key] == value
    fingerprints = {training_fingerprint(r, "d", 0.1, 0, ()) for r in (changed, usual)}
    assert len(fingerprints) == 2


def test_adams_numbers_change_no_training_with_sgd(make_recipe):
    numbers = {"betas": [0.8, 0.99], "epsilon": 1e-3}
    sgd = make_recipe(optimizer={"name": "sgd"} | numbers)
    assert "optimizer" not in sgd.model_dump_json() and sgd == make_recipe()
    sgdw = make_recipe(optimizer={"name": "sgdw"} | numbers)
    assert sgdw == make_recipe(optimizer={"name": "sgdw"})
    for name in ("adam", "adamw"):
        adam = make_recipe(optimizer={"name": name} | numbers).training.optimizer
        assert adam.betas == (0.8, 0.99) and adam.epsilon == 1e-3


# --------------------------------------------------------------------------------- the lock

HOLDER = """
import sys
from neural_collapse.training.state import StateFolder
with StateFolder(sys.argv[1], sys.argv[2]) as folder:
    print("in", flush=True)
    sys.stdin.read()
    folder.clear()
"""


def test_a_lock_that_its_holder_deleted_is_taken_anew(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "in\n"
    with pytest.raises(UserError) as error, StateFolder(tmp_path, KEY):
        pass
    assert f"in use by process {holder.pid} on {os.uname().nodename}" in str(error.value)
    # Opened before the holder is done, locked after: a lock on a file that is no longer there.
    with open(tmp_path / f"{KEY}.lock", "a+"):
        holder.communicate()
        assert not (tmp_path / KEY).exists()
        with StateFolder(tmp_path, KEY) as folder:
            write(folder, 1)
            with pytest.raises(UserError, match="in use"), StateFolder(tmp_path, KEY):
                pass


def enter_and_clear(root: Path, times: int) -> None:
    """Enter a state's folder so many times; fail where another process is inside as well."""
    while times > 0:
        try:
            with StateFolder(root, KEY) as folder:
                os.close(os.open(root / "inside", os.O_CREAT | os.O_EXCL))
                os.unlink(root / "inside")
                folder.clear()
                times -= 1
        except UserError as error:
            assert "in use by" in str(error), error


def test_many_processes_one_at_a_time(tmp_path):
    (tmp_path / "keeps the folder").touch()
    children = []
    for _ in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                enter_and_clear(tmp_path, times=100)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [0, 0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["keeps the folder"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "deeper", "/proc/nothing"):
        with pytest.raises(UserError) as error, StateFolder(root, KEY):
            pass
        assert str(root) in str(error.value)
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------- a training resumes


@pytest.fixture
def training(tmp_path, make_data, make_recipe):
    """`training(name)` trains, and gives the history and the checkpoints' bytes by name."""

    def of(name, root=None, **changes):
        recipe = make_recipe(epochs=4, measured=(1, 2, 4), **changes)
        base = root or tmp_path / name
        history, _ = train(
            recipe, make_data(), learning_rate=0.05, seed=0, device=CPU,
            state_root=base / "state", checkpoint_folder=base / "out",
            checkpoint_epochs=recipe.measured_epochs,
        )  # fmt: skip
        return history, {path.name: path.read_bytes() for path in (base / "out").glob("*")}

    return of


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_resumed_training_ends_with_the_same_bits(training, interrupted, stop_after, capsys):
    expected, files_expected = training("whole")
    with interrupted(stop_after + 1):
        training("parts")
    with interrupted(min(stop_after + 2, 4)):
        training("parts")
    history, found = training("parts")
    assert f"continues after epoch {stop_after}" in capsys.readouterr().err
    assert found == files_expected
    assert history.records == expected.records


@pytest.mark.parametrize(
    ("epoch_seconds", "killed_in", "continues_after"),
    [(1, 9, 2), (20, 6, 4), (20, 7, 6), (30, 5, 4), (900, 9, 8)],
)
def test_a_kill_loses_at_most_a_minute_or_one_epoch(
    tmp_path, make_data, make_recipe, monkeypatch, interrupted, epoch_seconds, killed_in,
    continues_after,
):  # fmt: skip
    """Epochs 0, 1 and 2 are kept; so is the state after each of them."""
    recipe, seconds = make_recipe(epochs=10, measured=(1, 2)), 0.0
    train_epoch = loop.Trainer.train_epoch

    def timed(trainer, epoch):
        nonlocal seconds
        seconds += epoch_seconds
        return train_epoch(trainer, epoch)

    def run(name):
        return train(
            recipe, make_data(), learning_rate=0.05, seed=0, device=CPU,
            state_root=tmp_path / name, checkpoint_folder=tmp_path / f"{name} out",
            checkpoint_epochs=(0, 1, 2), keep_state=True,
        )  # fmt: skip

    monkeypatch.delenv("NC_STATE_SECONDS")
    monkeypatch.setattr(loop, "monotonic", lambda: seconds)
    monkeypatch.setattr(loop.Trainer, "train_epoch", timed)
    whole, network = run("whole")
    with interrupted(killed_in):
        run("killed")
    resumed, other = run("killed")
    assert resumed.resumed_after == continues_after
    assert (killed_in - 1 - continues_after) * epoch_seconds <= 60
    assert resumed.records == whole.records
    assert all(
        torch.equal(value, other.state_dict()[n]) for n, value in network.state_dict().items()
    )
    assert run("killed")[0].resumed_after == 10


@pytest.mark.parametrize("shape", [(4,), ()])
def test_a_snapshot_of_another_shape_takes_new_memory(shape):
    with BackgroundWriter() as writer:
        for value in (torch.arange(3.0), torch.full(shape, 7.0)):
            assert torch.equal(writer.snapshot({"a": value})["a"], value)


@pytest.mark.parametrize("text", ["-1", "often", "inf", "nan"])
def test_an_interval_that_is_no_number_is_one_sentence(monkeypatch, text):
    monkeypatch.setenv("NC_STATE_SECONDS", text)
    with pytest.raises(UserError, match=f"NC_STATE_SECONDS: is '{text}'; give seconds"):
        state_interval_seconds()


@pytest.mark.parametrize(
    "changes",
    [
        *({"optimizer": {"name": name}} for name in ("sgdw", "adam", "adamw")),
        *({"loss": name} for name in ("mse", "label_smoothing", "focal")),
    ],
    ids=str,
)
def test_a_resumed_training_of_another_recipe_ends_with_the_same_bits(
    training, interrupted, changes
):
    _, expected = training("whole", **changes)
    with interrupted(3):
        training("parts", **changes)
    history, found = training("parts", **changes)
    assert history.resumed_after == 2
    assert found == expected
    assert found != training("paper")[1]


def test_a_training_continues_from_the_state_before_a_corrupt_one(
    training, interrupted, tmp_path, capsys
):
    _, expected = training("whole")
    with interrupted(3):
        training("parts")
    newest = sorted((tmp_path / "parts" / "state").glob("*/state-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert training("parts")[1] == expected
    assert "continues after epoch 1" in capsys.readouterr().err


OTHER_FACTS = {
    "no records": {"no": "records"},
    "empty records": [[], False],
    "records with other fields": [[{"epoch": 3, "loss": 0.1}], False],
}


@pytest.mark.parametrize(
    "damage", ["other network", "lost checkpoint", "corrupt checkpoint", *OTHER_FACTS]
)
def test_a_training_that_cannot_continue_begins_anew(
    training, interrupted, tmp_path, damage, capsys
):
    history_expected, expected = training("whole")
    with interrupted(3):
        training("parts")
    (place,) = (path for path in (tmp_path / "parts" / "state").iterdir() if path.is_dir())
    checkpoint = place / "checkpoints" / "epoch-0001.safetensors"
    if damage == "lost checkpoint":
        checkpoint.unlink()
    elif damage == "corrupt checkpoint":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    else:
        with StateFolder(place.parent, place.name) as folder:
            _, state, facts = folder.read()
            if damage == "other network":
                state["network.classifier.bias"] = torch.zeros(99)
            folder.write(3, state, OTHER_FACTS.get(damage, facts))
    history, found = training("parts")
    assert "starts again" in capsys.readouterr().err
    assert found == expected
    assert history.records == history_expected.records


def test_a_training_that_begins_anew_can_be_interrupted(
    make_data, make_recipe, interrupted, tmp_path
):
    def finish():
        return train(
            make_recipe(), make_data(), learning_rate=0.05, seed=0, device=CPU, state_root=tmp_path,
            checkpoint_folder=tmp_path / "out", checkpoint_epochs=(0, 3), keep_state=True,
        )[0]  # fmt: skip

    finish()
    (last,) = tmp_path.glob("*/checkpoints/epoch-0003.safetensors")
    last.write_bytes(b"")
    with interrupted(3):
        finish()
    assert not list(tmp_path.glob("*/finished"))
    assert finish().resumed_after == 2


@pytest.mark.parametrize("small_disk", [256], indirect=True)  # about three states of the network
@pytest.mark.parametrize("room_kb", [0, 40, 80, 120, 160])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_room_is_made(
    training, small_disk, room_kb
):
    _, expected = training("whole")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1024 * (256 - 8 - room_kb)))
    try:
        _, found = training("", root=small_disk)
    except UserError as error:
        assert "the disk is full; make room and start again" in str(error)
        assert "\n" not in str(error)
        filler.unlink()
        _, found = training("", root=small_disk)
    else:
        assert room_kb > 100
    assert found == expected
    assert not (small_disk / "state").exists()


@pytest.mark.parametrize("other", ["torch", "processor", "card"])
def test_a_state_of_other_kernels_is_pointed_out(tmp_path, monkeypatch, capsys, other):
    device = torch.device("cuda" if other == "card" else "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 1")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    with StateFolder(tmp_path, KEY, device) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "__version__", "1.2.3" if other == "torch" else torch.__version__)
            patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
            patch.setattr(torch.cuda, "get_device_name", lambda device: "Card 2")
            write(folder, 1)
        assert folder.read()[0] == 1
        said = capsys.readouterr().err
        left_by = {"torch": "torch 1.2.3,", "processor": "OTHER", "card": "Card 2, cuDNN 91002"}
        assert left_by[other] in said.split(", not ")[0]
        assert torch.__version__ in said.split(", not ")[1]
        write(folder, 2)
        assert folder.read()[0] == 2 and not capsys.readouterr().err


def test_a_state_of_another_number_of_processes_is_pointed_out(tmp_path, capsys):
    with StateFolder(tmp_path, KEY, processes=2) as folder:
        write(folder, 1)
        assert folder.read()[0] == 1 and not capsys.readouterr().err
    with StateFolder(tmp_path, KEY) as folder:
        assert folder.read()[0] == 1
        left_by, here = capsys.readouterr().err.split(", not ")
        assert left_by.endswith(", 2 processes") and "processes" not in here


def test_a_finished_jobs_last_state_stays_until_it_is_cleared(tmp_path):
    with StateFolder(tmp_path / "root", KEY) as folder:
        write(folder, 1, 2, 3)
        folder.finish()
    with StateFolder(tmp_path / "root", KEY[::-1]) as other:  # of a job that was interrupted
        write(other, 1)
    with StateFolder(tmp_path / "root", KEY) as folder:
        assert folder.read()[0] == 3
        clear_finished(tmp_path / "root")  # in use: stays
        assert folder.read()[0] == 3
    clear_finished(tmp_path / "root")
    assert [path.name for path in (tmp_path / "root").iterdir() if path.is_dir()] == [KEY[::-1]]
    clear_finished(tmp_path / "nowhere")
