"""The registry of statistics: name, formula, source, expected limit, computation.

Documentation, printed tables, the pipeline's tables, figures, claims and report use `REGISTRY`; a
new statistic is one entry here (and its formula in `statistics`). This module does not import
torch.

In formulas mu_c is the mean of class c's features, mu_G the unweighted mean of the class means,
M = [mu_c - mu_G], W and b the last layer with rows w_c, Sigma_W the within-class covariance (over
all examples) and Sigma_B = M M^T / C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """Where a statistic was defined."""

    authors: str
    year: int
    venue: str
    doi: str


PAPER = Source("Papyan, Han and Donoho", 2020, "PNAS 117 (40)", "10.1073/pnas.2015509117")
_ZHU = Source("Zhu et al.", 2021, "NeurIPS", "10.48550/arXiv.2105.02375")
_TIRER = Source("Tirer, Huang and Niles-Weed", 2023, "ICML", "10.48550/arXiv.2210.16658")
_GALANTI = Source("Galanti, György and Hutter", 2022, "ICLR", "10.48550/arXiv.2112.15121")
_LIU = Source("Liu et al.", 2023, "ICLR", "10.48550/arXiv.2303.06484")
_JIANG = Source("Jiang et al.", 2024, "ICML", "10.48550/arXiv.2310.05351")
_XU = Source("Xu and Liu", 2023, "ICML", "10.48550/arXiv.2306.03440")
_HE_SU = Source("He and Su", 2023, "PNAS 120 (36)", "10.1073/pnas.2221704120")
_ZHAO = Source("Zhao et al.", 2026, "ICLR", "10.48550/arXiv.2602.16642")
_HAN = Source("Han, Papyan and Donoho", 2022, "ICLR", "10.48550/arXiv.2106.02073")
_FANG = Source("Fang, He, Long and Su", 2021, "PNAS 118 (43)", "10.1073/pnas.2103091118")
_GUO = Source("Guo et al.", 2017, "ICML", "10.48550/arXiv.1706.04599")
_HUI = Source("Hui, Belkin and Nakkiran", 2022, "arXiv", "10.48550/arXiv.2202.08384")
_NECO = Source("Ben Ammar et al.", 2024, "ICLR", "10.48550/arXiv.2310.06823")
_NCI = Source("Liu and Qin", 2025, "CVPR", "10.48550/arXiv.2311.01479")
_HENDRYCKS = Source("Hendrycks and Gimpel", 2017, "ICLR", "10.48550/arXiv.1610.02136")
_LIU_ENERGY = Source("Liu et al.", 2020, "NeurIPS", "10.48550/arXiv.2010.03759")
_DEEPFOOL = Source("Moosavi-Dezfooli, Fawzi and Frossard", 2016, "CVPR", "10.1109/CVPR.2016.282")


@dataclass(frozen=True)
class PaperFigure:
    """The texts of one of the paper's figures.

    Attributes:
        collapse: "NC1" to "NC4", or empty.
        name: name of the measured property.
        title: title of the figure.
        axis: label of the vertical axis; LaTeX between dollar signs.
    """

    collapse: str
    name: str
    title: str
    axis: str

    @property
    def label(self) -> str:
        """`collapse` and `name`."""
        return f"{self.collapse} {self.name}".strip()


PAPER_FIGURES = {
    2: PaperFigure(
        "NC2",
        "equinorm",
        "Class means and classifiers become equinorm (NC2)",
        "Std / mean of the norms",
    ),
    3: PaperFigure(
        "NC2",
        "equiangularity",
        "Class means and classifiers approach equiangularity (NC2)",
        "Std of the cosines",
    ),
    4: PaperFigure(
        "NC2",
        "maximal angle",
        "Class means and classifiers approach maximal-angle equiangularity (NC2)",
        r"Mean of $|\cos + 1/(C - 1)|$",
    ),
    5: PaperFigure(
        "NC3",
        "self-duality",
        "Classifiers converge to the class means: self-duality (NC3)",
        r"$\Vert\, W^{\top}\!/\Vert W\Vert_F - M/\Vert M\Vert_F \,\Vert_F^{\,2}$",
    ),
    6: PaperFigure(
        "NC1",
        "within-class variability",
        "Within-class variability collapses (NC1)",
        r"$\mathrm{Tr}(\Sigma_W\, \Sigma_B^{+})\, /\, C$",
    ),
    7: PaperFigure(
        "NC4",
        "nearest class-centre decision",
        "The classifier becomes a nearest class-centre decision (NC4)",
        "Mismatch with nearest centre (%)",
    ),
    8: PaperFigure(
        "",
        "robustness",
        "Robustness to adversarial perturbations",
        r"$\Vert r(x)\Vert_2\, /\, \Vert x\Vert_2$",
    ),
}


@dataclass(frozen=True)
class Statistic:
    """One statistic of the registry.

    Attributes:
        name: full name, as in tables and files.
        what: description in one line of plain text.
        formula: LaTeX.
        tends_to: its limit at neural collapse, as text.
        source: the publication that defined it.
        figure: number of the paper's figure that shows it, or None.
        alias: a short name such as "nc1", or None.
        needs: fields of `Moments` without which it is absent.
        compute: function of (the module `statistics`, moments); None if it cannot be computed
            from the moments of one split.
        unbalanced: whether it is only computed if classes have different numbers of examples;
            otherwise it equals the statistic from which its name is derived.
    """

    name: str
    what: str
    formula: str
    tends_to: str = "0"
    source: Source = PAPER
    figure: int | None = None
    alias: str | None = None
    needs: tuple[str, ...] = ("class_means",)
    compute: Callable[[Any, Any], float] | None = None
    unbalanced: bool = False

    @property
    def of(self) -> str:
        """ "class means" or "classifiers" if the formula applies to both, else empty."""
        ends = {"means": "class means", "classifier": "classifiers"}
        return ends.get(self.name.rsplit("_", 1)[-1], "")

    @property
    def label(self) -> str:
        """The name in figures, claims and the report."""
        if self.figure is None:
            return self.name.replace("_", " ")
        label = PAPER_FIGURES[self.figure].label
        return f"{label}: {self.of}" if self.of else label

    @property
    def short_label(self) -> str:
        """A label for a narrow column; M stands for class means, W for classifiers."""
        if self.figure is None:
            return (self.alias or self.label).upper()
        shown = PAPER_FIGURES[self.figure]
        if self.of:
            return f"{shown.name} {'M' if self.of == 'class means' else 'W'}"
        return shown.collapse or shown.name


_EQUINORM = r"\mathrm{Std}_c \lVert v_c \rVert / \mathrm{Avg}_c \lVert v_c \rVert,\ v_c = "
_COSINES = r"\mathrm{Std}_{c \ne c'} \cos(v_c, v_{c'}),\ v_c = "
_ANGLE = r"\mathrm{Avg}_{c \ne c'} \lvert \cos(v_c, v_{c'}) + \tfrac{1}{C - 1} \rvert,\ v_c = "
_ETF = (
    r"\lVert G / \lVert G \rVert_F - (I - \tfrac{1}{C} \mathbf{1}\mathbf{1}^\top)"
    r" / \sqrt{C - 1} \rVert_F,\ G = "
)
_ENERGY = (
    r"\mathrm{Avg}_{c \ne c'} \log \lVert \hat v_c - \hat v_{c'} \rVert^{-1},"
    r"\ \hat v_c = v_c / \lVert v_c \rVert,\ v_c = "
)
_MEANS, _ROWS = r"\mu_c - \mu_G", "w_c"
_WEIGHTED = r"\mu_c - \mu,\ \mu = \tfrac{1}{N} \sum_i h_i"
_WEIGHT, _BOTH = ("weight",), ("class_means", "weight")
_LEAST_ENERGY = "-log(2 C / (C - 1)) / 2"

_SCORES = {
    "max_softmax": (
        "the largest softmax probability (Hendrycks 2017)",
        r"\max_c \mathrm{softmax}(z)_c",
        _HENDRYCKS,
    ),
    "energy": ("log sum exp of the logits (Liu 2020)", r"\log \sum_c \exp z_c", _LIU_ENERGY),
    "neco": (
        "|P (h - mu)| / |h - mu|, P the first C - 1 principal directions (Ben Ammar 2024)",
        r"\lVert P (h - \mu) \rVert / \lVert h - \mu \rVert",
        _NECO,
    ),
    "nci": (
        "<w_y, h - mu> / |h - mu| + 1e-4 |h|_1, y the decision (Liu 2025)",
        r"\langle w_y, h - \mu \rangle / \lVert h - \mu \rVert + 10^{-4} \lVert h \rVert_1",
        _NCI,
    ),
}
"""The scores that detect outliers: description, formula, source. z = W h + b; mu is the mean of
all train features."""


def _detection(measure: str, what: str, formula: str, ideal: str) -> tuple[Statistic, ...]:
    return tuple(
        Statistic(
            f"outlier_{measure}_{score}",
            f"{what} {meaning}",
            rf"\mathrm{{{formula}}}\big({text}\big)",
            tends_to=ideal,
            source=source,
        )
        for score, (meaning, text, source) in _SCORES.items()
    )


_NC5 = r"\mathrm{Avg}_c \lvert \cos(v_c, v_{out}) \rvert,\ v = "

_ENTRIES = (
    Statistic(
        "nc1_within_class_variability",
        "Tr(Sigma_W Sigma_B^+) / C",
        r"\mathrm{Tr}(\Sigma_W \Sigma_B^{\dagger}) / C",
        figure=6,
        alias="nc1",
        needs=("class_means", "scatter_projected"),
        compute=lambda f, m: f.within_class_variability(m.class_means, m.scatter_projected),
    ),
    Statistic(
        "nc2_equinorm_means",
        "std / mean of the norms of mu_c - mu_G",
        _EQUINORM + _MEANS,
        figure=2,
        compute=lambda f, m: f.equinorm(m.centred_means),
    ),
    Statistic(
        "nc2_equinorm_classifier",
        "std / mean of the norms of w_c",
        _EQUINORM + _ROWS,
        figure=2,
        needs=_WEIGHT,
        compute=lambda f, m: f.equinorm(m.weight),
    ),
    Statistic(
        "nc2_equiangularity_means",
        "std over pairs of cos(mu_c - mu_G, mu_c' - mu_G)",
        _COSINES + _MEANS,
        figure=3,
        compute=lambda f, m: f.equiangularity(m.centred_means),
    ),
    Statistic(
        "nc2_equiangularity_classifier",
        "std over pairs of cos(w_c, w_c')",
        _COSINES + _ROWS,
        figure=3,
        needs=_WEIGHT,
        compute=lambda f, m: f.equiangularity(m.weight),
    ),
    Statistic(
        "nc2_maximal_angle_means",
        "mean over pairs of |cos + 1/(C-1)|, class means",
        _ANGLE + _MEANS,
        figure=4,
        compute=lambda f, m: f.maximal_angle(m.centred_means),
    ),
    Statistic(
        "nc2_maximal_angle_classifier",
        "mean over pairs of |cos + 1/(C-1)|, classifiers",
        _ANGLE + _ROWS,
        figure=4,
        needs=_WEIGHT,
        compute=lambda f, m: f.maximal_angle(m.weight),
    ),
    Statistic(
        "nc3_self_duality",
        "squared Frobenius norm of W^T/||W||_F - M/||M||_F",
        r"\lVert W^\top / \lVert W \rVert_F - M / \lVert M \rVert_F \rVert_F^2",
        figure=5,
        alias="nc3",
        needs=_BOTH,
        compute=lambda f, m: f.self_duality(m.weight, m.centred_means),
    ),
    Statistic(
        "nc4_ncc_mismatch",
        "fraction of examples where network and nearest class centre disagree",
        r"\mathrm{Avg}_i\, [\arg\max_c \langle w_c, h_i \rangle + b_c \ne"
        r" \arg\min_c \lVert h_i - \mu_c \rVert]",
        figure=7,
        alias="nc4",
        needs=("decisions", "weight"),
        compute=lambda f, m: m.share(lambda d: d.counted - d.agreeing),
    ),
    Statistic(
        "within_between_trace_ratio",
        "Tr Sigma_W / Tr Sigma_B (Tirer 2023)",
        r"\mathrm{Tr}\,\Sigma_W / \mathrm{Tr}\,\Sigma_B",
        source=_TIRER,
        compute=lambda f, m: f.trace_ratio(m.counts, m.class_variances, m.centred_means),
    ),
    Statistic(
        "cdnv",
        "class-distance normalised variance, mean over pairs (Galanti 2021)",
        r"\mathrm{Avg}_{c < c'} (\sigma_c^2 + \sigma_{c'}^2) / (2 \lVert \mu_c - \mu_{c'}"
        r" \rVert^2)",
        source=_GALANTI,
        compute=lambda f, m: f.class_distance_normalized_variance(m.class_means, m.class_variances),
    ),
    Statistic(
        "separation_fuzziness",
        "Tr(SS_w SS_b^+), C times NC1 where classes are balanced (He 2023)",
        r"D = \mathrm{Tr}(SS_w\, SS_b^{\dagger}),\ SS_w = \tfrac{1}{N} \sum_i (h_i -"
        r" \mu_{c(i)})(h_i - \mu_{c(i)})^\top,\ SS_b = \sum_c \tfrac{n_c}{N} (\mu_c - \mu)"
        r"(\mu_c - \mu)^\top",
        source=_HE_SU,
        needs=("class_means", "scatter_projected"),
        compute=lambda f, m: f.separation_fuzziness(m.counts, m.class_means, m.scatter_projected),
    ),
    Statistic(
        "etf_error_means",
        "distance of M's normalised Gram matrix from a simplex ETF's (Zhu 2021)",
        _ETF + r"M^\top M",
        source=_ZHU,
        compute=lambda f, m: f.etf_error(m.centred_means, m.centred_means),
    ),
    Statistic(
        "etf_error_classifier",
        "distance of W W^T, normalised, from a simplex ETF's Gram matrix (Zhu 2021)",
        _ETF + r"W W^\top",
        source=_ZHU,
        needs=_WEIGHT,
        compute=lambda f, m: f.etf_error(m.weight, m.weight),
    ),
    Statistic(
        "etf_error_product",
        "distance of W M, normalised, from a simplex ETF's Gram matrix (Zhu 2021)",
        _ETF + "W M",
        source=_ZHU,
        needs=_BOTH,
        compute=lambda f, m: f.etf_error(m.weight, m.centred_means),
    ),
    Statistic(
        "bias_collapse",
        "norm2(W mu_G + b) (Zhu 2021)",
        r"\lVert W \mu_G + b \rVert_2",
        source=_ZHU,
        needs=_BOTH,
        compute=lambda f, m: f.bias_collapse(m.weight, m.bias, m.class_means.mean(0)),
        tends_to="0; with MSE 1 / sqrt(C)",
    ),
    Statistic(
        "nc0_sum_of_rows",
        "norm2 of the sum of the classifier's rows (Zhao 2026)",
        r"\lVert W^\top \mathbf{1} \rVert_2",
        source=_ZHAO,
        alias="nc0",
        needs=_WEIGHT,
        compute=lambda f, m: f.sum_of_rows(m.weight),
    ),
    Statistic(
        "gnc2_hyperspherical_uniformity_means",
        "hyperspherical energy of the means (Liu 2023)",
        _ENERGY + _MEANS,
        tends_to=_LEAST_ENERGY,
        source=_LIU,
        compute=lambda f, m: f.hyperspherical_uniformity(m.centred_means),
    ),
    Statistic(
        "gnc2_hyperspherical_uniformity_classifier",
        "hyperspherical energy of the classifiers (Liu 2023)",
        _ENERGY + _ROWS,
        tends_to=_LEAST_ENERGY,
        source=_LIU,
        needs=_WEIGHT,
        compute=lambda f, m: f.hyperspherical_uniformity(m.weight),
    ),
    Statistic(
        "gnc3_cosine_duality",
        "mean of 1 - cos(w_c, mu_c - mu_G) (Jiang 2024)",
        r"\mathrm{Avg}_c\, 1 - \cos(w_c, \mu_c - \mu_G)",
        source=_JIANG,
        needs=_BOTH,
        compute=lambda f, m: f.cosine_duality(m.weight, m.centred_means),
    ),
    Statistic(
        "vci",
        "variability collapse index 1 - Tr(Sigma_T^+ Sigma_B) / min(d, C - 1) (Xu 2023)",
        r"1 - \mathrm{Tr}(\Sigma_T^{\dagger} \Sigma_B) / \min(d, C - 1),"
        r"\ \Sigma_T = \Sigma_W + \Sigma_B",
        source=_XU,
        needs=("class_means", "scatter"),
        compute=lambda f, m: f.variability_collapse_index(m.class_means, m.scatter),
    ),
    Statistic(
        "ncc_accuracy",
        "accuracy of the nearest class centre (0 to 1)",
        r"\mathrm{Avg}_i\, [\arg\min_c \lVert h_i - \mu_c \rVert = y_i]",
        tends_to="1",
        needs=("decisions",),
        compute=lambda f, m: m.share(lambda d: d.ncc_correct),
    ),
    Statistic(
        "network_accuracy",
        "accuracy of the network (0 to 1)",
        r"\mathrm{Avg}_i\, [\arg\max_c \langle w_c, h_i \rangle + b_c = y_i]",
        tends_to="1",
        needs=("decisions", "weight"),
        compute=lambda f, m: m.share(lambda d: d.network_correct),
    ),
    Statistic(
        "expected_calibration_error",
        "mean over 15 bins of |accuracy - confidence| (0 to 1, Guo 2017)",
        r"\sum_b \tfrac{n_b}{N} \lvert \mathrm{acc}_b - \mathrm{conf}_b \rvert,"
        r"\ \mathrm{conf} = \max_c \mathrm{softmax}(W h + b)_c",
        source=_GUO,
        alias="ece",
        needs=("calibration",),
        compute=lambda f, m: f.expected_calibration_error(m.calibration),
        tends_to="0 with cross-entropy",
    ),
    Statistic(
        "nc1_class_balanced",
        "NC1 with the mean of the classes' covariances for Sigma_W",
        r"\mathrm{Tr}\big((\mathrm{Avg}_c \Sigma_c)\, \Sigma_B^{\dagger}\big) / C",
        needs=("class_means", "scatter_balanced"),
        compute=lambda f, m: f.within_class_variability(m.class_means, m.scatter_balanced),
        unbalanced=True,
    ),
    Statistic(
        "nc1_example_weighted",
        "NC1 with classes weighted by examples in Sigma_B too: separation fuzziness / C",
        r"\mathrm{Tr}(SS_w\, SS_b^{\dagger}) / C",
        source=_HE_SU,
        needs=("class_means", "scatter_projected"),
        compute=lambda f, m: (
            f.separation_fuzziness(m.counts, m.class_means, m.scatter_projected) / m.num_classes
        ),
        unbalanced=True,
    ),
    Statistic(
        "nc2_equinorm_means_example_weighted",
        "nc2_equinorm_means about the mean of all examples mu",
        _EQUINORM + _WEIGHTED,
        compute=lambda f, m: f.equinorm(m.centred_at_examples),
        unbalanced=True,
        tends_to="not 0 in general",
    ),
    Statistic(
        "nc2_equiangularity_means_example_weighted",
        "nc2_equiangularity_means about mu",
        _COSINES + _WEIGHTED,
        compute=lambda f, m: f.equiangularity(m.centred_at_examples),
        unbalanced=True,
        tends_to="not 0 in general",
    ),
    Statistic(
        "nc3_self_duality_example_weighted",
        "nc3_self_duality about mu",
        r"\lVert W^\top / \lVert W \rVert_F - M / \lVert M \rVert_F \rVert_F^2,"
        r"\ M = [\mu_c - \mu]",
        needs=_BOTH,
        compute=lambda f, m: f.self_duality(m.weight, m.centred_at_examples),
        unbalanced=True,
        tends_to="not 0 in general",
    ),
    Statistic(
        "nc0_predicted",
        "NC0 predicted from its value before training and the weight decay, for SGD",
        r"\lVert s \rVert_2,\ v \leftarrow \beta v + \lambda s,\ s \leftarrow s - \eta v,"
        r"\ s_0 = W_0^\top \mathbf{1}",
        source=_ZHAO,
    ),
    Statistic(
        "nc0_prediction_error",
        "|NC0 - predicted| / NC0 before training; only rounding if the closed form holds",
        r"\lvert \mathrm{NC0} - \mathrm{predicted} \rvert / \lVert s_0 \rVert_2",
        source=_ZHAO,
    ),
    Statistic(
        "minority_classifier_cosine",
        "mean over pairs of the recipe's minority classes of cos(w_c, w_c') (Fang 2021)",
        r"\mathrm{Avg}_{c \ne c' \in \mathrm{minority}} \cos(w_c, w_{c'})",
        tends_to="-1 / (C - 1), or 1 where the minority collapses",
        source=_FANG,
    ),
    Statistic(
        "minority_accuracy",
        "test accuracy of the recipe's minority classes (0 to 1)",
        r"\mathrm{Avg}_{i:\, y_i \in \mathrm{minority}}"
        r" [\arg\max_c \langle w_c, h_i \rangle + b_c = y_i]",
        tends_to="1, or 0 where the minority collapses",
        source=_FANG,
    ),
    Statistic(
        "mse_nc1",
        "MSE of the least-squares classifier due to variability within classes (Han 2022)",
        r"\tfrac{1}{2} \mathrm{Tr}\, W_{LS} (\Sigma_W + \lambda I) W_{LS}^\top"
        r" + \tfrac{\lambda}{2} \lVert b_{LS} \rVert^2",
        tends_to="falls",
        source=_HAN,
    ),
    Statistic(
        "mse_nc23",
        "MSE of the least-squares classifier due to the class means (Han 2022)",
        r"\tfrac{1}{2C} \lVert W_{LS} [\mu_c] + b_{LS} \mathbf{1}^\top - I \rVert_F^2",
        tends_to="falls",
        source=_HAN,
    ),
    Statistic(
        "mse_perpendicular",
        "MSE that the least-squares classifier would remove (Han 2022)",
        r"\tfrac{1}{2} \mathrm{Tr}\, D A D^\top,\ D = [W, b] - [W_{LS}, b_{LS}]",
        source=_HAN,
    ),
    Statistic(
        "nc4_ncc_mismatch_test_means",
        "NC4 of the test set with its own class means, not the train set's (Hui 2022)",
        r"\mathrm{Avg}_i\, [\arg\max_c \langle w_c, h_i \rangle + b_c \ne"
        r" \arg\min_c \lVert h_i - \mu_c^{test} \rVert]",
        source=_HUI,
    ),
    Statistic(
        "transfer_ncc_accuracy",
        "accuracy of the nearest class centre on another dataset's frozen features (Hui 2022)",
        r"\mathrm{Avg}_i\, [\arg\min_c \lVert h_i - \mu_c \rVert = y_i]",
        tends_to="falls",
        source=_HUI,
    ),
    Statistic(
        "transfer_probe_accuracy",
        "accuracy of a linear probe of another dataset's frozen features (Hui 2022)",
        r"\mathrm{Avg}_i\, [\mathrm{LogisticRegression}(h_i) = y_i]",
        tends_to="falls",
        source=_HUI,
    ),
    Statistic(
        "nc5_outlier_orthogonality",
        "NC5: mean |cos| of the class means and the outliers' mean, about mu_G (Ben Ammar 2024)",
        _NC5 + r"\mu - \mu_G",
        source=_NECO,
    ),
    Statistic(
        "nc5_outlier_orthogonality_uncentred",
        "NC5 without centring: the class means and the outliers' mean about 0 (Ben Ammar 2024)",
        _NC5 + r"\mu",
        source=_NECO,
    ),
    *_detection("auroc", "AUROC of detecting outliers (1/2 is chance) by", "AUROC", "1"),
    *_detection("fpr95", "false positive rate at 95 % detected outliers, by", "FPR_{95}", "0"),
    Statistic(
        "loss",
        "mean of the recipe's loss, by default cross-entropy, every epoch",
        r"\mathrm{Avg}_i\, -\log \mathrm{softmax}(W h_i + b)_{y_i}",
        tends_to="0 with cross-entropy",
    ),
    Statistic(
        "error",
        "fraction of examples classified wrongly (0 to 1), every epoch",
        r"\mathrm{Avg}_i\, [\arg\max_c \langle w_c, h_i \rangle + b_c \ne y_i]",
    ),
    Statistic(
        "separation_rate",
        "rho of the fit log D_l = a + l log rho over the recipe's layers l (He 2023)",
        r"\rho = \exp\big(\mathrm{Cov}_l(l, \log D_l) / \mathrm{Var}_l(l)\big)",
        tends_to="below 1",
        source=_HE_SU,
    ),
    Statistic(
        "separation_linearity",
        "Pearson correlation of l and log D_l over the recipe's layers l (He 2023)",
        r"r = \mathrm{Corr}_l(l, \log D_l)",
        tends_to="-1",
        source=_HE_SU,
    ),
    Statistic(
        "robustness",
        "mean over attacked test images of norm2(DeepFool perturbation) / norm2(image)",
        r"\mathrm{Avg}_i\, \lVert r(x_i) \rVert_2 / \lVert x_i \rVert_2",
        tends_to="rises",
        source=_DEEPFOOL,
        figure=8,
    ),
)

REGISTRY: dict[str, Statistic] = {entry.name: entry for entry in _ENTRIES}
"""Every statistic by name."""

OF_MOMENTS = {name: entry for name, entry in REGISTRY.items() if entry.compute is not None}
"""Those computed from the moments of a split, in the order of computing and printing."""

OF_OTHER_DATASET = tuple(
    name
    for name in REGISTRY
    if name.startswith(("transfer_", "nc5_", "outlier_")) or name.endswith("_test_means")
)
"""Those measured on the test split if a recipe names another dataset."""

ALIASES = {entry.alias: entry.name for entry in _ENTRIES if entry.alias}
"""Full name by short name."""


def of_figure(number: int) -> tuple[Statistic, ...]:
    """The statistics that a figure of the paper shows."""
    return tuple(entry for entry in _ENTRIES if entry.figure == number)
