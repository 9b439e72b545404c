"""A sweep whose learning rates are trained together, through the whole workflow."""

import json
import re

from experiments import Experiment

from neural_collapse.results.tables import read_table

TRAINING = re.compile(r"^Finished jobid: \d+ \(Rule: (train_\w+)\)", re.MULTILINE)


def planned(output: str) -> dict[str, int]:
    """The jobs that a dry run counts, by rule."""
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}


def test_rates_are_trained_in_packs_and_judged_alone(tmp_path):
    sweep = {
        "learning_rate_min": 0.01,
        "learning_rate_max": 0.09,
        "count": 3,
        "together": 2,
        "together_as": "one_network",
        "halving_epochs": [2],
    }
    own = Experiment(tmp_path)
    own.values["recipe"] = own.values["recipe"] | {"sweep": sweep}
    output = own.run("models")
    trainings = sorted(TRAINING.findall(output))
    assert trainings == ["train_candidates", "train_candidates", "train_model"]
    folder = own.results / "digits/resnet/sweep"
    chosen = json.loads((folder / "selection.json").read_text())
    assert chosen["candidates"] == 3 and chosen["trained"] == "one_network"
    table = read_table(folder / "sweep.parquet", "sweep")
    ends = table.groupby("learning_rate")["epoch"].max()
    # The worse of the first two stopped; the third was alone.
    assert sorted(ends) == [2, 6, 6] and ends.iloc[2] == 6
    assert ends[chosen["learning_rate"]] == 6
    run = json.loads((own.results / "digits/resnet/seed-0/run.json").read_text())
    assert run["learning_rate"] == chosen["learning_rate"]

    assert "Nothing to be done" in own.run("models", "--dry-run")
    # A further rate is trained by itself; what is there stays.
    sweep["additional_learning_rates"] = [0.001]
    jobs = planned(own.run("models", "--dry-run"))
    assert jobs["train_candidates"] == 1 and jobs["take_candidate"] == 1
