"""The report: one page, everything in it, nothing from outside, nothing unescaped.

How a browser shows it: test_report_browser.py.
"""

import base64
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from neural_collapse.cli.main import main
from neural_collapse.figures import FIGURES, caption
from neural_collapse.io.errors import UserError
from neural_collapse.report.build import build_report
from neural_collapse.report.parts import claims_table
from neural_collapse.results.claims import CLAIM_HEADINGS, check_claims, write_claims
from neural_collapse.results.table1 import build_table_1, write_table_1
from neural_collapse.results.tables import read_table, write_table

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))
from sample_tables import draw, make_tables

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x.png onerror=alert(1)>"


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def make_folder(folder, tables):
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet", name)
    write_claims(check_claims(tables["measurements"], tables["runs"]), folder / "claims")
    write_table_1(build_table_1(tables["measurements"], tables["runs"]), folder / "table_1")


PROVENANCE = [
    {
        "dataset": "digits",
        "architecture": architecture,
        "seed": 0,
        "seconds": seconds,
        "machine": {"processor": "Abacus 3000"} | gpu,
        "versions": {"torch": "2.9.1"},
        "commit": "abc1234",
    }
    for architecture, seconds, gpu in [("vgg", 3600.0, {}), ("resnet", 5400.0, {"gpu": "H200"})]
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    make_folder(root / "tables", make_tables(("digits",), ("vgg", "resnet"), last=12))
    for name in FIGURES:
        draw(name, root / "tables", root / "figures" / name, ["png"])
    build_report(
        root / "tables",
        root / "figures",
        root / "report.html",
        PROVENANCE,
        [{"label": "Digits", "images": {"train": 1500}, "sha256": "f" * 64}],
        "experiment: test\n",
        "My experiment",
    )
    return root, (root / "report.html").read_text()


def test_every_figure_is_inlined_with_caption_command_and_alternative_text(built):
    root, html = built
    page = Page(html)
    names = sorted(FIGURES, key=lambda name: name not in ("figure_6", "overview"))
    for image, name in zip(page.all("img"), names, strict=True):
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert data == (root / "figures" / f"{name}.png").read_bytes()
        text = caption(name, root / "tables")
        assert image["alt"] == f"{FIGURES[name].label}: {FIGURES[name].title}"
        assert text.replace("_", "") in page.text.replace("_", "")
    assert "Σ<sub>W</sub> Σ<sub>B</sub>⁺" in html


def test_command_beside_a_figure_draws_it_again(built):
    root, html = built
    command = next(line for line in Page(html).text.splitlines() if "--figure figure_6" in line)
    program, *arguments = shlex.split(command)
    image = root / "figures" / "figure_6.png"
    before = image.read_bytes()
    image.unlink()
    assert program == "neural-collapse" and main(arguments) == 0
    assert image.read_bytes() == before


def test_nothing_is_loaded_from_outside(built):
    root, html = built
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name) or ""
            assert not re.match(r"(?i)\s*(https?:|//|javascript:)", value), (tag, value)
            if name == "src" and name in attributes:
                assert value.startswith("data:")
    assert "@import" not in html and "url(" not in html
    (policy,) = [m["content"] for m in page.all("meta") if "content" in m and "src" in m["content"]]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for link in page.all("a"):
        if not link["href"].startswith("#"):
            assert (root / link["href"]).is_file(), "links lead to files that are there"


def test_it_says_what_was_run(built):
    text = Page(built[1]).text
    for expected in (
        "My experiment",
        "VGG11",
        "abc1234",
        "torch",
        "2.9.1",
        "f" * 64,
        "experiment: test",
        "measurements.parquet",
        "NC1 within-class variability",
        "Test accuracy (%)",
    ):
        assert expected in text, expected
    order = (
        "Figure 6.",
        "Overview.",
        "Do the paper's claims",
        "Figure 1.",
        "Table 1",
        "Every claim",
    )
    places = [text.index(part) for part in order]
    assert places == sorted(places), "what matters most comes first"


def test_claims_are_sorted_by_values_that_are_not_rounded():
    tables = make_tables(("digits",), ("vgg",), last=12)
    claims = check_claims(tables["measurements"], tables["runs"])
    (column,) = [n for n, name in enumerate(CLAIM_HEADINGS) if name == "End"]
    found = [row[column].sort for row in claims_table(claims).rows]
    assert found == ["" if value != value else repr(value) for value in claims["at_end"]]
    assert any(len(sort) > 8 for sort in found)


def test_matrix_has_a_sign_for_each_verdict_with_numbers_and_criterion(built):
    root, html = built
    page, table = Page(html), read_table(root / "tables" / "claims.parquet", "claims")
    signs = [b for b in page.all("button") if "aria-label" in b]
    assert len(signs) == len(table) == 2 * 11
    styles = {"holds": "yes", "does not": "no", "cannot say": "open"}
    for sign, row in zip(signs, table.itertuples(), strict=True):
        assert sign["class"] == styles[row.holds]
        for part in (row.phenomenon, row.holds, row.reason, row.criterion, row.dataset_label):
            assert part in sign["title"] and part in sign["aria-label"]
    assert html.count('title="NC1 within-class variability"') == 1


def test_a_study_shows_its_figure_first_and_the_verdicts_of_its_claims(tmp_path):
    shipped = Path(__file__).parents[3] / "results/reference/studies/optimisers/tables"
    tables = {
        name: read_table(shipped / f"{name}.parquet", name) for name in ("measurements", "runs")
    }
    make_folder(tmp_path / "tables", tables)
    draw("optimisers", shipped, tmp_path / "figures" / "optimisers", ["png"])
    build_report(tmp_path / "tables", tmp_path / "figures", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert 0 < html.index('<figure id="optimisers">') < html.index('id="matrix"')
    signs = [
        b["title"] for b in Page(html.split('id="study-matrix"')[1]).all("button") if "title" in b
    ]
    judged = read_table(tmp_path / "tables" / "claims.parquet", "claims")
    of_nc0 = judged[judged["phenomenon"] == "closed form of NC0"]
    assert len(of_nc0) == 5
    for row in of_nc0.itertuples():
        said = f"closed form of NC0: {row.holds}. {row.reason}"
        assert sum(row.architecture_label in sign and said in sign for sign in signs) == 1


def test_what_all_runs_share_is_shown_once_and_the_rest_in_a_table(built):
    html = built[1]
    assert html.count("abc1234") == 3  # once for reading, twice in the JSON
    assert "<td>vgg</td>" in html and "<td>resnet</td>" in html


def test_every_claim_that_is_judged_has_its_criterion_in_words(tmp_path):
    make_folder(tmp_path, make_tables(("digits",), ("vgg",), last=5))
    table = read_table(tmp_path / "claims.parquet", "claims")
    later = table.iloc[-1:].assign(
        phenomenon="closed form of NC0", statistic="nc0_prediction_error"
    )
    write_table(pd.concat([table, later]), tmp_path / "claims.parquet", "claims")
    build_report(tmp_path, tmp_path, tmp_path / "r.html")
    text = Page((tmp_path / "r.html").read_text()).text
    assert (
        "closed form of NC0 (nc0_prediction_error, train): below 0.001 at the last epoch." in text
    )


def test_hours_and_devices_come_from_the_provenance(built, tmp_path):
    root, html = built
    assert "<td>Abacus 3000, H200</td>" in html and "<td>2.5 h</td>" in html
    assert re.search(r"<td[^>]*>60 min</td><td>Abacus 3000</td>", html), "a run's own"
    build_report(root / "tables", tmp_path, tmp_path / "without.html")
    without = Page((tmp_path / "without.html").read_text()).text
    assert "Training time" not in without


def test_the_same_input_gives_the_same_page(built, tmp_path):
    root, _ = built
    pages = []
    for _ in range(2):
        build_report(root / "tables", root / "figures", root / "again.html", PROVENANCE)
        pages.append((root / "again.html").read_bytes())
    assert pages[0] == pages[1]


def test_hostile_text_is_shown_not_run(tmp_path):
    tables = make_tables(("digits",), ("vgg",), last=5)
    for column in ("dataset_label", "architecture_label", "network"):
        tables["runs"][column] = HOSTILE
    make_folder(tmp_path / "t", tables)
    draw("figure_2", tmp_path / "t", tmp_path / "f" / "figure_2", ["png"])
    build_report(
        tmp_path / "t",
        tmp_path / "f",
        tmp_path / "r.html",
        [{HOSTILE: HOSTILE, "nested": {"a": HOSTILE}}, {"nested": [HOSTILE]}],
        [{"label": HOSTILE, HOSTILE: [HOSTILE]}],
        HOSTILE,
        HOSTILE,
    )
    html = (tmp_path / "r.html").read_text()
    page = Page(html)
    assert len(page.all("script")) == 1, "only the page's own script"
    assert len(page.all("img")) == 1
    assert "<script>alert" not in html
    assert HOSTILE in page.text, "it is shown as text"
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]


def test_without_claims_figures_or_provenance_it_still_opens(tmp_path):
    write_table(
        make_tables(("digits",), ("vgg",), last=5)["runs"], tmp_path / "runs.parquet", "runs"
    )
    build_report(tmp_path, tmp_path, tmp_path / "r.html")
    text = Page((tmp_path / "r.html").read_text()).text
    assert "No claims table was made" in text and "No figures were drawn" in text


def test_a_broken_picture_is_named(tmp_path):
    make_folder(tmp_path, make_tables(("digits",), ("vgg",), last=5))
    (tmp_path / "figure_2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"figure_2\.png: is corrupt or not a PNG"):
        build_report(tmp_path, tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
