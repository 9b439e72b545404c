"""Several processes train as one does, and end together."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import alive, children, wait_until
from safetensors import safe_open
from safetensors.torch import load_file
from shared_training import RATE, digits, everything, fail, in_float64, in_two_goes, recipe_of

from neural_collapse.data.download import download_dataset
from neural_collapse.data.prepare import prepare_dataset
from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.experiment.recipe import write_recipe
from neural_collapse.io.errors import UserError
from neural_collapse.training.distributed import _dumps, launch, process_count
from neural_collapse.training.loop import train
from neural_collapse.training.ranks import ALONE, Ranks
from neural_collapse.training.trainer import Trainer

CPU = torch.device("cpu")
FAMILIES = ("resnet", "vgg", "densenet", "etf")
SLOW = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def alone(data):
    return in_float64(ALONE, CPU, data)


@pytest.fixture(scope="module")
def together(data):
    """What two processes found."""
    descriptor = os.open(os.devnull, os.O_RDONLY)  # stands for the lease of a GPU
    os.set_inheritable(descriptor, True)
    try:
        return launch(2, CPU, everything, data, descriptor)
    finally:
        os.close(descriptor)


def differences(one, other):
    assert one.keys() == other.keys()
    return {
        name: float((value.double() - other[name].double()).abs().max())
        for name, value in one.items()
    }


def check_same_training(one, other):
    """In float64, parameters, buffers and momentum agree to rounding, as do losses and errors."""
    (state, record), (other_state, other_record) = one, other
    assert max(differences(state, other_state).values()) < 1e-10
    assert record.train_loss == pytest.approx(other_record.train_loss, abs=1e-11)
    assert record.test_loss == pytest.approx(other_record.test_loss, abs=1e-11)
    assert record.train_error == other_record.train_error
    assert record.test_error == other_record.test_error


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_end_where_one_does(alone, together, family):
    check_same_training(alone[family], together["float64"][family])


def test_a_process_is_set_up_as_its_launcher(together):
    assert together["sum"] == 3
    assert together["descriptor"]  # a leased GPU is free only when the last process is gone
    assert together["threads"] == 1
    assert together["map"]  # opened, not sent


@SLOW
def test_three_processes_too_and_they_resume_with_the_same_bits(alone, data):
    found = launch(3, CPU, in_float64, data)
    for family in FAMILIES:
        check_same_training(alone[family], found[family])
    whole, resumed = launch(3, CPU, in_two_goes, data)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def train_here(recipe, data, state, checkpoints, **more):
    return train(
        recipe,
        data,
        learning_rate=RATE,
        seed=0,
        device=CPU,
        state_root=state,
        checkpoint_folder=checkpoints,
        checkpoint_epochs=recipe.measured_epochs,
        **more,
    )


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[SLOW] * (name != "vgg")) for name in FAMILIES]
)
def test_a_shared_run_delivers_what_a_run_alone_does(data, tmp_path, family, capsys):
    recipe = recipe_of(family)

    def run(processes):
        folders = tmp_path / "state", tmp_path / str(processes)
        history, network = train_here(recipe, data, *folders, processes=processes)
        assert not (tmp_path / "state").exists()
        said = capsys.readouterr().err
        assert re.findall(r"epoch +(\d/\d)", said) == ["0/2", "2/2"]
        return history, network.state_dict()

    (history, weights), (shared_history, shared_weights) = run(1), run(2)
    for record, shared in zip(history.records, shared_history.records, strict=True):
        assert vars(record) == pytest.approx(vars(shared), abs=2e-3)
    for one, other in zip(*(sorted((tmp_path / p).iterdir()) for p in "12"), strict=True):
        assert one.name == other.name
        # Float32 rounds, and a norm after a layer of tiny outputs enlarges that.
        torch.testing.assert_close(load_file(one), load_file(other), rtol=1e-2, atol=2e-2)
        (own, its) = (safe_open(path, "pt").metadata() for path in (one, other))
        # The checksum of weights that are equal only within rounding.
        assert own.pop("blake2b") and its.pop("blake2b")
        assert own == its
    # The network that comes back is the one of the last checkpoint.
    assert weights.keys() == shared_weights.keys()
    last = load_file(tmp_path / "2" / "epoch-0002.safetensors")
    torch.testing.assert_close(last, dict(shared_weights), rtol=0, atol=0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The digits as a job of the pipeline finds them."""
    folder = tmp_path_factory.mktemp("prepared")
    recipe = recipe_of("custom", epochs=12)
    download_dataset("digits", folder / "raw")
    prepare_dataset("digits", folder / "raw", folder / "data", recipe.data)
    write_recipe(recipe, folder / "recipe.json")
    return folder


def start(prepared: Path, folder: Path, trouble: str) -> subprocess.Popen:
    outputs = {"checkpoint-folder": "checkpoints", "history": "history", "run-facts": "run.json"}
    options = [f"--{option}={folder / name}" for option, name in outputs.items()]
    command = ["train-model", "--processes=2", "--gpus=0", "--device=cpu", "--seed=0", *options]
    command += [f"--recipe={prepared / 'recipe.json'}", f"--data-folder={prepared / 'data'}"]
    command += [f"--state-root={folder / 'state'}", f"--log={folder / 'log'}"]
    paths = [str(Path(__file__).parent), *sys.path]
    return subprocess.Popen(
        [sys.executable, "-m", "neural_collapse", *command],
        env=os.environ | {"TEST_TROUBLE": trouble, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs these tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_kill_9_of_the_launcher_leaves_no_orphan_and_one_process_resumes(prepared, tmp_path):
    launcher = start(prepared, tmp_path, "slow")
    try:
        wait_until(lambda: list(tmp_path.glob("state/*/state-000003.*")), "three epochs")
        workers = children(launcher.pid)
        assert len(workers) == 2
    finally:
        launcher.kill()
    wait_until(lambda: not any(map(alive, workers)), "the workers end", 120)
    launcher.communicate()

    recipe = recipe_of("custom", epochs=12)
    data = PreparedDataset.open(prepared / "data")

    history, network = train_here(recipe, data, tmp_path / "state", tmp_path / "delivered")
    expected, reference = train_here(recipe, data, tmp_path / "other", tmp_path / "delivered")
    assert 3 <= history.resumed_after < 12
    assert len(history.records) == 13
    for record, other in zip(history.records, expected.records, strict=True):
        assert vars(record) == pytest.approx(vars(other), abs=1e-3)
    assert max(differences(network.state_dict(), reference.state_dict()).values()) < 1e-2


def test_a_dead_process_ends_the_job_with_one_sentence(prepared, tmp_path):
    launcher = start(prepared, tmp_path, "kill")
    _, said = launcher.communicate(timeout=600)
    assert launcher.returncode == 2
    *progress, sentence = said.splitlines()
    assert sentence.startswith("error: process 2 of 2 was killed")
    assert all("epoch" in line for line in progress), said
    log = (tmp_path / "log").read_text().splitlines()
    assert log == said.splitlines()
    assert not (tmp_path / "history").exists()


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        (
            "raise",
            RuntimeError,
            "process 2 of 2 failed, and the others were stopped: ZeroDiv",
        ),
        pytest.param("refuse", UserError, "data: are not there; fetch them", marks=SLOW),
        pytest.param("kill", UserError, "process 2 of 2 was killed", marks=SLOW),
        pytest.param("abort", RuntimeError, "process 2 of 2 died of SIGABRT", marks=SLOW),
    ],
)
def test_failure_of_one_process_stops_all_and_is_reported(how, kind, words):
    before = children(os.getpid())  # such as multiprocessing's resource tracker, from other tests
    with pytest.raises(kind) as caught:
        launch(2, CPU, fail, how)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    if how == "raise":
        assert "in trouble" in caught.value.__notes__[0]
    assert set(children(os.getpid())) <= set(before)


def test_parts_of_a_batch_are_the_batch():
    for size in range(1, 6):
        ranks = [Ranks(rank, size) for rank in range(size)]
        for count in range(size, 20):
            rows = torch.randperm(count)
            parts = [rank.part(rows) for rank in ranks]
            assert torch.equal(torch.cat(parts), rows)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            shares = [row for rank in ranks for row in rank.share(count)]
            assert shares == list(range(count))


def test_a_batch_that_cannot_be_shared_is_refused(data):
    with pytest.raises(UserError, match="4 processes cannot share a batch of 3 examples"):
        Trainer(recipe_of("resnet"), data, RATE, 0, CPU, Ranks(0, 4))
    whole = recipe_of("resnet", batch_size=3, keep_incomplete_batch=False)
    with pytest.raises(UserError, match="4 processes cannot share a batch of 3 examples"):
        Trainer(whole, data, RATE, 0, CPU, Ranks(0, 4))


def test_process_count_follows_the_device_unless_given():
    gpu = torch.device("cuda")
    assert process_count(gpu, 4) == 4
    assert process_count(gpu, 0) == 1
    assert process_count(CPU, 4) == 1
    assert process_count(CPU, 0, 2) == 2
    with pytest.raises(UserError, match="--processes: is 0"):
        process_count(CPU, 0, 0)


@pytest.mark.skipif(torch.cuda.device_count() > 2, reason="this machine has the GPUs")
def test_more_processes_than_gpus_are_refused():
    with pytest.raises(UserError, match=r"3 processes need a GPU each, and this job sees \d;"):
        launch(3, torch.device("cuda"), fail, "raise")


@pytest.mark.parametrize("offset", [0, 128, 4096 * 3 + 128])
def test_a_memory_map_is_sent_as_its_place(tmp_path, offset):
    values = np.random.default_rng(0).integers(0, 256, (6000, 2, 3), dtype=np.uint8)
    (tmp_path / "file").write_bytes(bytes(offset) + values.tobytes())
    whole = np.memmap(tmp_path / "file", np.uint8, "r", offset, values.shape)
    payload = _dumps(whole)
    assert len(payload) < 1000
    sent = pickle.loads(payload[8:])
    assert isinstance(sent, np.memmap) and not sent.flags.writeable
    assert np.array_equal(sent, values)
    for part in (slice(700, 5900), slice(None, None, 2)):
        assert np.array_equal(pickle.loads(_dumps(whole[part])[8:]), values[part])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_end_where_one_does(data):
    gpu = torch.device("cuda")
    one, two = in_float64(ALONE, gpu, data), launch(2, gpu, in_float64, data)
    for family in FAMILIES:
        (state, record), (shared, shared_record) = one[family], two[family]
        shared = {name: value.to("cuda:0") for name, value in shared.items()}
        assert max(differences(state, shared).values()) < 1e-8
        assert record.train_loss == pytest.approx(shared_record.train_loss, abs=1e-9)


@SLOW
def test_interrupting_the_launcher_ends_all(prepared, tmp_path):
    launcher = start(prepared, tmp_path, "slow")
    try:
        wait_until(lambda: list(tmp_path.glob("state/*/state-000000.*")), "a state")
        workers = children(launcher.pid)
        launcher.send_signal(signal.SIGINT)
        _, said = launcher.communicate(timeout=600)
    finally:
        launcher.kill()
    assert launcher.returncode == 130
    assert said.splitlines()[-1] == "interrupted; what is done is kept"
    assert not any(map(alive, workers))
