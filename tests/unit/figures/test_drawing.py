"""Every figure as a file: formats, determinism, Figure 1, the sweep and the overview."""

import json
import re
import subprocess
import sys
import zlib
from html import unescape
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from docutils.core import publish_parts
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from PIL import Image
from sample_tables import ARCHITECTURES, DATASETS_2, LABELS, draw, make_tables, of

from neural_collapse import figures
from neural_collapse.cli.main import main
from neural_collapse.figures import FIGURES, captions, style
from neural_collapse.figures.grid import curves_of
from neural_collapse.figures.specs import Look, final_errors
from neural_collapse.figures.style import short_number
from neural_collapse.io.errors import UserError
from neural_collapse.results.layout import Layout
from neural_collapse.results.tables import empty_table, read_table, write_table

REFERENCE = Path(__file__).parents[3] / "results/reference/paper-narrow/tables"
ORDER = {"datasets": DATASETS_2, "architectures": ARCHITECTURES, "labels": LABELS}


@pytest.fixture(scope="module")
def folder(tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet", name)
    return folder


FORMATS = ["png", "svg", "pdf", "rst", "gif", "html"]


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory):
    """All figures in all formats; and each figure and each format again, by two processes."""
    one, two = (tmp_path_factory.mktemp(name) / "figures" for name in ("one", "two"))
    order = [*("--datasets", *DATASETS_2), *("--architectures", *ARCHITECTURES)]
    command = ["plot", "--tables", str(folder), *order, "--labels", json.dumps(LABELS)]
    for target, processes, names, formats in [
        (one, "1", FIGURES, FORMATS),
        (two, "2", FIGURES, ["svg"]),
        (two, "2", ["figure_1", "figure_6"], FORMATS),
    ]:
        options = ["--processes", processes, "--figure", *names, "--formats", *formats]
        assert main([*command, *options, "--output-folder", str(target)]) == 0
    return one, two


def test_figures_drawn_again_by_two_processes_have_the_same_bytes(drawn):
    one, two = (sorted(folder.iterdir()) for folder in drawn)
    assert len(one) == 4 * len(FIGURES) + 2, "gif and html of Figure 1 alone; no temporary file"
    assert len(two) == len(FIGURES) + 2 * 3 + 2
    for path in two:
        assert (drawn[0] / path.name).read_bytes() == path.read_bytes(), f"{path.name} differs"


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_in_every_format(name, drawn):
    picture = imread(drawn[0] / f"{name}.png")
    assert picture.shape[1] >= 1000, "300 dpi at one text column"
    assert picture[..., :3].min() < 0.3 and picture[..., :3].max() == 1, "not blank"
    svg = (drawn[0] / f"{name}.svg").read_text()
    assert "<svg" in svg and "<dc:date>" not in svg
    pdf = (drawn[0] / f"{name}.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    streams = b"".join(
        zlib.decompress(part)
        for part in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.S)
        if part[:1] == b"x"
    )
    assert b"/FontFile2" in pdf + streams, "fonts are embedded as TrueType"
    assert b"/Type3" not in pdf + streams


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_caption(name, folder):
    text = figures.caption(name, folder, **ORDER)
    assert text.endswith(".") and len(text) > 60
    assert "  " not in text and "nan" not in text.split()


@pytest.mark.parametrize("name", FIGURES)
def test_no_run_at_all_still_draws(name, tmp_path):
    for table in ("measurements", "runs", "sweep", "activations"):
        write_table(empty_table(table), tmp_path / f"{table}.parquet", table)
    (path,) = draw(name, tmp_path, tmp_path / name, ["png"], **ORDER)
    assert path.stat().st_size > 0
    assert figures.caption(name, tmp_path, **ORDER)


def test_plot_wrong_name_format_or_folder_is_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match="unknown figure 'figure_9'; known: figure_1"):
        draw("figure_9", folder, tmp_path / "x")
    with pytest.raises(UserError, match="'gif' is unknown"):
        draw("figure_2", folder, tmp_path / "x", ["gif"])
    with pytest.raises(UserError, match=r"runs\.parquet: this runs table does not exist"):
        draw("figure_2", tmp_path, tmp_path / "x")


def test_caption_as_rst_is_the_caption_once_rendered(folder, drawn):
    text = (drawn[0] / "figure_4.rst").read_text()
    assert text.startswith("**Figure 4. Class means")
    html = publish_parts(text, writer="html")["body"]
    text = unescape(re.sub("<[^>]+>", "", html)).split("(NC2). ")[1]
    assert " ".join(text.split()) == figures.caption("figure_4", folder, **ORDER)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("figures.registry", {"torch", "matplotlib", "seaborn", "plotly"}),  # captions need it
        ("figures.grid", {"torch", "sklearn", "plotly"}),
        ("results.claims", {"torch", "matplotlib"}),
        ("collapse.projection", {"torch", "matplotlib"}),
    ],
)
def test_module_is_imported_without_libraries_that_it_does_not_need(module, heavy):
    code = f"import sys, neural_collapse.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & heavy


def test_the_users_matplotlib_settings_change_nothing(folder, tmp_path):
    import matplotlib

    (one,) = draw("figure_2", folder, tmp_path / "one", ["svg"], **ORDER)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "savefig.dpi": 20}):
        (other,) = draw("figure_2", folder, tmp_path / "other", ["svg"], **ORDER)
    assert one.read_bytes() == other.read_bytes()


# --------------------------------------------------------------------------- Figure 1


def test_figure_1_texts_do_not_overlap_above_a_note_of_two_lines():
    tables = [
        read_table(REFERENCE / f"{name}.parquet", name).query("dataset == 'mnist'")
        for name in ("activations", "runs")
    ]
    tables[1] = tables[1].assign(train_examples=10_000)
    figure = figures.figure_1(*tables)
    assert "\n" in figure.legends[0].get_title().get_text()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [text for ax in figure.axes for text in (ax.title, *ax.texts)]
    assert any("outside" in text.get_text() for text in texts)
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert not [1 for one, other in combinations(boxes, 2) if one.overlaps(other)]


def test_figure_1_shows_every_kept_epoch(tables, layout):
    figure = figures.figure_1(tables["activations"], tables["runs"], layout)
    rows = tables["activations"].query("dataset == 'digits' and architecture == 'vgg'")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [f"Epoch {epoch}" for epoch in sorted(rows.epoch.unique())]
    assert all(len(ax.images) == 1 for ax in figure.axes)
    assert figure.get_suptitle() == "Digits × VGG"


# --------------------------------------------------------------------------- Figure 1 in motion


def test_the_animation_shows_every_kept_epoch_for_as_long_in_few_colours_on_white(drawn, tables):
    path = drawn[0] / "figure_1.gif"
    rows = tables["activations"].query("dataset == 'digits' and architecture == 'vgg'")
    epochs = rows.epoch.nunique()
    with Image.open(path) as animation:
        assert animation.n_frames % epochs == 0 and animation.n_frames >= 2 * epochs
        assert animation.info["loop"] == 0, "it goes on for ever"
        share = animation.n_frames // epochs
        frames = []
        for number in range(animation.n_frames):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert all((frame[0, 0] == 255).all() for frame in frames), "white, not nearly"
    assert all(frame.min() < 80 for frame in frames), "not blank"
    starts = [frames[place * share] for place in range(epochs)]
    # The same camera at the start of every epoch, another picture.
    assert all(np.abs(one - other).mean() > 0.5 for one, other in pairwise(starts))
    assert path.stat().st_size < 2_000_000


def test_the_page_holds_every_point_of_every_epoch_and_loads_nothing(drawn, tables):
    html = (drawn[0] / "figure_1.html").read_text()
    data = json.loads(re.search(r"Plotly\.addFrames\('figure-1',\s*(\[.*?\])\s*\)", html, re.S)[1])
    rows = tables["activations"].query("dataset == 'digits' and architecture == 'vgg'")
    assert [frame["name"] for frame in data] == [str(epoch) for epoch in sorted(set(rows.epoch))]
    names = {"features": "feature", "class means": "class_mean", "classifiers": "classifier"}
    for frame in data:
        here = rows[rows.epoch == int(frame["name"])]
        for trace in frame["data"]:
            kind = names.get(trace["name"], "etf_vertex")
            index = int(trace["hovertemplate"].split("class ")[-1].split("<")[0])
            points = here[(here.kind == kind) & (here.class_index == index)][["x", "y", "z"]]
            corners = np.array([trace[axis] for axis in "xyz"]).T.reshape(len(points), -1, 3)
            balls = corners[:, : corners.shape[1] // (1 + (kind in ("class_mean", "classifier")))]
            # A ball's first and last corners are its poles.
            np.testing.assert_allclose((balls[:, 0] + balls[:, -1]) / 2, points, atol=1e-4)
    head = html[: html.index("<body>")]
    assert "default-src 'none'" in head and "connect-src" not in head
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"']?(https?:)?//", html)


def test_motion_is_for_figure_1_alone_and_without_features_it_says_so(folder, tmp_path):
    with pytest.raises(UserError, match="'html' is unknown"):
        draw("figure_6", folder, tmp_path / "x", ["html"])
    for table in ("runs", "activations"):
        write_table(empty_table(table), tmp_path / f"{table}.parquet", table)
    gif, html = draw("figure_1", tmp_path, tmp_path / "figure_1", ["gif", "html"])
    with Image.open(gif) as picture:
        assert picture.n_frames == 1
    assert "No features were kept" in html.read_text()


# --------------------------------------------------------------------------- sweep


def test_sweep_panels_show_last_errors_selection_and_divergence(tables, layout):
    figure = figures.sweep(tables["sweep"], tables["runs"], layout)
    errors = final_errors(tables["sweep"])
    cell = errors.query("dataset == 'digits' and architecture == 'resnet'")
    assert [ax.get_ylabel() for ax in figure.axes] == ["ResNet", "", "DenseNet", ""]
    lines = {line.get_gid(): line for line in figure.axes[0].lines}
    fine = cell[~cell.diverged]
    np.testing.assert_allclose(lines["tried"].get_ydata(), fine.error_percent)
    np.testing.assert_allclose(lines["tried"].get_xdata(), fine.learning_rate)
    assert lines["diverged"].get_ydata().tolist() == [100.0] * int(cell.diverged.sum())
    (chosen,) = cell.loc[cell.selected, "learning_rate"]
    assert lines["selected"].get_xdata().tolist() == [chosen]
    assert chosen == fine.loc[fine.error_percent.idxmin(), "learning_rate"]
    assert [t.get_text() for t in figure.axes[3].texts] == ["not run"]
    others = tables["sweep"].drop(
        of(tables["sweep"], dataset="digits", architecture="resnet").index
    )
    pinned = tables["runs"].assign(learning_rate_origin="pinned")
    figure = figures.sweep(others, pinned, layout)
    assert [t.get_text() for t in figure.axes[0].texts] == ["pinned at\n0.05"]
    assert figures.sweep(others[:0], pinned, layout).axes == []


def test_sweep_caption_names_no_size_of_a_dataset_without_a_sweep():
    tables = make_tables(("digits", "mnist"), last=5)
    size = "MNIST 150 images a class"
    assert size in captions.sweep(tables["sweep"], tables["runs"], Layout.of(tables["runs"]))
    digits = of(tables["sweep"], dataset="digits")
    assert size not in captions.sweep(digits, tables["runs"], Layout.of(tables["runs"]))


def test_sweep_says_no_size_of_runs_of_an_origin_without_a_sweep():
    tables = make_tables(("mnist",), last=5)
    runs = tables["runs"].assign(origin="own", train_examples=50_000, num_classes=10)
    both = pd.concat([runs, runs.assign(origin="reference", train_examples=1000)])
    frames = tables["sweep"].assign(origin="own"), both, Layout.of(both)
    figure = figures.sweep(*frames)
    notes = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for said in (captions.sweep(*frames), " ".join(notes)):
        assert "images a class" not in said and "eference" not in said


def test_a_diverged_candidate_counts_as_all_wrong_whatever_its_last_error(tables):
    sweep = tables["sweep"].copy()
    sweep.loc[sweep.diverged, "value"] = 0.01
    errors = final_errors(sweep)
    assert (errors.loc[errors.diverged, "error_percent"] == 100).all()


@pytest.mark.parametrize(
    ("splits", "error", "of_the_paper"),
    [
        (("test", "test"), "test error", True),
        (("held_out", "held_out"), "held-out error", False),
        (("test", "held_out"), "test or held-out error", False),
    ],
)
def test_sweep_names_the_error_that_selected(splits, error, of_the_paper, tables, layout):
    sweep, cell = tables["sweep"].copy(), tables["sweep"]["dataset"] == "digits"
    for rows, split in zip((cell, ~cell), splits, strict=True):
        sweep.loc[rows & (sweep["split"] == "test"), "split"] = split
    assert set(sweep["split"]) == {"train", *splits}
    figure = figures.sweep(sweep, tables["runs"], layout)
    assert figure.get_supylabel() == f"{error.capitalize()} at the last epoch (%)"
    caption = captions.sweep(sweep, tables["runs"], layout)
    assert caption.startswith(f"{error.capitalize()} at the last epoch")
    assert f"the lowest {error}" in caption
    assert ("as in the paper" in caption) == of_the_paper


def test_an_error_of_zero_is_drawn(tables, layout):
    sweep = tables["sweep"].copy()
    sweep.loc[sweep.selected & (sweep.epoch == 100) & (sweep.split == "test"), "value"] = 0.0
    figure = figures.sweep(sweep, tables["runs"], layout)
    (star,) = [line for line in figure.axes[0].lines if line.get_gid() == "selected"]
    assert star.get_ydata()[0] > figure.axes[0].get_ylim()[0] > 0


# --------------------------------------------------------------------------- overview


def test_the_overview_has_a_row_for_each_cell_that_was_run(tables, layout):
    figure = figures.overview(tables["measurements"], tables["runs"], layout)
    labels = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert labels == [
        "Digits\nVGG",
        "Digits\nResNet",
        "Digits\nDenseNet",
        "MNIST subset\nVGG",
        "MNIST subset\nResNet",
    ]
    nc1 = {"statistic": "nc1_within_class_variability", "split": "train", "epoch": 100}
    last = of(tables["measurements"], dataset="digits", architecture="vgg", **nc1).value.item()
    assert figure.axes[0].texts[0].get_text() == short_number(last)


def test_the_overview_shows_bands_of_seeds_whole(seeded):
    rows = seeded["measurements"].copy()
    rows.loc[(rows.seed == 1) & (rows.epoch > 0), "value"] *= 3
    figure = figures.overview(rows, seeded["runs"], Layout.of(seeded["runs"]))
    for ax in figure.axes:
        low, high = ax.get_ylim()
        for band in ax.collections:
            epochs, values = band.get_paths()[0].vertices.T
            assert low <= values.min() and values[epochs > 0].max() <= high


def test_the_overviews_number_is_of_the_last_epoch_and_of_every_seed(seeded):
    rows = seeded["measurements"].copy()
    one = {"dataset": "digits", "architecture": "vgg", "split": "train"}
    cut = of(rows, **one, statistic="nc1_within_class_variability", seed=1)
    rows.loc[cut[cut.epoch > 40].index, "value"] = np.nan
    figure = figures.overview(rows, seeded["runs"], Layout.of(seeded["runs"]))
    last = of(rows, **one, statistic="nc2_equinorm_means", epoch=60).value
    assert [t.get_text() for ax in figure.axes[:2] for t in ax.texts][:2] == [
        "–",
        short_number(last.mean()),
    ]
    assert "last epoch (–: not defined in every seed)" in captions.overview(
        rows, seeded["runs"], Layout.of(seeded["runs"])
    )


@pytest.mark.parametrize("epoch_axis", ["linear", "log"])
def test_the_overviews_numbers_stand_clear_of_its_curves(epoch_axis):
    tables = make_tables(("digits",), last=60)
    rows = tables["measurements"]
    # A curve that is highest in the middle of a logarithmic axis of epochs.
    rows.loc[(rows.statistic == "nc2_equinorm_means") & (rows.epoch > 10), "value"] = 0.01
    rows.loc[(rows.statistic == "nc2_equinorm_means") & (rows.epoch == 20), "value"] = 1.0
    # Curves that end at their largest value, where the numbers stand.
    high = rows.statistic.str.startswith("nc2_maximal_angle")
    rows.loc[high, "value"] = 0.1 + rows.loc[high, "epoch"] / 60
    look = Look(epoch_axis=epoch_axis)
    figure = figures.overview(rows, tables["runs"], Layout.of(tables["runs"]), look=look)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for ax in figure.axes:
        curves = curves_of(ax)
        assert len(ax.texts) == len(curves) > 0
        for text in ax.texts:
            box = text.get_window_extent(renderer)
            for curve in curves:
                assert not box.count_contains(ax.transData.transform(curve.get_xydata()))


def test_a_logarithmic_axis_names_powers_of_ten_and_marks_what_lies_between(tables, layout):
    figure = figures.figure_6(tables["measurements"], tables["runs"], layout)
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    low, high = axis.get_view_interval()
    labels = [style.power_of_ten(10.0**k) for k in range(-5, 5) if low <= 10.0**k <= high]
    shown = [tick.label1.get_text() for tick in axis.get_major_ticks()]
    assert shown == labels[::-1] and 2 <= len(shown) <= 5
    between = [value for value in axis.get_minorticklocs() if low <= value <= high]
    assert 8 * (len(shown) - 1) <= len(between)
    assert not {round(value, 9) for value in between} & {10.0**k for k in range(-5, 5)}


def test_short_number_of_each_size_is_short():
    cases = {0.25: "0.25", 120: "120", 3.14e-5: "3.1·10⁻⁵", 0: "0", 1e-4: "10⁻⁴", -0.5: "−0.5"}
    assert {value: short_number(value) for value in cases} == cases
    assert short_number(float("nan")) == "nan"


def test_layout_takes_labels_of_cells_that_were_not_run():
    tables = make_tables(("digits",), ("vgg",), last=5)
    layout = Layout.of(tables["runs"], ("digits", "svhn"), ("vgg",), {"svhn": "Street numbers"})
    assert layout.title("svhn", "vgg") == "Street numbers × VGG"
    with pytest.raises(UserError, match="unknown dataset 'digit'; did you mean 'digits'"):
        Layout.of(tables["runs"], ("digit",))
    with pytest.raises(UserError, match="unknown architecture 'rnn'; the tables have: vgg"):
        Layout.of(tables["runs"], architectures=("rnn",))
