"""Captions of the figures; no drawing library."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from ..io.text import counted
from ..results.layout import Layout, origins_of, rows_of
from ..results.separation import layer_curves
from ..results.studies import (
    NC0,
    NC3,
    SCORES,
    by_ratio,
    by_weight_decay,
    correlation_with_collapse,
    measured_other,
)
from .sentences import (
    attacked_sentence,
    in_a_list,
    joined,
    origin_sentence,
    points_sentence,
    seeds_sentence,
    size_sentence,
    smallest_to_largest,
    terminal_phase_sentence,
)
from .specs import (
    DEFAULT_LOOK,
    GridFigure,
    Look,
    choose_picture,
    final_errors,
    selecting_error,
    swept,
    swept_runs,
)

# --------------------------------------------------------------------------- the paper's figures


def figure_1(activations: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What Figure 1 shows and how it was projected."""
    chosen = choose_picture(activations, runs, layout)
    if chosen is None:
        return "No features were kept for this figure."
    rows = chosen.rows
    classes = ", ".join(map(str, chosen.classes))
    count = int((rows[rows["epoch"] == rows["epoch"].max()]["kind"] == "feature").sum())
    return joined(
        f"{chosen.title}, classes {classes}, one training (seed {chosen.seed}). Small spheres: "
        f"{count} train features; blue balls and sticks: class means; red: classifiers; green "
        "spheres: vertices of the simplex ETF, rotated onto the class means. Shades distinguish "
        "the classes. Features and class means are centred, then all are projected on the span of "
        "the three class means. Features and means are divided by the average norm of the class "
        "means, classifiers by their own. All epochs have the same viewpoint, scale and ETF.",
        chosen.size,
    )


def grid(
    spec: GridFigure,
    measurements: pd.DataFrame,
    runs: pd.DataFrame,
    layout: Layout,
    look: Look = DEFAULT_LOOK,
) -> str:
    """What one of Figures 2 to 8 shows."""
    marks = " (blue circles: class means, orange squares: classifiers)"
    missing = [layout.title(*cell) for cell in layout.cells() if rows_of(runs, *cell).empty]
    shared = spec.shared(look)
    return joined(
        f"{spec.explanation}{marks if len(spec.series) > 1 else ''}.",
        attacked_sentence(runs, layout) if spec.number == 8 else "",
        "Columns are datasets, rows are networks; every measured epoch is a marker, epoch 0 is the "
        "network before training" + ("." if spec.log_y else f", {_CUT}."),
        "" if shared == "figure" else f"Every {_SCALES[shared]} has its own vertical scale.",
        terminal_phase_sentence(runs, layout),
        size_sentence(runs, layout),
        origin_sentence(runs),
        seeds_sentence(measurements, layout),
        f"Not run: {in_a_list(missing)}." if missing else "",
    )


_CUT = "an arrowhead at the top of a panel where its value lies above it"
_ZERO_BAND = "a band whose smallest value is zero reaches the lower edge"
_SCALES = {"row": "row of panels", "none": "panel"}


def sweep(sweep: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What the sweep figure shows."""
    errors = final_errors(sweep)
    present = [
        rows_of(errors, *cell, origin) for cell in layout.cells() for origin in origins_of(errors)
    ]
    counts = [len(part) for part in present if len(part)]
    if not counts:
        return "There was no sweep: all learning rates are fixed."
    number = smallest_to_largest(counts)
    diverged = sum(int(part["diverged"].sum()) for part in present)
    crosses = f"Crosses: {counted(diverged, 'training')} that diverged, counted as 100 % error."
    error = selecting_error(sweep)
    held_out = "held-out" in error
    return joined(
        f"{error.capitalize()} at the last epoch of {number} learning rates a network, one "
        "training each; both axes are logarithmic. The star marks the selected one, the lowest "
        f"{error} at the last epoch{'' if held_out else ', as in the paper'}.",
        "Held-out images are train images that these trainings leave out." if held_out else "",
        "Datasets and networks without a sweep are left out.",
        crosses if diverged else "",
        size_sentence(swept_runs(errors, runs), swept(errors, layout)),
        origin_sentence(errors),
    )


def overview(measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What the overview shows."""
    several = len(origins_of(runs)) > 1
    shipped = "Rows titled (reference): reference runs, shipped in results/reference."
    return joined(
        "A row for each dataset and network that was run. NC1 on a logarithmic axis, everything "
        "else linear from zero, each panel on its own scale; mismatch and error in %; the number "
        "in the corner is the value at the last epoch (–: not defined in every seed). NC1 to NC3 "
        "on the train set, NC4's mismatch and robustness on the test set. Blue: class means, train "
        "error and single curves; orange: classifiers, test error. Epoch 0 is the network before "
        f"training, {_CUT}.",
        terminal_phase_sentence(runs, layout, marked=False),
        seeds_sentence(measurements, layout),
        size_sentence(runs, layout),
        shipped if several else origin_sentence(runs),
    )


# --------------------------------------------------------------------------- studies


def separation(measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What the figure of the law of data separation shows."""
    panels = layer_curves(measurements, runs, layout)
    if not panels:
        return "No run measured three layers or more (measurement.layers): there is no line."
    _, during, after = panels[0].epochs
    seeds = [len(panel.fuzziness[panel.epochs[-1]]) for panel in panels]
    spread = (
        f"Points are geometric means over {smallest_to_largest(seeds)} seeds, where D is defined "
        "for every one; bars reach from the smallest to the largest value; r is given for the "
        "seeds with the smallest and the largest, ρ is their mean."
    )
    return joined(
        "Separation fuzziness D = Tr(SS_w SS_b⁺) of each layer's output on the train set, on a "
        "logarithmic axis; layer 0 is the images, the last one the features. Columns are the "
        "number of layers, images counted and classifier not. Grey circles: before training; "
        f"orange squares: after {during} epochs; blue: after {after}; black: the least-squares "
        "line log D = a + l log ρ after training, with Pearson's correlation r of l and log D.",
        spread if max(seeds) > 1 else "Every point is a single training.",
        "He and Su, PNAS 120 (36), 2023.",
        origin_sentence(runs),
    )


def optimisers(measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What the figure of optimisers shows."""
    counts = [
        count
        for table in by_weight_decay(measurements, runs, layout).values()
        for statistic in (NC0, NC3)
        for count in table.loc[table.index > 0, (statistic, "count")]
    ]
    if not any(counts):
        return "No run measured NC0 or NC3 (training.weight_decay above 0): there is no line."
    return joined(
        "Values at the last epoch against the weight decay on a logarithmic axis, one line per "
        "optimiser. NC0 is the norm of the sum of the classifier's rows. Black crosses: NC0 "
        "predicted from its value before training, the learning rates and the weight decay, if "
        "there is a closed form. NC3 is the squared distance between the normalised classifier "
        "and class means. Coupled decay (SGD, Adam) is part of the gradient, decoupled decay "
        "(SGDW, AdamW) is not.",
        points_sentence(counts),
        "After Zhao et al., ICLR 2026.",
        origin_sentence(runs),
    )


def losses(measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What the figure of losses shows."""
    return joined(
        "NC1 to NC4 of the train set and the expected calibration error of the test set (15 bins), "
        "one line per loss. The MSE on the train set is an exact sum of three parts: variability "
        "within classes (NC1), class means (NC2 and NC3), and what a least-squares classifier on "
        f"the same features would remove (perpendicular). Axes are logarithmic; {_ZERO_BAND}.",
        seeds_sentence(measurements, layout),
        "After Han, Papyan and Donoho, ICLR 2022.",
        origin_sentence(runs),
    )


def imbalance(measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What the figure of imbalance shows."""
    found = by_ratio(measurements, runs, layout)
    if not found:
        return "No run trained on unequal classes (data.imbalance): there is no ratio to draw."
    counts = [table.xs("count", axis=1, level=1).to_numpy().ravel() for table in found.values()]
    return joined(
        "Values at the last epoch against the ratio of majority to minority train images "
        "(data.imbalance) on a logarithmic axis: mean cosine between the classifiers of minority "
        "classes, 1 if they are equal, and accuracy on test images of these classes. Hollow "
        "squares: minority images are repeated in each epoch until all classes have equal counts.",
        points_sentence(np.concatenate(counts)),
        "After Fang, He, Long and Su, PNAS 2021.",
        origin_sentence(runs),
    )


def etf(measurements: pd.DataFrame, runs: pd.DataFrame, layout: Layout, *_) -> str:
    """What the figure of the fixed classifier shows."""
    return joined(
        "NC1, NC3 and error of the train set and error of the test set, on logarithmic axes; means "
        f"of zero are left out; {_ZERO_BAND}.",
        seeds_sentence(measurements, layout),
        "After Zhu et al., NeurIPS 2021, and Zhang et al., ICLR 2017.",
        origin_sentence(runs),
    )


def _other(
    shown: str,
    correlated: Mapping[str, str],
    source: str,
    measurements: pd.DataFrame,
    runs: pd.DataFrame,
    layout: Layout,
    *_,
) -> str:
    """What a figure of cells that measure another dataset shows."""
    cells = measured_other(runs, layout)
    if not cells:
        return (
            "No run has measured another dataset yet (measurement.other_dataset): nothing is shown."
        )
    parts = []
    for cell, (own, _) in cells.items():
        ranges = {
            name: correlation_with_collapse(measurements, cell, statistic)
            for name, statistic in correlated.items()
        }
        texts = [f"{n} {low:.2f} to {high:.2f}" for n, (low, high) in ranges.items() if low == low]
        if texts:
            parts.append(f"{own}: {', '.join(texts)}".replace("-", "−"))
    correlation = (
        "Correlation with −log NC1 of the train set over the measured epochs after epoch 0, "
        f"smallest to largest of the seeds: {'; '.join(parts)}."
    )
    return joined(
        shown,
        terminal_phase_sentence(runs, layout),
        seeds_sentence(measurements, layout),
        correlation if parts else "",
        source,
        origin_sentence(runs),
    )


outliers = partial(
    _other,
    "Detection of another dataset's test images as outliers by four scores: area under the "
    "ROC curve (AUROC), and false positive rate at 95 % true positives (FPR). NC5 is the mean "
    "|cos| of the class means and the mean of the outliers.",
    {label: f"outlier_auroc_{score}" for score, label in SCORES.items()},
    "Scores: Hendrycks and Gimpel 2017, Liu et al. 2020, Ben Ammar et al. 2024 (NECO, NC5), "
    "Liu and Qin 2025 (NCI).",
)
transfer = partial(
    _other,
    "NC1 of the train set and of the test set, each with its own class means; accuracy on the "
    "own test set, and accuracy on another dataset's test set of a linear probe and of the "
    "nearest class centre, both fitted to frozen features of its train set.",
    {"linear probe": "transfer_probe_accuracy", "nearest centre": "transfer_ncc_accuracy"},
    "After Hui, Belkin and Nakkiran 2022.",
)
