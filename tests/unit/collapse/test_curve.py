"""Results over epochs, as a table and as the paper's panels."""

import matplotlib
import numpy as np
import pytest

import neural_collapse as nc

matplotlib.use("Agg")


def curve(weight=True, epochs=(1, 10, 100)):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((3, 4))
    labels = np.arange(30) % 3
    found = nc.CollapseCurve()
    for epoch in epochs:
        h = W[labels] + rng.standard_normal((30, 4)) / epoch
        result = nc.measure(h, labels, W if weight else None)
        result.test = nc.measure(h[:15], labels[:15], W if weight else None)
        found.log(epoch, result)
    return found


def test_the_table_holds_every_value_of_both_splits():
    table = curve().to_frame()
    assert list(table.columns) == ["epoch", "split", "statistic", "value"]
    assert table.groupby(["split", "epoch"]).size().tolist() == [23] * 6
    nc1 = table.query("statistic == 'nc1_within_class_variability' and split == 'train'")
    assert nc1["value"].is_monotonic_decreasing


def test_panels_are_the_papers_figures():
    axes = curve().plot()
    assert [ax.get_title().split()[0] for ax in axes] == [
        *("NC1", "NC2", "NC2", "NC2", "NC3", "NC4")
    ]
    assert [len(ax.lines) for ax in axes] == [1, 2, 2, 2, 1, 1]
    axes[0].figure.canvas.draw()
    assert all(
        0
        <= ax.title.get_window_extent().x0
        < ax.title.get_window_extent().x1
        <= ax.figure.bbox.width
        for ax in axes
    )  # none is cut off
    assert axes[0].get_yscale() == "log" and list(axes[0].lines[0].get_xdata()) == [1, 10, 100]
    assert len(curve(weight=False).plot()) == 4
    (ax,) = curve().plot(["cdnv"], split="test")
    assert ax.get_title() == "cdnv"


def test_curve_wrong_use_is_one_sentence():
    with pytest.raises(nc.UserError, match="Nothing has been logged for the split 'train'"):
        nc.CollapseCurve().plot()
    with pytest.raises(nc.UserError, match="'vci' has not been logged"):
        curve().plot(["vci"])
    with pytest.raises(nc.UserError, match="Epoch 1 of the split 'train' has already been logged"):
        curve(epochs=(1, 1))
    with pytest.raises(nc.UserError, match=r"log\(epoch, result\) was given a int"):
        nc.CollapseCurve().log(nc.measure([[1.0], [2.0]], [0, 1]), 1)
    with pytest.raises(nc.UserError, match="'last' as epoch, not a number"):
        nc.CollapseCurve().log("last", nc.measure([[1.0], [2.0]], [0, 1]))
    with pytest.raises(nc.UserError, match="given no statistics"):
        curve().plot([])


def test_short_names_are_drawn():
    (nc1,) = curve().plot("nc1")
    assert nc1.get_title() == "nc1_within_class_variability"
    assert repr(curve()) == "<CollapseCurve of epochs [1, 10, 100]>"
    assert [ax.get_title() for ax in curve().plot(["cdnv", "nc3"])] == ["cdnv", "nc3_self_duality"]
