"""docs/extending.md and docs/own-features.md work as they are written.

Their files are made, their commands are run, in order.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow
PAGE = "\n".join(
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("extending.md", "own-features.md")
)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A checkout in which somebody did what the pages say, and what each command printed."""
    folder = tmp_path_factory.mktemp("extending")
    for name in ("Snakefile", "workflow", "envs", "config.yaml"):
        (folder / name).symlink_to(ROOT / name)
    said = {}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S):
        if language == "bash":
            environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": "."}
            for command in block.strip().splitlines():
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"[-6000:]
                said[command] = done.stdout
        else:
            first, rest = block.split("\n", 1)
            name = first.removeprefix("# file: ")
            (folder / name).write_text(rest + "device: cpu\n" * (name == "own.yaml"))
    return folder, said


def tables(folder, experiment):
    path = folder / "results" / experiment / "tables"
    return {name: pd.read_parquet(path / f"{name}.parquet") for name in ("runs", "measurements")}


def test_every_block_is_a_file_or_a_command():
    blocks = re.findall(r"^```(\w+)\n(.*)$", PAGE, re.M)
    assert len(blocks) >= 10
    for language, first in blocks:
        assert language in ("python", "yaml", "bash")
        assert language == "bash" or first.startswith("# file: ")


def test_both_kinds_of_data_and_the_network_are_measured(followed):
    folder, _ = followed
    found = tables(folder, "own")
    runs = found["runs"].set_index("dataset")
    assert runs.num_classes.to_dict() == {"shapes": 4, "photos": 3}
    assert runs.train_examples.to_dict()["photos"] == 180
    assert runs.dataset_label.to_dict()["shapes"] == "Shapes"
    assert set(runs.architecture_label) == {"Small"} and set(runs.origin) == {"own"}
    nc1 = found["measurements"].query("statistic == 'nc1_within_class_variability'")
    assert set(nc1.dataset) == {"shapes", "photos"} and np.isfinite(nc1.value).all()
    assert (folder / "results/own/figures/figure_6.png").is_file()


def test_status_and_show_say_it(followed):
    _, said = followed
    (status,) = [text for command, text in said.items() if " status " in command]
    assert "8 jobs, 8 done" in status
    (shown,) = [text for command, text in said.items() if " show " in command]
    assert shown.startswith("shapes x small, seed 0") and "NC1 within-class" in shown


@pytest.mark.parametrize("dataset", ["shapes", "digits"])
def test_the_plan_knows_the_network(followed, dataset):
    folder, _ = followed
    config = yaml.safe_load((folder / "own.yaml").read_text()) | {"datasets": [dataset]}
    (folder / f"plan_{dataset}.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [BIN / "neural-collapse", "plan", "--config", f"plan_{dataset}.yaml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f".{os.pathsep}{ROOT / 'workflow'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # The sizes of digits are published; those of shapes are known since it was prepared.
    assert re.search(r"time +about .* as 2 finished runs of this machine reached", done.stdout)


def test_the_command_and_the_three_lines_agree(followed):
    folder, said = followed
    table = pd.read_csv(folder / "model.csv").set_index("statistic").value
    printed = float(said["python statistics_of_model.py"])
    assert printed == table["nc1_within_class_variability"] > 0


def test_a_title_trains_nothing_and_a_new_image_everything_of_it(followed):
    folder, _ = followed

    def planned(change):
        config = folder / "changed.yaml"
        config.write_text((folder / "own.yaml").read_text().replace(*change))
        done = subprocess.run(
            [BIN / "snakemake", "-n", "tables", "--cores", "1", "--configfile", config.name],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": "."},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        stats = (done.stdout + done.stderr).split("Job stats:")
        found = re.findall(r"^(\w+) +(\d+)$", stats[1], re.M) if len(stats) > 1 else []
        return {rule: int(count) for rule, count in found}

    assert not planned(("label: Shapes", "label: Shapes"))
    titled = planned(("label: Shapes", "label: Forms"))
    assert set(titled) == {"collect_tables", "compare_with_paper", "tables", "total"}
    image = folder / "photos" / "train" / "dark" / "0.png"
    before = image.read_bytes()
    try:
        image.write_bytes((image.parent / "1.png").read_bytes())
        found = planned(("label: Shapes", "label: Shapes"))
    finally:
        image.write_bytes(before)
    assert found["prepare_dataset"] == found["train_model"] == 1


def test_reference_runs_are_shown_without_training(followed):
    folder, _ = followed
    own, shown = tables(folder, "own"), tables(folder, "shown")
    assert set(shown["runs"].origin) == {"reference"}
    for name, table in own.items():
        pd.testing.assert_frame_equal(
            table.drop(columns="origin"), shown[name].drop(columns="origin")
        )
    assert not list((folder / "results" / "shown").glob("*/*/seed-*")), "nothing was trained"
    assert (folder / "results/shown/figures/figure_2.png").is_file()
