"""The law of data separation in tables whose answer is known by hand: claims, curves, figure."""

import math

import numpy as np
import pandas as pd
import pytest
from sample_tables import run_row

from neural_collapse import figures
from neural_collapse.figures import captions
from neural_collapse.results.claims import check_claims, render_claims
from neural_collapse.results.layout import Layout
from neural_collapse.results.separation import layer_curves

LAYERS = ["input", "hidden.0", "hidden.1", "hidden.10"]


def run(architecture, seed=0, layers=LAYERS, optimizer="sgd", **network):
    recipe = {
        "network": {"family": "mlp"} | network,
        "training": {"optimizer": {"name": optimizer}} if optimizer != "sgd" else {},
        "measurement": {"layers": layers} if layers else {},
    }
    facts = {"network": "MLP (3) width 5", "epochs": 9, "terminal_phase_epoch": 5}
    return run_row(architecture, seed, recipe, origin="own", **facts)


def measured(architecture, by_epoch, seed=0, layers=LAYERS):
    """{epoch: (fuzziness of each layer, rate, linearity)} as rows of the table."""
    rows = []
    for epoch, (values, rate, linearity) in by_epoch.items():
        named = {f"separation_fuzziness@{n}": v for n, v in zip(layers, values, strict=True)}
        named |= {"separation_rate": rate, "separation_linearity": linearity}
        rows += [
            {"dataset": "mnist", "architecture": architecture, "seed": seed, "origin": "own",
             "epoch": epoch, "split": split, "statistic": name, "value": value + (split == "test")}
            for split in ("train", "test")
            for name, value in named.items()
        ]  # fmt: skip
    return rows


BEFORE, AFTER = ([8.0, 8.0, 9.0, 9.0], 1.04, 0.9), ([8.0, 4.0, 2.0, 1.0], 0.5, -1.0)


def tables(*cells):
    """Of (run, measured) pairs."""
    rows = [row for _, own in cells for row in own]
    return pd.DataFrame(rows), pd.DataFrame([facts for facts, _ in cells])


def verdicts(measurements, runs):
    claims = check_claims(measurements, runs)
    claims = claims[claims["statistic"] == "separation_linearity"]
    return {row.phenomenon: (row.holds, row.reason) for row in claims.itertuples()}


def test_law_holds_where_every_seed_ends_on_the_line_and_none_began_there():
    cells = [
        (run("a", seed), measured("a", {0: BEFORE, 9: (AFTER[0], 0.5, linearity)}, seed))
        for seed, linearity in enumerate([-0.998, -0.996, -0.994])
    ]
    assert verdicts(*tables(*cells)) == {
        "law of data separation": ("holds", "seeds: -0.998, -0.996, -0.994"),
        "no law of data separation before training": ("holds", "seeds: 0.9, 0.9, 0.9"),
    }


@pytest.mark.parametrize(
    ("linearity", "holds"),
    [
        ([-0.99], "cannot say"),  # one seed
        ([-0.99, -0.96, -0.99], "cannot say"),  # one seed misses it
        ([-0.7, -0.8, -0.75], "does not"),
        ([-0.99, math.nan], "cannot say"),
    ],
)
def test_law_that_some_seed_misses_is_not_said_to_hold(linearity, holds):
    cells = [
        (run("a", seed), measured("a", {0: BEFORE, 9: (AFTER[0], 0.5, value)}, seed))
        for seed, value in enumerate(linearity)
    ]
    assert verdicts(*tables(*cells))["law of data separation"][0] == holds


@pytest.mark.parametrize("lacking", [{"batch_norm": False}, {"activation": "identity"}])
def test_control_is_decided_only_by_the_absence_of_the_line(lacking):
    name = "no law of data separation without batch norm or non-linearity"
    for linearity, holds in ((-0.5, "holds"), (-0.999, "does not")):
        cells = [
            (run("a", seed, **lacking), measured("a", {0: BEFORE, 9: (AFTER[0], 0.5, r)}, seed))
            for seed, r in enumerate((linearity, linearity))
        ]
        found = verdicts(*tables(*cells))
        assert {key: value[0] for key, value in found.items()} == {name: holds}


def test_runs_without_layers_have_no_such_claim():
    rows = [row for row in measured("a", {0: BEFORE}) if "separation" not in row["statistic"]]
    rows.append(measured("a", {0: BEFORE})[0] | {"statistic": "error"})
    measurements, runs = tables((run("a", layers=[]), rows))
    assert verdicts(measurements, runs) == {}
    assert "law of data separation" not in render_claims(check_claims(measurements, runs))
    layout = Layout.of(runs)
    assert layer_curves(measurements, runs, layout) == []
    assert captions.separation(measurements, runs, layout).startswith(
        "No run measured three layers"
    )


def test_curves_follow_the_recipes_order_of_layers_not_that_of_their_names():
    second = ([8.0, 2.0, 0.5, 0.125], 0.25, -0.99)
    measurements, runs = tables(
        (run("a", 0), measured("a", {0: BEFORE, 3: BEFORE, 9: AFTER}, 0)),
        (run("a", 1), measured("a", {0: BEFORE, 3: BEFORE, 9: second}, 1)),
    )
    (curves,) = layer_curves(measurements, runs, Layout.of(runs))
    assert (curves.title, curves.layers, curves.epochs) == ("SGD", tuple(LAYERS), (0, 3, 9))
    np.testing.assert_array_equal(curves.fuzziness[9], [AFTER[0], second[0]])
    assert (curves.rate, curves.linearity) == (0.375, (-1.0, -0.99))


def test_figure_has_a_column_a_depth_a_row_a_kind_and_the_line_after_training():
    short = LAYERS[:3]
    dead = ([8.0, math.nan, math.nan, math.nan], math.nan, math.nan)
    measurements, runs = tables(
        (run("a", layers=short),
         measured("a", {0: ([8.0, 8.0, 9.0], 1.0, 0.8), 9: ([8.0, 4.0, 2.0], 0.5, -1.0)},
                  layers=short)),
        (run("b"), measured("b", {0: BEFORE, 9: AFTER})),
        (run("c", optimizer="adam", batch_norm=False), measured("c", {0: BEFORE, 9: dead})),
    )  # fmt: skip
    figure = figures.separation(measurements, runs)
    assert [ax.get_title() for ax in figure.axes] == ["3 layers", "4 layers", "", ""]
    assert [ax.get_ylabel() for ax in figure.axes] == ["SGD", "", "Adam\nno batch norm", ""]
    assert [t.get_text() for t in figure.axes[2].texts] == ["not run"]
    panels = [figure.axes[0], figure.axes[1], figure.axes[3]]
    assert all(ax.get_yscale() == "log" for ax in panels)
    (law,) = [line for line in panels[1].lines if line.get_gid() == "law"]
    np.testing.assert_allclose(law.get_ydata(), AFTER[0], rtol=1e-9)
    assert [t.get_text() for t in panels[1].texts] == ["ρ = 0.50\nr = −1.000"]
    assert not any(line.get_gid() == "law" for line in panels[2].lines)
    assert "no line" in panels[2].texts[0].get_text()
    caption = captions.separation(measurements, runs, Layout.of(runs))
    assert "He and Su" in caption and "blue: after 9" in caption
    assert "Every point is a single training." in caption and "eans over" not in caption


def test_own_runs_without_layers_leave_the_curves_to_the_reference_runs():
    cells = [(run("a", layers=[]), []), (run("a"), measured("a", {0: BEFORE, 9: AFTER}))]
    for origin, (facts, rows) in zip(("own", "reference"), cells, strict=True):
        for row in (facts, *rows):
            row["origin"] = origin
    measurements, runs = tables(*cells)
    (curves,) = layer_curves(measurements, runs, Layout.of(runs))
    assert curves.layers == tuple(LAYERS)


def test_layer_that_some_seed_lacks_has_no_point():
    part = ([8.0, 4.0, math.nan, 1.0], math.nan, math.nan)
    measurements, runs = tables(
        (run("a", 0), measured("a", {0: BEFORE, 9: AFTER}, 0)),
        (run("a", 1), measured("a", {0: BEFORE, 9: part}, 1)),
    )
    (ax,) = figures.separation(measurements, runs).axes
    (line,) = [line for line in ax.lines if line.get_gid() == "after"]
    assert line.get_xdata().tolist() == [0, 1, 3]
    np.testing.assert_allclose(line.get_ydata()[1], (AFTER[0][1] * 4.0) ** 0.5)


def test_figure_of_both_origins_shows_own_runs_where_there_are_some():
    reference = ([8.0, 2.0, 0.5, 0.125], 0.25, -0.99)
    own, shipped = (
        tables(
            *((run(name, optimizer=optimizer), measured(name, {0: BEFORE, 9: after}))
              for name, optimizer in cells)
        )
        for cells, after in [([("a", "sgd")], AFTER), ([("a", "sgd"), ("b", "adam")], reference)]
    )  # fmt: skip
    measurements, runs = (
        pd.concat([mine, theirs.assign(origin="reference")], ignore_index=True)
        for mine, theirs in zip(own, shipped, strict=True)
    )
    figure = figures.separation(measurements, runs)
    assert [ax.get_ylabel() for ax in figure.axes] == ["SGD", "Adam"]
    shown = [ax.texts[0].get_text() for ax in figure.axes]
    assert shown == ["ρ = 0.50\nr = −1.000", "ρ = 0.25\nr = −0.990"]


def test_cells_that_differ_in_something_else_have_rows_of_their_own():
    measurements, runs = tables(
        (run("a"), measured("a", {0: BEFORE, 9: AFTER})),
        (run("b"), measured("b", {0: BEFORE, 9: AFTER})),
    )
    figure = figures.separation(measurements, runs)
    assert [ax.get_ylabel() for ax in figure.axes] == ["MNIST\na", "MNIST\nb"]
