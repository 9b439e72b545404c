"""Figure 1's coordinates, on configurations whose picture is known."""

import numpy as np
import pytest

from neural_collapse.collapse.projection import project_three_classes, simplex_etf_vertices


def collapsed(classes=10, width=20, seed=0, scale=3.0):
    """Features, means and weight of an exact simplex ETF in a random orientation."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((width, classes)))[0].T
    etf = scale * (basis - basis.mean(axis=0))
    means = etf + generator.standard_normal(width)
    return [np.repeat(means[k : k + 1], 5, axis=0) for k in range(3)], means, 0.2 * etf


def points(frame, kind):
    return frame[frame.kind == kind][["x", "y", "z"]].to_numpy()


@pytest.mark.parametrize("classes", [3, 4, 10, 100])
def test_vertices_form_a_simplex_etf(classes):
    vertices = simplex_etf_vertices(classes)
    gram = vertices @ vertices.T
    np.testing.assert_allclose(np.diag(gram), 1)
    np.testing.assert_allclose(gram[np.triu_indices(3, 1)], -1 / (classes - 1))


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_a_collapsed_network_stands_on_the_vertices(classes):
    features, means, weight = collapsed(classes)
    frame = project_three_classes(features, means, weight, [0, 1, 2])
    vertices = points(frame, "etf_vertex")
    np.testing.assert_allclose(points(frame, "class_mean"), vertices, atol=1e-12)
    np.testing.assert_allclose(points(frame, "classifier"), vertices, atol=1e-12)
    np.testing.assert_allclose(points(frame, "feature"), np.repeat(vertices, 5, 0), atol=1e-12)
    assert frame.class_index.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [0, 1, 2] * 3


def test_rotating_the_feature_space_changes_nothing():
    generator = np.random.default_rng(1)
    features = [generator.standard_normal((30, 12)) + k for k in range(3)]
    means, weight = generator.standard_normal((6, 12)), generator.standard_normal((6, 12))
    turn = np.linalg.qr(generator.standard_normal((12, 12)))[0]
    one = project_three_classes(features, means, weight, [4, 0, 2])
    other = project_three_classes(
        [f @ turn for f in features], means @ turn, weight @ turn, [4, 0, 2]
    )
    np.testing.assert_allclose(one[["x", "y", "z"]], other[["x", "y", "z"]], atol=1e-10)


def test_distances_in_the_span_of_the_means_are_kept():
    generator = np.random.default_rng(2)
    means, weight = generator.standard_normal((7, 9)), generator.standard_normal((7, 9))
    frame = project_three_classes([means[k][None] for k in (1, 3, 6)], means, weight, [1, 3, 6])
    centred = means - means.mean(axis=0)
    scale = np.linalg.norm(centred, axis=1).mean()
    drawn = points(frame, "class_mean")
    np.testing.assert_allclose(
        drawn @ drawn.T, (centred @ centred.T)[np.ix_([1, 3, 6], [1, 3, 6])] / scale**2
    )
    np.testing.assert_allclose(points(frame, "feature"), drawn, atol=1e-12)


def test_procrustes_is_the_best_rotation():
    generator = np.random.default_rng(3)
    means = generator.standard_normal((5, 8))
    frame = project_three_classes([means[:1]] * 3, means, means, [0, 1, 2])
    drawn, vertices = points(frame, "class_mean"), points(frame, "etf_vertex")
    best = np.linalg.norm(drawn - vertices)
    for _ in range(300):
        turn = np.linalg.qr(np.eye(3) + 0.3 * generator.standard_normal((3, 3)))[0]
        assert np.linalg.norm(drawn @ turn - vertices) >= best - 1e-12


def test_three_classes_take_their_third_axis_from_the_features():
    generator = np.random.default_rng(4)
    features, means, weight = collapsed(3, 6)
    normal = np.linalg.svd(means - means.mean(axis=0))[2][2]
    features = [f + generator.standard_normal((5, 1)) * normal for f in features]
    frame = project_three_classes(features, means, weight, [0, 1, 2])
    assert np.abs(points(frame, "class_mean")[:, 2]).max() < 1e-12
    spread = points(frame, "feature")[:, 2].std()
    centred = np.concatenate(features) @ normal
    mean_norm = np.linalg.norm(means - means.mean(axis=0), axis=1).mean()
    assert spread == pytest.approx(centred.std() / mean_norm)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_and_degenerate_networks_give_finite_points(width):
    generator = np.random.default_rng(5)
    features = [generator.standard_normal((4, width)) for _ in range(3)]
    for means in (generator.standard_normal((5, width)), np.zeros((5, width))):
        frame = project_three_classes(features, means, means, [0, 1, 2])
        assert np.isfinite(frame[["x", "y", "z"]]).all(axis=None)
