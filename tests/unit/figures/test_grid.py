"""Figures 2 to 8: what stands in the panels is what stands in the tables."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sample_tables import ARCHITECTURES, DATASETS_2, DATASETS_7, LABELS, make_tables, of

from neural_collapse import figures
from neural_collapse.figures import captions, style
from neural_collapse.figures.specs import SPECS, Look
from neural_collapse.results.layout import Layout

NC1 = {"statistic": "nc1_within_class_variability", "split": "train"}


def panel(figure, layout, dataset, architecture):
    column = list(layout.datasets).index(dataset)
    row = list(layout.architectures).index(architecture)
    return figure.axes[row * len(layout.datasets) + column]


def line(ax, gid):
    found = [line for line in ax.lines if line.get_gid() == gid]
    assert len(found) == 1, f"{len(found)} lines of {gid}"
    return found[0]


def draw(number, tables, layout, **options):
    function = getattr(figures, f"figure_{number}")
    return function(tables["measurements"], tables["runs"], layout=layout, **options)


@pytest.mark.parametrize("number", SPECS)
def test_every_panel_shows_its_cells_values(number, tables, layout):
    figure = draw(number, tables, layout)
    spec = SPECS[number]
    frame = tables["measurements"]
    for dataset, architecture in layout.cells():
        ax = panel(figure, layout, dataset, architecture)
        for series in spec.series:
            rows = of(frame, statistic=series.statistic, split=series.split)
            rows = of(rows, dataset=dataset, architecture=architecture).sort_values("epoch")
            if rows.empty:
                assert (dataset, architecture) == ("mnist_subset", "densenet")
                assert not ax.lines
                continue
            drawn = line(ax, series.statistic)
            assert drawn.get_xdata().tolist() == rows.epoch.tolist()
            np.testing.assert_allclose(drawn.get_ydata(), spec.scale * rows.value)
            assert drawn.get_marker() not in ("", "None", None), "every epoch has a marker"
            low, high = ax.get_ylim()
            values = drawn.get_ydata()
            assert low < min(values) and max(values[1:]) < high
            cut = [mark.get_color() for mark in ax.lines if mark.get_gid() == "cut"]
            assert (drawn.get_color() in cut) == (values[0] > high)
            assert ax.get_yscale() == ("log" if number == 6 else "linear")


def test_statistics_and_splits_are_the_papers():
    shown = {n: [(s.statistic, s.split) for s in spec.series] for n, spec in SPECS.items()}
    assert shown == {
        2: [("nc2_equinorm_means", "train"), ("nc2_equinorm_classifier", "train")],
        3: [("nc2_equiangularity_means", "train"), ("nc2_equiangularity_classifier", "train")],
        4: [("nc2_maximal_angle_means", "train"), ("nc2_maximal_angle_classifier", "train")],
        5: [("nc3_self_duality", "train")],
        6: [("nc1_within_class_variability", "train")],
        7: [("nc4_ncc_mismatch", "test")],
        8: [("robustness", "test")],
    }


def test_means_and_classifiers_differ_in_colour_marker_and_filling(tables, layout):
    ax = panel(draw(2, tables, layout), layout, "digits", "vgg")
    means, classifier = line(ax, "nc2_equinorm_means"), line(ax, "nc2_equinorm_classifier")
    assert means.get_color() != classifier.get_color()
    assert means.get_marker() != classifier.get_marker()
    assert means.get_markerfacecolor() != classifier.get_markerfacecolor()


def test_the_mark_stands_at_the_start_of_the_terminal_phase(tables, layout):
    figure = draw(5, tables, layout)
    for run in tables["runs"].itertuples():
        ax = panel(figure, layout, run.dataset, run.architecture)
        marks = [m for m in ax.lines if m.get_gid() == "terminal-phase"]
        if pd.isna(run.terminal_phase_epoch):
            assert not marks
            assert "no TPT" in [text.get_text() for text in ax.texts]
        else:
            assert [list(m.get_xdata()) for m in marks] == [[run.terminal_phase_epoch]]


def test_columns_and_rows_keep_the_given_order(tables):
    layout = Layout.of(tables["runs"], DATASETS_2[::-1], ("densenet", "vgg"), LABELS)
    figure = draw(5, tables, layout)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["MNIST subset", "Digits"]
    assert [figure.axes[i].get_ylabel() for i in (0, 2)] == ["DenseNet", "VGG"]
    assert len(figure.axes) == 4


def test_without_an_order_the_papers_is_taken():
    tables = make_tables(("svhn", "mnist", "zebra"), ("densenet", "vgg"), last=5)
    layout = Layout.of(tables["runs"])
    assert list(layout.datasets) == ["mnist", "svhn", "zebra"]
    assert list(layout.architectures) == ["vgg", "densenet"]


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_empty_panels_say_why(tables, layout):
    frame, runs = tables["measurements"], tables["runs"].copy()
    frame = frame[~((frame.architecture == "resnet") & frame.statistic.str.startswith("nc"))]
    runs.loc[(runs.dataset == "digits") & (runs.architecture == "resnet"), "diverged"] = True
    figure = figures.figure_6(frame, runs, layout=layout)
    assert words(panel(figure, layout, "mnist_subset", "densenet")) == ["not run"]
    assert words(panel(figure, layout, "mnist_subset", "resnet")) == ["not measured"]
    assert words(panel(figure, layout, "digits", "resnet")) == ["diverged"]


def test_values_that_are_not_finite_or_not_positive_are_left_out(tables, layout):
    frame = tables["measurements"].copy()
    cell = of(frame, **NC1, dataset="digits", architecture="vgg")
    frame.loc[of(cell, epoch=1).index, "value"] = np.nan
    frame.loc[of(cell, epoch=2).index, "value"] = 0.0
    figure = figures.figure_6(frame, tables["runs"], layout=layout)
    epochs = line(
        panel(figure, layout, "digits", "vgg"), "nc1_within_class_variability"
    ).get_xdata()
    assert {1, 2}.isdisjoint(epochs) and 0 in epochs


def test_several_seeds_give_mean_and_range(seeded):
    layout = Layout.of(seeded["runs"])
    figure = draw(2, seeded, layout)
    ax = panel(figure, layout, "digits", "resnet")
    frame = seeded["measurements"]
    rows = of(frame, dataset="digits", architecture="resnet", statistic="nc2_equinorm_means")
    rows = of(rows, split="train")
    by_epoch = rows.groupby("epoch")["value"]
    drawn = line(ax, "nc2_equinorm_means")
    np.testing.assert_allclose(drawn.get_ydata(), by_epoch.mean())
    bands = [band for band in ax.collections if band.get_paths()]
    vertices = bands[0].get_paths()[0].vertices
    for epoch, low, high in zip(by_epoch.min().index, by_epoch.min(), by_epoch.max(), strict=True):
        heights = vertices[vertices[:, 0] == epoch, 1]
        assert heights.min() == pytest.approx(low) and heights.max() == pytest.approx(high)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "range over seeds" in labels
    starts = of(seeded["runs"], dataset="digits", architecture="resnet")
    mark = line(ax, "terminal-phase")
    assert mark.get_xdata()[0] == pytest.approx(starts.terminal_phase_epoch.astype(float).mean())


def test_one_seed_has_no_band(tables, layout):
    figure = draw(2, tables, layout)
    assert not panel(figure, layout, "digits", "vgg").collections
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["class means", "classifiers", "start of TPT"]


@pytest.mark.parametrize(("before", "cut"), [(1.4, False), (1.6, True)])
def test_a_value_before_training_is_cut_where_it_would_press_the_others_flat(before, cut, tables):
    frame = of(tables["measurements"], statistic="nc3_self_duality", split="train")
    frame = of(frame, dataset="digits", architecture="vgg").copy()
    frame.loc[frame.epoch == 0, "value"] = before * frame.value[frame.epoch > 0].max()
    runs = of(tables["runs"], dataset="digits", architecture="vgg")
    (ax,) = figures.figure_5(frame, runs).axes
    high = ax.get_ylim()[1]
    assert (frame.value.max() > high) == cut
    assert frame.value[frame.epoch > 0].max() > 0.6 * high
    assert ["cut"] * cut == [mark.get_gid() for mark in ax.lines if mark.get_gid() == "cut"]
    for few in ([0], [0, frame.epoch.max()]):
        some = frame[frame.epoch.isin(few)]
        assert figures.figure_5(some, runs).axes[0].get_ylim()[1] > some.value.max()


def test_a_figure_of_many_rows_fits_a_page():
    tables = make_tables(("digits",), [f"network_{number}" for number in range(12)], last=5)
    figure = figures.figure_5(tables["measurements"], tables["runs"])
    assert figure.get_figheight() < 9
    figure.draw_without_rendering()
    heights = [ax.get_position().height * figure.get_figheight() for ax in figure.axes]
    assert min(heights) > 0.4


@pytest.mark.parametrize("axis", ["linear", "log"])
def test_epoch_zero_is_on_both_axes(axis, tables, layout):
    ax = panel(draw(6, tables, layout, look=Look(epoch_axis=axis)), layout, "digits", "vgg")
    low, high = ax.get_xlim()
    assert low < 0 and high > 100
    pixels = ax.transData.transform([(0, 1), (1, 1), (10, 1), (100, 1)])[:, 0]
    assert np.isfinite(pixels).all() and (np.diff(pixels) > 0).all()
    if axis == "log":
        assert pixels[2] - pixels[1] == pytest.approx(pixels[3] - pixels[2], rel=0.01)


@pytest.mark.parametrize("shared", ["auto", "figure", "row", "none"])
@pytest.mark.parametrize("number", [2, 7])
def test_panels_that_share_a_scale_have_the_same_limits(number, shared, tables, layout):
    figure = draw(number, tables, layout, look=Look(shared_y_axis=shared))
    shared = {2: "figure", 7: "none"}[number] if shared == "auto" else shared
    axes = np.array(figure.axes).reshape(3, 2)[:2]  # of the last row one was not run
    limits = np.array([[ax.get_ylim() for ax in row] for row in axes])
    labelled = [[ax.yaxis.get_tick_params()["labelleft"] for ax in row] for row in axes]
    assert labelled == [[True, shared == "none"]] * 2
    assert (limits[:, 0] == limits[:, 1]).all() == (shared != "none")
    assert (limits == limits[0, 0]).all() == (shared == "figure")
    frames = tables["measurements"], tables["runs"], layout
    said = {"figure": "", "row": "row of panels has", "none": "panel has"}[shared]
    caption = captions.grid(SPECS[number], *frames, Look(shared_y_axis=shared))
    assert said in caption and ("own vertical scale" in caption) == bool(said)


@pytest.mark.parametrize(("width", "inches"), [("auto", 3.42), ("column", 3.42), ("page", 7.0)])
@pytest.mark.parametrize("name", ["figure_1", "figure_3", "sweep"])
def test_figure_is_as_wide_as_a_column_or_a_page(name, width, inches, tables, layout):
    entry = figures.FIGURES[name]
    look = Look(width=width)
    figure = entry.function(tables[entry.table], tables["runs"], layout=layout, look=look)
    assert figure.get_figwidth() == inches
    assert look.options() == ([] if width == "auto" else ["--width", width])


@pytest.mark.parametrize("name", ["figure_8", "sweep"])
def test_the_papers_grid_has_no_overlapping_text(name):
    tables = make_tables(DATASETS_7, ARCHITECTURES, last=40, missing=[("imagenet", "vgg")])
    layout = Layout.of(tables["runs"], DATASETS_7, ARCHITECTURES, LABELS)
    entry = figures.FIGURES[name]
    figure = entry.function(tables[entry.table], tables["runs"], layout)
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer = canvas.get_renderer()
    boxes = []
    for ax in figure.axes:
        texts = [ax.title, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high:
                    texts.append(tick.label1)
        boxes += [
            text.get_window_extent(renderer)
            for text in texts
            if text.get_text() and text.get_visible()
        ]
    for i, one in enumerate(boxes):
        assert one.x0 >= 0 and one.y0 >= 0 and one.x1 <= figure.bbox.x1 and one.y1 <= figure.bbox.y1
        for other in boxes[i + 1 :]:
            assert not one.overlaps(other)


@pytest.mark.parametrize("width", ["column", "page"])
def test_long_titles_of_rows_and_columns_do_not_overlap(width):
    tables = make_tables(DATASETS_2, ARCHITECTURES, last=40)
    long = "fixed ETF classifier with random labels, as a control"
    titles = dict.fromkeys((*DATASETS_2, *ARCHITECTURES), long)
    layout = Layout.of(tables["runs"], DATASETS_2, ARCHITECTURES, titles)
    figure = draw(6, tables, layout, look=Look(width=width))
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    titles = [text for ax in figure.axes for text in (ax.title, ax.yaxis.label)]
    boxes = [t.get_window_extent(canvas.get_renderer()) for t in titles if t.get_text()]
    assert len(boxes) == 5 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_the_vertical_label_is_centred_on_the_panels_not_on_legend_and_note(tmp_path):
    tables = make_tables(DATASETS_7[:2], ARCHITECTURES, last=40)
    figure = figures.FIGURES["figure_8"].function(tables["measurements"], tables["runs"])
    style.save(figure, [tmp_path / "figure_8.png"])
    (label,) = [text for text in figure.texts if text.get_text() == SPECS[8].paper.axis]
    renderer = FigureCanvasAgg(figure).get_renderer()
    box, panels = label.get_window_extent(renderer), [ax.bbox for ax in figure.axes]
    middle = (min(p.y0 for p in panels) + max(p.y1 for p in panels)) / 2
    assert len(panels) == 6
    assert abs((box.y0 + box.y1) / 2 - middle) < 0.01 * figure.bbox.height


def test_the_caption_says_what_is_shown(tables, layout, seeded):
    caption = captions.grid(SPECS[2], tables["measurements"], tables["runs"], layout)
    assert "single training" in caption and "no band" in caption
    assert "Not run: MNIST subset × DenseNet." in caption
    assert "99.9 %" in caption and "not reached in Digits × DenseNet (no TPT)" in caption
    caption = captions.grid(
        SPECS[7], seeded["measurements"], seeded["runs"], Layout.of(seeded["runs"])
    )
    assert "means over 3 seeds" in caption and "smallest to the largest" in caption
    assert "test examples" in caption and "own vertical scale" in caption


def test_captions_mark_no_tpt_only_where_a_figure_does(tables, layout, seeded):
    overview = captions.overview(tables["measurements"], tables["runs"], layout)
    assert "not reached in Digits × DenseNet." in overview and "no TPT" not in overview
    runs = seeded["runs"].copy()
    runs.loc[runs.index[0], "terminal_phase_epoch"] = pd.NA
    said = captions.grid(SPECS[5], seeded["measurements"], runs, Layout.of(runs))
    assert "not reached by every training of Digits × VGG." in said and "no TPT" not in said


def test_caption_of_figure_8_counts_the_attacked_images(tables, layout):
    for counts, said in [([100], "100"), ([100, 50], "50 to 100")]:
        recipes = [json.dumps({"robustness": {"images": n}}) for n in counts]
        runs = tables["runs"].assign(recipe=np.resize(recipes, len(tables["runs"])))
        frames = tables["measurements"], runs, layout
        assert f"Attacked images: {said} (paper: 100)." in captions.grid(SPECS[8], *frames)
    assert "Attacked" not in captions.grid(SPECS[7], *frames)


def test_a_seed_at_zero_stays_in_the_mean_of_a_logarithmic_axis(seeded):
    frame = seeded["measurements"].copy()
    last = of(frame, **NC1, dataset="digits", architecture="vgg", epoch=60)
    frame.loc[of(last, seed=0).index, "value"] = 0.0
    layout = Layout.of(seeded["runs"])
    figure = figures.figure_6(frame, seeded["runs"], layout)
    drawn = line(panel(figure, layout, "digits", "vgg"), "nc1_within_class_variability")
    assert drawn.get_ydata()[-1] == pytest.approx(frame.value[last.index].mean())


# --------------------------------------------------------------------------- reference runs


@pytest.fixture(scope="module")
def both(tables):
    """Own runs, and reference runs of other values and another cell beside them."""
    other = make_tables(("digits", "svhn"), ("vgg", "resnet"), seeds=(0, 1), last=80)
    return {
        name: pd.concat([own, other[name].assign(origin="reference")], ignore_index=True)
        for name, own in tables.items()
    }


@pytest.mark.parametrize("number", [2, 6, 7])
def test_own_and_reference_runs_are_two_lines_never_one(number, both):
    layout = Layout.of(both["runs"])
    figure = draw(number, both, layout)
    series = SPECS[number].series[0]
    frame = both["measurements"]
    chosen = of(frame, statistic=series.statistic, split=series.split)
    chosen = of(chosen, dataset="digits", architecture="vgg")
    ax = panel(figure, layout, "digits", "vgg")
    for origin, gid in [("own", series.statistic), ("reference", f"{series.statistic}-reference")]:
        values = of(chosen, origin=origin).groupby("epoch")["value"].mean()
        drawn = line(ax, gid)
        assert drawn.get_xdata().tolist() == values.index.tolist()
        np.testing.assert_allclose(drawn.get_ydata(), SPECS[number].scale * values)
    own, reference = line(ax, series.statistic), line(ax, f"{series.statistic}-reference")
    assert own.get_linestyle() == "-" and reference.get_linestyle() == "--"
    only = panel(figure, layout, "svhn", "vgg")
    assert [m.get_gid() for m in only.lines if m.get_gid() == series.statistic] == []
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"own runs", "reference runs"} <= set(words)
    caption = captions.grid(SPECS[number], frame, both["runs"], layout)
    assert "dashed, paler lines and hollow triangles: reference runs" in caption


def test_reference_runs_alone_say_so(both):
    only = {name: table[table.origin == "reference"] for name, table in both.items()}
    figure = draw(2, only, Layout.of(only["runs"]))
    words = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert any(word.startswith("Reference runs.") for word in words)
    caption = captions.grid(SPECS[2], only["measurements"], only["runs"], Layout.of(only["runs"]))
    assert "All runs are reference runs" in caption


def test_the_mark_of_each_origin_is_its_own(both):
    layout = Layout.of(both["runs"])
    ax = panel(draw(5, both, layout), layout, "digits", "vgg")
    marks = [mark for mark in ax.lines if mark.get_gid() == "terminal-phase"]
    cell = of(both["runs"], dataset="digits", architecture="vgg")
    expected = cell.groupby("origin")["terminal_phase_epoch"].mean()
    shown = {mark.get_markerfacecolor() == "white": mark.get_xdata()[0] for mark in marks}
    assert shown == {False: expected["own"], True: expected["reference"]}
