"""Event files, read back by TensorBoard's own reader."""

import sys

import pytest

from neural_collapse.io.errors import UserError
from neural_collapse.io.tensorboard import Events


def scalars(folder, name):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_events_of_a_resumed_job_replace_the_steps_written_before(tmp_path):
    with Events(tmp_path) as events:
        for step, value in enumerate([4.0, 3.0, 2.0]):
            events.write(step, {"loss/train": value})
    with Events(tmp_path) as events:
        for step, value in [(2, 1.5), (3, 1.0)]:
            events.write(step, {"loss/train": value})
    assert scalars(tmp_path, "loss/train") == [(0, 4.0), (1, 3.0), (2, 1.5), (3, 1.0)]


def test_events_without_a_folder_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with Events(None) as events:
        events.write(0, {"loss/train": 1.0})


def test_events_without_tensorboard_are_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        Events(tmp_path)
