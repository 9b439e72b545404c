"""What all tests share."""

import os
import shutil
import subprocess

import pytest

# Tests interrupt trainings of a second: each of their epochs leaves a state.
os.environ["NC_STATE_SECONDS"] = "0"
# A test that computes on a GPU says so.
os.environ["NC_DEVICE"] = "cpu"


def pytest_collection_modifyitems(items):
    need_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if need_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in need_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here (needs root and CAP_SYS_ADMIN)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
