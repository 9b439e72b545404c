"""Figures of studies: their lines hold the tables' values."""

import json

import numpy as np
import pandas as pd
import pytest

from neural_collapse.figures import captions, etf, imbalance, losses, optimisers, outliers, transfer
from neural_collapse.results.layout import Layout
from neural_collapse.results.studies import (
    MINORITY_ACCURACY,
    MINORITY_COSINE,
    MSE_PARTS,
    NC0,
    NC0_PREDICTED,
    NC1,
    NC3,
)


def table(cells, data=None):
    """Runs and measurements of {architecture: (training, {(statistic, split): values by epoch})};
    data: the data's part of each recipe, by architecture."""
    runs, rows = [], []
    for architecture, (training, statistics) in cells.items():
        of_data = (data or {}).get(architecture, {})
        recipe = {"network": {}, "data": of_data, "training": training}
        key = {"dataset": "mnist", "architecture": architecture, "seed": 0}
        labels = {"dataset_label": "MNIST", "architecture_label": architecture.upper()}
        runs.append(key | labels | {"recipe": json.dumps(recipe)})
        for (statistic, split), values in statistics.items():
            rows += [
                key | {"epoch": epoch, "split": split, "statistic": statistic, "value": value}
                for epoch, value in enumerate(values)
            ]
    return pd.DataFrame(rows), pd.DataFrame(runs)


def lines(figure):
    """Each line's data by its name."""
    return {
        line.get_gid(): line.get_xydata().tolist()
        for ax in figure.axes
        for line in ax.get_lines()
        if line.get_gid()
    }


def nc0(*values, predicted=()):
    found = {(NC0, "train"): values, (NC3, "train"): [v / 10 for v in values]}
    return found | ({(NC0_PREDICTED, "train"): predicted} if predicted else {})


def test_optimisers_are_lines_over_weight_decay_with_the_predicted_values():
    adam = {"optimizer": {"name": "adam"}}
    tables = table(
        {
            "a": ({"weight_decay": 1e-3}, nc0(2.0, 1.5, predicted=(2.0, 1.51))),
            "b": ({"weight_decay": 1e-2}, nc0(2.0, 0.5, predicted=(2.0, 0.49))),
            "c": ({"weight_decay": 1e-2} | adam, nc0(2.0, 0.7)),
        }
    )
    figure = optimisers(*tables)
    drawn = [line for ax in figure.axes[:2] for line in ax.get_lines() if line.get_gid()]
    values = [(line.get_gid(), line.get_xydata().tolist()) for line in drawn]
    assert ("sgd", [[1e-3, 1.5], [1e-2, 0.5]]) in values
    assert ("sgd predicted", [[1e-3, 1.51], [1e-2, 0.49]]) in values
    assert ("adam", [[1e-2, 0.7]]) in values
    assert any(
        name == "sgd" and np.allclose(xy, [[1e-3, 0.15], [1e-2, 0.05]]) for name, xy in values
    )
    (legend,) = figure.legends[:1]
    assert [text.get_text() for text in legend.get_texts()] == ["SGD", "Adam", "predicted"]
    assert "SGD, Adam" in captions.optimisers(*tables, Layout.of(tables[1]))


def test_losses_are_lines_over_epochs_and_the_mse_shows_its_parts():
    nc1 = ("nc1_within_class_variability", "train")
    parts = {(part, "train"): [0.3, 0.1 / (i + 1)] for i, part in enumerate(MSE_PARTS)}
    ece = {("expected_calibration_error", "test"): [0.2, 0.1]}
    tables = table(
        {"ce": ({}, {nc1: [9, 3]} | ece), "mse": ({"loss": "mse"}, {nc1: [8, 2]} | parts)}
    )
    found = lines(losses(*tables))
    assert found["ce nc1_within_class_variability"] == [[0, 9], [1, 3]]
    assert found["mse nc1_within_class_variability"] == [[0, 8], [1, 2]]
    assert found["ce expected_calibration_error"] == [[0, 0.2], [1, 0.1]]
    for i, part in enumerate(MSE_PARTS):
        assert found[f"mse {part}"] == pytest.approx(np.array([[0, 0.3], [1, 0.1 / (i + 1)]]))
    assert "Han, Papyan and Donoho" in captions.losses(*tables, Layout.of(tables[1]))


def test_losses_without_mse_say_that_its_parts_are_not_measured():
    tables = table({"ce": ({}, {("nc1_within_class_variability", "train"): [9, 3]})})
    texts = [text.get_text() for text in losses(*tables).axes[5].texts]
    assert texts == ["not measured"]


def test_imbalance_is_lines_over_the_ratio_and_marks_what_is_oversampled():
    minority = {"kind": "step", "minority_classes": [1, 2]}
    data = {
        name: {"imbalance": minority | {"ratio": ratio}}
        for name, ratio in (("r1", 1.0), ("r10", 10.0), ("over", 10.0))
    }

    def measured(cosine, accuracy):
        return {(MINORITY_COSINE, "train"): [0, cosine], (MINORITY_ACCURACY, "test"): [0, accuracy]}

    decay = {"weight_decay": 5e-4}
    tables = table(
        {
            "r1": (decay, measured(-0.1, 0.9)),
            "r10": (decay, measured(0.6, 0.3)),
            "over": (decay | {"oversample": True}, measured(0.2, 0.5)),
        },
        data,
    )
    figure = imbalance(*tables)
    drawn = [
        {line.get_gid(): line.get_xydata().tolist() for line in ax.get_lines() if line.get_gid()}
        for ax in figure.axes
    ]
    assert [ax.get_title() for ax in figure.axes] == [
        "Minority classifier cosine",
        "Minority accuracy, test",
    ]
    name = "decay 0.0005"
    assert drawn == [
        {name: [[1, -0.1], [10, 0.6]], f"{name}, oversampled": [[10, 0.2]]},
        {name: [[1, 0.9], [10, 0.3]], f"{name}, oversampled": [[10, 0.5]]},
    ]
    assert "Fang, He, Long and Su" in captions.imbalance(*tables, Layout.of(tables[1]))


def test_the_caption_of_optimisers_counts_the_trainings_of_each_point():
    values = nc0(2.0, 1.5)
    tables = table({name: ({"weight_decay": 1e-3}, values) for name in ("a", "b")})
    assert "Points are means over 2 trainings; bars" in captions.optimisers(
        *tables, Layout.of(tables[1])
    )
    tables = table({"a": ({"weight_decay": 1e-3}, values)})
    said = captions.optimisers(*tables, Layout.of(tables[1]))
    assert "Every point is a single training." in said and "Curves" not in said


def test_captions_without_runs_to_draw_say_so_alone():
    tables = table({"a": ({"weight_decay": 1e-3}, {(NC1, "train"): [1.0]})})
    layout = Layout.of(tables[1])
    assert captions.optimisers(*tables, layout) == (
        "No run measured NC0 or NC3 (training.weight_decay above 0): there is no line."
    )
    assert captions.imbalance(*tables, layout) == (
        "No run trained on unequal classes (data.imbalance): there is no ratio to draw."
    )


def test_the_caption_of_imbalance_counts_the_seeds():
    data = {
        n: {"imbalance": {"ratio": r, "minority_classes": [1, 2]}} for n, r in (("a", 1), ("b", 9))
    }
    values = {(MINORITY_COSINE, "train"): [0, 0.5]}
    tables = table({name: ({"weight_decay": 5e-4}, values) for name in data}, data)
    assert "Every point is a single training." in captions.imbalance(*tables, Layout.of(tables[1]))
    both = [pd.concat([of, of[of["architecture"] == "b"].assign(seed=1)]) for of in tables]
    assert "Points are means over 1 to 2 trainings" in captions.imbalance(*both, Layout.of(both[1]))


def test_imbalance_without_its_statistics_says_so():
    figure = imbalance(*table({"a": ({"weight_decay": 1e-3}, nc0(2.0, 1.5))}))
    assert [[text.get_text() for text in ax.texts] for ax in figure.axes] == [["not measured"]] * 2


def test_a_fixed_classifier_is_lines_over_epochs_by_network():
    fixed = {(NC1, "train"): [8, 2], (NC3, "train"): [1, 0.5], ("error", "test"): [0.9, 0.2]}
    own = {(NC1, "train"): [9, 3], ("error", "train"): [0.9, 0.1]}
    tables = table({"fixed": ({}, fixed), "own": ({}, own)})
    figure = etf(*tables)
    assert [ax.get_title() for ax in figure.axes][2:] == ["Error", "Error, test"]
    found = lines(figure)
    assert found[f"fixed {NC1}"] == [[0, 8], [1, 2]] and found[f"own {NC1}"] == [[0, 9], [1, 3]]
    assert found[f"fixed {NC3}"] == [[0, 1], [1, 0.5]]
    assert "Zhu et al." in captions.etf(*tables, Layout.of(tables[1]))


def other_tables():
    """A run on MNIST that measures FashionMNIST, and one that measures no other dataset."""
    nc1 = "nc1_within_class_variability"
    values = {
        (nc1, "train"): [9, 3, 1, 0.5],
        (nc1, "test"): [9, 4, 3, 2],
        ("transfer_ncc_accuracy", "test"): [0.4, 0.6, 0.5, 0.3],
        ("outlier_auroc_neco", "test"): [0.4, 0.6, 0.7, 0.9],
        ("nc5_outlier_orthogonality", "test"): [0.9, 0.5, 0.3, np.nan],
    }
    measurements, runs = table({"a": ({}, values), "b": ({}, {(nc1, "train"): [8, 2, 1, 1]})})
    recipe = json.dumps({"measurement": {"other_dataset": "fashion_mnist"}})
    runs.loc[runs["architecture"] == "a", "recipe"] = recipe
    phases = {"terminal_phase_epoch": 2, "terminal_phase_accuracy": 0.999, "diverged": False}
    return measurements, runs.assign(**phases)


def test_outliers_and_transfer_are_lines_over_epochs_of_cells_that_measure_another_dataset():
    tables = other_tables()
    figure = outliers(*tables)
    assert [ax.get_title() for ax in figure.axes] == ["MNIST × A against fashion_mnist", "", ""]
    found = lines(figure)
    assert found["mnist outlier_auroc_neco test"] == [[0, 0.4], [1, 0.6], [2, 0.7], [3, 0.9]]
    assert found["mnist nc5_outlier_orthogonality test"] == [[0, 0.9], [1, 0.5], [2, 0.3]]
    assert found["mnist outlier_auroc_nci test"] == []
    found = lines(transfer(*tables))
    assert found["mnist nc1_within_class_variability test"] == [[0, 9], [1, 4], [2, 3], [3, 2]]
    assert found["mnist transfer_ncc_accuracy test"] == [[0, 0.4], [1, 0.6], [2, 0.5], [3, 0.3]]


def test_captions_of_another_dataset_say_the_correlation_with_collapse():
    tables = other_tables()
    auroc = np.corrcoef(-np.log([3, 1, 0.5]), [0.6, 0.7, 0.9])[0, 1]
    said = f"MNIST × A: NECO {auroc:.2f} to {auroc:.2f}. "
    assert said in captions.outliers(*tables, Layout.of(tables[1]))
    ncc = np.corrcoef(-np.log([3, 1, 0.5]), [0.6, 0.5, 0.3])[0, 1]
    said = f"MNIST × A: nearest centre {ncc:.2f} to {ncc:.2f}. ".replace("-", "−")
    assert said in captions.transfer(*tables, Layout.of(tables[1]))


def test_figures_of_another_dataset_are_blank_where_none_was_measured():
    tables = table({"ce": ({}, {("nc1_within_class_variability", "train"): [9, 3]})})
    for draw, caption in [(outliers, captions.outliers), (transfer, captions.transfer)]:
        assert {text.get_text() for ax in draw(*tables).axes for text in ax.texts} == {
            "not measured"
        }
        said = caption(*tables, Layout.of(tables[1]))
        assert said.startswith("No run has measured another dataset yet")


def test_band_whose_smallest_value_is_zero_reaches_the_lower_edge():
    first, runs = table({"a": ({"loss": "cross_entropy"}, {(NC1, "train"): (1.0, 0.1, 0.0)})})
    second = first.assign(seed=1, value=[1.0, 0.3, 0.2])
    measurements = pd.concat([first, second])
    ax = losses(measurements, pd.concat([runs, runs.assign(seed=1)])).axes[0]
    (line,) = [line for line in ax.get_lines() if f"a {NC1}" == line.get_gid()]
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.2, 0.1])
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[corners[:, 0] == 2, 1].min() == 0
    assert 0.05 < ax.get_ylim()[0] < 0.1, "of the means and the bands above zero"
    for caption in (captions.losses, captions.etf):
        said = caption(measurements, runs, Layout.of(runs))
        assert "a band whose smallest value is zero reaches the lower edge." in said
    assert corners[corners[:, 0] == 1, 1].min() == pytest.approx(0.1)
