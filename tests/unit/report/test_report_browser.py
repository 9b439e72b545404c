"""The report and Figure 1's page as a reader sees them: opened from disk by a real Chromium."""

import io
import json
import os
import shutil
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import sync_playwright

from neural_collapse.cli.main import main
from neural_collapse.report.build import SCREEN_SCALE
from neural_collapse.results import TABLES

REFERENCE = Path(__file__).parents[3] / "results" / "reference" / "paper-narrow"
FIGURES = ("figure_1", "figure_6", "sweep", "overview")
LABELS = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "vgg": "VGG",
    "resnet": "ResNet",
    "densenet": "DenseNet",
}
TITLES = ["--labels", json.dumps(LABELS)]
LAYOUT = ["--datasets", *list(LABELS)[:2], "--architectures", *list(LABELS)[2:], *TITLES]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}

COLOURS_OF_IMAGES = """
() => [...document.images].map((image) => {
  const canvas = new OffscreenCanvas(image.naturalWidth || 1, image.naturalHeight || 1);
  const paper = canvas.getContext('2d', { willReadFrequently: true });
  paper.drawImage(image, 0, 0);
  const { data } = paper.getImageData(0, 0, canvas.width, canvas.height);
  return { name: image.alt.split(':')[0], width: image.naturalWidth,
           colours: new Set(new Uint32Array(data.buffer)).size };
})
"""
COLUMN_OF_TABLE = """
([table, column]) => [...document.querySelectorAll(`#${table} tbody tr`)].map(
  (row) => [row.cells[column].dataset.sort ?? null, row.cells[column].textContent.trim()])
"""


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window; its absence is a failure where NC_REQUIRE_CHROMIUM=1."""
    if CHROMIUM is None:
        reason = "no Chromium is installed (apt-get install chromium)"
        if os.environ.get("NC_REQUIRE_CHROMIUM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    software = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=software)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Opens a file in a window of that size; a page that complains or asks outside fails."""
    contexts, complaints, outside = [], [], []

    def open_one(path, window=DESKTOP):
        contexts.append(browser.new_context(**window))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
        page.on("requestfailed", lambda request: outside.append(request.url))
        page.on("request", lambda request: asked(request.url))
        page.goto(Path(path).as_uri())
        return page

    def asked(url):
        if urlsplit(url).scheme not in ("file", "data", "blob"):
            outside.append(url)

    yield open_one
    for context in contexts:
        context.close()
    # A hint on speed from Chromium on plotly's own script is no fault of the page.
    assert [line for line in complaints if "Canvas2D: Multiple readback" not in line] == []
    assert outside == []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The report of the shipped reference runs, made by the commands of the workflow."""
    root = tmp_path_factory.mktemp("report")
    tables, figures = root / "tables", root / "figures"
    reference = ["--reference-folder", REFERENCE]
    none = ["--histories", "--statistics", "--robustness", "--activations", "--runs", "--sweeps"]

    def run(*command):
        assert main([str(part) for part in command]) == 0, command

    def drawn(name, *options):
        run(name, "--tables-folder", tables, *options)

    run("collect-tables", *none, *TITLES, *reference, "--output-folder", tables)
    drawn("compare-with-paper", "--output-folder", tables, *LAYOUT)
    formats = ["--formats", "png", "html", "--figure", *FIGURES]
    run("plot", "--tables", tables, *formats, "--output-folder", figures, *LAYOUT)
    page = ["--figures-folder", figures, "--output", root / "report.html", "--runs", "--cards"]
    drawn("report", *page, *reference, *LAYOUT, "--config-json", '{"experiment": "shipped"}')
    return root


def test_every_picture_shows_something(built, open_page):
    pictures = open_page(built / "report.html").evaluate(COLOURS_OF_IMAGES)
    assert [picture["name"] for picture in pictures] == [
        "Figure 6",
        "Overview",
        "Figure 1",
        "Sweep",
    ]
    for picture in pictures:
        assert picture["width"] >= 1000 and picture["colours"] > 10, picture


def test_pictures_come_first_then_verdicts_and_numbers_are_folded(built, open_page):
    page = open_page(built / "report.html")
    headings = page.locator("main h2").all_inner_texts()
    assert headings[:3] == ["Do the paper's claims hold here?", "Figures", "Table 1"]
    image = page.locator("img").first
    box = image.bounding_box()
    assert box["y"] < 300, "seen without scrolling"
    across = box["width"] / image.evaluate("(image) => image.naturalWidth")
    assert across == pytest.approx(SCREEN_SCALE, rel=0.01), "as large as the captions"
    for name in ("claims", "runs", "data", "provenance", "config", "tables"):
        folded = page.locator(f"main > details#{name}")
        assert folded.get_attribute("open") is None
        folded.locator("summary").first.press("Enter")
        assert folded.get_attribute("open") is not None


@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_matrix_fits_the_window_and_says_the_numbers_of_a_sign(window, built, open_page):
    page = open_page(built / "report.html", window)
    box = page.locator("#matrix").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= window["viewport"]["width"]
    signs = page.locator("#matrix button")
    assert signs.count() == 6 * 11
    for number in (0, 17, 54):
        sign = signs.nth(number)
        if number == 17:
            sign.focus()  # by keyboard
        else:
            sign.click()
        detail = page.locator("#detail").inner_text()
        assert detail == sign.get_attribute("title") and "start of TPT: " in detail
        assert page.locator("#matrix .shown").count() == 1
    heights = page.locator("#matrix tbody tr").evaluate_all("(r) => r.map((e) => e.offsetHeight)")
    assert max(heights) < 70


@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_numbers_of_a_sign_are_in_the_window_and_hide_no_sign_in_focus(window, built, open_page):
    page = open_page(built / "report.html", window)
    # As tall as a matrix of 21 networks.
    page.locator("#matrix").evaluate("(m) => { m.style.height = '140vh'; m.scrollIntoView(); }")
    for number in (0, 17, 54):
        page.locator("#matrix button").nth(number).focus()
        sign, detail = (page.locator(s).bounding_box() for s in ("#matrix .shown", "#detail"))
        assert sign["y"] >= 0 and sign["y"] + sign["height"] <= detail["y"]
        assert detail["y"] + detail["height"] <= window["viewport"]["height"]


@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_option_of_a_command_is_split_at_the_end_of_a_line(window, built, open_page):
    options = open_page(built / "report.html", window).locator("figcaption pre span")
    assert options.all_inner_texts()[:3] == ["--tables", "--figure", "--datasets"]
    lines = options.evaluate_all("(spans) => spans.map((span) => span.getClientRects().length)")
    assert set(lines) == {1}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_fault_of_accessibility_that_axe_knows(scheme, built, open_page):
    page = open_page(built / "report.html", {**PHONE, "color_scheme": scheme, "bypass_csp": True})
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []


def test_a_click_on_a_title_sorts_its_table_and_another_turns_it_round(built, open_page):
    page = open_page(built / "report.html")
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    sortable = page.locator("table.sortable")
    assert sortable.count() == 4
    for table in sortable.all():
        name = table.get_attribute("id")
        for column, button in enumerate(table.locator("thead button").all()):
            before = page.evaluate(COLUMN_OF_TABLE, [name, column])
            button.click()
            up = page.evaluate(COLUMN_OF_TABLE, [name, column])
            button.click()
            down = page.evaluate(COLUMN_OF_TABLE, [name, column])
            assert sorted(up, key=str) == sorted(down, key=str) == sorted(before, key=str)
            numbers = [[float(key) for key, _ in rows if key is not None] for rows in (up, down)]
            if numbers[0]:
                assert numbers == [sorted(numbers[0]), sorted(numbers[0], reverse=True)]
                # What has no number stands last, whichever way.
                assert [key is None for key, _ in up] == sorted(key is None for key, _ in up)
                assert [key is None for key, _ in down] == [key is None for key, _ in up]
            else:
                # Equal texts stand together, and the two orders mirror each other.
                kinds = [
                    [text for text, _ in groupby(text for _, text in rows)] for rows in (up, down)
                ]
                assert len(set(kinds[0])) == len(kinds[0]) and kinds[0] == kinds[1][::-1]
    claims = "claims-table"
    page.locator(f"#{claims} thead button").first.click()
    datasets = [text for _, text in page.evaluate(COLUMN_OF_TABLE, [claims, 0])]
    assert datasets == sorted(datasets) and set(datasets) == {"FashionMNIST", "MNIST"}


def test_a_phone_leaves_room_for_values_beside_long_names(built, open_page):
    page = open_page(built / "report.html", PHONE)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    widths = page.locator("table.pairs td").evaluate_all("(r) => r.map((e) => e.offsetWidth)")
    assert len(widths) > 20 and min(widths) > 120


@pytest.mark.parametrize("name", ["report.html", "figures/figure_1.html"])
def test_a_phone_shows_the_page_without_moving_it_sideways(name, built, open_page):
    page = open_page(built / name, PHONE)
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("[scrollX, document.documentElement.scrollWidth]") == [0, 390]
    assert page.locator("h1").bounding_box()["width"] <= 390


@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_text_of_every_picture_is_large_enough_to_read(window, built, open_page):
    page = open_page(built / "report.html", window)
    for image in page.locator("img").all():
        scale = image.bounding_box()["width"] / image.evaluate("(image) => image.naturalWidth")
        assert 6 / 72 * 300 * scale > 8, "CSS pixels of 6 points"
        image.scroll_into_view_if_needed()
    overview = page.locator("#overview .picture")
    overview.focus()
    before = page.evaluate("scrollX")
    page.keyboard.press("ArrowRight")
    wider = overview.evaluate("(e) => e.scrollWidth > e.clientWidth")
    assert wider == (window == PHONE) and before == page.evaluate("scrollX") == 0
    if wider:
        page.wait_for_function("document.querySelector('#overview .picture').scrollLeft > 0")


def test_links_lead_to_tables_that_can_be_read(built, open_page):
    page = open_page(built / "report.html")
    targets = page.evaluate("[...document.links].map((link) => link.href)")
    files = [Path(unquote(urlsplit(target).path)) for target in targets]
    assert all(path.is_file() for path in files)
    linked = {path for path in files if path.suffix == ".parquet"}
    assert {f"{name}.parquet" for name in TABLES} <= {path.name for path in linked}
    for path in linked:
        assert len(pd.read_parquet(path).columns) > 3
    assert built / "figures" / "figure_1.html" in files


def test_figure_1_is_drawn_slid_through_and_turned(built, open_page):
    page = open_page(built / "figures" / "figure_1.html")
    scene = page.locator("#figure-1 canvas").first
    scene.wait_for()

    def shown():
        # Two frames, so that what was asked for is on the screen.
        page.evaluate("new Promise((on) => requestAnimationFrame(() => requestAnimationFrame(on)))")
        return page.screenshot()

    page.wait_for_function("document.getElementById('figure-1')._fullLayout.scene._scene.glplot")
    epoch = page.locator("#shown")
    shipped = pd.read_parquet(REFERENCE / "tables" / "activations.parquet")
    assert epoch.text_content() == f"Epoch {shipped['epoch'].max()}"
    assert page.locator("#figure-1").get_attribute("aria-label").startswith("Features")
    last = shown()
    height = page.locator("#figure-1").bounding_box()["height"]
    assert height == pytest.approx(0.75 * DESKTOP["viewport"]["height"], abs=2)
    slider = page.get_by_label("Epoch", exact=True)
    slider.focus()
    epochs = sorted(shipped["epoch"].unique())
    for before in epochs[-2::-1]:
        page.keyboard.press("ArrowLeft")
        assert slider.get_attribute("aria-valuetext") == epoch.text_content()
        assert f"{epoch.text_content()}, ".startswith(f"Epoch {before}, ")
    assert epoch.text_content().endswith(" % of the features outside")
    page.wait_for_function(
        "document.getElementById('figure-1')._transitionData._frames[0].data[0].x[0]"
        " === document.getElementById('figure-1').data[0].x[0]"
    )
    first = shown()
    box = scene.bounding_box()
    middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 150, middle[1], steps=5)
    page.mouse.up()
    assert len({last, first, shown()}) == 3
    play = page.get_by_role("button", name="Play")
    play.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    play.wait_for()
    assert epoch.text_content() == f"Epoch {epochs[-1]}"
    picture = np.asarray(Image.open(io.BytesIO(last)).convert("RGB")).astype(int)
    bluer = picture[..., 2] - picture[..., 0]
    assert (bluer > 60).sum() > 500 and (bluer < -60).sum() > 20, "points and sticks are there"
