"""The public surface is annotated, and a type checker finds nothing wrong in it."""

import subprocess
import sys
from pathlib import Path

import neural_collapse as nc

LIBRARY = Path(nc.__file__).parent
PIPELINE = {"features.py", "projection.py", "saved_features.py", "saved_model.py"}


def test_a_type_checker_finds_nothing_wrong(tmp_path):
    assert (LIBRARY / "py.typed").exists()
    modules = [p for p in (LIBRARY / "collapse").glob("*.py") if p.name not in PIPELINE]
    options = ["--ignore-missing-imports", "--follow-imports=silent", "--cache-dir", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, LIBRARY / "__init__.py", *modules],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
