"""The wheel and the sdist, each installed alone into an empty environment, measure a model."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv")
SMOKE = """
import neural_collapse as nc
import torch

network = torch.nn.Linear(4, 3)
batches = [(torch.randn(30, 4), torch.arange(30) % 3)]
result = nc.measure_model(network, batches)
assert result.nc1 > 0 and nc.deepfool(network, batches[0][0]).converged.any()
assert "site-packages" in nc.__file__
"""


def uv(*arguments):
    done = subprocess.run([UV, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    checkout, folder = (tmp_path_factory.mktemp(name) for name in ("checkout", "packages"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "workflow", checkout / "workflow")
    uv("build", "--quiet", "--wheel", "--sdist", "--out-dir", folder, checkout)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="needs uv")
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
@pytest.mark.parametrize(
    "python, oldest", [("3.11", True), ("3.11", False), ("3.12", False), ("3.13", False)]
)
def test_a_package_installs_and_measures(packages, kind, python, oldest, tmp_path):
    if subprocess.run([UV, "python", "find", "--no-python-downloads", python]).returncode:
        pytest.skip(f"Python {python} is not installed")
    uv("venv", "--quiet", "--no-python-downloads", "--python", python, tmp_path / "venv")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    least = re.search(r'"torch>=([0-9.]+)"', project)[1]
    locked = re.search(r"(?m)^torch==(\S+)", (ROOT / "requirements.lock").read_text())[1]
    torch = f"torch=={least}.*" if oldest else f"torch=={locked}"
    executable = tmp_path / "venv" / "bin" / "python"
    (package,) = packages.glob(kind)
    uv("pip", "install", "--quiet", "--python", executable, package, torch)
    done = subprocess.run(
        [executable, "-c", SMOKE], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
