"""Claims on another dataset's statistics, and their correlation with collapse, known by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from sample_tables import RUN

from neural_collapse.results.claims import check_claims, render_claims
from neural_collapse.results.layout import Layout
from neural_collapse.results.studies import NC1, correlation_with_collapse, measured_other
from neural_collapse.results.trends import TRENDS

EPOCHS = (0, 2, 5, 9)
NCC, PROBE, NC5 = "transfer_ncc_accuracy", "transfer_probe_accuracy", "nc5_outlier_orthogonality"
LAGS, ORTHOGONAL = TRENDS[0].name, TRENDS[4].name


def runs(seeds=2, begun=2, other="fashion_mnist"):
    recipe = {"measurement": {"other_dataset": other} if other else {}}
    row = RUN | {
        "epochs": 9,
        "terminal_phase_epoch": begun,
        "train_examples": 3000,
        "test_examples": 1000,
        "recipe": json.dumps(recipe),
    }
    return pd.DataFrame([row | {"seed": seed} for seed in range(seeds)])


def measurements(values):
    """{(statistic, split): a list of values by epoch for each seed} as a table."""
    rows = [
        ("mnist", "resnet", seed, epoch, split, statistic, float(value))
        for (statistic, split), seeds in values.items()
        for seed, of in enumerate(seeds)
        for epoch, value in zip(EPOCHS, of, strict=True)
    ]
    names = ["dataset", "architecture", "seed", "epoch", "split", "statistic", "value"]
    return pd.DataFrame(rows, columns=names)


COLLAPSE = {
    (NC1, "train"): [[8, 1, 0.5, 0.1], [8, 2, 0.5, 0.2]],
    (NC1, "test"): [[8, 2, 1.5, 1], [8, 4, 2, 1.96]],
}


def verdicts(values, **changes):
    claims = check_claims(measurements(values), runs(**changes))
    return claims.set_index("phenomenon")


def test_the_test_sets_collapse_is_judged_by_its_ratio_to_the_train_sets():
    claim = verdicts(COLLAPSE | {(NCC, "test"): [[0.3, 0.5, 0.6, 0.4]] * 2}).loc[LAGS]
    # Ratios at the start of the TPT: 2 and 2; at the end: 10 and 9.8; changes 8 and 7.8.
    assert claim["holds"] == "holds"
    values = [claim[name] for name in ("at_epoch_0", "at_start", "at_end", "change")]
    assert values == pytest.approx([1, 2, 9.9, 7.9])
    # Student's t of two seeds over the square root of two, times their standard deviation.
    assert claim["noise"] == pytest.approx(12.7062 / 2**0.5 * 0.2 / 2**0.5, rel=1e-5)
    assert claim["statistic"] == f"{NC1}, test / train"


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0.4, 0.401), "holds"), ((0.6, 0.601), "does not"), ((0.4, 0.43), "cannot say")],
)
def test_transfer_gets_worse_where_it_falls_by_more_than_the_seeds_noise(ends, expected):
    values = {(NCC, "test"): [[0.1, 0.5, 0.5, end] for end in ends]}
    found = verdicts(values)
    assert found.loc["nearest class centres transfer worse", "holds"] == expected
    assert "a linear probe transfers worse" not in found.index and LAGS not in found.index


def test_detection_and_nc5_are_judged_within_the_terminal_phase():
    values = {
        (NCC, "test"): [[0.5] * 4] * 2,
        (NC5, "test"): [[0.1, 0.5, 0.4, 0.2], [0.1, 0.6, 0.4, 0.31]],
        ("outlier_auroc_neco", "test"): [[0.9, 0.6, 0.7, 0.8], [0.9, 0.7, 0.7, 0.91]],
        ("outlier_auroc_energy", "test"): [[0.1, 0.8, 0.7, 0.7], [0.1, 0.8, 0.7, 0.701]],
    }
    found = verdicts(values)["holds"]
    assert found[ORTHOGONAL] == "holds"  # below the start of the TPT, not below epoch 0
    assert found["outliers are detected better: NECO"] == "holds"
    assert found["outliers are detected better: energy"] == "does not"


def test_one_seed_decides_nothing():
    found = verdicts({(NCC, "test"): [[0.1, 0.9, 0.5, 0.1]]}, seeds=1)
    claim = found.loc["nearest class centres transfer worse"]
    assert claim["holds"] == "cannot say"
    assert claim["reason"] == "one seed does not tell the noise: 0.9 to 0.1"


def test_claims_are_made_where_another_dataset_was_measured_alone():
    names = {trend.name for trend in TRENDS}
    assert not names & set(verdicts(COLLAPSE).index)
    values = COLLAPSE | {(NCC, "test"): [[0.3, 0.5, 0.6, 0.4]] * 2}
    claims = check_claims(measurements(values), runs(begun=None))
    row = claims.set_index("phenomenon").loc[LAGS]
    assert (row["holds"], row["reason"]) == ("cannot say", "the terminal phase was not reached")
    text = render_claims(claims)
    assert f"- {LAGS} (`{NC1}, test / train`, test): at the last epoch higher than" in text


def test_correlation_with_collapse_is_that_of_each_seeds_epochs_after_the_first():
    values = COLLAPSE | {(PROBE, "test"): [[0.9, 0.7, 0.65, 0.5], [0.9, 0.6, 0.7, 0.8]]}
    table = measurements(values)
    expected = [
        np.corrcoef(-np.log(nc1[1:]), probe[1:])[0, 1]
        for nc1, probe in zip(values[NC1, "train"], values[PROBE, "test"], strict=True)
    ]
    found = correlation_with_collapse(table, ("mnist", "resnet"), PROBE)
    assert found == pytest.approx((min(expected), max(expected)))
    assert expected[0] < -0.9 < 0.9 < expected[1]


def test_correlation_of_what_was_not_measured_or_does_not_change_is_nan():
    table = measurements(COLLAPSE | {(PROBE, "test"): [[0.5] * 4] * 2})
    for statistic, cell in [(PROBE, "resnet"), (NCC, "resnet"), (PROBE, "vgg")]:
        assert np.isnan(correlation_with_collapse(table, ("mnist", cell), statistic)).all()


def test_cells_that_measure_another_dataset_are_titled_by_both():
    table = runs()
    layout = Layout.of(table)
    assert measured_other(table, layout) == {("mnist", "resnet"): ("MNIST", "fashion_mnist")}
    assert measured_other(runs(other=None), layout) == {}
    both = pd.concat([table, table.assign(dataset="fashion_mnist", dataset_label="Fashion")])
    assert measured_other(both, Layout.of(both))["mnist", "resnet"] == ("MNIST", "Fashion")
    two = pd.concat([table, table.assign(architecture="vgg", architecture_label="VGG")])
    assert measured_other(two, Layout.of(two))["mnist", "vgg"][0] == "MNIST × VGG"
