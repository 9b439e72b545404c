"""Moments against plain longdouble sums, their indifference to batches, and their file."""

import os
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from numpy.testing import assert_allclose, assert_array_equal

from neural_collapse.collapse import measure as measure_module
from neural_collapse.collapse.measure import compute_moments
from neural_collapse.collapse.metric import CollapseMetric
from neural_collapse.collapse.moments import FORMAT, load_moments, save_moments
from neural_collapse.collapse.result import compute_statistics
from neural_collapse.collapse.second_pass import SecondPass
from neural_collapse.io.errors import UserError


def features_near_collapse(rng, counts, d, within, dtype=np.float64):
    """Features mu_c + within * noise with means far from the origin, in random order."""
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = 3.0 + rng.standard_normal((len(counts), d))
    noise = rng.standard_normal((len(labels), d))
    return (means[labels] + within * noise).astype(dtype), labels


def last_layer(rng, classes, d):
    return rng.standard_normal((classes, d)), rng.standard_normal(classes)


def plain_moments(features, labels, classes):
    """The definitions in numpy's 80-bit floats, with the d x d scatter in full."""
    h = features.astype(np.longdouble)
    means = np.stack([h[labels == c].sum(0) / (labels == c).sum() for c in range(classes)])
    deviations = h - means[labels]
    variances = [(deviations[labels == c] ** 2).sum(1).mean() for c in range(classes)]
    sigma_w = deviations.T @ deviations / len(h)
    M = (means - means.mean(0)).T
    U, _, Vt = np.linalg.svd(M.astype(float), full_matrices=False)
    K = min(classes - 1, h.shape[1])
    Q = U[:, :K] @ Vt[:K]
    return means, np.array(variances), Q.T @ sigma_w @ Q


def same(a, b):
    """Whether two moments are the same bits."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.name != "decisions"]
    pairs += zip(a.decisions, b.decisions, strict=True)
    return all(x is y is None or (x.dtype == y.dtype and torch.equal(x, y)) for x, y in pairs)


def decide(features, labels, classes, weight, bias, train_means=None):
    """The nearest class centre's and the network's decision on each example."""
    h, c = torch.as_tensor(np.array(features, float)), torch.as_tensor(labels)
    metric = CollapseMetric(classes, h.shape[1], "none")
    metric.update(h, c)
    means = metric.class_means
    W, b, centres = (
        None if a is None else torch.as_tensor(a).double()
        for a in (weight, bias, means if train_means is None else train_means)
    )
    ncc, network = SecondPass(means, metric.counts, centres, W, b, basis=False).update(h, c)
    return ncc, network


@pytest.mark.parametrize("within", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_equal_their_definitions(within, dtype):
    rng = np.random.default_rng(0)
    features, labels = features_near_collapse(rng, [7, 30, 1, 12], 9, within, dtype)
    weight, bias = last_layer(rng, 4, 9)
    m = compute_moments(features, labels, 4, weight, bias)
    means, variances, scatter = plain_moments(features, labels, 4)
    assert_array_equal(m.counts, [7, 30, 1, 12])
    assert_allclose(m.class_means, means.astype(float), rtol=1e-15)
    assert_allclose(m.class_variances, variances.astype(float), rtol=1e-9, atol=1e-28)
    assert_allclose(
        m.scatter_projected, scatter.astype(float), rtol=1e-9, atol=1e-9 * scatter.max()
    )
    distances = np.linalg.norm(features[:, None].astype(float) - means.astype(float), axis=2)
    ncc, network = distances.argmin(1), (features.astype(float) @ weight.T + bias).argmax(1)
    assert_array_equal(decide(features, labels, 4, weight, bias), [ncc, network])
    for found, which in [
        (m.decisions.counted, labels >= 0),
        (m.decisions.ncc_correct, ncc == labels),
        (m.decisions.network_correct, network == labels),
        (m.decisions.agreeing, ncc == network),
    ]:
        assert_array_equal(found, np.bincount(labels[which], minlength=4))


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e18, 1e30])
def test_float32_features_of_any_size(scale):
    """Their squares leave float32's range."""
    rng = np.random.default_rng(9)
    features, labels = features_near_collapse(rng, [20, 30, 25], 6, 0.5)
    features = (features * scale).astype(np.float32)
    m = compute_moments(features, labels, 3, *last_layer(rng, 3, 6))
    means, variances, scatter = plain_moments(features, labels, 3)
    assert_allclose(m.class_variances, variances.astype(float), rtol=1e-12)
    assert_allclose(m.scatter_projected, scatter.astype(float), atol=1e-12 * scatter.max())
    distances = np.linalg.norm(features[:, None].astype(float) - means.astype(float), axis=2)
    found = decide(features, labels, 3, *last_layer(rng, 3, 6))[0]
    assert_array_equal(found, distances.argmin(1))


def test_decisions_that_float32_cannot_make():
    """Two classes lead by a hair's breadth, of which only float64 can tell which is ahead."""
    rng = np.random.default_rng(10)
    features = rng.standard_normal((400, 64)).astype(np.float32)
    labels = np.arange(400) % 4
    weight = 0.01 * rng.standard_normal((4, 64))
    weight[2] = 1 + rng.random(64)
    weight[1] = weight[2] + 1e-9 * rng.standard_normal(64)
    bias = np.array([0.0, 90, 90, 0])
    exact = (features.astype(np.longdouble) @ weight.T.astype(np.longdouble) + bias).argmax(1)
    coarse = (features @ weight.T.astype(np.float32) + bias.astype(np.float32)).argmax(1)
    assert (coarse != exact).sum() > 100
    assert set(exact) == {1, 2}
    ncc, network = decide(features, labels, 4, weight, bias, train_means=weight)
    assert_array_equal(network, exact)
    distances = ((features.astype(np.longdouble)[:, None] - weight) ** 2).sum(2)
    assert_array_equal(ncc, distances.argmin(1))


def test_decisions_far_from_the_origin():
    """The means' own rounding to float32 is a hundredth of the deviations."""
    rng = np.random.default_rng(15)
    features = (1e4 + 0.05 * rng.standard_normal((2000, 64))).astype(np.float32)
    weight = rng.standard_normal((2, 64))
    weight -= weight.mean(1, keepdims=True)  # so that the scores are small
    exact = (features.astype(np.longdouble) @ weight.T.astype(np.longdouble)).argmax(1)
    _, network = decide(features, np.arange(2000) % 2, 2, weight, None)
    assert_array_equal(network, exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_of_rows_in_any_place_are_the_same_bits(dtype):
    rng = np.random.default_rng(14)
    features, labels = features_near_collapse(rng, [40, 7, 30], 5, 0.5, dtype)
    layer = last_layer(rng, 3, 5)
    expected = compute_moments(features, labels, 3, *layer)
    for rows in (np.argsort(np.argsort(labels, kind="stable")), rng.permutation(len(labels))):
        moved = np.empty_like(features)
        moved[rows] = features
        got = compute_moments(moved, labels, 3, *layer, rows_N=rows)
        assert same(got, expected)


@pytest.mark.parametrize("to_bias, to_weight", [(-1e4, 0), (-1e12, 0), (-1e30, 0), (0, -1e16)])
def test_a_class_out_of_reach_leaves_the_others_their_ranks(to_bias, to_weight):
    rng = np.random.default_rng(17)
    features, labels = rng.standard_normal((200, 64)), np.arange(200) % 4
    features[:, 0] = 1
    weight, bias = last_layer(rng, 4, 64)
    bias[3] += to_bias
    weight[3, 0] += to_weight
    _, network = decide(features, labels, 4, weight, bias)
    assert_array_equal(network, (features @ weight.T + bias)[:, :3].argmax(1))


def test_decisions_with_a_bias_differ():
    features = np.array([[1.0, 0.0], [0.0, 1.0]])
    labels = np.array([0, 1])
    assert decide(features, labels, 2, np.eye(2), np.array([0.0, 2.0]))[1].tolist() == [1, 1]
    assert decide(features, labels, 2, np.eye(2), None)[1].tolist() == [0, 1]
    assert compute_moments(features, labels, 2, np.eye(2), None).bias.tolist() == [0, 0]


def test_blocks_and_order_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    features, labels = features_near_collapse(rng, [300, 200, 250, 5], 12, 1e-6)
    weight, bias = last_layer(rng, 4, 12)
    whole = compute_statistics(compute_moments(features, labels, 4, weight, bias))
    assert whole["nc1_within_class_variability"] < 1e-10
    for block_rows in (7, 64):
        monkeypatch.setattr(measure_module, "BLOCK_ROWS", {"cpu": block_rows})
        order = rng.permutation(len(labels))
        cut = compute_statistics(compute_moments(features[order], labels[order], 4, weight, bias))
        assert_allclose(list(cut.values()), list(whole.values()), rtol=1e-12, atol=1e-14)


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        torch.from_numpy,
        read_only,
        lambda a: a.astype(">f4"),
        lambda a: a[::-1].copy()[::-1],
        lambda a: a[:, ::-1].copy()[:, ::-1],
        np.asfortranarray,
        lambda a: np.rec.fromarrays([np.zeros(18, "u1"), a], dtype=[("", "u1"), ("h", "f4", 4)]).h,
    ],
)
def test_any_layout_gives_the_same_bits(wrap, in_order):
    rng = np.random.default_rng(2)
    features, labels = features_near_collapse(rng, [5, 6, 7], 4, 0.1, np.float32)
    labels = np.sort(labels) if in_order else labels
    weight, bias = last_layer(rng, 3, 4)
    expected = compute_moments(features, labels, 3, weight, bias)
    got = compute_moments(wrap(features), torch.from_numpy(labels), 3, torch.tensor(weight), bias)
    assert torch.equal(got.scatter_projected, expected.scatter_projected)
    assert torch.equal(got.class_means, expected.class_means)


def test_ties_go_to_the_lowest_class():
    rng = np.random.default_rng(4)
    centre = rng.standard_normal(33)
    offsets = rng.standard_normal((40, 33))
    # classes 2 and 5 have one mean; rows of the last 40 lie halfway between classes 0 and 1
    means = rng.standard_normal((7, 33)) * 5
    means[5] = means[2]
    means[0], means[1] = centre, centre + 0.1
    halfway = (means[0] + means[1]) / 2
    normal = means[1] - means[0]
    offsets -= np.outer(offsets @ normal, normal) / (normal @ normal)
    features = np.concatenate([means, means[[5, 2, 5]], halfway + 0.001 * offsets])
    labels = np.concatenate([np.arange(7), [5, 2, 5], np.arange(40) % 7])
    weight = rng.standard_normal((7, 33))
    weight[3] = weight[6]
    ncc, network = decide(features, labels, 7, weight, None, train_means=means)
    assert ncc.tolist() == [0, 1, 2, 3, 4, 2, 6, 2, 2, 2] + [0] * 40
    assert 6 not in network.tolist()
    zero = decide(features, labels, 7, np.zeros((7, 33)), np.zeros(7))[1]
    assert set(zero.tolist()) == {0}


def test_ties_of_the_network_that_rounding_breaks_go_to_the_lowest_class():
    rng = np.random.default_rng(6)
    half = rng.standard_normal((200, 17)) + 3
    features = np.concatenate([half, half[:, ::-1]], axis=1)  # the same from either end
    weight = rng.standard_normal((4, 34)) * 0.01
    weight[1] = rng.random(34)
    weight[3] = weight[1, ::-1]
    scores = features @ weight.T
    assert 0 < (scores[:, 3] > scores[:, 1]).sum() < 200
    assert set(decide(features, np.arange(200) % 4, 4, weight, None)[1].tolist()) == {1}


def test_the_scatter_is_projected_on_its_own_means_whatever_the_centres():
    rng = np.random.default_rng(8)
    features, labels = features_near_collapse(rng, [9, 14, 5], 11, 0.1)
    layer = last_layer(rng, 3, 11)
    centres = rng.standard_normal((3, 11))
    m = compute_moments(features, labels, 3, *layer, train_means=centres)
    _, _, scatter = plain_moments(features, labels, 3)
    assert_allclose(m.scatter_projected, scatter.astype(float), atol=1e-12 * scatter.max())
    distances = np.linalg.norm(features[:, None] - centres, axis=2)
    found = decide(features, labels, 3, *layer, train_means=centres)
    assert_array_equal(found[0], distances.argmin(1))
    assert_array_equal(found[1], (features @ layer[0].T + layer[1]).argmax(1))


def test_train_means_without_any_mean_are_refused():
    features, labels = features_near_collapse(np.random.default_rng(9), [4, 4], 5, 0.1)
    with pytest.raises(UserError, match="train_means holds only NaN"):
        compute_moments(features, labels, 2, None, None, train_means=np.full((2, 5), np.nan))


# ------------------------------------------------------------------------------ a user's mistakes


def valid():
    rng = np.random.default_rng(6)
    features, labels = features_near_collapse(rng, [4, 4, 4], 5, 0.1)
    weight, bias = last_layer(rng, 3, 5)
    return dict(features_ND=features, labels_N=labels, num_classes=3, weight=weight, bias=bias)


def mistake(match, **changes):
    with pytest.raises(UserError, match=match):
        compute_moments(**{**valid(), **changes}, split="test")


def test_a_class_without_examples_is_named():
    labels = valid()["labels_N"].copy()
    labels[labels == 1] = 2
    mistake("test split has no example of class 1;", labels_N=labels)
    mistake("class 3, 4;", num_classes=5, weight=np.zeros((5, 5)), bias=np.zeros(5))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_spoiled_features_are_counted(bad):
    features = valid()["features_ND"].copy()
    features[3, 1] = features[3, 2] = features[7, 0] = bad
    mistake("2 of the 12 examples of the test split have NaN or infinite", features_ND=features)


@pytest.mark.parametrize(
    "wrap, sentence",
    [
        (lambda a: a.astype(complex), "features of the test split are complex"),
        (lambda a: torch.from_numpy(a).to(torch.complex64), "test split are complex"),
        (lambda a: a.astype(np.longdouble), r"are (longdouble|float128), which torch"),
        (scipy.sparse.csr_matrix, r"sparse matrix; pass its .toarray\(\)"),
        (lambda a: torch.from_numpy(a).to_sparse(), r"sparse tensor; pass its .to_dense\(\)"),
        (lambda a: [list(row) for row in a[:-1]] + [[1.0]], "rows of different lengths"),
        (lambda a: np.array([*map(list, a[:-1]), [1.0]], dtype=object), "of different lengths"),
        (lambda a: np.ma.masked_less(a, 3), "masked values"),
        (lambda a: a.astype(object), "object, not numbers"),
        (lambda a: 1e200 * a, "squares overflow float64"),
        (lambda a: 1e300 * (a - a.mean(0)), "squares overflow float64"),
    ],
)
def test_arrays_that_cannot_be_measured_are_named(wrap, sentence):
    mistake(sentence, features_ND=wrap(valid()["features_ND"]))


@pytest.mark.parametrize("name", ["weight", "bias", "train_means"])
def test_complex_parameters_are_refused(name):
    shape = (3,) if name == "bias" else (3, 5)
    mistake(f"values of {name} are complex", **{name: np.zeros(shape, dtype=complex)})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda labels: labels[:, None],
        lambda labels: labels.astype(np.uint8),
        lambda labels: labels.astype(float),
        lambda labels: torch.from_numpy(labels).to(torch.bfloat16),
        pd.Series,
        list,
    ],
)
def test_labels_of_any_form_give_the_same_bits(wrap):
    arguments = valid()
    expected = compute_moments(**arguments)
    got = compute_moments(**arguments | {"labels_N": wrap(arguments["labels_N"])})
    assert same(got, expected)


def test_a_transposed_classifier_and_another_width_are_said():
    mistake(r"weight is transposed, pass its .T of shape \(3, 5\)", weight=np.ones((5, 3)))
    mistake(
        r"weight has shape \(3, 5\), .* features of the test split have 4 columns",
        features_ND=np.ones((12, 4)),
    )
    mistake(r"train_means .* it is transposed", train_means=np.ones((5, 3)))


def test_shapes_and_types_are_checked():
    mistake("shape", features_ND=np.zeros(12))
    mistake("not numbers", features_ND=np.full((12, 5), "x"))
    mistake("labels of shape", labels_N=np.zeros(11, dtype=int))
    mistake("with fractions or NaN", labels_N=np.full(12, 0.5))
    mistake("0..2", labels_N=np.arange(12))
    mistake("0..2", labels_N=np.arange(12) - 1)
    mistake("bias holds NaN", bias=np.full(3, np.nan))
    mistake("train_means has shape", train_means=np.zeros((2, 5)))


# ------------------------------------------------------------------------------------ the file


def stored():
    arguments = valid()
    train = compute_moments(**arguments)
    arguments["features_ND"] = arguments["features_ND"] + 0.5
    test = compute_moments(**arguments, train_means=train.class_means)
    return train, test


def test_file_keeps_every_bit(tmp_path):
    train, test = stored()
    path = tmp_path / "epoch-0350.safetensors"
    metadata = {"epoch": "350", "dataset": "mnist", "note": "é"}
    extra = {"features": torch.randn(4, 5), "labels": torch.arange(4)}
    save_moments(path, train, test, metadata, extra)
    loaded = load_moments(path)
    assert loaded.metadata == metadata
    assert loaded.extra.keys() == extra.keys()
    assert all(torch.equal(loaded.extra[name], tensor) for name, tensor in extra.items())
    assert same(train, loaded.train) and same(test, loaded.test)
    assert os.listdir(tmp_path) == [path.name]


def test_file_without_test_split(tmp_path):
    train, _ = stored()
    save_moments(tmp_path / "m", train, None, {})
    assert load_moments(tmp_path / "m").test is None


def test_foreign_and_incomplete_safetensors_are_named(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"weights\.safetensors: is not a moments"):
        load_moments(path)
    save_file({"weight": torch.zeros(3)}, path, {"format": FORMAT})
    with pytest.raises(UserError, match=r"weights\.safetensors: is not a complete"):
        load_moments(path)


def test_file_keeps_further_layers_in_their_order(tmp_path):
    train, test = stored()
    bare = replace(train, weight=None, bias=None)
    layers = {"hidden.10": (bare, bare), "hidden.2": (replace(test, weight=None, bias=None), bare)}
    save_moments(tmp_path / "m", train, test, {"epoch": "1"}, layers=layers)
    loaded = load_moments(tmp_path / "m")
    assert list(loaded.layers) == list(layers) and loaded.metadata == {"epoch": "1"}
    for name, pair in layers.items():
        for moments, expected in zip(loaded.layers[name], pair, strict=True):
            assert moments.weight is None
            assert torch.equal(moments.scatter_projected, expected.scatter_projected)
            assert all(map(torch.equal, moments.decisions, expected.decisions))
