import pytest
from experiments import CHANGES, Experiment


@pytest.fixture(scope="session")
def experiment(tmp_path_factory):
    """A finished run; tests that change it make a copy."""
    finished = Experiment(tmp_path_factory.mktemp("whole"), **CHANGES)
    finished.output = finished.run()
    return finished
