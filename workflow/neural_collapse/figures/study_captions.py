"""Captions of the figures of studies; no drawing library."""

from __future__ import annotations

import pandas as pd

from ..results.layout import (
    Layout,
    joined,
    origin_sentence,
    seeds_sentence,
    terminal_phase_sentence,
)
from ..results.studies import (
    MINORITY_ACCURACY,
    MINORITY_COSINE,
    MSE_PARTS,
    NC0,
    NC0_PREDICTED,
    NC1,
    NC3,
    OPTIMISERS,
    by_ratio,
    by_weight_decay,
    correlation_with_collapse,
    measured_other,
)
from ..results.trends import SCORES

OPTIMISERS_TITLE = "Optimisers: NC0 and NC3 against weight decay"
OPTIMISERS_SHOWN = tuple((statistic, "train") for statistic in (NC0, NC0_PREDICTED, NC3))
LOSSES_TITLE = "Losses: neural collapse, calibration, and the parts of the MSE"
LOSSES_SHOWN = (
    (NC1, "train"),
    ("nc2_equiangularity_means", "train"),
    (NC3, "train"),
    ("nc4_ncc_mismatch", "train"),
    ("expected_calibration_error", "test"),
    *((part, "train") for part in MSE_PARTS),
)
OUTLIERS_TITLE = "How well another dataset is detected while the network collapses"
OUTLIERS_SHOWN = tuple(
    (statistic, "test")
    for statistic in (
        *(f"outlier_{measure}_{score}" for measure in ("auroc", "fpr95") for score in SCORES),
        *("nc5_outlier_orthogonality", "nc5_outlier_orthogonality_uncentred"),
    )
)
TRANSFER_TITLE = "Collapse of train and test set, and what the frozen features transfer"
TRANSFER_SHOWN = (
    (NC1, "train"),
    *((n, "test") for n in (NC1, "network_accuracy", "transfer_probe_accuracy")),
    ("transfer_ncc_accuracy", "test"),
)

IMBALANCE_TITLE = "Imbalance: the minority's classifiers and accuracy"
IMBALANCE_SHOWN = ((MINORITY_COSINE, "train"), (MINORITY_ACCURACY, "test"))
ETF_TITLE = "A fixed ETF classifier, and random labels"
ETF_SHOWN = ((NC1, "train"), (NC3, "train"), ("error", "train"), ("error", "test"))


def _seeds(runs: pd.DataFrame) -> int:
    return int(runs.groupby(["dataset", "architecture"])["seed"].nunique().max())


def imbalance_caption(measurements, runs, layout: Layout, *_) -> str:
    """Of the figure of imbalance."""
    found = by_ratio(measurements, runs, layout)
    if not found:
        return "No run trained on unequal classes (data.imbalance): there is no ratio to draw."
    seeds = max(int(table.xs("count", axis=1, level=1).max().max()) for table in found.values())
    bars = f"Means over {seeds} seeds, bars from the smallest to the largest." * (seeds > 1)
    return joined(
        "At the last epoch, against the ratio of majority to minority train images on a "
        "logarithmic axis: the mean cosine between the classifiers of minority classes, 1 if "
        "they are equal, and the accuracy on test images of these classes. Hollow squares: "
        "minority images are repeated within each epoch until all classes have equal counts.",
        bars,
        "After Fang, He, Long and Su, PNAS 2021.",
        origin_sentence(runs),
    )


def etf_caption(measurements: pd.DataFrame, runs: pd.DataFrame, *_) -> str:
    """Of the figure of the fixed classifier."""
    if runs.empty:
        return "No run has been measured yet."
    bands = f" Means over {_seeds(runs)} seeds, bands from the smallest to the largest."
    return joined(
        "NC1, NC3 and the train error of the train set and the error of the test set, on "
        "logarithmic axes; points at zero are left out." + bands * (_seeds(runs) > 1),
        "After Zhu et al., NeurIPS 2021, and Zhang et al., ICLR 2017.",
        origin_sentence(runs),
    )


def optimisers_caption(measurements, runs, layout: Layout, *_) -> str:
    """Of the figure of optimisers."""
    found = by_weight_decay(measurements, runs, layout)
    if not found:
        return "No run has been measured yet."
    names = ", ".join(OPTIMISERS[name] for name in dict.fromkeys(name for _, name in found))
    return joined(
        "At the last epoch, on a logarithmic axis of the weight decay, one line per optimiser "
        f"({names}). NC0 is the norm of the sum of the classifier's rows; black crosses: its "
        "prediction from its value before training, the learning rates and the decay, if "
        "there is a closed form. NC3 is the squared distance between the normalised "
        "classifier and class means. Coupled decay (SGD, Adam) is part of the "
        "gradient, decoupled decay (SGDW, AdamW) is not.",
        "After Zhao et al., ICLR 2026.",
        origin_sentence(runs),
    )


def losses_caption(measurements: pd.DataFrame, runs: pd.DataFrame, *_) -> str:
    """Of the figure of losses."""
    if runs.empty:
        return "No run has been measured yet."
    seeds = _seeds(runs)
    band = f" Lines are means over {seeds} seeds, bands go from the smallest to the largest." * (
        seeds > 1
    )
    return joined(
        "NC1 to NC4 of the train set, the expected calibration error of the test set (15 bins)"
        ", one line per loss, and the exact parts of the MSE on the train set: from variability "
        "within classes (NC1), from the class means (NC2 and NC3), and the part that a "
        "least-squares classifier on the same features would remove (perpendicular)." + band,
        "After Han, Papyan and Donoho, ICLR 2022.",
        origin_sentence(runs),
    )


def outliers_caption(measurements, runs, layout: Layout, *_) -> str:
    """Of the figure of outliers."""
    return _other_caption(
        "Detection of another dataset's test images as outliers by four scores: area under the "
        "ROC curve (AUROC), and false positive rate at 95 % true positives (FPR). NC5 is the mean "
        "|cos| of the class means and the mean of the outliers.",
        {label: f"outlier_auroc_{score}" for score, label in SCORES.items()},
        "Scores: Hendrycks and Gimpel 2017, Liu et al. 2020, Ben Ammar et al. 2024 (NECO, NC5), "
        "Liu and Qin 2025 (NCI).",
        *(measurements, runs, layout),
    )


def transfer_caption(measurements, runs, layout: Layout, *_) -> str:
    """Of the figure of transfer."""
    return _other_caption(
        "NC1 of the train set and of the test set, each with its own class means; accuracy on the "
        "own test set, and on another dataset's test set of a linear probe and of the nearest "
        "class centre, both fitted on frozen features of its train set.",
        {
            "linear probe": "transfer_probe_accuracy",
            "nearest centre": "transfer_ncc_accuracy",
        },
        "After Hui, Belkin and Nakkiran 2022.",
        *(measurements, runs, layout),
    )


def _other_caption(
    shown: str,
    correlated: dict[str, str],
    source: str,
    measurements: pd.DataFrame,
    runs: pd.DataFrame,
    layout: Layout,
) -> str:
    cells = measured_other(runs, layout)
    if not cells:
        return (
            "No run has measured another dataset yet (measurement.other_dataset): nothing is shown."
        )
    parts = []
    for cell, (own, _) in cells.items():
        ranges = {
            n: correlation_with_collapse(measurements, cell, s) for n, s in correlated.items()
        }
        texts = [
            f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in ranges.items() if low == low
        ]
        if texts:
            parts.append(f"{own}: {', '.join(texts)}".replace("-", "−"))
    correlation = (
        "Correlation over the measured epochs after epoch 0 with −log NC1 of the train set, "
        f"smallest to largest of the seeds: {'; '.join(parts)}."
    ) * bool(parts)
    return joined(
        shown,
        terminal_phase_sentence(runs, layout),
        seeds_sentence(measurements, layout),
        *(correlation, source, origin_sentence(runs)),
    )
