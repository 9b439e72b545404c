"""Verdicts and Table 1 on tables whose answer is known by hand."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sample_tables import RUN

from neural_collapse.experiment.config import load_config
from neural_collapse.experiment.generated import paper_recipes_json
from neural_collapse.results import paper
from neural_collapse.results.claims import (
    NOISE,
    PHENOMENA,
    check_claims,
    render_claims,
    summary,
    write_claims,
)
from neural_collapse.results.layout import Layout
from neural_collapse.results.table1 import build_table_1, render_table_1, write_table_1
from neural_collapse.results.tables import read_table

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "results" / "reference"
NC1 = "NC1 within-class variability"
SPLIT = {p.statistic: p.split for p in PHENOMENA}


def runs(*changes):
    base = RUN | {"learning_rate": 0.0679, "learning_rate_origin": "sweep"}
    return pd.DataFrame([base | change for change in (changes or [{}])])


def measured(values, seed=0, **cell):
    """{statistic: {epoch: value}} as a measurements table."""
    rows = [
        {"dataset": "mnist", "architecture": "resnet"}
        | cell
        | {"seed": seed, "epoch": e, "split": SPLIT[s], "statistic": s, "value": float(v)}
        for s, series in values.items()
        for e, v in series.items()
    ]
    return pd.DataFrame(rows)


def verdict(values, statistic, runs_table=None, **options):
    claims = check_claims(
        measured({statistic: values}), runs() if runs_table is None else runs_table
    )
    name = next(p.name for p in PHENOMENA if p.statistic == statistic)
    (row,) = claims[claims.phenomenon == name].itertuples()
    return row


NC1_STATISTIC = "nc1_within_class_variability"


@pytest.mark.parametrize(
    ("statistic", "zero", "start", "end", "holds"),
    [
        (NC1_STATISTIC, 10, 0.5, 0.1, "holds"),
        (NC1_STATISTIC, 10, 0.5, 0.501, "cannot say"),
        (NC1_STATISTIC, 10, 0.4, 0.9, "does not"),
        (NC1_STATISTIC, 10, 5.0, 3.5, "does not"),  # not ten times below epoch 0
        (NC1_STATISTIC, 10, 0.99, 0.999, "cannot say"),  # hardly ten times
        ("nc2_equinorm_means", 0.5, 0.2, 0.05, "holds"),
        ("nc2_equinorm_means", 0.5, 0.2, 0.14, "cannot say"),  # one seed, noise of 35 %
        ("nc2_equinorm_means", 0.01, 0.2, 0.15, "does not"),
        ("nc2_equinorm_classifier", 0.05, 0.2, 0.1, "holds"),  # epoch 0 is chance
        ("nc2_equinorm_classifier", 0.5, 0.2, 0.2, "cannot say"),
        ("nc2_equinorm_classifier", 0.5, 0.0230, 0.0232, "cannot say"),  # one seed's rounding
        ("nc2_equiangularity_means", 0.5, 0.1, 0.2, "does not"),
        ("nc2_maximal_angle_means", 0.5, 0.1, 0.04, "holds"),
        ("nc3_self_duality", 2.0, 0.1, 0.05, "holds"),
        ("nc3_self_duality", 2.0, 0.1, 0.1, "cannot say"),
        ("nc4_ncc_mismatch", 0.8, 0.1, 0.01, "holds"),
        ("nc4_ncc_mismatch", 0.8, 0.0, 0.0, "holds"),
        ("nc4_ncc_mismatch", 0.01, 0.4, 0.1, "does not"),
        ("nc4_ncc_mismatch", 0.8, 0.1, 0.2, "does not"),
        ("robustness", 0.1, 0.2, 0.3, "holds"),
        ("robustness", 0.1, 0.2, 0.2001, "cannot say"),
        ("robustness", 0.1, 0.2, 0.1, "does not"),
        ("error", 0.9, 0.02, 0.01, "holds"),  # accuracy rises
        ("error", 0.9, 0.01, 0.02, "does not"),
    ],
)
def test_claims_each_change_has_its_verdict(statistic, zero, start, end, holds):
    row = verdict({0: zero, 40: start, 350: end}, statistic)
    assert row.holds == holds
    if statistic == "error":
        zero, start, end = 1 - zero, 1 - start, 1 - end
    assert (row.at_epoch_0, row.at_start, row.at_end) == pytest.approx((zero, start, end))
    assert row.change == pytest.approx(end - start)
    assert f"{end:.4g}" in row.reason
    assert ("or zero" in row.criterion) == (statistic not in ("robustness", "error"))
    assert (row.epoch_at_start, row.epoch_at_end, row.seeds) == ("40", "350", 1)


def test_the_start_is_the_first_measured_epoch_of_the_terminal_phase():
    row = verdict({0: 10, 38: 7, 42: 0.5, 350: 0.4}, NC1_STATISTIC)
    assert (row.at_start, row.epoch_at_start) == (0.5, "42")


@pytest.mark.parametrize(
    ("values", "run", "reason"),
    [
        ({0: 10, 40: 1, 350: 0.1}, {"terminal_phase_epoch": None}, "phase was not reached"),
        ({0: 10, 40: 1}, {"terminal_phase_epoch": None, "diverged": True}, "diverged"),
        ({0: 10, 350: 0.1}, {"terminal_phase_epoch": 350}, "starts at the last"),
        ({0: 10, 38: 0.1}, {}, "nothing was measured in the terminal phase"),
        ({40: 1, 350: 0.1}, {}, "missing or not finite"),
        ({0: 10, 40: np.nan, 350: 0.1}, {}, "missing or not finite"),
        ({0: np.inf, 40: 1, 350: 0.1}, {}, "missing or not finite"),
    ],
)
def test_undecided_claim_has_a_reason(values, run, reason):
    row = verdict(values, NC1_STATISTIC, runs(run))
    assert row.holds == "cannot say"
    assert reason in row.reason


def test_claims_missing_statistics_and_cells_cannot_say():
    frame = measured({NC1_STATISTIC: {0: 10, 40: 1, 350: 0.1}})
    claims = check_claims(frame, runs({}, {"dataset": "svhn", "architecture": "vgg"}))
    assert len(claims) == 4 * len(PHENOMENA)
    not_run = claims[(claims.dataset == "svhn") & (claims.architecture == "resnet")]
    assert set(not_run.reason) == {"not run"}
    claims = claims[(claims.dataset == "mnist") & (claims.architecture == "resnet")]
    robustness = claims[claims.phenomenon == "robustness"]
    assert robustness.holds.item() == "cannot say" and "not measured" in robustness.reason.item()


# Student's t of the 97.5 % quantile over sqrt(n), for n seeds.
HALF_WIDTH = {2: 12.7062 / 2**0.5, 3: 4.30265 / 3**0.5}


def test_several_seeds_are_judged_on_their_mean():
    frame = pd.concat(
        [
            measured({NC1_STATISTIC: {0: 10, 40: 0.3, 350: 0.1}}),
            measured({NC1_STATISTIC: {0: 10, 50: 0.72, 350: 0.5}}, seed=1),
            measured({NC1_STATISTIC: {0: 10, 50: 9, 350: 9}}, seed=2),  # never reached it
        ]
    )
    table = runs(
        {}, {"seed": 1, "terminal_phase_epoch": 45}, {"seed": 2, "terminal_phase_epoch": None}
    )
    claims = check_claims(frame, table)
    (row,) = claims[claims.phenomenon == NC1].itertuples()
    assert row.holds == "holds" and row.seeds == 2
    assert (row.at_start, row.at_end) == pytest.approx((0.51, 0.3))
    expected = HALF_WIDTH[2] * np.std([-0.2, -0.22], ddof=1)
    assert row.noise == pytest.approx(expected, rel=1e-5)
    assert row.epoch_at_start == "40 to 50" and "2 of 3 seeds" in row.reason


def test_seeds_that_disagree_by_more_than_the_change_cannot_say():
    falls, rises = {0: 10, 40: 0.2, 350: 0.1}, {0: 10, 40: 0.2, 350: 0.25}
    frame = pd.concat(measured({NC1_STATISTIC: v}, seed=s) for s, v in enumerate((falls, rises)))
    claims = check_claims(frame, runs({}, {"seed": 1}))
    (row,) = claims[claims.phenomenon == NC1].itertuples()
    assert row.change == pytest.approx(-0.025) and row.holds == "cannot say"


def test_noise_of_one_seed_is_a_share_of_its_value_or_of_counting_test_images():
    for phenomenon in PHENOMENA:
        row = verdict({0: 0.9, 40: 0.2, 350: 0.1}, phenomenon.statistic)
        counted = phenomenon.statistic in ("nc4_ncc_mismatch", "error")
        of_counting = ((0.2 * 0.8 + 0.1 * 0.9) / 10_000) ** 0.5
        expected = 1.96 * phenomenon.spread * (of_counting if counted else 0.2)
        assert row.noise == pytest.approx(expected), phenomenon.name
        number = f"{phenomenon.spread:.2g} times" if counted else f"{100 * phenomenon.spread:.2g} %"
        assert f"{phenomenon.name} {number}" in NOISE


def changes_of_seeds(folder, statistic, split):
    """By cell of a shipped study: values at the start of the TPT and at the end of three seeds."""
    measured = pd.read_parquet(folder / "tables/measurements.parquet")
    trained = pd.read_parquet(folder / "tables/runs.parquet").dropna(subset="terminal_phase_epoch")
    trained = trained[~trained.recipe.str.contains('"classifier": "etf"')]
    measured = measured[(measured.statistic == statistic) & (measured.split == split)]
    rows = measured.merge(trained, on=["dataset", "architecture", "seed"])
    rows = rows[rows.epoch >= rows.terminal_phase_epoch].sort_values("epoch")
    ends = rows.groupby(["dataset", "architecture", "seed"]).agg(
        start=("value", "first"), end=("value", "last"), first=("epoch", "min"),
        last=("epoch", "max"), examples=("test_examples", "first")
    )  # fmt: skip
    for _, cell in ends.groupby(["dataset", "architecture"]):
        if len(cell) == 3 and (cell["first"] < cell["last"]).all():
            yield cell


def test_spread_of_seeds_is_that_of_the_shipped_studies():
    for phenomenon in PHENOMENA:
        if phenomenon.statistic == "robustness":
            continue
        relative = []
        for folder in sorted((SHIPPED / "studies").iterdir()):
            for cell in changes_of_seeds(folder, phenomenon.statistic, phenomenon.split):
                scale = cell.start.mean()
                if phenomenon.counted:
                    shares = cell[["start", "end"]].mean()
                    scale = ((shares * (1 - shares)).sum() / cell.examples.iloc[0]) ** 0.5
                relative.append((cell.end - cell.start).std() / scale)
        assert len(relative) >= 16
        found = np.sqrt(np.mean(np.square(relative)))
        assert f"{found:.2g}" == f"{phenomenon.spread:.2g}", phenomenon.name
        assert max(relative) < 4 * found


@pytest.mark.parametrize(("images", "holds"), [(49, "cannot say"), (50, "holds")])
def test_robustness_of_few_attacked_images_is_not_judged(images, holds):
    recipe = papers_recipe(robustness__images=images)
    row = verdict({0: 0.1, 40: 0.2, 350: 0.3}, "robustness", runs({"recipe": recipe}))
    assert row.holds == holds
    assert (f"{images} images attacked" in row.reason) == (holds != "holds")


@pytest.mark.parametrize(
    "statistic",
    ["nc2_equinorm_means", "nc2_equiangularity_means", "nc2_maximal_angle_means",
     "nc2_equiangularity_classifier"],
)  # fmt: skip
def test_what_two_classes_always_have_is_not_judged(statistic):
    """Centred, two class means are opposite: what is measured is rounding error."""
    rounding = {0: 2.2e-16, 40: 1.1e-16, 350: 4.4e-16}
    for values in (rounding, dict.fromkeys(rounding, 0.0)):
        row = verdict(values, statistic, runs({"num_classes": 2}))
        assert (row.holds, row.reason) == ("cannot say", "zero by definition with 2 classes")


def test_no_more_images_are_attacked_than_the_test_set_has():
    table = runs({"recipe": papers_recipe(robustness__images=100), "test_examples": 30})
    row = verdict({0: 0.1, 40: 0.2, 350: 0.3}, "robustness", table)
    assert (row.holds, row.reason) == ("cannot say", "30 images attacked; 50 are needed")


def test_claims_are_written_as_three_files(tmp_path):
    claims = check_claims(measured({NC1_STATISTIC: {0: 10, 40: 1, 350: 0.1}}), runs())
    text = render_claims(claims)
    assert f"| {NC1} | 1 | 0 | 0 |" in text
    assert "at least 10 times lower than at epoch 0" in text
    assert "99.32 % to 99.71 % (recalled)" in text
    paths = write_claims(claims, tmp_path / "claims")
    assert [path.suffix for path in paths] == [".parquet", ".csv", ".md"]
    pd.testing.assert_frame_equal(read_table(paths[0], "claims"), claims)
    counts = summary(claims)
    assert counts.iloc[:, 1:].to_numpy().sum() == len(PHENOMENA)


# --------------------------------------------------------------------------- Table 1


def test_table_1_sets_ours_beside_the_papers():
    frame = pd.concat(
        [
            measured({"error": {0: 0.9, 40: 0.01, 41: 0.5, 350: 0.004}}),
            measured({"error": {0: 0.9, 40: 0.7, 60: 0.02, 350: 0.006}}, seed=1),
        ]
    )
    table = build_table_1(frame, runs({}, {"seed": 1, "terminal_phase_epoch": 60}))
    (row,) = table.itertuples()
    assert (row.paper_start, row.paper_end) == (99.32, 99.71)
    assert (row.ours_start, row.ours_end) == pytest.approx((98.5, 99.5))
    assert (row.difference_start, row.difference_end) == pytest.approx((-0.82, -0.21))
    assert (row.seeds, row.seeds_terminal, row.deviations) == (2, 2, "")


def test_table_1_names_deviations_and_dashes_what_is_not_there():
    frame = pd.concat(
        [
            measured({"error": {40: 0.01, 60: 0.02}}),
            measured({"error": {60: 0.1}}, dataset="digits"),
        ]
    )
    small = {"epochs": 60, "train_examples": 5000, "network": "ResNet (1,1,1,1) width 8"}
    other = {"dataset": "digits", "dataset_label": "Digits", "terminal_phase_epoch": None}
    table_runs = runs(small, small | other)
    layout = Layout.of(table_runs, ("mnist", "digits", "svhn"), ("resnet",), {"svhn": "SVHN"})
    table = build_table_1(frame, table_runs, layout)
    mnist, digits, svhn = table.itertuples()
    assert mnist.deviations == (
        "ResNet (1,1,1,1) width 8 for ResNet18; 5,000 for 50,000 train images; 60 for 350 epochs"
    )
    assert np.isnan(digits.ours_start) and digits.ours_end == pytest.approx(90)
    assert np.isnan(digits.paper_end) and digits.deviations == ""
    assert svhn.seeds == 0 and svhn.paper_end == 95.70
    lines = render_table_1(table, "md").splitlines()
    assert lines[3] == (
        "| Digits | ResNet (1,1,1,1) width 8 | – | – | – | 90.00 | – | – | 1 (0 reached TPT) | – |"
    )
    assert lines[4] == "| SVHN | ResNet18 | 94.64 | 95.70 | – | – | – | – | not run | – |"
    assert "recalled" in lines[-1]


def test_table_1_names_a_user_defined_network_by_its_label():
    own = {"architecture": "vit", "architecture_label": "My ViT", "network": "my_nets:vit"}
    table = build_table_1(measured({"error": {350: 0.1}}, architecture="vit"), runs(own))
    for format in ("md", "tex"):
        text = render_table_1(table, format)
        assert "My ViT" in text and "my_nets" not in text


def papers_recipe(**changes):
    """The paper's recipe of MNIST x ResNet as a runs table holds it, with `changes`: part__key."""
    recipe = copy.deepcopy(paper.PROTOCOL["mnist", "resnet"].recipe)
    for name, value in changes.items():
        part, key = name.split("__")
        recipe[part][key] = value
    return json.dumps(recipe)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"training__weight_decay": 0.01}, "weight decay 0.01 for 0.0005"),
        ({"training__optimizer": {"name": "adamw"}}, "AdamW for SGD"),
        ({"training__precision": "bfloat16"}, "bfloat16 for float32"),
        ({"training__precision": "tf32"}, "TF32 for float32"),
        ({"training__learning_rate_milestones": ["1/2"]}, "rate lowered at 1/2 for 1/3, 2/3"),
        ({"training__keep_incomplete_batch": True}, "incomplete batches kept"),
        ({"data__average_pooling": 2, "data__padding_pixels": 0}, "14 for 32 px"),
        ({"data__test_examples_per_class": 100}, "100 for all test images a class"),
        ({"sweep__selection": "held_out_error"}, "selection by held out error for test error"),
        ({"measurement__epochs": [1, 350]}, "2 for 50 measured epochs"),
        (
            {"measurement__batch_norm_examples": 100},
            "measured with the batch normalisation of 100 images",
        ),
        ({"training__oversample": True}, "images of smaller classes repeated"),
        (
            {"data__imbalance": {"kind": "step", "ratio": 10.0, "minority_classes": [1]}},
            "10 : 1 step imbalance of 1 minority class",
        ),
        (
            {"data__imbalance": {"kind": "exponential", "ratio": 9.0, "minority_classes": [3, 1]}},
            "9 : 1 exponential imbalance of 2 minority classes",
        ),
        ({"network__stem": "imagenet"}, "imagenet stem instead of small"),
        # These change no result, or only what is drawn at random.
        ({"training__threads": 4, "robustness__seed": 3}, ""),
        ({"training__evaluation_batch_size": 7, "measurement__activation_classes": [2, 3, 4]}, ""),
    ],
)
def test_table_1_sees_the_whole_recipe(changes, said):
    table = build_table_1(
        measured({"error": {350: 0.01}}), runs({"recipe": papers_recipe(**changes)})
    )
    assert table.deviations.tolist() == [said]


def test_a_narrow_networks_stem_is_a_deviation_beside_its_width():
    narrow = {"network": "ResNet18 width 8"}
    narrow["recipe"] = papers_recipe(network__width=8, network__stem="imagenet")
    table = build_table_1(measured({"error": {350: 0.01}}), runs(narrow))
    said = "ResNet18 width 8 for ResNet18; imagenet stem instead of small"
    assert table.deviations.tolist() == [said]


def test_a_pinned_rate_is_a_deviation_and_its_sweep_is_none():
    pinned = {"learning_rate_origin": "pinned", "recipe": papers_recipe(sweep__count=5)}
    table = build_table_1(measured({"error": {350: 0.01}}), runs(pinned))
    assert table.deviations.tolist() == ["learning rate pinned"]


def test_every_seeds_deviations_are_named_once():
    changed = {"recipe": papers_recipe(training__weight_decay=0.01)}
    more = {"recipe": papers_recipe(training__weight_decay=0.01, training__momentum=0.5)}
    table = build_table_1(
        measured({"error": {350: 0.01}}), runs(changed, more | {"seed": 1}, changed | {"seed": 2})
    )
    assert table.deviations.tolist() == ["weight decay 0.01 for 0.0005; momentum 0.5 for 0.9"]


def test_the_papers_recipes_are_those_of_the_shipped_config():
    shipped = paper_recipes_json(load_config(ROOT / "config.yaml"))
    assert paper.RECIPES_FILE.read_text() == shipped, "run make schema"


def verdict_counts(name):
    """How many of the paper's claims hold, do not, and cannot say, of a shipped set."""
    folder = SHIPPED / name / "tables"
    frames = [read_table(folder / f"{table}.parquet", table) for table in ("measurements", "runs")]
    claims = check_claims(*frames)
    claims = claims[claims["phenomenon"].isin([p.name for p in PHENOMENA])]
    claims = claims[claims["reason"] != "not run"]
    return summary(claims).set_index("phenomenon")


def test_the_readme_counts_the_verdicts_of_the_shipped_runs():
    text = " ".join((ROOT / "README.md").read_text().split())
    holds, does_not, cannot = counts = verdict_counts("paper-narrow").sum()
    assert f'{counts.sum()} verdicts on the paper\'s claims, {holds} are "holds"' in text
    assert f'{cannot} are "cannot say" and {does_not} are "does not"' in text


def test_a_diverged_run_has_no_accuracy():
    table = build_table_1(
        measured({"error": {0: 0.9, 3: 1.0}}),
        runs({"diverged": True, "terminal_phase_epoch": None}),
    )
    assert np.isnan(table.ours_end.item())


def test_table_1_in_four_formats(tmp_path):
    table = build_table_1(measured({"error": {40: 0.01, 350: 0.004}}), runs())
    paths = write_table_1(table, tmp_path / "table_1")
    assert [path.suffix for path in paths] == [".parquet", ".csv", ".md", ".tex"]
    pd.testing.assert_frame_equal(read_table(paths[0], "table_1"), table)
    assert pd.read_csv(paths[1]).ours_end.item() == table.ours_end.item(), "no digit is lost"
    tex = paths[3].read_text()
    assert r"\toprule" in tex and r"\bottomrule" in tex
    row = next(line for line in tex.splitlines() if line.startswith("MNIST"))
    assert row == r"MNIST & ResNet18 & 99.32 & 99.71 & 99.00 & 99.60 & $-$0.32 & $-$0.11 & 1 \\"
    (columns,) = re.findall(r"\\begin{tabular}{(\w+)}", tex)
    assert row.count("&") == len(columns) - 1


def test_latex_special_characters_of_titles_are_escaped():
    table = runs({"dataset_label": r"50 % & a_b \x", "epochs": 7})
    tex = render_table_1(build_table_1(measured({"error": {350: 0.1}}), table), "tex")
    assert r"50 \% \& a\_b \textbackslash" in tex
    assert "ResNet18* &" in tex and "% *: " in tex and "7 for 350 epochs" in tex


def test_the_papers_table_is_whole_and_its_gains_are_known():
    assert set(paper.TABLE_1) == {(d, a) for d in paper.DATASETS for a in paper.ARCHITECTURES}
    assert set(paper.PROTOCOL) == set(paper.TABLE_1)
    falls = {cell for cell, (start, end) in paper.TABLE_1.items() if end < start}
    assert falls == {("cifar100", "densenet"), ("imagenet", "resnet"), ("imagenet", "densenet")}
