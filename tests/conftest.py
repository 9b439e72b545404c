"""What all tests share."""

import os

# Tests interrupt trainings of a second: each of their epochs leaves a state.
os.environ["NC_STATE_SECONDS"] = "0"
# A test that computes on a GPU says so.
os.environ["NC_DEVICE"] = "cpu"
