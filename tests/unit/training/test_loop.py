"""The training loop: the same bits twice, whole evaluations, and what goes wrong said clearly."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.io.errors import UserError
from neural_collapse.io.tensors import read_tensors
from neural_collapse.networks.build import build_network
from neural_collapse.networks.network import Network
from neural_collapse.training import trainer as trainers
from neural_collapse.training.checkpoints import FORMAT, list_checkpoints, load_checkpoint
from neural_collapse.training.loop import train
from neural_collapse.training.ranks import Ranks
from neural_collapse.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path, make_data, make_recipe):
    """`run("name", ...)` trains and returns the history, and the bytes of every checkpoint."""

    def of(name, recipe=None, data=None, learning_rate=0.05, seed=0):
        recipe = recipe or make_recipe()
        history, network = train(
            recipe,
            data or make_data(),
            learning_rate=learning_rate,
            seed=seed,
            device=CPU,
            state_root=tmp_path / name / "state",
            checkpoint_folder=tmp_path / name / "checkpoints",
            checkpoint_epochs=recipe.measured_epochs,
        )
        folder = tmp_path / name / "checkpoints"
        files = {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}
        assert not (tmp_path / name / "state").exists()
        return history, network, files

    return of


def test_the_same_recipe_gives_the_same_bits(run):
    first, _, files = run("a")
    torch.manual_seed(12345)
    torch.rand(3)
    np.random.seed(99)
    again, _, files_again = run("b")
    assert list(files) == [f"epoch-000{n}.safetensors" for n in range(4)]
    assert files == files_again
    assert first.records == again.records


def test_training_does_not_change_global_generators(run):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    run("a")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("change", ["seed", "learning_rate", "batch", "decay", "momentum"])
def test_another_seed_or_recipe_gives_other_bits(run, make_recipe, change):
    _, _, files = run("a")
    recipes = {
        "batch": make_recipe(batch_size=15),
        "decay": make_recipe(weight_decay=1e-3),
        "momentum": make_recipe(momentum=0.0),
    }
    options = {"seed": {"seed": 1}, "learning_rate": {"learning_rate": 0.051}}
    _, _, others = run("b", recipe=recipes.get(change), **options.get(change, {}))
    same = [name for name in files if files[name] == others[name]]
    assert same == ([] if change == "seed" else ["epoch-0000.safetensors"])


def test_training_lowers_loss_and_error(run, make_recipe):
    history, _, _ = run("a", make_recipe(epochs=8, learning_rate_milestones=[]))
    assert [record.epoch for record in history.records] == list(range(9))
    assert history.records[0].train_error > 0.3
    assert history.records[-1].train_error == 0
    assert history.records[-1].train_loss < 0.1 * history.records[0].train_loss
    assert not history.diverged


def plain_evaluation(network, images, labels, mean, std):
    """Loss and error in the simplest way: one image at a time, in float64."""
    network = network.double().eval()
    losses, wrong = [], 0
    for image, label in zip(images, labels, strict=True):
        x = (torch.tensor(image, dtype=torch.float64)[None] / 255 - mean) / std
        with torch.no_grad():
            logits = network(x)[0]
        losses.append((torch.logsumexp(logits, 0) - logits[label]).item())
        wrong += int(logits.argmax() != label)
    return np.mean(losses), wrong / len(labels)


def test_the_history_is_an_independent_evaluation_of_the_checkpoints(
    run, make_data, make_recipe, tmp_path
):
    data, recipe = make_data(), make_recipe()
    history, network, _ = run("a", recipe, data)
    for epoch, path in list_checkpoints(tmp_path / "a" / "checkpoints").items():
        fresh = build_network(recipe.network, channels=1, num_classes=3, image_size_px=8, seed=9)
        load_checkpoint(path, fresh)
        record = history.records[epoch]
        for split in ("train", "test"):
            images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
            loss, error = plain_evaluation(fresh, images, labels, 0.5, 0.25)
            assert getattr(record, f"{split}_loss") == pytest.approx(loss, rel=1e-4)
            assert getattr(record, f"{split}_error") == error
    fresh = build_network(recipe.network, channels=1, num_classes=3, image_size_px=8, seed=9)
    load_checkpoint(path, fresh)
    for name, value in network.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])


def test_epoch_0_is_the_network_before_training(run, make_recipe, tmp_path):
    run("a", seed=5)
    fresh = build_network(
        make_recipe().network, channels=1, num_classes=3, image_size_px=8, seed=5
    ).state_dict()
    other = build_network(make_recipe().network, channels=1, num_classes=3, image_size_px=8, seed=6)
    path = tmp_path / "a" / "checkpoints" / "epoch-0000.safetensors"
    load_checkpoint(path, other)
    assert read_tensors(path, "checkpoint", FORMAT)[1]["epoch"] == "0"
    assert all(torch.equal(value, fresh[name]) for name, value in other.state_dict().items())


def test_evaluating_changes_nothing_in_training(make_data, make_recipe):
    with_evaluation, without = (Trainer(make_recipe(), make_data(), 0.05, 0, CPU) for _ in range(2))
    for epoch in (1, 2):
        for _ in range(2):
            before = {name: value.clone() for name, value in with_evaluation.state().items()}
            with_evaluation.evaluate(epoch)
            after = with_evaluation.state()
            assert all(torch.equal(after[name], value) for name, value in before.items())
        with_evaluation.train_epoch(epoch)
        without.train_epoch(epoch)
    other = without.state()
    for name, value in with_evaluation.state().items():
        assert torch.equal(value, other[name]), name


def test_how_a_set_is_cut_into_batches_does_not_change_what_is_measured(make_data, make_recipe):
    trainer = Trainer(make_recipe(), make_data(), 0.05, 0, CPU)
    trainer.train_epoch(1)
    records = []
    for trainer.evaluation_batch_size in (1, 7, 64, 90, 1000):
        records.append(trainer.evaluate(1))
    for record in records:
        assert (record.train_error, record.test_error) == (
            records[0].train_error,
            records[0].test_error,
        )
        assert vars(record) == pytest.approx(vars(records[0]), rel=1e-6)


class Apart(Ranks):
    """A rank whose sums stay its own."""

    def sum(self, values):
        return values

    def parallel(self, module, example):
        return module


@pytest.mark.parametrize("stream", [False, True])
def test_ranks_without_a_test_image_add_nothing_to_the_evaluation(make_data, make_recipe, stream):
    data = make_data()
    data = replace(data, test_images=data.test_images[:2], test_labels=data.test_labels[:2])
    whole, *parts = (
        vars(Trainer(make_recipe(), data, 0.05, 0, CPU, ranks, stream).evaluate(0))
        for ranks in (Ranks(), *(Apart(rank, 3) for rank in range(3)))
    )
    summed = {name: sum(part[name] for part in parts) for name in whole}
    assert summed == pytest.approx(whole, rel=1e-6)


# --------------------------------------------------------------------------- batches


class Spy(Network):
    """A network that remembers which images it trained on; an image is its own number."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(64, 3)
        self.seen: list[list[int]] = []

    def features(self, x):
        if self.training:
            self.seen.append(x[:, 0, 0, 0].mul(255).round().int().tolist())
        return x.flatten(1)

    def forward(self, x):
        return self.classifier(self.features(x))


@pytest.mark.parametrize(
    ("examples", "batch", "keep", "sizes"),
    [
        (40, 16, False, [16, 16]),
        (40, 16, True, [16, 16, 8]),
        (48, 16, False, [16] * 3),
        (48, 16, True, [16] * 3),
        (16, 16, False, [16]),
        (10, 16, True, [10]),
    ],
)
def test_the_incomplete_batch_is_kept_or_dropped(
    monkeypatch, make_data, make_recipe, examples, batch, keep, sizes
):
    monkeypatch.setattr(trainers, "build_network", lambda *_, **__: Spy())
    data = make_data(examples)
    numbered = np.zeros_like(data.train_images)
    numbered[:, 0, 0, 0] = np.arange(examples)
    data = PreparedDataset(
        **{**vars(data), "train_images": numbered, "mean": (0.0,), "std": (1.0,)}
    )
    recipe = make_recipe(batch_size=batch, keep_incomplete_batch=keep)
    trainer = Trainer(recipe, data, 0.05, 3, CPU)
    orders = []
    for epoch in (1, 2):
        trainer.network.seen.clear()
        trainer.train_epoch(epoch)
        assert [len(step) for step in trainer.network.seen] == sizes
        seen = [number for step in trainer.network.seen for number in step]
        assert len(set(seen)) == len(seen) == sum(sizes)
        assert seen == trainers.epoch_order(examples, 3, epoch).tolist()[: sum(sizes)]
        orders.append(seen)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("examples", "batch", "keep", "said"),
    [
        (12, 16, False, "training.batch_size: 16 is more than the 12 train examples of patterns"),
        (33, 16, True, "training.batch_size: 16 leaves a last batch of one example"),
    ],
)
def test_a_batch_that_does_not_fit_the_data_is_one_sentence(
    run, make_data, make_recipe, examples, batch, keep, said
):
    recipe = make_recipe(batch_size=batch, keep_incomplete_batch=keep)
    with pytest.raises(UserError) as error:
        run("a", recipe, make_data(examples))
    assert said in str(error.value)


# --------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("learning_rate", [1e6, 1e30, 1e300])
def test_a_divergent_learning_rate_ends_early_and_is_flagged(
    run, make_recipe, tmp_path, learning_rate
):
    history, _, files = run("a", make_recipe(epochs=30), learning_rate=learning_rate)
    assert history.diverged
    last = history.records[-1]
    assert last.epoch < 30
    assert (last.train_error, last.test_error) == (1.0, 1.0)
    assert not math.isfinite(last.train_loss)
    assert all(math.isfinite(record.train_loss) for record in history.records[:-1])
    assert files == {}


# --------------------------------------------------------------------------- precision, memory


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_other_arithmetic_learns_and_repeats_itself(run, make_recipe, precision):
    recipe = make_recipe(precision=precision, epochs=6, learning_rate_milestones=[])
    first, network, files = run("a", recipe)
    _, _, files_again = run("b", recipe)
    assert files == files_again
    assert first.records[-1].train_loss < 0.5 * first.records[0].train_loss
    assert all(
        value.dtype in (torch.float32, torch.int64) for value in network.state_dict().values()
    )
    # config.yaml trains in TF32 with CUDA graphs, which a CPU lacks: its bits are float32's.
    graphed = make_recipe(
        precision=precision, epochs=6, learning_rate_milestones=[], cuda_graphs=True
    )
    assert run("c", graphed)[2] == files
    exact, _, files_exact = run("d", make_recipe(epochs=6, learning_rate_milestones=[]))
    assert (files_exact == files) == (exact.records == first.records) == (precision == "tf32")


def test_dropout_draws_the_same_in_a_resumed_training(make_data, make_recipe, monkeypatch):
    class Dropping(Hungry):
        def features(self, x):
            return nn.functional.dropout(x.flatten(1), training=self.training)

    network = Dropping(64)
    monkeypatch.setattr(trainers, "build_network", lambda *_, **__: copy.deepcopy(network))

    def trained(epochs, state=None):
        torch.manual_seed(len(epochs))
        trainer = Trainer(make_recipe(), make_data(), 0.05, 0, CPU)
        if state is not None:
            trainer.restore(state)
        for epoch in epochs:
            trainer.train_epoch(epoch)
        return trainer.state()

    whole, resumed = trained([1, 2]), trained([2], trained([1]))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_arithmetic_is_given_back(run, make_recipe):
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    run("a", make_recipe(precision="tf32"))
    assert [switch.fp32_precision for switch in switches] == before


class Hungry(Network):
    """Runs out of memory for more than `limit` images at once."""

    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    def __init__(self, limit: int):
        super().__init__()
        self.classifier = nn.Linear(64, 3)
        self.limit = limit

    def features(self, x):
        if len(x) > self.limit:
            raise self.error
        return x.flatten(1)

    def forward(self, x):
        return self.classifier(self.features(x))


NO_ENGINE = RuntimeError(
    "GET was unable to find an engine to execute this computation after trying 4 plans."
)
OUT = [
    Hungry.error,
    NO_ENGINE,
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: out of memory"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", OUT)
def test_evaluation_halves_its_batch_for_good_when_memory_runs_out(
    make_data, make_recipe, monkeypatch, capsys, error, stream
):
    monkeypatch.setattr(Hungry, "error", error)
    network = Hungry(64)
    monkeypatch.setattr(trainers, "build_network", lambda *_, **__: network)
    recipe = make_recipe(evaluation_batch_size=64)
    trainer = Trainer(recipe, make_data(), 0.05, 0, CPU, stream=stream)
    whole = trainer.evaluate(0)
    network.limit = 9
    halved = trainer.evaluate(0)
    assert (halved.train_error, halved.test_error) == (whole.train_error, whole.test_error)
    assert vars(halved) == pytest.approx(vars(whole), rel=1e-6)
    assert capsys.readouterr().err.count("out of GPU memory") == 3  # 32, 16, 8
    trainer.evaluate(1)
    assert trainer.evaluation_batch_size == 8 and not capsys.readouterr().err
    network.limit = 0
    with pytest.raises(UserError, match=r"training\.evaluation_batch_size"):
        trainer.evaluate(2)


@pytest.mark.parametrize(
    ("raised", "first", "said"),
    [
        (RuntimeError("invalidated"), torch.OutOfMemoryError("out"), "training.batch_size: 16"),
        (torch.OutOfMemoryError("out"), None, "training.batch_size: 16"),
        (RuntimeError("invalidated"), NO_ENGINE, "training.batch_size: 16"),
        (NO_ENGINE, None, "training.batch_size: 16"),
        (RuntimeError("invalidated"), RuntimeError("a copy"), "cannot be recorded (a copy)"),
        (RuntimeError("no stream"), None, "cannot be recorded (no stream)"),
    ],
)
def test_step_that_cannot_be_recorded_raises_with_a_reason(
    monkeypatch, make_data, make_recipe, raised, first, said
):
    def record(*_):
        try:
            if first is not None:
                raise first
        finally:
            raise raised  # as to end the recording does

    trainer = Trainer(make_recipe(batch_size=16), make_data(), 0.05, 0, CPU)
    trainer.graphed = True
    monkeypatch.setattr(trainers, "GraphedStep", record)
    with pytest.raises(UserError) as error:
        trainer.train_epoch(1)
    assert said in str(error.value)


@pytest.mark.parametrize("error", OUT)
def test_training_that_runs_out_of_memory_names_the_key(monkeypatch, make_data, make_recipe, error):
    monkeypatch.setattr(Hungry, "error", error)
    monkeypatch.setattr(trainers, "build_network", lambda *_, **__: Hungry(8))
    trainer = Trainer(make_recipe(batch_size=16), make_data(), 0.05, 0, CPU)
    with pytest.raises(UserError, match=r"training\.batch_size: 16 examples"):
        trainer.train_epoch(1)


def test_another_error_of_a_step_stays_what_it_is(monkeypatch, make_data, make_recipe):
    monkeypatch.setattr(Hungry, "error", RuntimeError("CUDA error: device-side assert"))
    monkeypatch.setattr(trainers, "build_network", lambda *_, **__: Hungry(8))
    trainer = Trainer(make_recipe(batch_size=16), make_data(), 0.05, 0, CPU)
    with pytest.raises(RuntimeError, match="device-side assert"):
        trainer.train_epoch(1)
    with pytest.raises(RuntimeError, match="device-side assert"):
        trainer.evaluate(1)


def test_events_for_tensorboard_are_the_learning_curve(tmp_path, make_data, make_recipe):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = make_recipe()
    history, _ = train(
        recipe,
        make_data(),
        learning_rate=0.05,
        seed=0,
        device=CPU,
        state_root=tmp_path / "state",
        tensorboard_folder=tmp_path / "tensorboard",
    )
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "train_error", "test_loss", "test_error"):
        split, statistic = name.split("_")
        written = [(event.step, event.value) for event in events.Scalars(f"{statistic}/{split}")]
        curve = [(record.epoch, getattr(record, name)) for record in history.records]
        assert written == [(epoch, pytest.approx(value, rel=1e-6)) for epoch, value in curve]
