"""Figure 1 as an animation (GIF) and as an interactive page (HTML).

Both show only the measured epochs, without interpolation.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL.Image import Dither, Image, fromarray

from ..io.files import atomic_path, write_text_atomically
from ..results.layout import Layout
from . import captions, picture, scene, specs, style

FRAMES = 48
"""Frames of the whole animation, divided among its epochs."""
FRAME_MS = 120
COLOURS = 192
SIDE_IN = 3.4
DPI = 140
TURN_DEGREES = 60
"""How far the camera goes to either side while an epoch is shown."""


def write_animation(
    activations: pd.DataFrame, runs: pd.DataFrame, layout: Layout, path: Path
) -> None:
    """Write Figure 1 as a GIF: the measured epochs in order, with a moving camera."""
    chosen = specs.choose_picture(activations, runs, layout)
    if chosen is None:
        pictures = [_rendered(picture.figure_1(activations, runs, layout))]
    else:
        pictures = _frames(chosen)
    # One palette for all, so that no colour flickers. Pillow looks colours up roughly and takes
    # any of the lightest for white, so all of those are the paper's white.
    shown = np.concatenate([np.asarray(picture) for picture in pictures[:: FRAMES // 8]])
    palette = fromarray(shown).quantize(COLOURS)
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
            figure = style.new_figure(SIDE_IN, SIDE_IN + 0.2)
            figure.suptitle(f"{chosen.title}\n{_epoch_text(chosen, epoch)}", fontsize=8)
            picture.draw_legend(figure, chosen)
            words = _rendered(figure)
        solids, extent = scene.solids(chosen, epoch), scene.reach(chosen)
        swing = np.sin(2 * np.pi * np.arange(share) / share)
        azimuths = scene.AZIMUTH + np.round(TURN_DEGREES * swing, 6)
        views = {}
        for azimuth in dict.fromkeys(azimuths):  # the camera comes back to each
            image = scene.render(solids, extent, words.width, azimuth)
            views[azimuth] = words.copy()
            views[azimuth].paste(fromarray(image), (0, words.height // 10))
        frames += [views[azimuth] for azimuth in azimuths]
    return frames


def _epoch_text(chosen: specs.Picture, epoch: int, turnable: bool = False) -> str:
    """The epoch, and how many of its features are not seen."""
    outside = scene.outside_note(chosen, epoch, turnable)
    return ", ".join(filter(None, [f"Epoch {epoch}", outside]))


def _rendered(figure: Figure) -> Image:
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


# --------------------------------------------------------------------------- the page

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'"
)
"""Nothing is loaded from anywhere; plotly's own script needs its inline code and functions."""


def write_page(activations: pd.DataFrame, runs: pd.DataFrame, layout: Layout, path: Path) -> None:
    """Write Figure 1 as one HTML file that opens offline, with rotation and a slider of epochs."""
    chosen = specs.choose_picture(activations, runs, layout)
    body = "<p>No features were kept for this figure.</p>" if chosen is None else _plot(chosen)
    text = captions.figure_1(activations, runs, layout)
    title = "Neural collapse" if chosen is None else chosen.title
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Figure 1: {escape(title)}</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: {style.INK}; margin: 0 auto; max-width: 60rem;
padding: 1rem; }}
h1 {{ font-size: 1.2rem; margin: 0; }}
#controls {{ display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; }}
#controls button {{ font: inherit; padding: .4rem 1rem; }}
#epoch {{ flex: 1 10rem; height: 2rem; }}
#shown {{ flex-basis: 100%; min-height: 1.5em; }}
</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
<p>Drag to turn, scroll to come closer, and move the slider through the measured epochs.
{escape(text)}</p>
</main>
</body>
</html>
"""
    write_text_atomically(path, page)


def _plot(chosen: specs.Picture) -> str:
    from plotly.io import to_html

    names = [str(epoch) for epoch in chosen.epochs]
    extent = scene.reach(chosen)
    axes = {
        f"{axis}axis": {"visible": False, "range": [at - extent, at + extent]}
        for axis, at in zip("xyz", scene.TARGET, strict=True)
    }
    camera = {"eye": dict(zip("xyz", 2 * scene.camera(scene.AZIMUTH)[2], strict=True))}
    camera |= {"projection": {"type": "orthographic"}}  # as the still
    cube = dict.fromkeys("xyz", 2.4)  # as large as a phone has room for
    layout = {
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "legend": {"x": 0, "y": 1, "groupclick": "togglegroup"},
        "uirevision": "kept",
        "scene": {**axes, "aspectmode": "manual", "aspectratio": cube, "camera": camera},
    }
    frames = [{"data": _traces(chosen, int(name)), "name": name} for name in names]
    plot = to_html(
        {"data": _traces(chosen, chosen.epochs[-1]), "frames": frames, "layout": layout},
        full_html=False,
        include_plotlyjs=True,
        include_mathjax=False,
        div_id="figure-1",
        default_height="min(75vh, 46rem, 100vw)",
        config={"displaylogo": False, "responsive": True},
        auto_play=False,
        validate=False,  # which takes seconds for so many numbers
    )
    last = len(names) - 1
    return f"""{plot}
<div id="controls">
<button type="button" id="play">Play</button>
<label for="epoch">Epoch</label>
<input type="range" id="epoch" autocomplete="off" min="0" max="{last}" value="{last}">
<output id="shown" for="epoch"></output>
</div>
<script>
const names = {json.dumps(names)};
const texts = {json.dumps([_epoch_text(chosen, epoch, turnable=True) for epoch in chosen.epochs])};
{_CONTROLS}</script>
"""


_CONTROLS = """
const [plot, play, slider, shown] = ["figure-1", "play", "epoch", "shown"].map(
  (id) => document.getElementById(id));
plot.setAttribute("role", "group");  // not img, since plotly's buttons are in it
plot.setAttribute("aria-label", "Features, class means, classifiers and simplex ETF in space");
let timer = null;
function say() {
  shown.textContent = texts[slider.value];
  slider.setAttribute("aria-valuetext", texts[slider.value]);
}
function show() {
  say();
  const atOnce = { frame: { duration: 0, redraw: true }, transition: { duration: 0 } };
  Plotly.animate(plot, [names[slider.value]], { mode: "immediate", ...atOnce })
    .catch(() => {});  // interrupted by the next
}
function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}
slider.addEventListener("input", () => { stop(); show(); });
play.addEventListener("click", () => {
  if (timer !== null) return stop();
  slider.value = 0;
  show();
  play.textContent = "Stop";
  timer = setInterval(() => {
    slider.stepUp();
    show();
    if (slider.value === slider.max) stop();
  }, 900);
});
say();
"""


_NAMES = {
    "feature": "features",
    "class_mean": "class means",
    "classifier": "classifiers",
    "etf_vertex": "simplex ETF",
}


def _traces(chosen: specs.Picture, epoch: int) -> list[dict]:
    """The same solids in the same order for every epoch, so that frames replace each other."""
    traces, shown = [], set()
    for solid in scene.solids(chosen, epoch):
        corners, faces = scene.mesh(solid)
        traces.append(
            {
                "type": "mesh3d",
                **dict(zip("xyz", np.round(corners, 4).T.tolist(), strict=True)),
                **dict(zip("ijk", faces.T.tolist(), strict=True)),
                "color": solid.colour,
                "opacity": solid.opacity,
                "lighting": {"ambient": 0.55, "diffuse": 0.6, "specular": 0.25},
                "name": _NAMES[solid.kind],
                "legendgroup": solid.kind,
                "showlegend": solid.kind not in shown,
                "hovertemplate": f"{_NAMES[solid.kind]}, class {solid.class_index}<extra></extra>",
            }
        )
        shown.add(solid.kind)
    return traces


WRITERS = {"gif": write_animation, "html": write_page}
