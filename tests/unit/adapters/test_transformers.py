"""The Hugging Face callback in a real training of a tiny model that is made here."""

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from neural_collapse import measure_model  # noqa: E402
from neural_collapse.adapters.transformers import NeuralCollapse  # noqa: E402
from neural_collapse.io.errors import UserError  # noqa: E402


def fitted(folder, watch, **limit):
    torch.manual_seed(4)
    settings = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(settings)
    tokens = torch.randint(3, 20, (48, 6))
    tokens[:, 0] = torch.arange(48) % 3
    data = [{"input_ids": row, "labels": row[0]} for row in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        **limit or {"num_train_epochs": 3},
        per_device_train_batch_size=16,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data[:24])
    callback = NeuralCollapse(log=trainer.log, test_loader=trainer.get_eval_dataloader())
    if watch:
        trainer.add_callback(callback)
    trainer.train()
    return trainer, callback, data


def test_callback_measures_and_logs_without_changing_the_training(tmp_path):
    trainer, callback, data = fitted(tmp_path, watch=True)
    table = callback.curve.to_frame()
    assert sorted(set(table["epoch"])) == [1, 2, 3]
    assert set(table["split"]) == {"train", "test"}
    batch = {key: torch.stack([row[key] for row in data]) for key in ("input_ids", "labels")}
    last = measure_model(trainer.model, [batch])
    train = table[(table["epoch"] == 3) & (table["split"] == "train")]
    rows = train.set_index("statistic")["value"]
    assert rows["nc1_within_class_variability"] == pytest.approx(last.nc1, rel=1e-4)
    logged = [row for row in trainer.state.log_history if "collapse/cdnv" in row]
    assert [row["epoch"] for row in logged] == [1, 2, 3]
    assert logged[-1]["collapse/cdnv"] == pytest.approx(last["cdnv"], rel=1e-4)
    alone, _, _ = fitted(tmp_path, watch=False)
    for watched_parameter, parameter in zip(
        trainer.model.parameters(), alone.model.parameters(), strict=True
    ):
        assert torch.equal(watched_parameter, parameter)


def test_callback_measures_where_a_training_is_stopped(tmp_path):
    _, callback, _ = fitted(tmp_path, watch=True, max_steps=7)  # three steps an epoch
    epochs = sorted(set(callback.curve.to_frame()["epoch"]))
    assert epochs == [1, 2, pytest.approx(7 / 3, abs=1e-5)]


def test_callback_every_zero_epochs_is_refused_at_once():
    with pytest.raises(UserError, match="every is 0; a whole number of at least 1"):
        NeuralCollapse(every=0)
