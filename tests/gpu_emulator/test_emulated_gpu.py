"""Every test that needs a GPU, on one that is emulated on the CPU: see ``emulator``.

Needs g++ and the CUDA build of torch, whose headers and libraries come with it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
UNIT = ROOT / "tests" / "unit"
LISTING = "GPU 0: Emulated GPU (UUID: GPU-00000000-aaaa-bbbb-cccc-dddddddddddd)"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """In which a Python has the emulated GPU."""
    packages = Path(importlib.util.find_spec("torch").submodule_search_locations[0]).parent
    # Triton's are of an older CUDA than those of torch 2.11.
    includes = [*packages.glob("nvidia/cu*/include"), packages / "triton/backends/nvidia/include"]
    if not shutil.which("g++") or not any((path / "cuda.h").exists() for path in includes):
        pytest.skip("needs g++ and the CUDA build of torch")
    folder = tmp_path_factory.mktemp("emulator")
    library = folder / "libcuda.so.1"
    command = ["g++", "-shared", "-fPIC", "-w", "-O1", *(f"-I{path}" for path in includes)]
    command += ["-x", "c++", HERE / "runtime.cpp", "-x", "c", HERE / "driver.c", "-o", library]
    subprocess.run([*command, "-ldl"], check=True)
    listing = folder / "nvidia-smi"
    listing.write_text(f"#!/bin/sh\necho '{LISTING}'\n")
    listing.chmod(0o755)
    libraries = [folder, *packages.glob("nvidia/*/lib")]
    return os.environ | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, [HERE, ROOT / "workflow", ROOT])),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
        "NC_LEASE_FOLDER": str(folder / "leases"),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.parametrize(
    ("tests", "at_least"),
    [
        (["training/test_on_gpu.py"], 60),
        (["training/test_streaming.py", "collapse/test_metric.py"], 15),
        (["training/traffic_on_emulated_gpu.py"], 10),
        (["inspect/test_check_gpu.py"], 1),
    ],
    ids=["training", "streaming and metric", "traffic", "check-gpu"],
)
def test_the_tests_that_need_a_gpu_pass_on_it(environment, tests, at_least):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "plugin"]
    done = subprocess.run(
        [*command, "-m", "gpu", *(UNIT / name for name in tests)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= at_least
