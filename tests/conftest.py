"""What all tests share."""

import os

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
