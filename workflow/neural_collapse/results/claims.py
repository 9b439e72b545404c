"""The claims of the paper and of the studies, evaluated on tables: one row per cell and claim.

There is no absolute threshold for collapse: a value is compared with the same network's value
before training (epoch 0) and at the start of its terminal phase of training (TPT).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..collapse.registry import REGISTRY
from ..io.files import write_text_atomically
from . import paper
from .criteria import LEAST_ATTACKED, Bound, Cell, Change, Choice, Claim, Contrast
from .layout import Layout, of_origin, rows_of
from .separation import LINEARITY
from .studies import (
    MINORITY_ACCURACY,
    MINORITY_COSINE,
    MSE_PARTS,
    NC0,
    NC0_ERROR,
    NC1,
    NC2,
    NC3,
    SCORES,
    optimiser_of,
)
from .table1 import DASH, cells_to_judge, markdown_table, number_text, origin_note
from .tables import CANNOT_SAY, VERDICTS, check_frame, where, write_table

# --------------------------------------------------------------------------- the paper


def _phenomenon(statistic: str, **more: Any) -> Change:
    entry = REGISTRY[statistic]
    zero_holds = not more.get("rises", False)
    more = {"factor": 1.0, "zero_holds": zero_holds, "paper": "falls during the TPT"} | more
    return Change(name=entry.label, short_name=entry.short_label, statistic=statistic, **more)


def _of_classifiers(statistic: str, spread: float, **more: Any) -> Change:
    remark = (
        " (not compared with epoch 0: newly drawn classifier weights are nearly equinorm and "
        "equiangular by chance)"
    )
    return _phenomenon(f"{statistic}_classifier", factor=None, spread=spread, remark=remark, **more)


PHENOMENA: tuple[Change, ...] = (
    _phenomenon(NC1, factor=10.0, spread=0.2),
    # Two centred class means are opposite, and two classes have one angle.
    _phenomenon("nc2_equinorm_means", spread=0.17, least_classes=3),
    _of_classifiers("nc2_equinorm", 0.095),
    _phenomenon("nc2_equiangularity_means", spread=0.046, least_classes=3),
    _of_classifiers("nc2_equiangularity", 0.026, least_classes=3),
    _phenomenon("nc2_maximal_angle_means", spread=0.049, least_classes=3),
    _of_classifiers("nc2_maximal_angle", 0.032),
    _phenomenon(NC3, spread=0.075),
    _phenomenon("nc4_ncc_mismatch", split="test", spread=1.8, counted=True),
    _phenomenon(
        "robustness",
        split="test",
        rises=True,
        factor=None,
        spread=0.065,
        paper=f"median gain {paper.ROBUSTNESS_GAIN_MEDIAN}, mean {paper.ROBUSTNESS_GAIN_MEAN}",
    ),
    Change(
        name="test accuracy",
        short_name="accuracy",
        statistic="error",
        shown_as="1 - error",
        split="test",
        rises=True,
        spread=0.43,
        counted=True,
        paper="",  # of each cell, from Table 1
    ),
)

NOISE = (
    "Values that differ by no more than the noise, half the width of a 95 % confidence interval, "
    f"give the verdict “{CANNOT_SAY}”, unless a statistic that falls ends at zero. The noise is "
    "that of other seeds on the same images. With several seeds it is Student's, of the mean "
    "change from the start of the TPT to the last epoch (9 standard deviations for two seeds, 2.5 "
    "for three). With one seed it is 1.96 times a standard deviation that other runs had: a "
    "multiple of the counting error √(Σ p (1 − p) / N) for mismatch and accuracy, which are "
    "proportions p of N test images, and a percentage of the value at the start of the TPT for "
    "the others. They are root mean squares over the cells of the shipped studies with a learned "
    "classifier in which three seeds reached the TPT (robustness: over the six cells of "
    "config/quickstart.yaml, since the studies attack too few images); seeds of some cells "
    "differ more, up to four times. The comparison with epoch 0 allows the same noise. "
    f"Robustness is judged from {LEAST_ATTACKED} attacked images on. "
    + "; ".join(
        f"{p.name} {p.spread:.2g} times" if p.counted else f"{p.name} {100 * p.spread:.2g} %"
        for p in PHENOMENA
    )
    + "."
)
"""When values differ enough for a verdict, in words."""

# --------------------------------------------------------------------------- studies


def _normed_relu(recipe: Mapping[str, Any]) -> bool:
    network = recipe.get("network", {})
    return network.get("batch_norm", True) and network.get("activation", "relu") == "relu"


def _loss(recipe: Mapping[str, Any]) -> str:
    return recipe.get("training", {}).get("loss", "cross_entropy")


def _sampling(recipe: Mapping[str, Any]) -> str | None:
    imbalance = recipe.get("data", {}).get("imbalance")
    if imbalance is None:
        return None
    if recipe["training"].get("oversample"):
        return "oversampling"
    return "imbalance" if imbalance["ratio"] > 1 else "balance"


def _imbalanced_decay(recipe: Mapping[str, Any]) -> Choice:
    return recipe["training"]["weight_decay"] if _sampling(recipe) == "imbalance" else None


def _classifier(recipe: Mapping[str, Any]) -> str | None:
    if recipe.get("data", {}).get("random_labels"):
        return None  # nothing is to be learned from them
    classifier = recipe.get("network", {}).get("classifier", "learned")
    return f"a {'fixed ETF' if classifier == 'etf' else classifier} classifier"


def _separation(name: str, found: str, **more: Any) -> Bound:
    text = f"{found}; the bound is this project's"
    return Bound(name=name, statistic=LINEARITY, bound=-0.98, paper=text, **more)


_HE_SU = "He and Su 2023"
_BOUNDS = (
    _separation(
        "law of data separation",
        f"a straight line ({_HE_SU}, figure 1)",
        below=True,
        applies=_normed_relu,
    ),
    _separation(
        "no law of data separation before training",
        f"no line ({_HE_SU})",
        below=False,
        before=True,
        applies=_normed_relu,
    ),
    _separation(
        "no law of data separation without batch norm or non-linearity",
        f"no line ({_HE_SU}, their code's README)",
        below=False,
        applies=lambda recipe: not _normed_relu(recipe),
    ),
    Bound(
        name="closed form of NC0",
        statistic=NC0_ERROR,
        bound=1e-3,
        below=True,
        exact=True,
        # SGDW's factor 1 - learning rate x decay is rounded to float32 alike in every step, so that
        # its deviation grows with the steps and says nothing about the training.
        applies=lambda recipe: optimiser_of(recipe) == "sgd",
        paper="exact, for any data (derived after Zhao et al. 2026); the bound is this "
        "project's: rounding to float32 adds up to 1e-4 in 136,500 steps",
    ),
    Bound(
        name="MSE: the last layer is the least-squares one of its features",
        statistic=MSE_PARTS[-1],
        shown_as=f"{MSE_PARTS[-1]} / sum of its parts",
        parts=MSE_PARTS,
        bound=0.1,
        below=True,
        paper="negligible late (Han, Papyan and Donoho 2022, recalled); the bound is this "
        "project's",
    ),
)

RANDOM_LABELS = Change(
    name="collapse under random labels",
    statistic=NC1,
    needs=(NC1,),
    applies=lambda recipe: recipe.get("data", {}).get("random_labels") == 1,
    most_mismatch=0.01,
    paper="collapse under random labels too (Zhu et al. 2021, recalled); the criterion is this "
    "project's",
)


def _decoupled(statistic: str, against: Mapping[str, str], found: str) -> Contrast:
    return Contrast(
        name=f"{statistic[:3].upper()} stays larger under decoupled weight decay",
        statistic=statistic,
        above=True,
        choice=optimiser_of,
        against=against,
        varies=frozenset({"training.optimizer"}),
        paper=found.format("Zhao et al. 2026, table 2"),
    )


def _smoothing(name: str, statistic: str, split: str, found: str) -> Contrast:
    keys = ("loss", "smoothing", "focal_gamma", "mse_reduction")
    return Contrast(
        name=f"label smoothing {name} than cross-entropy",
        statistic=statistic,
        split=split,
        choice=_loss,
        against={"label_smoothing": "cross_entropy"},
        varies=frozenset(f"training.{key}" for key in keys),
        paper=f"{found} (arXiv:2402.03979, abstract)",
    )


_SGDW_AND_ADAMW = {"sgdw": "sgd", "adamw": "adam"}
_BALANCE = {"choice": _sampling, "against": {"imbalance": "balance"}}
_RATIO = frozenset({"data.imbalance.ratio"})
_FANG = "Fang et al. 2021"
_CONTRASTS = (
    # NC0 of SGD and SGDW is known before training, by the closed form.
    _decoupled(NC0, {"adamw": "adam"}, "AdamW 5.33, Adam 0.34, SGD 0.0002 ({})"),
    _decoupled(
        NC2,
        _SGDW_AND_ADAMW,
        "AdamW 0.54, Adam 0.29, SGD 0.29 ({}; one number, here of the class means)",
    ),
    _decoupled(
        NC3,
        _SGDW_AND_ADAMW,
        "AdamW 0.78, Adam 0.29, SGD 0.35 ({}; their NC3 may not be the squared norm)",
    ),
    _smoothing("collapses further", NC1, "train", "collapses faster and further"),
    _smoothing("is better calibrated", "expected_calibration_error", "test", "better calibrated"),
    Contrast(
        name="minority classifiers come closer under imbalance",
        statistic=MINORITY_COSINE,
        above=True,
        **_BALANCE,
        varies=_RATIO,
        paper=f"their cosine rises from -1 / (C - 1) to 1 with the ratio ({_FANG}; notes)",
    ),
    Contrast(
        name="minority accuracy falls under imbalance",
        statistic=MINORITY_ACCURACY,
        split="test",
        **_BALANCE,
        varies=_RATIO,
        paper=f"falls with the ratio ({_FANG}; notes)",
    ),
    Contrast(
        name="minority classifiers come closer under larger weight decay",
        statistic=MINORITY_COSINE,
        above=True,
        choice=_imbalanced_decay,
        varies=frozenset({"training.weight_decay"}),
        paper=f"collapse at a lower ratio ({_FANG}; notes)",
    ),
    Contrast(
        name="oversampling parts minority classifiers",
        statistic=MINORITY_COSINE,
        choice=_sampling,
        against={"oversampling": "imbalance"},
        varies=frozenset({"training.oversample"}),
        paper=f"restores their angle, at ratio 1000 ({_FANG}, read in their code)",
    ),
    Contrast(
        name="a fixed ETF classifier is as accurate as a learned one",
        statistic="error",
        split="test",
        within=0.02,
        choice=_classifier,
        against={"a fixed ETF classifier": "a learned classifier"},
        varies=frozenset({"network.classifier"}),
        paper="the same accuracy (Zhu et al. 2021, abstract); what is alike is this project's",
    ),
)


def _trend(name: str, statistic: str, found: str, **more: Any) -> Change:
    needs = (statistic, "transfer_ncc_accuracy")  # measured wherever another dataset is
    return Change(
        **{"name": name, "statistic": statistic, "split": "test", "paper": found, "needs": needs},
        **more,
    )


_HUI = "(Hui, Belkin and Nakkiran 2022, abstract)"
_WORSE = f"training longer leads to worse features for transfer {_HUI}"
_NC5 = "goes towards 0 (Ben Ammar et al. 2024, recalled)"
_DETECTION = "better with stronger collapse, r = .77 over networks (arXiv:2502.10691, abstract)"
_TRENDS = (
    _trend(
        "the test set collapses less than the train set",
        NC1,
        f"collapse on the train set, not on the test set {_HUI}",
        rises=True,
        over_train=True,
        shown_as=f"{NC1}, test / train",
    ),
    _trend("nearest class centres transfer worse", "transfer_ncc_accuracy", _WORSE),
    _trend("a linear probe transfers worse", "transfer_probe_accuracy", _WORSE),
    _trend(
        "outliers become orthogonal to the class means (NC5 about 0, as published)",
        "nc5_outlier_orthogonality_uncentred",
        _NC5,
    ),
    _trend(
        "outliers become orthogonal to the class means (NC5 about their mean)",
        "nc5_outlier_orthogonality",
        _NC5,
    ),
    *(
        _trend(
            f"outliers are detected better: {label}",
            f"outlier_auroc_{score}",
            _DETECTION,
            rises=True,
        )
        for score, label in SCORES.items()
    ),
)

CLAIMS: tuple[Claim, ...] = (*PHENOMENA, *_TRENDS, RANDOM_LABELS, *_BOUNDS, *_CONTRASTS)
"""All claims, those of the paper first."""

# --------------------------------------------------------------------------- the table


def check_claims(measurements: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The `claims` table: every claim about each combination of the runs' datasets and networks.

    Values are means over the seeds that reached the terminal phase; test accuracy is 1 - error.
    Its start is the epoch in `runs` where the statistic was measured then, otherwise the first
    measured epoch after it, as column epoch_at_start says.  "cannot say" where the values differ
    by less than the noise, no seed reached the terminal phase, a value is missing or nan, or
    nothing was measured after the start.
    """
    rows = []
    for facts in cells_to_judge(Layout.of(runs), runs):
        key = facts["dataset"], facts["architecture"], facts["origin"]
        of_dataset = (
            of_origin(where(frame, dataset=key[0]), key[2]) for frame in (runs, measurements)
        )
        cell = Cell(rows_of(runs, *key), rows_of(measurements, *key), *of_dataset)
        for claim in CLAIMS:
            verdict = claim.judge(cell)
            if verdict is None:
                continue
            rows.append(
                {
                    **facts,
                    "phenomenon": claim.name,
                    "statistic": claim.quantity,
                    "split": claim.split,
                    "criterion": claim.criterion,
                    "paper": claim.paper or _accuracies(*key[:2]),
                    **verdict,
                }
            )
    return check_frame(pd.DataFrame(rows), "claims", "claims")


def _accuracies(dataset: str, architecture: str) -> str:
    start, end = paper.TABLE_1.get((dataset, architecture), (None, None))
    return DASH if start is None else f"{start:.2f} % to {end:.2f} % (recalled)"


def summary(claims: pd.DataFrame) -> pd.DataFrame:
    """Number of cells per claim and verdict: phenomenon, holds, does not, cannot say.

    Reference runs have separate rows.
    """
    notes = [origin_note(row) for row in claims.itertuples()]
    counts = pd.crosstab(claims["phenomenon"] + notes, claims["holds"])
    names = [claim.name + note for note in dict.fromkeys(notes) for claim in CLAIMS]
    counts = counts.reindex(
        index=[name for name in names if name in counts.index], columns=VERDICTS, fill_value=0
    )
    counts.columns.name = None
    return counts.rename_axis("phenomenon").reset_index()


CLAIM_HEADINGS = (
    "Dataset",
    "Network",
    "Phenomenon",
    "Holds",
    "Epoch 0",
    "Start of TPT",
    "End",
    "Change",
    "Noise",
    "Epochs (TPT, end)",
    "Seeds",
    "Reason",
    "Paper",
)


def display_rows(claims: pd.DataFrame) -> list[list[str]]:
    """The claims as text under :data:`CLAIM_HEADINGS`."""
    return [
        [
            row.dataset_label,
            row.architecture_label + origin_note(row),
            row.phenomenon,
            row.holds,
            *(number_text(value, ".3g") for value in (row.at_epoch_0, row.at_start, row.at_end)),
            number_text(row.change, "+.3g"),
            number_text(row.noise, ".3g"),
            f"{row.epoch_at_start}, {row.epoch_at_end}",
            str(row.seeds),
            row.reason,
            row.paper,
        ]
        for row in claims.itertuples()
    ]


def judged_claims(claims: pd.DataFrame) -> list[Claim]:
    """The claims of the paper, and those of later studies that the table judges."""
    judged = set(claims["phenomenon"])
    return [claim for claim in CLAIMS if claim in PHENOMENA or claim.name in judged]


def render_claims(claims: pd.DataFrame) -> str:
    """The claims as Markdown: a summary, the criteria, then one row per cell and claim."""
    criteria = [
        f"- {claim.name} (`{claim.quantity}`, {claim.split}): {claim.criterion}."
        for claim in judged_claims(claims)
    ]
    counts = summary(claims).values.tolist()
    parts = [
        "# The paper's claims on these runs",
        "How often each holds, over datasets and networks:",
        markdown_table(("Phenomenon", *VERDICTS), counts, "lrrr"),
        "Criteria, each on the mean over seeds:",
        "\n".join(criteria),
        NOISE,
        markdown_table(CLAIM_HEADINGS, display_rows(claims), "llllrrrrrlrll"),
        paper.RECALLED,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write_claims(claims: pd.DataFrame, output_base: str | Path) -> list[Path]:
    """Write `<output_base>.parquet`, `.csv` and `.md`; returns their paths."""
    paths = [Path(f"{output_base}.{suffix}") for suffix in ("parquet", "csv", "md")]
    write_table(claims, paths[0], "claims")
    write_text_atomically(paths[1], claims.to_csv(index=False, lineterminator="\n"))
    write_text_atomically(paths[2], render_claims(claims))
    return paths
