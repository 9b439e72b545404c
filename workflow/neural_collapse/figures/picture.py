"""Figure 1: three classes in the 3-D space of their means, at several epochs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mpl_toolkits.mplot3d.axes3d import Axes3D

from ..results.layout import Layout
from . import style
from .specs import DEFAULT_LOOK, REACH_MAX, Look, Picture, choose_picture

# A dark, a middle and a light shade for the three classes.
FEATURE_SHADES = ("#1D4E89", "#5B9BD5", "#9FC9EE")
MEAN_SHADES = ("#08306B", "#2171B5", "#6BAED6")
CLASSIFIER_SHADES = ("#67000D", "#CB181D", "#FB6A4A")
ETF_SHADES = ("#00441B", "#238B45", "#74C476")

AZIMUTH = -81.0
REACH_MIN = 1.2


def figure_1(
    activations: pd.DataFrame,
    runs: pd.DataFrame,
    layout: Layout | None = None,
    cell: tuple[str, str] | None = None,
    look: Look = DEFAULT_LOOK,
) -> Figure:
    """Figure 1 from the tables `activations` and `runs`.

    Small dots are features, balls on sticks the class means (blue), triangles on sticks the
    classifiers (red), diamonds the simplex ETF's vertices (green); shades tell the classes apart.
    """
    layout = layout or Layout.of(runs)
    chosen = choose_picture(activations, runs, layout, cell)
    with style.style():
        if chosen is None:
            figure = style.new_figure(style.ONE_COLUMN_IN, 1.2)
            figure.text(0.5, 0.5, "no features were kept", ha="center", style="italic")
            return figure
        rows, epochs = chosen.rows, chosen.epochs
        columns = len(epochs) if len(epochs) <= 3 else 2 if len(epochs) == 4 else 4
        columns = min(columns, len(epochs))
        lines = -(-len(epochs) // columns)
        width = style.figure_width(columns, look.width)
        figure = style.new_figure(width, 0.55 + lines * (0.14 + 0.68 * width / columns))
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.03, wspace=0, hspace=0.02)
        for place, epoch in enumerate(epochs):
            ax = figure.add_subplot(lines, columns, place + 1, projection="3d")
            draw_space(ax, rows[rows["epoch"] == epoch])
            ax.set_title(f"Epoch {epoch}", y=1, pad=0)
        figure.suptitle(chosen.title, fontsize=7)
        draw_legend(figure, chosen)
    return figure


def reach(features_N3: np.ndarray) -> float:
    """How far the picture reaches from its centre, in norms of the class means."""
    if len(features_N3) == 0:
        return REACH_MIN
    radius = np.linalg.norm(features_N3, axis=1)
    return float(np.clip(radius.max(), REACH_MIN, REACH_MAX))


def draw_space(ax: Axes3D, rows: pd.DataFrame, azimuth: float = AZIMUTH) -> None:
    """One epoch's points and sticks, seen from `azimuth` (degrees)."""
    kinds = {kind: part for kind, part in rows.groupby("kind")}
    classes = sorted(rows["class_index"].unique())
    shade = {index: place % 3 for place, index in enumerate(classes)}
    nothing = rows.iloc[:0]
    features = kinds.get("feature", nothing)
    points = features[["x", "y", "z"]].to_numpy()
    limit = reach(points)
    inside = np.linalg.norm(points, axis=1) <= limit
    for index in classes:
        chosen = points[inside & (features["class_index"] == index).to_numpy()]
        ax.scatter(
            *chosen.T,
            s=2.2,
            color=FEATURE_SHADES[shade[index]],
            alpha=0.75,
            linewidths=0,
            depthshade=False,
            clip_on=False,
            gid=f"feature-{index}",
        )
    looks = [
        ("etf_vertex", ETF_SHADES, "D", 26, 0.7, (0, (3, 1.5))),
        ("class_mean", MEAN_SHADES, "o", 22, 1.1, "-"),
        ("classifier", CLASSIFIER_SHADES, "^", 17, 0.9, (0, (1, 1))),
    ]
    for kind, shades, marker, size, width, line in looks:
        for row in kinds.get(kind, nothing).itertuples():
            colour = shades[shade[row.class_index]]
            stick = [0, row.x], [0, row.y], [0, row.z]
            look = {"color": colour, "linewidth": width, "linestyle": line}
            ax.plot(*stick, clip_on=False, **look)
            ax.scatter(
                [row.x],
                [row.y],
                [row.z],
                marker=marker,
                s=size,
                color=colour if kind != "etf_vertex" else "none",
                edgecolors="white" if kind != "etf_vertex" else colour,
                linewidths=0.3 if kind != "etf_vertex" else 1.0,
                depthshade=False,
                clip_on=False,
                gid=f"{kind}-{row.class_index}",
            )
    # Seen from above, aslant: the vertices stand around the z axis, above the origin.
    ax.view_init(elev=42, azim=azimuth)
    ax.set_xlim(-limit, limit)
    ax.set_ylim(0.2 - limit, 0.2 + limit)
    ax.set_zlim(0.35 - limit, 0.35 + limit)
    ax.set_box_aspect((1, 1, 1), zoom=1.9)
    ax.set_axis_off()
    for artist in (*ax.lines, *ax.collections):
        artist.set_in_layout(False)
    if not inside.all():
        share = 1 - inside.mean()
        note = f"{100 * max(share, 0.01):.0f} % of the features outside"
        ax.text2D(0.5, 0.0, note, transform=ax.transAxes, ha="center", fontsize=6, color="0.4")


def draw_legend(figure: Figure, chosen: Picture) -> None:
    """What the kinds of points look like, and what is not of the paper's size, at the bottom."""
    figure.legend(
        handles=legend_handles(),
        loc="outside lower center",
        ncols=4,
        handletextpad=0.3,
        title=style.note_lines(figure, chosen.size) or None,
        title_fontproperties={"size": style.NOTE_SIZE},
    )


def legend_handles() -> list[Line2D]:
    """What the kinds of points look like."""

    def mark(label: str, colour: str, marker: str, size: float, **look) -> Line2D:
        return Line2D(
            [], [], linestyle="none", label=label, color=colour, marker=marker, ms=size, **look
        )

    return [
        mark("features", FEATURE_SHADES[1], "o", 1.8),
        mark("class means", MEAN_SHADES[1], "o", 4.5),
        mark("classifiers", CLASSIFIER_SHADES[1], "^", 4.5),
        mark("simplex ETF", ETF_SHADES[1], "D", 4, markerfacecolor="none", markeredgewidth=1),
    ]
