import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Bits that do not depend on the machine's number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
