"""The Lightning callback in a real training."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning")

from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from neural_collapse import measure_model  # noqa: E402
from neural_collapse.adapters.lightning import NeuralCollapse  # noqa: E402
from neural_collapse.io.errors import UserError  # noqa: E402


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

    def forward(self, inputs):
        return self.body(inputs)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(callbacks, folder, **limit):
    torch.manual_seed(5)
    labels = torch.arange(60) % 3
    data = TensorDataset(torch.randn(60, 8) + 2 * nn.functional.one_hot(labels, 8), labels)
    model = Classifier()
    trainer = lightning.Trainer(
        **limit or {"max_epochs": 5},
        accelerator="cpu",
        callbacks=callbacks,
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(model, DataLoader(data, batch_size=20, shuffle=True))
    return model, data, trainer


def test_callback_measures_and_logs_without_changing_the_training(tmp_path):
    callback = NeuralCollapse(every=2)
    model, data, trainer = fitted([callback], tmp_path)
    table = callback.curve.to_frame()
    assert sorted(set(table["epoch"])) == [2, 4, 5]
    last = measure_model(model, DataLoader(data, 60))
    rows = table[table["epoch"] == 5].set_index("statistic")["value"]
    assert rows["nc1_within_class_variability"] == pytest.approx(last.nc1, rel=1e-5)
    logged = pd.read_csv(Path(trainer.logger.log_dir) / "metrics.csv")
    written = logged["collapse/nc1_within_class_variability"].dropna()
    assert len(written) == 3 and written.iloc[-1] == pytest.approx(last.nc1, rel=1e-5)
    unwatched, _, _ = fitted([], tmp_path)
    for watched_parameter, parameter in zip(
        model.parameters(), unwatched.parameters(), strict=True
    ):
        assert torch.equal(watched_parameter, parameter)


def test_callback_measures_where_a_training_is_stopped(tmp_path):
    callback = NeuralCollapse(every=3)
    fitted([callback], tmp_path, max_steps=13)  # three steps an epoch
    assert sorted(set(callback.curve.to_frame()["epoch"])) == [3, 5]


def test_callback_every_zero_epochs_is_refused_at_once():
    with pytest.raises(UserError, match="every is 0; a whole number of at least 1"):
        NeuralCollapse(every=0)
