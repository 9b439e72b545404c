"""Claims and tables of studies, from values known by hand."""

import numpy as np
import pandas as pd
import pytest
from sample_tables import run_row

from neural_collapse.io.versions import CHANGES_NO_RESULT
from neural_collapse.results.claims import check_claims, render_claims
from neural_collapse.results.layout import Layout
from neural_collapse.results.studies import (
    MINORITY_ACCURACY,
    MINORITY_COSINE,
    NC0,
    NC0_ERROR,
    NC0_PREDICTED,
    NC1,
    NC3,
    NC4,
    by_ratio,
    by_weight_decay,
    correlation_with_collapse,
    measured_other,
    seed_means,
)
from neural_collapse.training.recipe import TrainingRecipe


def run(architecture, seed=0, data=None, network=None, measurement=None, **training):
    training = {"epochs": 4, "loss": "cross_entropy", "weight_decay": 1e-3} | training
    network = {"name": "resnet18"} | (network or {})
    recipe = {"network": network, "data": data or {}, "training": training}
    recipe["measurement"] = measurement or {}
    facts = {"epochs": 4, "terminal_phase_epoch": 2, "test_examples": 1000}
    return run_row(architecture, seed, recipe, **facts)


def measured(values, split="train", epochs=(0, 4)):
    """{(architecture, seed): {statistic: values by epoch}} as a measurements table; the key of a
    statistic of another split is (statistic, split)."""
    rows = [
        (architecture, seed, epoch, *(of if isinstance(of, tuple) else (of, split)), float(value))
        for (architecture, seed), statistics in values.items()
        for of, series in statistics.items()
        for epoch, value in zip(epochs, series, strict=True)
    ]
    names = ["architecture", "seed", "epoch", "statistic", "split", "value"]
    return pd.DataFrame(rows, columns=names).assign(dataset="mnist")


ADAM, ADAMW = {"optimizer": {"name": "adam"}}, {"optimizer": {"name": "adamw"}}


def test_lines_over_weight_decay_are_of_the_last_epoch_by_optimiser():
    runs = pd.DataFrame([run("a", weight_decay=0.1), run("b"), run("b", seed=1), run("c", **ADAMW)])
    values = {
        ("a", 0): {NC0: (2, 0.25), NC0_PREDICTED: (2, 0.26), NC3: (1.9, 0.5)},
        ("b", 0): {NC0: (2, 1), NC0_PREDICTED: (2, 1), NC3: (1.9, 0.7)},
        ("b", 1): {NC0: (2, 2), NC0_PREDICTED: (2, 2), NC3: (1.9, 0.9)},
        ("c", 0): {NC0: (2, 3)},
    }
    found = by_weight_decay(measured(values), runs, Layout.of(runs))
    assert list(found) == [("mnist", "sgd"), ("mnist", "adamw")]
    sgd = found["mnist", "sgd"]
    assert sgd.index.tolist() == [1e-3, 0.1]
    assert sgd[NC0].columns.tolist() == ["mean", "min", "max", "count"]
    np.testing.assert_allclose(sgd[NC0], [[1.5, 1, 2, 2], [0.25, 0.25, 0.25, 1]])
    np.testing.assert_allclose(sgd[NC3]["mean"], [0.8, 0.5])
    adamw = found["mnist", "adamw"]
    assert adamw[NC0]["mean"].tolist() == [3]
    assert adamw[NC0_PREDICTED]["mean"].isna().all()


def test_means_over_seeds_leave_out_what_is_not_defined():
    values = {("a", 0): {NC3: (1, 2)}, ("a", 1): {NC3: (3, np.nan)}}
    found = seed_means(measured(values), "mnist", "a", NC3, "train")
    assert found.index.tolist() == [0, 4]
    assert found.to_numpy().tolist() == [[2, 1, 3], [2, 2, 2]]


def claims_of(values, runs, name):
    table = check_claims(values, pd.DataFrame(runs))
    return table[table["phenomenon"].str.startswith(name)]


@pytest.mark.parametrize(
    ("decoupled", "coupled", "verdict"),
    [((5.0, 5.2), (0.3, 0.4), "holds"), ((0.3, 0.4), (5.0, 5.2), "does not"),
     ((1.0, 3.0), (1.1, 2.7), "cannot say")],
)  # fmt: skip
def test_a_contrast_compares_the_same_recipe_with_another_optimiser(decoupled, coupled, verdict):
    runs = [
        *(run("adamw", seed, **ADAMW) for seed in (0, 1)),
        *(run("adam", seed, **ADAM) for seed in (0, 1)),
        run("other decay", weight_decay=0.1, **ADAM),
        run("sgd"),
    ]
    values = {("other decay", 0): {NC0: (2, 99)}, ("sgd", 0): {NC0: (2, 77)}}
    values |= {("adamw", seed): {NC0: (2, decoupled[seed])} for seed in (0, 1)}
    values |= {("adam", seed): {NC0: (2, coupled[seed])} for seed in (0, 1)}
    (row,) = claims_of(measured(values), runs, "NC0 stays larger").itertuples()
    assert (row.architecture, row.holds, row.seeds) == ("adamw", verdict, 2)
    assert row.at_end == pytest.approx(np.mean(decoupled))
    spread = np.hypot(np.std(decoupled, ddof=1), np.std(coupled, ddof=1))
    assert row.noise == pytest.approx(12.7062 / 2**0.5 * spread, rel=1e-5)  # Student's t of 2 seeds
    assert f"{np.mean(coupled):.4g} with Adam" in row.reason
    assert "99" not in row.reason and "77" not in row.reason
    assert "5.33" in row.paper


@pytest.mark.parametrize(("value", "verdict"), [(1.1, "cannot say"), (1.2, "holds")])
def test_a_single_seed_must_differ_by_more_than_a_share(value, verdict):
    values = {("adamw", 0): {NC0: (2, value)}, ("adam", 0): {NC0: (2, 1)}}
    runs = [run("adamw", **ADAMW), run("adam", **ADAM)]
    (row,) = claims_of(measured(values), runs, "NC0 stays larger").itertuples()
    assert row.holds == verdict
    assert row.noise == pytest.approx(1.96 * 0.05 * np.hypot(value, 1))


@pytest.mark.parametrize("diverged", ["adamw", "adam"])
def test_a_contrast_with_a_diverged_training_decides_nothing(diverged):
    values = {("adamw", 0): {NC0: (2, 9)}, ("adam", 0): {NC0: (2, 1)}}
    runs = [run("adamw", **ADAMW), run("adam", **ADAM)]
    runs = [r | {"diverged": r["architecture"] == diverged} for r in runs]
    (row,) = claims_of(measured(values), runs, "NC0 stays larger").itertuples()
    assert row.holds == "cannot say" and "a training diverged" in row.reason


@pytest.mark.parametrize(
    ("claim", "statistic", "split", "values", "noise"),
    [
        ("minority classifiers come closer under imb", MINORITY_COSINE, "train", (0.01, -1e-4),
         0.05 * 2**0.5),
        ("minority accuracy", MINORITY_ACCURACY, "test", (0.9, 0.5),
         ((0.9 * 0.1 + 0.5 * 0.5) / 200) ** 0.5),  # of 1000 test images two classes in ten
        ("a fixed ETF", "error", "test", (0.1, 0.2), ((0.1 * 0.9 + 0.2 * 0.8) / 1000) ** 0.5),
    ],
)  # fmt: skip
def test_the_noise_of_one_seed_is_no_share_of_a_cosine_or_of_an_accuracy(
    claim, statistic, split, values, noise
):
    if statistic == "error":
        runs = [run("own", network=ETF), run("other")]
    else:
        runs = [run("own", data=imbalance(9.0)), run("other", data=imbalance(1.0))]
    of = zip(("own", "other"), values, strict=True)
    table = measured({(name, 0): {statistic: (0, value)} for name, value in of}, split)
    (row,) = claims_of(table, runs, claim).itertuples()
    assert row.noise == pytest.approx(1.96 * noise)
    assert row.holds != "holds" or claim == "a fixed ETF"


def test_a_larger_weight_decay_is_compared_with_the_next_smaller_one():
    decays = {"a": 1e-4, "b": 1e-3, "c": 3e-3}
    runs = [run(name, data=imbalance(9.0), weight_decay=decay) for name, decay in decays.items()]
    runs += [run("r1", data=imbalance(1.0), weight_decay=2e-3)]
    cosines = {"a": 0.1, "b": 0.9, "c": 0.5, "r1": 0.0}
    table = measured({(name, 0): {MINORITY_COSINE: (0, c)} for name, c in cosines.items()})
    found = claims_of(table, runs, "minority classifiers come closer under larger")
    verdicts = {row.architecture: (row.holds, row.reason) for row in found.itertuples()}
    assert verdicts.keys() == {"b", "c"}
    assert verdicts["b"][0] == "holds" and "0.1 with weight decay 0.0001" in verdicts["b"][1]
    assert verdicts["c"][0] == "does not" and "0.9 with weight decay 0.001" in verdicts["c"][1]
    assert "than with the next smaller weight decay" in found["criterion"].iloc[0]


def test_a_contrast_says_of_which_runs_the_terminal_phase_was_not_reached():
    values = {("adamw", 0): {NC0: (2, 5)}, ("adam", 0): {NC0: (2, 1)}}
    runs = [run("adamw", **ADAMW) | {"terminal_phase_epoch": np.nan}, run("adam", **ADAM)]
    (row,) = claims_of(measured(values), runs, "NC0 stays larger").itertuples()
    assert row.reason.endswith("; 0 of 1 seeds reached TPT, 1 of 1 with Adam")
    runs[0]["terminal_phase_epoch"] = 3
    (row,) = claims_of(measured(values), runs, "NC0 stays larger").itertuples()
    assert "TPT" not in row.reason


def test_a_contrast_names_the_last_epoch_of_its_own_cell():
    values = {("adamw", 0): {NC0: (2, 5)}, ("adam", 0): {NC0: (2, 1)}}
    longer = measured({("longer", 0): {NC0: (2, 1)}}, epochs=(0, 9))
    runs = [run("adamw", **ADAMW), run("adam", **ADAM), run("longer", epochs=9, **ADAM)]
    table = pd.concat([measured(values), longer], ignore_index=True)
    (row,) = claims_of(table, runs, "NC0 stays larger").itertuples()
    assert (row.epoch_at_end, row.at_end) == ("4", 5)


@pytest.mark.parametrize(
    ("name", "statistic", "own", "other"),
    [("NC0 stays larger", NC0, ADAMW, ADAM | {"loss": "focal"}),
     ("NC0 stays larger", NC0, ADAMW, {"optimizer": {"name": "adam", "betas": [0.9, 0.99]}}),
     ("label smoothing collapses", "nc1_within_class_variability",
      {"loss": "label_smoothing"}, ADAM)],
)  # fmt: skip
def test_a_cell_that_differs_in_more_than_the_choice_is_not_compared(name, statistic, own, other):
    plain = ADAM if own is ADAMW else {}
    runs = [run("own", **own), run("plain", **plain), run("other", **other)]
    values = {("own", 0): 5, ("plain", 0): 1, ("other", 0): 99}
    values = {key: {statistic: (2, value)} for key, value in values.items()}
    found = claims_of(measured(values), runs, name)
    (row,) = found[found["architecture"] == "own"].itertuples()
    assert "against 1 with" in row.reason


def test_keys_that_change_no_result_may_differ_between_compared_cells():
    assert {"tensorboard", "evaluation_batch_size"} == CHANGES_NO_RESULT
    assert TrainingRecipe.model_fields.keys() >= CHANGES_NO_RESULT
    runs = [
        run("adamw", tensorboard=True, evaluation_batch_size=500, **ADAMW),
        run("adam", evaluation_batch_size=1000, **ADAM),
    ]
    values = {("adamw", 0): {NC0: (2, 5)}, ("adam", 0): {NC0: (2, 1)}}
    (row,) = claims_of(measured(values), runs, "NC0 stays larger").itertuples()
    assert row.holds == "holds"


def test_a_cell_without_a_counterpart_makes_no_claim():
    values = {("adamw", 0): {NC0: (2, 5)}, ("adam", 0): {NC0: (2, 1)}}
    runs = [run("adamw", weight_decay=0.1, **ADAMW), run("adam", **ADAM)]
    assert claims_of(measured(values), runs, "NC0 stays larger").empty


def test_a_value_that_is_not_defined_decides_nothing():
    values = {("adamw", 0): {NC0: (2, np.nan)}, ("adam", 0): {NC0: (2, 1)}}
    runs = [run("adamw", **ADAMW), run("adam", **ADAM)]
    (row,) = claims_of(measured(values), runs, "NC0 stays larger").itertuples()
    assert row.holds == "cannot say" and "not defined" in row.reason


def test_closed_form_of_nc0_is_claimed_only_for_sgd():
    sgdw = {"optimizer": {"name": "sgdw"}}
    runs = [run("sgd"), run("smoothed", loss="label_smoothing"), run("sgdw", **sgdw)]
    errors = {"sgd": 2e-6, "smoothed": 2e-3, "sgdw": 5e-3}
    values = measured({(name, 0): {NC0_ERROR: (0, error)} for name, error in errors.items()})
    found = claims_of(values, runs, "closed form")
    verdicts = dict(zip(found["architecture"], found["holds"], strict=True))
    assert verdicts == {"sgd": "holds", "smoothed": "does not"}


def imbalance(ratio):
    return {"imbalance": {"kind": "step", "ratio": ratio, "minority_classes": [8, 9]}}


SMALL, LARGE = {"weight_decay": 5e-4}, {"weight_decay": 5e-3}
IMBALANCED = [
    run("r1", data=imbalance(1.0), **SMALL),
    run("r9", data=imbalance(9.0), **SMALL),
    run("r9 other", data=imbalance(9.0), epochs=7, **SMALL),  # has none to be compared with
    run("r9 large", data=imbalance(9.0), **LARGE),
    run("r1 large", data=imbalance(1.0), **LARGE),
    run("r9 repeated", data=imbalance(9.0), oversample=True, **SMALL),
    run("without", **SMALL),
]
COSINES = {"r1": -0.1, "r9": 0.5, "r9 other": 0.9, "r9 large": 0.9, "r1 large": 0.95}


@pytest.mark.parametrize(
    ("claim", "verdicts"),
    [
        ("minority classifiers come closer under imbalance",
         {"r9": "holds", "r9 large": "cannot say"}),
        ("minority classifiers come closer under larger", {"r9 large": "holds"}),
        ("oversampling parts", {"r9 repeated": "holds"}),
    ],
)  # fmt: skip
def test_cells_of_an_imbalance_are_compared_with_their_counterparts(claim, verdicts):
    cosines = COSINES | {"r9 repeated": 0.1}
    values = {(name, 0): {MINORITY_COSINE: (0, value)} for name, value in cosines.items()}
    found = claims_of(measured(values), IMBALANCED, claim)
    assert dict(zip(found["architecture"], found["holds"], strict=True)) == verdicts


def test_minority_accuracy_is_claimed_of_the_test_set():
    values = {("r1", 0): {MINORITY_ACCURACY: (0, 0.9)}, ("r9", 0): {MINORITY_ACCURACY: (0, 0.3)}}
    (row,) = claims_of(measured(values, "test"), IMBALANCED, "minority accuracy").itertuples()
    assert (row.architecture, row.split, row.holds) == ("r9", "test", "holds")


def test_lines_over_the_ratio_are_by_weight_decay_and_sampling():
    runs = pd.DataFrame([*IMBALANCED, run("r1", seed=1, data=imbalance(1.0), **SMALL)])
    values = {(name, 0): {MINORITY_COSINE: (0, value)} for name, value in COSINES.items()}
    values |= {
        ("r1", 1): {MINORITY_COSINE: (0, 0.3)},
        ("r9 repeated", 0): {MINORITY_COSINE: (0, 0.2)},
    }
    accuracy = measured({("r9", 0): {MINORITY_ACCURACY: (0, 0.4)}}, "test")
    shown = runs[runs["architecture"] != "r9 other"]
    table = pd.concat([measured(values), accuracy])
    found = by_ratio(table, runs, Layout.of(shown))
    small, large = "decay 0.0005", "decay 0.005"
    assert list(found) == [("mnist", small, False), ("mnist", small, True), ("mnist", large, False)]
    line = found["mnist", small, False]
    assert line.index.tolist() == [1, 9]
    np.testing.assert_allclose(line[MINORITY_COSINE], [[0.1, -0.1, 0.3, 2], [0.5, 0.5, 0.5, 1]])
    assert line[MINORITY_ACCURACY, "mean"].isna().tolist() == [True, False]
    assert found["mnist", small, True][MINORITY_COSINE, "mean"].tolist() == [0.2]
    without = runs[runs["architecture"] == "without"]
    assert by_ratio(measured(values), without, Layout.of(without)) == {}


@pytest.mark.parametrize(
    ("changes", "called"),
    [({"network": {"classifier": "etf"}}, "classifier etf"),
     ({"network": {"width": 8}}, "width 8"),
     ({"data": {"imbalance": {"kind": "exponential", "minority_classes": [8, 9]}}},
      "kind exponential"),
     ({"data": {"imbalance": {"kind": "step", "minority_classes": [9]}}}, "minority classes [9]"),
     ({"loss": "focal"}, "loss focal"), (ADAM, "name adam"), ({"epochs": 7}, "epochs 7")],
)  # fmt: skip
def test_recipes_that_differ_in_more_than_the_ratio_are_lines_of_their_own(changes, called):
    runs, values = [], {}
    for ratio in (1.0, 9.0):
        given = {"data": imbalance(ratio)} | changes
        given["data"] = {"imbalance": given["data"]["imbalance"] | {"ratio": ratio}}
        runs += [run(f"own {ratio}", data=imbalance(ratio)), run(f"other {ratio}", **given)]
        values |= {(f"own {ratio}", 0): {MINORITY_COSINE: (0, 0.1)}}
        values |= {(f"other {ratio}", 0): {MINORITY_COSINE: (0, 0.7)}}
    runs = pd.DataFrame(runs)
    found = by_ratio(measured(values), runs, Layout.of(runs))
    lines = {line: table[MINORITY_COSINE, "mean"].tolist() for (_, line, _), table in found.items()}
    (name,) = [line for line in lines if called in line]
    assert lines.pop(name) == [0.7, 0.7] and list(lines.values()) == [[0.1, 0.1]]


ETF = {"classifier": "etf"}


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [((0.10, 0.1002), "holds"), ((0.13, 0.1301), "does not"), ((0.11, 0.13), "cannot say"),
     ((0.07, 0.0701), "does not")],
)  # fmt: skip
def test_a_fixed_classifier_is_alike_within_a_bound_on_either_side(errors, verdict):
    runs = [
        run(name, seed, network=of) for name, of in (("etf", ETF), ("own", {})) for seed in (0, 1)
    ]
    runs += [run("random", network=ETF, data={"random_labels": 1.0})]
    values = {("own", 0): {"error": (0.9, 0.1)}, ("own", 1): {"error": (0.9, 0.1001)}}
    values |= {("etf", seed): {"error": (0.9, errors[seed])} for seed in (0, 1)}
    values |= {("random", 0): {"error": (0.9, 0.9)}}
    found = claims_of(measured(values, "test"), runs, "a fixed ETF")
    assert [(row.architecture, row.holds) for row in found.itertuples()] == [("etf", verdict)]
    assert "at most 0.02 larger or smaller" in found["criterion"].iloc[0]


@pytest.mark.parametrize(
    ("ends", "mismatch", "begun", "verdict"),
    [((0.1, 0.11), 0.002, 1, "holds"), ((1.1, 1.11), 0.002, 1, "does not"),
     ((0.1, 0.11), 0.2, 1, "does not"), ((0.1, 1.9), 0.002, 1, "cannot say"),
     ((0.1, 0.11), 0.002, np.nan, "cannot say")],
)  # fmt: skip
def test_collapse_under_random_labels_is_judged_in_the_terminal_phase(
    ends, mismatch, begun, verdict
):
    """NC1 is 100 before training, where the class means coincide, and 1 as the TPT begins."""
    names = {"all": {"random_labels": 1.0}, "half": {"random_labels": 0.5}, "true": {}}
    runs = [
        run(name, seed, data=data) | {"terminal_phase_epoch": begun}
        for name, data in names.items()
        for seed in (0, 1)
    ]
    values = {
        (name, seed): {NC1: (100, 1, end), NC4: (0.9, 0.3, mismatch)}
        for name in names
        for seed, end in enumerate(ends)
    }
    table = measured(values, epochs=(0, 1, 4))
    (row,) = claims_of(table, runs, "collapse under random labels").itertuples()
    assert (row.architecture, row.holds) == ("all", verdict)
    assert "lower at the last epoch than at the start of the TPT" in row.criterion
    assert "nc4_ncc_mismatch of the train split below 0.01" in row.criterion


def test_claims_of_studies_are_written_where_they_are_made():
    values = {("adamw", 0): {NC0: (2, 5)}, ("adam", 0): {NC0: (2, 1)}}
    table = check_claims(
        measured(values), pd.DataFrame([run("adamw", **ADAMW), run("adam", **ADAM)])
    )
    text = render_claims(table)
    assert "larger at the last epoch with AdamW than with Adam;" in text
    assert "label smoothing" not in text


# --------------------------------------------------------------------------- another dataset

NCC, PROBE, NC5 = "transfer_ncc_accuracy", "transfer_probe_accuracy", "nc5_outlier_orthogonality"
LAGS = "the test set collapses less than the train set"
ORTHOGONAL = "outliers become orthogonal to the class means (NC5 about their mean)"
COLLAPSE = {
    (NC1, "train"): [[8, 1, 0.5, 0.1], [8, 2, 0.5, 0.2]],
    (NC1, "test"): [[8, 2, 1.5, 1], [8, 4, 2, 1.96]],
}


def other_runs(seeds=2, other="fashion_mnist", **columns):
    measurement = {"other_dataset": other} if other else {}
    rows = [run("resnet", seed, measurement=measurement) for seed in range(seeds)]
    return pd.DataFrame(rows).assign(**columns)


def of_seeds(values):
    """{(statistic, split): values by epoch of each seed} as a measurements table."""
    seeds = range(len(next(iter(values.values()))))
    by_seed = {("resnet", s): {key: of[s] for key, of in values.items()} for s in seeds}
    return measured(by_seed, epochs=(0, 2, 5, 9))


def verdicts(values, **columns):
    claims = check_claims(of_seeds(values), other_runs(**columns))
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


def test_a_trend_that_ends_at_zero_within_the_noise_decides_nothing():
    found = verdicts({(NCC, "test"): [[0.9, 0.5, 0.1, 0.0], [0.9, 0.0, 0.0, 0.0]]})
    claim = found.loc["nearest class centres transfer worse"]
    assert (claim["at_end"], claim["holds"]) == (0, "cannot say")
    assert claim["criterion"] == "lower at the last epoch than at the start of the TPT"


def test_one_seed_decides_nothing():
    found = verdicts({(NCC, "test"): [[0.1, 0.9, 0.5, 0.1]]}, seeds=1)
    claim = found.loc["nearest class centres transfer worse"]
    assert claim["holds"] == "cannot say"
    assert claim["reason"] == "the noise of one seed is unknown: 0.9 to 0.1"


def test_claims_are_made_only_if_another_dataset_was_measured():
    assert LAGS not in verdicts(COLLAPSE).index
    values = COLLAPSE | {(NCC, "test"): [[0.3, 0.5, 0.6, 0.4]] * 2}
    claims = check_claims(of_seeds(values), other_runs(terminal_phase_epoch=None))
    row = claims.set_index("phenomenon").loc[LAGS]
    assert (row["holds"], row["reason"]) == ("cannot say", "the terminal phase was not reached")
    text = render_claims(claims)
    assert f"- {LAGS} (`{NC1}, test / train`, test): higher at the last epoch than" in text


def test_correlation_with_collapse_is_that_of_each_seeds_epochs_after_the_first():
    values = COLLAPSE | {(PROBE, "test"): [[0.9, 0.7, 0.65, 0.5], [0.9, 0.6, 0.7, 0.8]]}
    table = of_seeds(values)
    expected = [
        np.corrcoef(-np.log(nc1[1:]), probe[1:])[0, 1]
        for nc1, probe in zip(values[NC1, "train"], values[PROBE, "test"], strict=True)
    ]
    found = correlation_with_collapse(table, ("mnist", "resnet"), PROBE)
    assert found == pytest.approx((min(expected), max(expected)))
    assert expected[0] < -0.9 < 0.9 < expected[1]


def test_correlation_of_what_was_not_measured_or_does_not_change_is_nan():
    table = of_seeds(COLLAPSE | {(PROBE, "test"): [[0.5] * 4] * 2})
    for statistic, cell in [(PROBE, "resnet"), (NCC, "resnet"), (PROBE, "vgg")]:
        assert np.isnan(correlation_with_collapse(table, ("mnist", cell), statistic)).all()


def test_cells_that_measure_another_dataset_are_titled_by_both():
    table = other_runs()
    layout = Layout.of(table)
    assert measured_other(table, layout) == {("mnist", "resnet"): ("MNIST", "fashion_mnist")}
    assert measured_other(other_runs(other=None), layout) == {}
    both = pd.concat([table, table.assign(dataset="fashion_mnist", dataset_label="Fashion")])
    assert measured_other(both, Layout.of(both))["mnist", "resnet"] == ("MNIST", "Fashion")
    two = pd.concat([table, table.assign(architecture="vgg", architecture_label="VGG")])
    assert measured_other(two, Layout.of(two))["mnist", "vgg"][0] == "MNIST × VGG"
