"""Tables shared by the tests of the figures; drawn once, never changed."""

import sys
from pathlib import Path

import pytest

from neural_collapse.results.layout import Layout

sys.path.insert(0, str(Path(__file__).parent))
from sample_tables import ARCHITECTURES, DATASETS_2, LABELS, make_tables

MISSING = ("mnist_subset", "densenet")
WITHOUT = ("digits", "densenet")


@pytest.fixture(scope="session")
def tables():
    return make_tables(missing=[MISSING], without_terminal_phase=[WITHOUT], last=100)


@pytest.fixture(scope="session")
def seeded():
    return make_tables(seeds=(0, 1, 2), last=60)


@pytest.fixture(scope="session")
def layout(tables):
    return Layout.of(tables["runs"], DATASETS_2, ARCHITECTURES, LABELS)
