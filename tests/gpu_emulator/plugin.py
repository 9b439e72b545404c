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


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("between host and device: times, what, from where")
    for (kind, *lines), times in EMULATED.places.most_common(40):
        terminalreporter.write_line(f"{times:6} {kind:14}{' '.join(lines)}")
