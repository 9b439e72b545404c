"""Figure 1 in motion: an animation (GIF), and a page (HTML) in which it can be turned.

Both show the measured epochs alone, one after the other; nothing between them is made up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL.Image import Dither, Image, fromarray

from ..io.files import atomic_path, write_text_atomically
from ..results.layout import Layout
from . import picture, specs, style

FRAMES = 48
"""Of the whole animation, shared among its epochs."""
FRAME_MS = 120
COLOURS = 128
SIDE_IN = 3.4
DPI = 140
TURN_DEGREES = 60
"""How far the camera goes to either side while an epoch is shown."""


def write_animation(
    activations: pd.DataFrame,
    runs: pd.DataFrame,
    path: Path,
    layout: Layout | None = None,
    cell: tuple[str, str] | None = None,
) -> None:
    """Write Figure 1 as a GIF: each measured epoch in turn, seen by a camera that swings."""
    chosen = specs.choose_picture(activations, runs, layout or Layout.of(runs), cell)
    pictures = [_nothing()] if chosen is None else _frames(chosen)
    # One palette for all, so that no colour flickers. Pillow looks colours up roughly and takes
    # any of the lightest for white, so all of those are the paper's white.
    palette = pictures[-1].quantize(COLOURS)
    colours = np.array(palette.getpalette()[: 3 * COLOURS]).reshape(-1, 3)
    colours[colours.min(axis=1) >= 245] = 255
    paletted = [picture.quantize(palette=palette, dither=Dither.NONE) for picture in pictures]
    for frame in paletted:
        frame.putpalette(colours.ravel().tolist())
    with atomic_path(path) as temporary:
        paletted[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=paletted[1:],
            duration=FRAME_MS,
            loop=0,
            disposal=1,
        )


def _frames(chosen: specs.Picture) -> list[Image]:
    share = max(FRAMES // len(chosen.epochs), 2)
    frames = []
    for epoch in chosen.epochs:
        with style.style():
            figure = style.new_figure(SIDE_IN, SIDE_IN)
            ax = figure.add_subplot(projection="3d")
            picture.draw_space(ax, chosen.rows[chosen.rows["epoch"] == epoch])
            figure.suptitle(f"{chosen.title}, epoch {epoch}", fontsize=8)
            picture.draw_legend(figure, chosen)
            for step in range(share):
                swing = np.sin(2 * np.pi * step / share)
                ax.view_init(elev=ax.elev, azim=picture.AZIMUTH + TURN_DEGREES * swing)
                frames.append(_rendered(figure))
    return frames


def _nothing() -> Image:
    with style.style():
        figure = style.new_figure(SIDE_IN, SIDE_IN)
        figure.text(0.5, 0.5, "no features were kept", ha="center", style="italic")
        return _rendered(figure)


def _rendered(figure: Figure) -> Image:
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # The camera moves; where everything stands does not.
    figure.set_layout_engine("none")
    return fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


# --------------------------------------------------------------------------- the page

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'"
)
"""Nothing is loaded from anywhere; plotly's own script needs its inline code and functions."""


def write_page(
    activations: pd.DataFrame,
    runs: pd.DataFrame,
    path: Path,
    layout: Layout | None = None,
    cell: tuple[str, str] | None = None,
) -> None:
    """Write Figure 1 as one HTML file that opens offline: turn it, and slide through epochs."""
    layout = layout or Layout.of(runs)
    chosen = specs.choose_picture(activations, runs, layout, cell)
    body = "<p>No features were kept for this figure.</p>" if chosen is None else _plot(chosen)
    text = specs.picture_caption(activations, runs, layout, cell)
    # plotly has no triangles in three dimensions.
    text = text.replace("red triangles", "red squares").replace("a panel", "this page")
    title = "Neural collapse" if chosen is None else chosen.title
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Figure 1: {_escaped(title)}</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: {style.INK}; margin: 0 auto; max-width: 60rem;
padding: 1rem; }}
h1 {{ font-size: 1.2rem; margin: 0; }}
#figure-1 {{ height: min(75vh, 46rem); }}
</style>
</head>
<body>
<h1>{_escaped(title)}</h1>
{body}
<p>Drag to turn, scroll to come closer, and move the slider through the measured epochs.
{_escaped(text)}</p>
</body>
</html>
"""
    write_text_atomically(path, page)


def _escaped(text: str) -> str:
    import html

    return html.escape(text)


def _plot(chosen: specs.Picture) -> str:
    import plotly.graph_objects as go

    epochs = chosen.epochs
    steps = [
        {
            "label": str(epoch),
            "method": "animate",
            "args": [
                [str(epoch)],
                {"mode": "immediate", "frame": {"duration": 0}, "transition": {"duration": 0}},
            ],
        }
        for epoch in epochs
    ]
    play = {"frame": {"duration": 900, "redraw": True}, "transition": {"duration": 0}}
    figure = go.Figure(
        data=_traces(chosen, epochs[-1]),
        frames=[
            go.Frame(
                data=_traces(chosen, epoch),
                layout={"scene": _axes(chosen, epoch)},
                name=str(epoch),
            )
            for epoch in epochs
        ],
        layout=go.Layout(
            template="none",
            margin={"l": 0, "r": 0, "t": 0, "b": 0},
            legend={"x": 0, "y": 1, "groupclick": "togglegroup", "itemsizing": "constant"},
            uirevision="kept",
            scene={
                **_axes(chosen, epochs[-1]),
                "aspectmode": "cube",
                "camera": {"eye": {"x": 0.12, "y": -0.8, "z": 0.72}},
            },
            sliders=[
                {
                    "steps": steps,
                    "active": len(epochs) - 1,
                    "currentvalue": {"prefix": "Epoch "},
                    "x": 0.12,
                    "len": 0.86,
                    "pad": {"t": 10, "b": 10},
                }
            ],
            updatemenus=[
                {
                    "type": "buttons",
                    "showactive": False,
                    "x": 0.1,
                    "y": 0,
                    "xanchor": "right",
                    "yanchor": "top",
                    "pad": {"t": 28, "r": 10},
                    "buttons": [{"label": "Play", "method": "animate", "args": [None, play]}],
                }
            ],
        ),
    )
    return figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        include_mathjax=False,
        div_id="figure-1",
        config={"displaylogo": False, "responsive": True},
        auto_play=False,
    )


def _axes(chosen: specs.Picture, epoch: int) -> dict:
    """As far as the still figure of that epoch reaches."""
    rows = chosen.rows[(chosen.rows["epoch"] == epoch) & (chosen.rows["kind"] == "feature")]
    limit = picture.reach(rows[["x", "y", "z"]].to_numpy())
    middle = {"xaxis": 0.0, "yaxis": 0.2, "zaxis": 0.35}
    return {
        name: {"visible": False, "range": [at - limit, at + limit]} for name, at in middle.items()
    }


def _traces(chosen: specs.Picture, epoch: int) -> list:
    """The same traces in the same order for every epoch, so that frames replace each other."""
    import plotly.graph_objects as go

    rows = chosen.rows[chosen.rows["epoch"] == epoch]
    traces = []
    for place, index in enumerate(chosen.classes):
        part = rows[(rows["kind"] == "feature") & (rows["class_index"] == index)]
        traces.append(
            go.Scatter3d(
                x=part["x"].tolist(),
                y=part["y"].tolist(),
                z=part["z"].tolist(),
                mode="markers",
                marker={"size": 2.5, "color": picture.FEATURE_SHADES[place % 3]},
                name="features",
                legendgroup="features",
                showlegend=place == 0,
                hovertemplate=f"feature of class {index}<extra></extra>",
            )
        )
    looks = [
        ("class_mean", "class means", picture.MEAN_SHADES, "circle", 8, "solid"),
        ("classifier", "classifiers", picture.CLASSIFIER_SHADES, "square", 6, "dot"),
        ("etf_vertex", "simplex ETF", picture.ETF_SHADES, "diamond-open", 9, "dash"),
    ]
    for kind, name, shades, symbol, size, dash in looks:
        for place, index in enumerate(chosen.classes):
            (point,) = rows[(rows["kind"] == kind) & (rows["class_index"] == index)].itertuples()
            colour = shades[place % 3]
            traces.append(
                go.Scatter3d(
                    x=[point.x, 0],
                    y=[point.y, 0],
                    z=[point.z, 0],
                    mode="lines+markers",
                    line={"color": colour, "width": 5, "dash": dash},
                    marker={"symbol": symbol, "size": [size, 0], "color": colour},
                    name=name,
                    legendgroup=kind,
                    showlegend=place == 0,
                    hovertemplate=f"{name}, class {index}<extra></extra>",
                )
            )
    return traces


WRITERS = {"gif": write_animation, "html": write_page}
