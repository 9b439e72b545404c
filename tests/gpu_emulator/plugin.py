"""For pytest: every test runs on the emulated GPU."""

import pytest
from emulator import install

EMULATED = install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with EMULATED:
        return (yield)


@pytest.fixture
def traffic():
    """What crosses between host and device from here on, by kind."""
    EMULATED.traffic.clear()
    return EMULATED.traffic
