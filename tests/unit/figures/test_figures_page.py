"""docs/figures.md names every figure, what it shows, and every table's columns."""

import re
from pathlib import Path

from neural_collapse.collapse.registry import REGISTRY
from neural_collapse.figures import FIGURES
from neural_collapse.figures.specs import SPECS
from neural_collapse.results.claims import PHENOMENA
from neural_collapse.results.tables import SCHEMAS

PAGE = (Path(__file__).parents[3] / "docs" / "figures.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` (\|.*)$", PAGE.split("## Columns")[0], re.M))


def test_every_figure_has_a_row_and_the_papers_their_statistics():
    assert ROWS.keys() >= FIGURES.keys()
    for number, spec in SPECS.items():
        for series in spec.series:
            row = ROWS[f"figure_{number}"]
            assert f"`{series.statistic}`" in row and series.split in row


def test_every_drawn_tables_columns_are_named():
    columns = PAGE[PAGE.index("## Columns") :]
    for table in ("measurements", "activations", "sweep"):
        for name in SCHEMAS[table].names:
            assert f"`{name}`" in columns, (table, name)
    for name in SCHEMAS["runs"].names:
        assert f"`{name}`" in columns or name.endswith("_label"), name


def test_no_statistic_or_column_is_made_up():
    known = set(REGISTRY) | {name for schema in SCHEMAS.values() for name in schema.names}
    known |= set(FIGURES) | set(SCHEMAS) | {"own", "reference", "gif", "html"}
    for row in ROWS.values():
        assert set(re.findall(r"`(\w+)`", row)) <= known


def test_page_states_the_noise_of_every_claim():
    text = " ".join(PAGE.split())
    for phenomenon in PHENOMENA:
        spread = phenomenon.spread
        number = f"{spread:.2g} times" if phenomenon.counted else f"{100 * spread:.2g} %"
        assert f"{phenomenon.name} {number}" in text
