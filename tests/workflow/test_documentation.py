"""The documentation builds as a site: no broken link, and nothing fetched from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("material", reason="mkdocs-material is not installed (the extra `docs`)")

ROOT = Path(__file__).parents[2]
FETCHED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}


def build(checkout, site):
    options = ["--config-file", checkout / "mkdocs.yml", "--site-dir", site]
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", *options],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "workflow")},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Page(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self, text):
        super().__init__()
        self.fetched = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in FETCHED and attributes.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(attributes.get(FETCHED[tag]) or "")


def test_pages_fetch_nothing_from_elsewhere_and_nothing_that_is_missing(site):
    pages = sorted(site.glob("*.html"))
    assert len(pages) >= 12
    for page in pages:
        fetched = [name for name in Page(page.read_text(encoding="utf-8")).fetched if name]
        assert any(name.endswith(".css") for name in fetched)
        outside = [name for name in fetched if re.match(r"(\w+:)?//", name)]
        assert not outside, page.name
        if page.name != "404.html":  # its addresses begin at the server's root
            missing = [n for n in fetched if not n.startswith("data:") and not (site / n).exists()]
            assert not missing, page.name
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//|@import[^;]*//", text), style.name


def test_pages_that_are_written_elsewhere_are_there(site):
    from neural_collapse.cli.main import build_parser

    commands = (site / "commands.html").read_text(encoding="utf-8")
    for name in build_parser()._subparsers._group_actions[0].choices:
        assert f'<h2 id="{name}">' in commands
    assert "custom_architectures" in (site / "configuration.html").read_text(encoding="utf-8")
    index = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="images/quickstart-figure-6.png"' in index
    assert "25 learning rates" in (site / "paper.html").read_text(encoding="utf-8")
    api = (site / "api.html").read_text(encoding="utf-8")
    assert 'id="neural_collapse.measure"' in api


def test_every_public_name_is_in_the_python_reference(site):
    import neural_collapse as nc

    api = (site / "api.html").read_text(encoding="utf-8")
    for name in set(nc.__all__) - {"REGISTRY", "simplex_etf"}:
        assert f'id="neural_collapse.{name}"' in api, name
    assert 'id="neural_collapse.functional.simplex_etf"' in api


def test_examples_are_code_and_formulas_are_mathml(site):
    from neural_collapse import REGISTRY

    api = (site / "api.html").read_text(encoding="utf-8")
    assert '<span class="gp">&gt;&gt;&gt;' in api and "<blockquote>" not in api
    statistics = (site / "statistics.html").read_text(encoding="utf-8")
    assert statistics.count("<math ") == len(REGISTRY)
    assert not re.findall(r"\\[a-z]+", statistics)


def test_search_has_its_index_as_a_script(site):
    assert (site / "search/search_index.js").read_text(encoding="utf-8").startswith("var __index")


def test_links_between_pages_also_work_in_the_repository():
    for page in (ROOT / "README.md", ROOT / "config/README.md", *(ROOT / "docs").glob("*.md")):
        linked = re.findall(r"\]\(([\w./-]+\.md)", page.read_text(encoding="utf-8"))
        missing = [name for name in linked if not (page.parent / name).is_file()]
        assert not missing, page.name


def test_broken_links_fail_the_build(tmp_path):
    for name in ("docs", "config"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    targets = ("nowhere.md", "figures.md#nowhere", "/figures.md", "../LICENSE")
    with open(tmp_path / "docs/figures.md", "a", encoding="utf-8") as file:
        file.writelines(f"\n[a]({target})\n" for target in targets)
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    for target in targets:
        said = [line for line in warnings if f"'{target}'" in line or f"'#{target}'" in line]
        assert said and "figures.md" in said[0], (target, done.stderr)
