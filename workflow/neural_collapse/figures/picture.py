"""Figure 1: three classes in the 3-D space of their means, at several epochs."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import scene, style
from .specs import Picture, choose_picture

PIXELS_AN_INCH = 300


@style.styled
def figure_1(activations, runs, layout, look) -> Figure:
    """Figure 1 from the tables `activations` and `runs`.

    Small spheres are features, balls on sticks the class means (blue) and the classifiers (red),
    green spheres the simplex ETF's vertices; shades distinguish the classes.
    """
    chosen = choose_picture(activations, runs, layout)
    if chosen is None:
        return style.empty_figure("no features were kept")
    epochs = chosen.epochs
    columns = min(len(epochs), 4)
    if len(epochs) == 4 and look.width != "page":
        columns = 2
    lines = -(-len(epochs) // columns)
    width = style.figure_width(columns, look.width)
    figure = style.new_figure(width, 0.55 + lines * (0.14 + 0.82 * width / columns))
    more_lines = style.note_lines(figure, chosen.size).count("\n")
    figure.set_figheight(figure.get_figheight() + more_lines * 1.2 * style.NOTE_SIZE / 72)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0.01)
    for place, epoch in enumerate(epochs):
        ax = figure.add_subplot(lines, columns, place + 1)
        draw_space(ax, chosen, epoch, round(PIXELS_AN_INCH * width / columns))
    figure.suptitle(chosen.title, fontsize=7)
    draw_legend(figure, chosen)
    return figure


def draw_space(ax: Axes, chosen: Picture, epoch: int, pixels: int) -> None:
    """One epoch's scene, titled."""
    image = scene.render(scene.solids(chosen, epoch), scene.reach(chosen), pixels)
    ax.imshow(image, interpolation="antialiased")
    ax.set_axis_off()
    ax.set_title(f"Epoch {epoch}", y=1, pad=2)
    look = {"ha": "center", "va": "top", "fontsize": 6, "color": "0.4"}
    ax.text(0.5, 0.0, scene.outside_note(chosen, epoch), transform=ax.transAxes, **look)


def draw_legend(figure: Figure, chosen: Picture) -> None:
    """Draw the legend of the kinds of points, and the note on smaller data or networks."""
    looks = [
        ("features", scene.FEATURES[1], 1.8, "none"),
        ("class means", scene.MEANS[1], 4.5, "-"),
        ("classifiers", scene.CLASSIFIERS[1], 4.0, "-"),
        ("simplex ETF", scene.ETF[2], 5.5, "none"),
    ]
    figure.legend(
        handles=[
            Line2D([], [], label=label, color=colour, marker="o", ms=size, linestyle=stick)
            for label, colour, size, stick in looks
        ],
        loc="outside lower center",
        ncols=4,
        handletextpad=0.3,
        title=style.note_lines(figure, chosen.size) or None,
        title_fontproperties={"size": style.NOTE_SIZE},
    )
