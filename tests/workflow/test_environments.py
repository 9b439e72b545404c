"""Every place that names the library's needs names the same ones."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
# conda-forge calls some packages differently.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base"}


def split(requirement: str) -> tuple[str, str]:
    name, bounds = re.fullmatch(r"([A-Za-z0-9_-]+)(?:\[\w+\])?\s*(.*)", requirement).groups()
    return name, bounds.replace(" ", "")


def test_the_conda_environment_equals_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = {("python", project["requires-python"])} | {
        (CONDA_NAMES.get(name, name), bounds)
        for name, bounds in map(
            split, project["dependencies"] + project["optional-dependencies"]["pipeline"]
        )
    }
    environment = yaml.safe_load((ROOT / "envs" / "neural_collapse.yaml").read_text())
    assert {split(entry) for entry in environment["dependencies"]} == expected


def test_the_lock_pins_every_need_with_hashes_and_names_no_host():
    lock = (ROOT / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\\n]+)", lock, flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    assert {split(need)[0] for need in needs} <= pinned.keys()
    blocks = re.split(r"\n(?=[a-z0-9-]+==)", lock[lock.index("==") - 40 :])
    assert all("--hash=sha256:" in block for block in blocks if "==" in block)
    assert "://" not in lock and "--index" not in lock


def test_every_rule_names_the_environment():
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    environments = set(re.findall(r'conda:\s+"([^"]+)"', rules))
    assert environments == {"../../envs/neural_collapse.yaml"}
