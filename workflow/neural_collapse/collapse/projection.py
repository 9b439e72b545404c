"""Coordinates of Figure 1: features, class means and classifiers in the span of three means.

Shape suffixes: C classes, d features, n examples of a class, K = 3 chosen classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

CHOSEN = 3
_RANK_TOLERANCE = 1e-9


def simplex_etf_vertices(num_classes: int) -> np.ndarray:
    """Three vertices (3, 3) of the `num_classes`-simplex ETF, as rows in coordinates x, y, z.

    Unit vectors with pairwise cosine -1/(C-1), at equal angles around the z axis, the first
    towards +y; for C = 3 they lie in the plane z = 0.
    """
    cosine = -1 / (num_classes - 1)
    height = np.sqrt(max((1 + 2 * cosine) / 3, 0.0))
    angles = np.pi / 2 + 2 * np.pi * np.arange(CHOSEN) / CHOSEN
    radius = np.sqrt(1 - height**2)
    return np.column_stack(
        [radius * np.cos(angles), radius * np.sin(angles), np.full(CHOSEN, height)]
    )


def project_three_classes(
    features_by_class: Sequence[np.ndarray],
    class_means: np.ndarray,
    weight: np.ndarray,
    classes: Sequence[int],
) -> pd.DataFrame:
    """The points of Figure 1 for one network.

    Features and class means are centred at the mean of all class means and, like the classifiers,
    projected on the 3-D space that the three centred class means span. Features and class means
    are divided by the mean norm of the C centred class means, classifiers by the mean norm of the
    C rows of the weight. At collapse all of them coincide with the vertices of the ETF, which have
    norm one.

    The coordinates are rotated by the orthogonal Procrustes solution that maps the class means to
    the ETF, so figures of several epochs are comparable. If the means span fewer than three
    dimensions (C = 3, or equal means), the missing axes are the leading principal directions of
    the features orthogonal to the span.

    Args:
        features_by_class: three arrays (n_k, d), the features of `classes` in that order.
        class_means: (C, d), train class means of all classes, not centred.
        weight: (C, d), weight of the last layer.
        classes: three different class indices.

    Returns:
        A table with columns kind ("feature", "class_mean", "classifier" or "etf_vertex"),
        class_index, x, y, z.
    """
    classes = list(classes)
    means_Cd, weight_Cd = (np.asarray(rows, dtype=np.float64) for rows in (class_means, weight))
    features = [np.asarray(part, dtype=np.float64) for part in features_by_class]

    centre_d = means_Cd.mean(axis=0)
    centred_Cd = means_Cd - centre_d
    mean_norm = _average_norm(centred_Cd)
    means_Kd = centred_Cd[classes] / mean_norm
    weight_Kd = weight_Cd[classes] / _average_norm(weight_Cd)
    features = [(part - centre_d) / mean_norm for part in features]

    etf_K3 = simplex_etf_vertices(len(means_Cd))
    basis_3d = _basis(means_Kd, np.concatenate(features))
    rotation_33 = _procrustes(means_Kd @ basis_3d.T, etf_K3)
    axes_d3 = basis_3d.T @ rotation_33

    groups = [("feature", k, part @ axes_d3) for k, part in zip(classes, features, strict=True)]
    for kind, points_K3 in [
        ("class_mean", means_Kd @ axes_d3),
        ("classifier", weight_Kd @ axes_d3),
        ("etf_vertex", etf_K3),
    ]:
        groups += [(kind, k, points_K3[i : i + 1]) for i, k in enumerate(classes)]
    tables = [
        pd.DataFrame(points, columns=["x", "y", "z"]).assign(kind=kind, class_index=k)
        for kind, k, points in groups
    ]
    return pd.concat(tables, ignore_index=True)[["kind", "class_index", "x", "y", "z"]]


def _average_norm(rows: np.ndarray) -> float:
    """Mean norm of the rows; 1 if all are zero, to avoid a division by zero."""
    norm = float(np.linalg.norm(rows, axis=1).mean())
    return norm if norm > 0 else 1.0


def _directions(rows: np.ndarray, scale: float) -> np.ndarray:
    """Right singular vectors (r, d) of the singular values that are not zero, each with its
    largest entry positive."""
    if rows.size == 0:
        return np.zeros((0, rows.shape[1]))
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    vectors = vectors[values > _RANK_TOLERANCE * max(scale, np.finfo(float).tiny)]
    if len(vectors) == 0:
        return vectors
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    return vectors * np.sign(largest)


def _basis(means_Kd: np.ndarray, features_Nd: np.ndarray) -> np.ndarray:
    """Orthonormal rows (3, d) whose first span the means; zero rows where d < 3."""
    basis = _directions(means_Kd, float(np.linalg.norm(means_Kd)))[:CHOSEN]
    while len(basis) < min(CHOSEN, means_Kd.shape[1]):
        rest = features_Nd - features_Nd.mean(axis=0)
        rest = rest - rest @ basis.T @ basis
        added = _directions(rest, max(float(np.linalg.norm(features_Nd)), 1e-300))[:1]
        if len(added) == 0:
            # Nothing varies any more: the first coordinate axis that the basis does not hold.
            identity = np.eye(means_Kd.shape[1])
            rest = identity - identity @ basis.T @ basis
            best = np.linalg.norm(rest, axis=1).argmax()
            added = rest[best : best + 1]
        added = added - added @ basis.T @ basis
        basis = np.concatenate([basis, added / np.linalg.norm(added)])
    padding = np.zeros((CHOSEN - len(basis), means_Kd.shape[1]))
    return np.concatenate([basis, padding])


def _procrustes(points_K3: np.ndarray, target_K3: np.ndarray) -> np.ndarray:
    """The orthogonal R (3, 3) that minimises norm_F(points R - target).

    Where it is not unique (points or target in a plane) the proper rotation is taken.
    """
    left, values, right = np.linalg.svd(points_K3.T @ target_K3)
    rotation = left @ right
    if values[-1] <= _RANK_TOLERANCE * max(values[0], 1e-300) and np.linalg.det(rotation) < 0:
        left[:, -1] *= -1
        rotation = left @ right
    return rotation
