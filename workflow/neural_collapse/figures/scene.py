"""Figure 1's scene in space, balls and sticks, and its rendering into pixels.

The still, the animation and the interactive page all draw these solids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..results.tables import where
from .specs import Picture

# Of the three classes: dark, middle, light.
FEATURES = ("#1D4E89", "#4A8ACB", "#8DBDE8")
MEANS = ("#0B3C7D", "#2171B5", "#5DA3D9")
CLASSIFIERS = ("#8E0A17", "#CB181D", "#F2553D")
ETF = ("#1B7837", "#35A055", "#74C476")
# kind: shades, radius of balls, radius of sticks, opacity. The classifier's stick encloses the
# mean's and the mean's ball the classifier's, so that both are seen where they coincide.
_LOOKS = {
    "feature": (FEATURES, 0.017, 0.0, 1.0),
    "class_mean": (MEANS, 0.072, 0.014, 1.0),
    "classifier": (CLASSIFIERS, 0.055, 0.024, 1.0),
    "etf_vertex": (ETF, 0.105, 0.0, 0.3),
}
ELEVATION, AZIMUTH = 42.0, -81.0
"""Degrees; from above, aslant: the vertices stand around the z axis, above the origin."""
TARGET = np.array([0.0, 0.0, 0.62])
"""The point in the middle of the picture: of the origin and the vertices of ten classes."""
REACH_MIN, REACH_MAX = 1.3, 1.9
ASPECT = 0.8
"""Height of the picture by its width."""
OVERSAMPLING = 2
_LIGHT = np.array([-0.45, 0.55, 0.70]) / np.linalg.norm([-0.45, 0.55, 0.70])


@dataclass(frozen=True)
class Solid:
    """Balls of one kind and class; with `stick_radius`, each on a stick from the origin."""

    kind: str
    """feature, class_mean, classifier or etf_vertex."""
    class_index: int
    colour: str
    points: np.ndarray
    """(N, 3), the balls' centres."""
    radius: float
    stick_radius: float
    opacity: float


def solids(picture: Picture, epoch: int) -> list[Solid]:
    """The solids of an epoch; radii are proportional to `reach`."""
    rows = where(picture.rows, epoch=epoch)
    larger = reach(picture) / REACH_MIN
    found = []
    for kind, (shades, radius, stick, opacity) in _LOOKS.items():
        for place, index in enumerate(picture.classes):
            chosen = where(rows, kind=kind, class_index=index)
            points = chosen[["x", "y", "z"]].to_numpy(dtype=np.float64)
            sizes = (larger * radius, larger * stick, opacity)
            found.append(Solid(kind, index, shades[place % 3], points, *sizes))
    return found


def reach(picture: Picture) -> float:
    """Extent of the picture for all epochs, in mean norms of the class means.

    It contains 90 % of the features, without those of epoch 0, which are far apart.
    """
    features = where(picture.rows[picture.rows["epoch"] > 0], kind="feature")
    features = features[["x", "y", "z"]].to_numpy()
    if len(features) == 0:
        return REACH_MIN
    radius = np.linalg.norm(features, axis=1)
    return float(np.clip(np.quantile(radius, 0.9), REACH_MIN, REACH_MAX))


def camera(azimuth: float) -> np.ndarray:
    """Rows (3, 3): the directions to the right, up and towards the viewer."""
    a, e = np.deg2rad([azimuth, ELEVATION])
    toward = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    return np.stack([right, np.cross(toward, right), toward])


def outside_note(picture: Picture, epoch: int, turnable: bool = False) -> str:
    """The share of an epoch's features that lie outside of the picture, as text; empty if none.

    One that is turned by hand shows a cube, and the others what is in their first view.
    """
    features = where(picture.rows, epoch=epoch, kind="feature")[["x", "y", "z"]].to_numpy()
    right, up, _ = camera(AZIMUTH) @ (features - TARGET).T
    outside = (abs(right) > reach(picture)) | (abs(up) > ASPECT * reach(picture))
    if turnable:
        outside = (abs(features - TARGET) > reach(picture)).any(axis=1)
    if not outside.any():
        return ""
    return f"{100 * max(outside.mean(), 0.01):.0f} % of the features outside"


def render(scene: list[Solid], extent: float, width: int, azimuth: float = AZIMUTH) -> np.ndarray:
    """The scene on white as (height, width, 3) uint8.

    `extent` is half of the picture's width, in the scene's units; the projection is orthographic.
    """
    height = round(ASPECT * width)
    size = OVERSAMPLING * np.array([width, height])
    scale = size[0] / (2 * extent)
    axes = camera(azimuth)

    def place(points: np.ndarray) -> np.ndarray:
        """Pixels to the right and downwards, and the depth towards the viewer in pixels too."""
        right, up, toward = ((points - TARGET) @ axes.T * scale).T
        return np.stack([right + size[0] / 2, size[1] / 2 - up, toward], axis=-1)

    image = np.ones((size.prod(), 3), np.float32)
    depth = np.full(size.prod(), -np.inf, np.float32)
    for solid in sorted(scene, key=lambda solid: -solid.opacity):
        placed, origin = place(solid.points), place(np.zeros(3))
        canvas = (image, depth, size, solid)
        _draw_balls(placed, solid.radius * scale, *canvas)
        for tip in placed if solid.stick_radius else ():
            _draw_stick(origin, tip, solid.stick_radius * scale, *canvas)
    image = image.reshape(*size[::-1], 3)
    # Sums of slices: much faster than a mean over axes of two pixels.
    steps = range(OVERSAMPLING)
    image = sum(image[i::OVERSAMPLING, j::OVERSAMPLING] for i in steps for j in steps)
    return np.rint(255 / OVERSAMPLING**2 * image).astype(np.uint8)


def _draw_balls(centres, radius, image, depth, size, solid) -> None:
    reach = int(np.ceil(radius)) + 1
    across, down = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    corner = np.floor(centres[:, :2]).astype(int)
    x, y = corner[:, 0, None, None] + across, corner[:, 1, None, None] + down
    right = x + 0.5 - centres[:, 0, None, None]
    below = y + 0.5 - centres[:, 1, None, None]
    height = radius**2 - right**2 - below**2
    inside = (height > 0) & (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
    height = np.sqrt(height[inside])
    deep = height + np.broadcast_to(centres[:, 2, None, None], inside.shape)[inside]
    normal = np.stack([right[inside], -below[inside], height]) / radius
    _paint((y * size[0] + x)[inside], deep, normal, image, depth, solid)


def _draw_stick(base, tip, radius, image, depth, size, solid) -> None:
    """A stick with round ends."""
    low = np.clip(np.floor(np.minimum(base, tip)[:2] - radius), 0, size).astype(int)
    high = np.clip(np.ceil(np.maximum(base, tip)[:2] + radius) + 1, 0, size).astype(int)
    x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]))
    right, below = x + 0.5 - base[0], y + 0.5 - base[1]
    along = tip - base
    share = (right * along[0] + below * along[1]) / max(along[:2] @ along[:2], 1e-12)
    share = np.clip(share, 0, 1)
    right, below = right - share * along[0], below - share * along[1]
    height = radius**2 - right**2 - below**2
    inside = height > 0
    height = np.sqrt(height[inside])
    deep = base[2] + share[inside] * along[2] + height
    normal = np.stack([right[inside], -below[inside], height]) / radius
    _paint((y * size[0] + x)[inside], deep, normal, image, depth, solid)


def _paint(where, deep, normal, image, depth, solid) -> None:
    """Colour these pixels where nothing is before them; the nearest come last and stay."""
    order = np.argsort(deep, kind="stable")
    order = order[deep[order] > depth[where[order]]]
    where, normal = where[order], normal[:, order]
    light = np.clip(_LIGHT @ normal, 0, 1)[:, None]
    colour = np.array([int(solid.colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    shaded = np.clip(colour * (0.5 + 0.6 * light) + 0.45 * light**24, 0, 1)
    image[where] += solid.opacity * (shaded - image[where])
    if solid.opacity == 1:
        depth[where] = deep[order]


def mesh(solid: Solid) -> tuple[np.ndarray, np.ndarray]:
    """The solid's surface as corners (V, 3) and triangles (T, 3) of their indices."""
    fine = (3, 5) if solid.kind == "feature" else (12, 16)
    ball, triangles = _sphere(*fine)
    corners, faces, count = [], [], 0
    for point in solid.points:
        parts = [(solid.radius * ball + point, triangles)]
        if solid.stick_radius:
            # A stick is a ball that is pulled along: of each corner, its half decides its end.
            axis = point / max(np.linalg.norm(point), 1e-12)
            end = (ball @ axis > 0)[:, None] * point
            parts.append((solid.stick_radius * ball + end, triangles))
        for part, indices in parts:
            corners.append(part)
            faces.append(indices + count)
            count += len(part)
    if not corners:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=int)
    return np.concatenate(corners), np.concatenate(faces)


def _sphere(rings: int, sectors: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners and triangles of a unit ball, in circles from pole to pole."""
    down, around = np.meshgrid(
        np.linspace(0, np.pi, rings + 1), 2 * np.pi * np.arange(sectors) / sectors, indexing="ij"
    )
    corners = np.stack([np.sin(down) * np.cos(around), np.sin(down) * np.sin(around), np.cos(down)])
    ring, sector = np.indices((rings, sectors))
    here, beside = ring * sectors + sector, ring * sectors + (sector + 1) % sectors
    faces = [[here, here + sectors, beside], [beside, here + sectors, beside + sectors]]
    return corners.reshape(3, -1).T, np.array(faces).transpose(0, 2, 3, 1).reshape(-1, 3)
