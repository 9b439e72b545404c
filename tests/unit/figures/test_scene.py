"""Figure 1's scene: points stand where the table says, and what is in front hides the rest."""

import numpy as np
import pandas as pd
import pytest

from neural_collapse.figures import scene
from neural_collapse.figures.scene import Solid, camera, mesh, outside_note, render, solids
from neural_collapse.figures.specs import Picture, choose_picture

BLUE, RED = "#0000FF", "#FF0000"
EXTENT, WIDTH = 1.5, 200


def ball(colour, point, radius=0.2, kind="class_mean", stick=0.0, opacity=1.0):
    return Solid(kind, 0, colour, np.array([point], dtype=float), radius, stick, opacity)


def seen(image, point):
    """The colour at the pixel where a point is projected to."""
    right, up, _ = camera(scene.AZIMUTH) @ (np.array(point) - scene.TARGET)
    height, width, _ = image.shape
    row = height / 2 - up * width / (2 * EXTENT)
    return image[int(row), int(width / 2 + right * width / (2 * EXTENT))].astype(int)


@pytest.fixture(scope="module")
def chosen(tables, layout):
    return choose_picture(tables["activations"], tables["runs"], layout)


def test_every_point_of_an_epoch_is_a_solid_of_its_kind_and_class(chosen):
    for epoch in chosen.epochs:
        rows = chosen.rows[chosen.rows.epoch == epoch]
        found = {(solid.kind, solid.class_index): solid for solid in solids(chosen, epoch)}
        assert len(found) == 4 * 3
        for (kind, index), part in rows.groupby(["kind", "class_index"]):
            np.testing.assert_array_equal(found[kind, index].points, part[["x", "y", "z"]])


def test_etf_and_scale_are_the_same_at_every_epoch(chosen):
    etfs = []
    for epoch in chosen.epochs:
        parts = [solid for solid in solids(chosen, epoch) if solid.kind == "etf_vertex"]
        etfs.append([(solid.points.tolist(), solid.radius) for solid in parts])
    assert all(etf == etfs[0] for etf in etfs)


def test_camera_is_a_rotation_that_looks_down_on_the_scene():
    axes = camera(scene.AZIMUTH)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    assert axes[2, 2] == pytest.approx(np.sin(np.deg2rad(scene.ELEVATION)))


def test_ball_is_seen_where_it_stands_with_its_radius():
    point = np.array([0.3, -0.2, 0.6])
    image = render([ball(BLUE, point)], EXTENT, WIDTH)
    assert image.shape == (160, 200, 3)
    red, _, blue = seen(image, point)
    assert blue > red + 60
    coloured = (image.min(axis=2) < 250).sum()
    assert coloured == pytest.approx(np.pi * (0.2 * WIDTH / (2 * EXTENT)) ** 2, rel=0.06)


@pytest.mark.parametrize("order", [1, -1])
def test_nearer_ball_hides_the_farther_whatever_their_order(order):
    toward = camera(scene.AZIMUTH)[2]
    balls = [ball(RED, scene.TARGET + 0.5 * toward, 0.1), ball(BLUE, scene.TARGET, 0.2)][::order]
    image = render(balls, EXTENT, WIDTH)
    red, _, blue = seen(image, scene.TARGET)
    assert red > blue + 60
    red, _, blue = seen(image, scene.TARGET + 0.15 * camera(scene.AZIMUTH)[0])
    assert blue > red + 60


def test_stick_reaches_from_the_origin_to_its_ball():
    tip = np.array([0.9, 0.0, 0.3])
    image = render([ball(RED, tip, 0.05, stick=0.03)], EXTENT, WIDTH)
    for share in (0.05, 0.5, 0.9):
        red, green, _ = seen(image, share * tip)
        assert red > green + 40, share
    assert (seen(image, -0.2 * tip) == 255).all()


def test_translucent_ball_shows_what_is_within():
    solids = [ball("#00FF00", [0, 0, 0], 0.3, opacity=0.3), ball(BLUE, [0, 0, 0], 0.15)]
    image = render(solids, EXTENT, WIDTH)
    within, around = seen(image, [0, 0, 0]), seen(image, 0.22 * camera(scene.AZIMUTH)[0])
    assert within[2] > within[0] + 40 and around[1] > around[2] and around.min() > 120


def test_share_of_features_outside_the_picture_is_said():
    points = pd.DataFrame([[0, 0, 0], [5, 0, 0], [0, 0, 0]], columns=list("xyz"), dtype=float)
    rows = points.assign(kind="feature", class_index=0, epoch=[0, 0, 1])
    picture = Picture("", 0, rows, "")
    assert outside_note(picture, 0) == "50 % of the features outside"
    assert outside_note(picture, 1) == ""


@pytest.mark.parametrize("stick", [0.0, 0.02])
def test_mesh_is_a_closed_surface_around_its_balls(stick):
    solid = ball(BLUE, [0.0, 0.6, 0.8], stick=stick)
    corners, faces = mesh(solid)
    np.testing.assert_allclose(corners[0], [0.0, 0.6, 1.0])
    radii = np.linalg.norm(corners - solid.points[0], axis=1)
    assert radii[: len(corners) // (2 if stick else 1)] == pytest.approx(0.2)
    ends = np.array([[0, 0, 0], solid.points[0]])
    along = np.linalg.norm(corners[:, None] - ends, axis=2).min(axis=1)
    assert along.max() == pytest.approx(0.2)
    assert faces.min() == 0 and faces.max() == len(corners) - 1
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    counts = np.unique(edges, axis=0, return_counts=True)[1]
    poles = 2 * 16 * (2 if stick else 1)  # each is a ring of corners in one place
    assert (counts == 1).sum() == poles and counts.max() == 2


def test_no_points_are_no_surface_and_a_white_picture():
    nothing = Solid("feature", 0, BLUE, np.zeros((0, 3)), 0.1, 0.0, 1.0)
    assert [len(part) for part in mesh(nothing)] == [0, 0]
    image = render([nothing], EXTENT, WIDTH)
    assert (image == 255).all()
