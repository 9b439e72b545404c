"""Statistics against closed forms, dense oracles (mpmath, scipy) and the invariances they have."""

import itertools
import math
import warnings

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.spatial.distance import pdist
from scipy.special import softmax

import neural_collapse as nc
from neural_collapse.collapse.measure import compute_moments, measure
from neural_collapse.collapse.registry import OF_MOMENTS
from neural_collapse.collapse.result import UndefinedStatisticWarning, compute_statistics
from neural_collapse.collapse.statistics import (
    ReducedRankWarning,
    centred_class_means,
    mean_cosine,
    mismatch,
)
from neural_collapse.io.errors import UserError
from neural_collapse.training.losses import loss_of
from neural_collapse.training.recipe import TrainingRecipe

NC1 = "nc1_within_class_variability"


def rotation(rng, d):
    q, r = np.linalg.qr(rng.standard_normal((d, d)))
    return q * np.sign(np.diag(r))


def simplex_etf(rng, classes, d):
    """(C, d) vertices of a unit simplex ETF in a random subspace."""
    vertices = np.eye(classes) - 1 / classes
    return vertices @ rotation(rng, d)[:classes] * math.sqrt(classes / (classes - 1))


def cloud(rng, classes, d, n=6, within=0.3):
    """Generic features, labels, weight and bias."""
    labels = np.repeat(np.arange(classes), n)
    means = 2.0 + rng.standard_normal((classes, d))
    features = means[labels] + within * rng.standard_normal((len(labels), d))
    return features, labels, rng.standard_normal((classes, d)), rng.standard_normal(classes)


# -------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("classes, d", [(2, 2), (3, 3), (10, 16), (40, 64)])
def test_statistics_of_a_collapsed_network_are_their_ideals(classes, d):
    """Everything at its ideal: W = a M^T, means an ETF, b undoing mu_G, tiny balanced spread."""
    rng = np.random.default_rng(classes)
    etf = simplex_etf(rng, classes, d)
    offset = rng.standard_normal(d)
    spread = 1e-8 * rotation(rng, d)[:3] if d >= 3 else 1e-8 * np.eye(d)
    spread = np.concatenate([spread, -spread])
    features = (4 * etf[:, None] + offset + spread).reshape(-1, d)
    labels = np.repeat(np.arange(classes), len(spread))
    s = measure(features, labels, 0.7 * etf, -0.7 * etf @ offset)
    for name in s:
        if name.startswith(("nc", "etf", "bias", "gnc3", "cdnv", "within")) and "acc" not in name:
            assert abs(s[name]) < 2e-13, name
    ideal = -math.log(2 * classes / (classes - 1)) / 2
    for which in ("means", "classifier"):
        assert_allclose(s[f"gnc2_hyperspherical_uniformity_{which}"], ideal, rtol=1e-12)
    assert s["ncc_accuracy"] == s["network_accuracy"] == 1


# ------------------------------------------------------------------------------ dense oracles


def mp_nc1(features, labels, classes):
    """Tr(Sigma_W Sigma_B^+) / C by its definition, d x d, in 60 digits."""
    with mpmath.workdps(60):
        h = [mpmath.matrix([mpmath.mpf(float(x)) for x in row]) for row in features]
        d = features.shape[1]
        means = []
        for c in range(classes):
            rows = [h[i] for i in np.flatnonzero(labels == c)]
            means.append(sum(rows[1:], rows[0]) / len(rows))
        mu_g = sum(means[1:], means[0]) / classes
        sigma_w, sigma_b = mpmath.zeros(d), mpmath.zeros(d)
        for row, c in zip(h, labels, strict=True):
            sigma_w += (row - means[c]) * (row - means[c]).T / len(h)
        for mu in means:
            sigma_b += (mu - mu_g) * (mu - mu_g).T / classes
        values, vectors = mpmath.eigsy(sigma_b)  # ascending
        trace = mpmath.mpf(0)
        for k in range(d - min(classes - 1, d), d):
            v = vectors[:, k]
            trace += (v.T * sigma_w * v)[0] / values[k]
        return float(trace / classes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("within", [1.0, 1e-2, 1e-4, 1e-6])
def test_nc1_of_small_spreads_equals_mpmath(within, dtype):
    rng = np.random.default_rng(7)
    counts = [3, 5, 4, 2]
    labels = np.repeat(np.arange(4), counts)
    means = 3 + rng.standard_normal((4, 6))
    features = (means[labels] + within * rng.standard_normal((14, 6))).astype(dtype)
    expected = mp_nc1(features, labels, 4)
    assert within > 1e-5 or expected < 3e-12
    last_layer = rng.standard_normal((4, 6))
    got = measure(features, labels, last_layer, None)[NC1]
    assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6, 1e-7])
def test_nc1_of_nearly_dependent_means_equals_mpmath(ratio):
    """Its error grows as 1 / ratio of the means' singular values, not as its square."""
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(4), 3)
    spread = np.diag([1, 10 * ratio, ratio, 0, 0, 0])
    means = rng.standard_normal((4, 6)) @ spread @ rotation(rng, 6) + 2
    noise = rng.standard_normal((12, 6))
    noise -= np.stack([noise[labels == c].mean(0) for c in range(4)])[labels]
    features = means[labels] + 1e-3 * noise
    got = measure(features, labels, rng.standard_normal((4, 6)), None)[NC1]
    assert_allclose(got, mp_nc1(features, labels, 4), rtol=2e-15 / ratio)


@pytest.mark.parametrize("classes, d", [(6, 4), (5, 1)])
def test_nc1_in_fewer_dimensions_than_classes_equals_mpmath(classes, d):
    rng = np.random.default_rng(18)
    features, labels, W, b = cloud(rng, classes, d)
    with pytest.warns(ReducedRankWarning):
        got = measure(features, labels, W, b)[NC1]
    assert_allclose(got, mp_nc1(features, labels, classes), rtol=1e-12)


@pytest.mark.parametrize("classes, d", [(2, 5), (5, 5), (10, 30), (6, 4), (100, 64)])
@pytest.mark.filterwarnings("ignore::neural_collapse.collapse.statistics.ReducedRankWarning")
def test_statistics_of_random_clouds_equal_dense_numpy(classes, d):
    """The last class has fewer examples: Sigma_W weighs classes by them, mu_G does not."""
    rng = np.random.default_rng(9)
    features, labels, W, b = cloud(rng, classes, d)
    features, labels = features[:-3], labels[:-3]
    s = measure(features, labels, W, b)

    means = np.stack([features[labels == c].mean(0) for c in range(classes)])
    mu_g = means.mean(0)
    M = (means - mu_g).T
    D = features - means[labels]
    sigma_w, sigma_b = D.T @ D / len(D), M @ M.T / classes
    v = np.array([(D[labels == c] ** 2).sum(1).mean() for c in range(classes)])
    assert_allclose(s[NC1], np.trace(sigma_w @ np.linalg.pinv(sigma_b, 1e-12)) / classes)
    for which, rows in (("means", M.T), ("classifier", W)):
        norms = np.linalg.norm(rows, axis=1)
        cosines = 1 - pdist(rows, "cosine")
        assert_allclose(s[f"nc2_equinorm_{which}"], np.std(norms) / np.mean(norms), atol=1e-15)
        assert_allclose(s[f"nc2_equiangularity_{which}"], np.std(cosines), atol=1e-15)
        maximal = np.mean(np.abs(cosines + 1 / (classes - 1)))
        assert_allclose(s[f"nc2_maximal_angle_{which}"], maximal, atol=1e-15)
        gram = rows @ rows.T
        etf = (np.eye(classes) - np.full((classes, classes), 1 / classes)) / np.sqrt(classes - 1)
        error = np.linalg.norm(gram / np.linalg.norm(gram) - etf)
        assert_allclose(s[f"etf_error_{which}"], error, atol=1e-14)
        energy = np.mean(np.log(1 / pdist(rows / norms[:, None])))
        assert_allclose(s[f"gnc2_hyperspherical_uniformity_{which}"], energy)
    W_M = W @ M / np.linalg.norm(W @ M)
    assert_allclose(s["etf_error_product"], np.linalg.norm(W_M - etf))
    duality = np.linalg.norm(W.T / np.linalg.norm(W) - M / np.linalg.norm(M)) ** 2
    assert_allclose(s["nc3_self_duality"], duality)
    cosines = [
        W[c] @ M[:, c] / np.linalg.norm(W[c]) / np.linalg.norm(M[:, c]) for c in range(classes)
    ]
    assert_allclose(s["gnc3_cosine_duality"], np.mean(1 - np.array(cosines)))
    assert_allclose(s["within_between_trace_ratio"], np.trace(sigma_w) / np.trace(sigma_b))
    first, second = np.triu_indices(classes, 1)
    cdnv = np.mean((v[first] + v[second]) / (2 * pdist(means) ** 2))
    assert_allclose(s["cdnv"], cdnv)
    assert_allclose(s["bias_collapse"], np.linalg.norm(W @ mu_g + b))
    network = (features @ W.T + b).argmax(1)
    ncc = np.array([np.linalg.norm(h - means, axis=1).argmin() for h in features])
    assert s["nc4_ncc_mismatch"] == np.mean(network != ncc)
    assert s["ncc_accuracy"] == np.mean(ncc == labels)
    assert s["network_accuracy"] == np.mean(network == labels)


@pytest.mark.parametrize("scatter", ["projected", "full"])
def test_unbalanced_classes_are_measured_with_classes_alike_and_by_their_examples(scatter):
    """NumPy's covariances, means and pseudo-inverse, of 40, 7 and 2 examples of three classes."""
    rng, counts = np.random.default_rng(5), np.array([40, 7, 2])
    labels = np.repeat(np.arange(3), counts)
    features = (
        rng.standard_normal((3, 6))[labels] + rng.standard_normal((49, 6)) * (1 + labels)[:, None]
    )
    W = rng.standard_normal((3, 6))
    s = measure(features, labels, W, scatter=scatter)
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    covariances = [np.cov(features[labels == c].T, bias=True) for c in range(3)]
    for weights, name in ((np.ones(3) / 3, "class_balanced"), (counts / 49, "example_weighted")):
        centred = means - weights @ means
        within = np.einsum("c,cij->ij", weights, covariances)
        between = np.einsum("c,ci,cj->ij", weights, centred, centred)
        assert_allclose(s[f"nc1_{name}"], np.trace(within @ np.linalg.pinv(between)) / 3)
    norms = np.linalg.norm(centred, axis=1)  # about the mean of all examples
    assert_allclose(centred, means - features.mean(0), atol=1e-12)
    assert_allclose(s["nc2_equinorm_means_example_weighted"], norms.std() / norms.mean())
    cosines = 1 - pdist(centred, "cosine")
    assert_allclose(s["nc2_equiangularity_means_example_weighted"], cosines.std())
    duality = W / np.linalg.norm(W) - centred / np.linalg.norm(centred)
    assert_allclose(s["nc3_self_duality_example_weighted"], (duality**2).sum())
    assert s[NC1] not in (s["nc1_class_balanced"], s["nc1_example_weighted"])


def test_balanced_classes_have_nothing_twice():
    features, labels, W, b = cloud(np.random.default_rng(6), 4, 6)
    s = measure(features, labels, W, b)
    assert not [n for n in (*s, *s.absent) if "weighted" in n or "balanced" in n]
    assert s.moments.scatter_balanced is None


def test_mean_cosine_is_that_of_the_pairs():
    vectors = np.random.default_rng(7).standard_normal((6, 4))
    assert_allclose(mean_cosine(vectors), np.mean(1 - pdist(vectors, "cosine")))
    assert_allclose(mean_cosine(simplex_etf(np.random.default_rng(8), 5, 9)), -1 / 4)
    assert_allclose(mean_cosine([[2.0, 0.0], [5.0, 0.0], [0.1, 0.0]]), 1)


# -------------------------------------------------------------------------------- invariances


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 7),
    extra=st.integers(0, 5),
    scale_h=st.floats(1e-3, 1e3),
    scale_w=st.floats(1e-3, 1e3),
)
def test_statistics_of_moved_features_are_unchanged(seed, classes, extra, scale_h, scale_w):
    rng = np.random.default_rng(seed)
    d = classes + extra
    features, labels, W, b = cloud(rng, classes, d)
    before = measure(features, labels, W, b).to_dict()

    Q, shift, order = rotation(rng, d), rng.standard_normal(d), rng.permutation(classes)
    moved_W = scale_w * (W @ Q)
    moved_h = scale_h * (features @ Q) + shift
    moved_b = scale_w * scale_h * b - moved_W @ shift
    after = measure(moved_h, order[labels], moved_W[np.argsort(order)], moved_b[np.argsort(order)])
    before["bias_collapse"] *= scale_w * scale_h  # those with units
    before["nc0_sum_of_rows"] *= scale_w
    scale = scale_w * scale_h  # of the logits, which probabilities depend on
    before["expected_calibration_error"] = measure(features, labels, scale * W, scale * b).ece
    for name, value in before.items():
        # accuracies may differ by ties only, and random clouds have none
        assert_allclose(after[name], value, rtol=1e-7, atol=1e-11, err_msg=name)


@pytest.mark.filterwarnings("ignore:bias_collapse is undefined")  # beyond float64
@pytest.mark.parametrize("scale", [1e-150, 1e-90, 1e80, 1e130])
def test_statistics_without_units_do_not_depend_on_the_scale(scale):
    features, labels, W, _ = cloud(np.random.default_rng(3), 4, 6)
    plain = measure(features, labels, W)
    scaled = measure(scale * features, labels, scale * W)
    of_units = {"bias_collapse", "nc0_sum_of_rows", "expected_calibration_error"}
    for name in plain.keys() - of_units:
        assert_allclose(scaled[name], plain[name], rtol=1e-10, atol=1e-14, err_msg=name)


# --------------------------------------------------------------------------- degenerate input


def undefined(features, labels, W, b):
    """Names given as NaN; each must have come with one warning that names it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        s = measure(features, labels, W, b)
    names = {name for name, value in s.items() if math.isnan(value)}
    assert not any(math.isinf(value) for value in s.values())
    caught = [w for w in caught if w.category is not ReducedRankWarning]
    assert all(w.category is UndefinedStatisticWarning for w in caught)
    named = [str(w.message).split(" are ")[0].split(" is ")[0].split(", ") for w in caught]
    assert sorted(itertools.chain(*named)) == sorted(names)
    return names


MEANS_DIRECTIONS = {
    "nc2_equiangularity_means",
    "nc2_maximal_angle_means",
    "gnc2_hyperspherical_uniformity_means",
    "gnc3_cosine_duality",
}
CLASSIFIER_DIRECTIONS = {
    "nc2_equiangularity_classifier",
    "nc2_maximal_angle_classifier",
    "gnc2_hyperspherical_uniformity_classifier",
    "gnc3_cosine_duality",
}


def test_generic_input_is_defined_everywhere():
    assert undefined(*cloud(np.random.default_rng(0), 5, 8)) == set()


def test_more_classes_than_dimensions_are_said_once():
    with pytest.warns(ReducedRankWarning, match="5 classes in 3 dimensions.* rank 3 ") as caught:
        measure(*cloud(np.random.default_rng(1), 5, 3))
    assert len(caught) == 1
    assert undefined(*cloud(np.random.default_rng(1), 5, 4)) == set()


@pytest.mark.parametrize("dead", [0.0, 0.3])
@pytest.mark.filterwarnings("ignore::neural_collapse.collapse.statistics.ReducedRankWarning")
def test_dead_features_leave_the_others_their_variability(dead):
    """Three features for six classes, among others that are the same everywhere."""
    features, labels, _, _ = cloud(np.random.default_rng(2), 6, 3, n=9)
    wider = np.insert(features, [0, 1, 1, 3], dead, axis=1)
    alone, among = (measure(h, labels, scatter="full") for h in (features, wider))
    for name in (NC1, "vci", "separation_fuzziness"):
        assert_allclose(among[name], alone[name], rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("gap", [0.0, 1e-16, 1e-15])
@pytest.mark.parametrize("classes", [3, 10])
def test_two_equal_means_leave_three_statistics_undefined(gap, classes):
    rng = np.random.default_rng(2)
    _, _, W, b = cloud(rng, classes, 12)
    means = 2 + rng.standard_normal((classes, 12))
    means[1] = means[0] * (1 + gap)
    spread = rng.standard_normal((40, 12))
    spread -= spread.mean(0)
    features = (means[:, None] + spread).reshape(-1, 12)
    labels = np.repeat(np.arange(classes), 40)
    # rounding of the features moves the means by some 1e-16: equal, but not to the last bit
    names = undefined(features, labels, W, b)
    assert names == {NC1, "cdnv", "gnc2_hyperspherical_uniformity_means"}


def test_nearly_equal_means_spoil_the_pseudo_inverse_only():
    rng = np.random.default_rng(3)
    features, labels, W, b = cloud(rng, 6, 12, within=0)
    features[labels == 1] = features[labels == 0] + 1e-10
    assert undefined(features, labels, W, b) == {NC1}
    # at 1e-7, still far below what float32 networks produce by chance, it is a value again
    features[labels == 1] = features[labels == 0] + 1e-7
    assert undefined(features, labels, W, b) == set()


def test_all_means_equal_leave_statistics_of_means_undefined():
    rng = np.random.default_rng(4)
    _, labels, W, b = cloud(rng, 4, 6)
    features = np.tile(rng.standard_normal(6), (len(labels), 1))
    assert undefined(features, labels, W, b) == MEANS_DIRECTIONS | {
        NC1,
        "nc2_equinorm_means",
        "nc3_self_duality",
        "within_between_trace_ratio",
        "cdnv",
        "separation_fuzziness",
        "etf_error_means",
        "etf_error_product",
    }


def test_class_mean_at_the_global_mean_leaves_its_direction_undefined():
    features = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 1], [0, -1, -1], [0, 0, 0]]) + 0.3
    labels = np.arange(5)
    W = np.random.default_rng(6).standard_normal((5, 3))
    # five means in a plane of three dimensions: rank 2 < 3 leaves NC1 undefined also
    assert undefined(features, labels, W, None) == MEANS_DIRECTIONS | {NC1}


def test_zero_classifier_leaves_its_statistics_undefined():
    features, labels, W, b = cloud(np.random.default_rng(7), 4, 6)
    assert undefined(features, labels, 0 * W, 0 * b) == CLASSIFIER_DIRECTIONS | {
        "nc2_equinorm_classifier",
        "nc3_self_duality",
        "etf_error_classifier",
        "etf_error_product",
    }
    W[2] = 0
    assert undefined(features, labels, W, b) == CLASSIFIER_DIRECTIONS


def test_classifier_orthogonal_to_the_means_leaves_their_product_undefined():
    rng = np.random.default_rng(8)
    features, labels, W, b = cloud(rng, 3, 8)
    features[:, 4:] = 1.5
    W[:, :4] = 0
    Q = rotation(rng, 8)
    assert undefined(features @ Q, labels, W @ Q, b) == {"etf_error_product"}


def test_one_class_leaves_statistics_of_pairs_undefined():
    features, labels, W, b = cloud(np.random.default_rng(9), 1, 4)
    names = undefined(features, labels, W, b)
    defined = {
        *("nc4_ncc_mismatch", "ncc_accuracy", "network_accuracy", "expected_calibration_error"),
        *("bias_collapse", "nc0_sum_of_rows", "nc2_equinorm_classifier"),
    }
    of_balanced = {name for name, entry in OF_MOMENTS.items() if not entry.unbalanced}
    assert names == of_balanced - {"vci"} - defined


def test_constant_features_within_classes_have_nc1_zero():
    """Complete collapse is not degenerate: NC1 is exactly 0."""
    features, labels, W, b = cloud(np.random.default_rng(10), 4, 6, within=0)
    assert undefined(features, labels, W, b) == set()
    assert measure(features, labels, W, b)[NC1] == 0


# ---------------------------------------------------------------------------------- interface


def test_registry_names_stay_in_their_order():
    of_paper = """
        nc1_within_class_variability nc2_equinorm_means nc2_equinorm_classifier
        nc2_equiangularity_means nc2_equiangularity_classifier nc2_maximal_angle_means
        nc2_maximal_angle_classifier nc3_self_duality nc4_ncc_mismatch
    """
    more = """
        within_between_trace_ratio cdnv separation_fuzziness etf_error_means etf_error_classifier
        etf_error_product bias_collapse nc0_sum_of_rows gnc2_hyperspherical_uniformity_means
        gnc2_hyperspherical_uniformity_classifier gnc3_cosine_duality vci ncc_accuracy
        network_accuracy expected_calibration_error nc1_class_balanced nc1_example_weighted
        nc2_equinorm_means_example_weighted nc2_equiangularity_means_example_weighted
        nc3_self_duality_example_weighted
    """
    assert list(OF_MOMENTS) == [*of_paper.split(), *more.split()]
    s = compute_statistics(compute_moments(*cloud_arguments()))
    of_balanced = [name for name, entry in OF_MOMENTS.items() if not entry.unbalanced]
    assert list(s) == [name for name in of_balanced if name != "vci"]
    assert all(type(v) is float for v in s.values())


def cloud_arguments():
    features, labels, W, b = cloud(np.random.default_rng(11), 3, 5)
    return features, labels, 3, W, b


def test_counts_of_none_are_the_default():
    means = np.eye(3, 4)
    assert torch.equal(centred_class_means(means, None), centred_class_means(means))


def test_decisions_of_unlike_shapes_are_refused():
    with pytest.raises(UserError, match=r"shapes \(2, 1\) and \(2,\)"):
        mismatch([[0], [1]], [0, 1])


def test_a_table_shows_what_only_the_test_set_has():
    result = measure(np.eye(3)[[0, 1, 2]], [0, 1, 2])
    result.test = measure(np.eye(3)[[0, 0, 1, 2]], [0, 0, 1, 2])
    assert "nc1_class_balanced" not in result
    assert "\nnc1_class_balanced" in str(result)


def test_statistics_of_takes_tensors_and_arrays():
    features, labels, _, W, b = cloud_arguments()
    arrays = measure(features, labels, W, b)
    tensors = measure(*(torch.from_numpy(a) for a in (features, labels, W, b)))
    parameter = torch.nn.Parameter(torch.from_numpy(W))
    assert arrays == tensors == measure(features, labels, parameter, b)
    with pytest.raises(UserError, match="weight"):
        measure(features, labels, W[0], b)


@pytest.mark.parametrize("within", [1.0, 1e-5])
@pytest.mark.parametrize("classes, d", [(3, 6), (6, 4), (4, 3)])
@pytest.mark.filterwarnings("ignore::neural_collapse.collapse.statistics.ReducedRankWarning")
def test_the_variability_collapse_index_is_its_definition(classes, d, within):
    rng = np.random.default_rng(12)
    features, labels, _, _ = cloud(rng, classes, d, n=20, within=within)
    with mpmath.workdps(50):
        means = np.stack([features[labels == c].mean(0) for c in range(classes)])
        D = mpmath.matrix((features - means[labels]).tolist())
        M = mpmath.matrix((means - means.mean(0)).tolist())
        sigma_b = M.T * M / classes
        total = D.T * D / len(features) + sigma_b
        product = total**-1 * sigma_b
        expected = 1 - sum(product[k, k] for k in range(d)) / min(d, classes - 1)
        expected = float(expected)
    got = measure(features, labels, scatter="full")["vci"]
    assert_allclose(got, expected, rtol=1e-12 if within == 1 else 1e-9)


def test_the_variability_collapse_index_of_a_singular_scatter():
    """All features in a plane of six dimensions: the pseudo-inverse is over the plane."""
    rng = np.random.default_rng(13)
    features, labels, _, _ = cloud(rng, 3, 2, n=20)
    frame = rotation(rng, 6)[:2]
    plane = measure(features, labels, scatter="full")["vci"]
    assert_allclose(measure(features @ frame, labels, scatter="full")["vci"], plane, rtol=1e-10)


def test_the_variability_collapse_index_of_few_examples_is_zero():
    rng = np.random.default_rng(14)
    of_few, of_more = (measure(*cloud(rng, 3, d, n=4)[:2], scatter="full")["vci"] for d in (11, 10))
    assert of_few == pytest.approx(0, abs=1e-12) and of_more > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_the_variability_collapse_index_does_not_see_dead_features(seed):
    """Features that are always zero, as dead ReLUs give, leave the other ones their index."""
    rng = np.random.default_rng(seed)
    alive, labels, _, _ = cloud(rng, 5, 4, n=6, within=1e-3)
    features = np.insert(alive, [0, 2, 4], 0, axis=1)
    of_alive = measure(alive, labels, scatter="full")["vci"]
    assert_allclose(measure(features, labels, scatter="full")["vci"], of_alive, rtol=1e-9)


def test_the_variability_collapse_index_does_not_depend_on_features_scales():
    """A feature's scale changes no index: variances from 1e-10 to 1e6 are no rank deficiency."""
    features, labels, _, _ = cloud(np.random.default_rng(15), 4, 6, n=8, within=1)
    scaled = features * np.array([1e-5, 1, 1e3, 1, 1e-3, 1])
    plain, unlike = (measure(h, labels, scatter="full")["vci"] for h in (features, scaled))
    assert_allclose(unlike, plain, rtol=1e-6)


@pytest.mark.parametrize("classes, d", [(2, 1), (3, 2), (5, 4), (10, 30)])
@pytest.mark.parametrize("turned", [False, True])
def test_simplex_etf_of_any_size_has_its_gram_matrix(classes, d, turned):
    generator = torch.Generator().manual_seed(0) if turned else None
    etf = nc.simplex_etf(classes, d, generator=generator)
    expected = (classes * np.eye(classes) - 1) / (classes - 1)
    assert_allclose(etf @ etf.T, expected, atol=1e-14)
    assert_allclose(etf.sum(0), 0, atol=1e-14)
    assert nc.functional.maximal_angle(etf) < 1e-15


def test_simplex_etf_of_too_few_dimensions_is_refused():
    with pytest.raises(UserError, match="5 vertices in 3 dimensions does not exist"):
        nc.simplex_etf(5, 3)


def test_pairs_in_tiles_are_those_of_one_block(monkeypatch):
    rng = np.random.default_rng(20)
    features, labels, W, b = cloud(rng, 17, 20)
    whole = measure(features, labels, W, b).to_dict()
    monkeypatch.setattr("neural_collapse.collapse.statistics._TILE_ELEMENTS", 50)
    assert measure(features, labels, W, b).to_dict() == pytest.approx(whole, rel=1e-12)


def test_close_means_keep_their_distances_digits():
    """Their distance by expanded squares would have lost all digits."""
    means = np.array([[1e3, 0.0], [1e3 + 1e-6, 0.0], [-1e3, 5.0]])
    distances = pdist(means)
    first, second = np.triu_indices(3, 1)
    v = np.array([1e-12, 2e-12, 3e-12])
    expected = np.mean((v[first] + v[second]) / (2 * distances**2))
    got = nc.functional.class_distance_normalized_variance(means, v)
    assert_allclose(got, expected, rtol=1e-12)


def test_the_calibration_error_is_that_of_its_definition():
    rng = np.random.default_rng(22)
    features, labels, W, b = cloud(rng, 5, 6, n=60)
    found = measure(features, labels, W, b)
    p = softmax(features @ W.T + b, axis=1)
    confidence, right = p.max(1), p.argmax(1) == labels
    error = 0.0
    for k in range(15):
        of_bin = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if of_bin.any():
            gap = abs(right[of_bin].mean() - confidence[of_bin].mean())
            error += gap * of_bin.mean()
    assert 0.01 < error < 0.99
    assert_allclose(found["expected_calibration_error"], error, rtol=1e-10)
    assert found.ece == found["expected_calibration_error"]
    assert "weight" in measure(features, labels).absent["expected_calibration_error"]


def test_certain_and_right_decisions_have_no_calibration_error():
    found = measure([[1.0, 0], [0, 1]], [0, 1], 1000 * np.eye(2))
    assert found.ece == 0
    wrong = measure([[1.0, 0], [0, 1]], [1, 0], 1000 * np.eye(2))
    assert wrong.ece == 1


@pytest.mark.parametrize(("reduction", "share"), [("mean", 1 / 4), ("half_sum", 1 / 2)])
def test_training_with_mse_has_the_minimum_of_the_parts(reduction, share):
    """The factor between the weight decay of a training and the lambda of the formulas: the
    trained last layer is the one that the least-squares formulas give."""
    rng = np.random.default_rng(23)
    features, labels, _, _ = cloud(rng, 4, 3, n=9)
    training = TrainingRecipe(loss="mse", mse_reduction=reduction, weight_decay=0.1)
    # Gradient of share * |W h + b - e|^2 averaged over examples, and of 0.1 / 2 (|W|^2 + |b|^2).
    design = np.hstack([features, np.ones((36, 1))])
    V = np.zeros((4, 4))
    for _ in range(20_000):
        errors = design @ V.T - np.eye(4)[labels]
        V -= 0.02 * (2 * share * errors.T @ design / 36 + 0.1 * V)
    loss = loss_of(training)(torch.tensor(design @ V.T), torch.tensor(labels)).item()
    assert_allclose(loss, share * (errors**2).sum() / 36, rtol=1e-6)
    moments = measure(features, labels, V[:, :3], V[:, 3], scatter="full").moments
    parts = nc.functional.mse_decomposition(
        moments.class_means, moments.scatter, V[:, :3], V[:, 3], training.mse_decay(4)
    )
    assert_allclose(parts.perpendicular, 0, atol=1e-12)
    whole = loss + 0.05 * (V**2).sum()
    assert_allclose(sum(parts), whole / share / 2, rtol=1e-10)


@pytest.mark.parametrize("decay", [1e-4, 0.3])
def test_the_parts_of_the_squared_error_add_up_to_it(decay):
    rng = np.random.default_rng(21)
    features, labels, W, b = cloud(rng, 4, 7, n=9)
    moments = measure(features, labels, W, b, scatter="full").moments
    parts = nc.functional.mse_decomposition(moments.class_means, moments.scatter, W, b, decay)
    errors = features @ W.T + b - np.eye(4)[labels]
    expected = (errors**2).sum() / (2 * 36) + decay / 2 * ((W**2).sum() + (b**2).sum())
    assert_allclose(sum(parts), expected, rtol=1e-12)
    assert min(parts) >= 0
    # the least-squares classifier itself, by ridge regression on all examples
    design = np.hstack([features, np.ones((36, 1))])
    ridge = np.linalg.solve(
        design.T @ design / 36 + decay * np.eye(8), design.T @ np.eye(4)[labels] / 36
    )
    best = nc.functional.mse_decomposition(
        moments.class_means, moments.scatter, ridge[:7].T, ridge[7], decay
    )
    assert_allclose(best.perpendicular, 0, atol=1e-12)
    assert_allclose(best[:2], parts[:2], rtol=1e-12)


def test_class_whose_mean_is_zero_is_a_centre_like_another():
    features = np.array([[0, 0], [0, 0], [3, 0], [4, 0], [0, 3], [0, 4.0]])
    labels = [0, 0, 1, 1, 2, 2]
    assert measure(features, labels)["ncc_accuracy"] == 1
    shifted = measure(features + 1, labels)["ncc_accuracy"]
    assert shifted == 1


def test_class_that_the_train_set_lacks_is_no_centre():
    train_means = np.array([[5, 5], [-5, 5], [np.nan, np.nan]])
    features = np.array([[1, 1], [-1, 1.0]])  # the origin is nearer than their own centres
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # statistics that need every class are undefined
        found = measure(features, [0, 1], train_means=train_means, num_classes=3)
    assert found["ncc_accuracy"] == 1
