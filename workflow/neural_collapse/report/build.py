"""Gather tables, figures and provenance, and fill the page's template."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup

from .. import __version__
from ..figures import MOVING
from ..figures.registry import FIGURES, STILL, caption
from ..figures.sentences import in_a_list
from ..figures.specs import DEFAULT_LOOK, Look
from ..io.files import reading, write_text_atomically
from ..io.text import counted, duration_text, size_text
from ..results import claims, paper, table1
from ..results.layout import Layout
from ..results.tables import REFERENCE, SCHEMAS, read_table
from . import parts

HERE = Path(__file__).parent
FIRST = ("figure_6", "overview")
"""Figures at the top."""
SCREEN_SCALE = 0.52
"""CSS pixels by pixels of 300 dpi: text of 6 to 7 points as large as the captions; a page fits."""


def build_report(
    tables_folder: str | Path,
    figures_folder: str | Path,
    output_html: str | Path,
    provenance: Sequence[Mapping[str, Any]] = (),
    cards: Sequence[Mapping[str, Any]] = (),
    config_text: str = "",
    title: str = "Neural collapse",
    look: Look = DEFAULT_LOOK,
    **layout: Any,
) -> None:
    """Write the report.

    Args:
        tables_folder: contains runs.parquet; claims.parquet and table_1.parquet are shown if they
            exist, and every parquet file in it is linked.
        figures_folder: figures with a PNG are shown, other formats are linked.
        output_html: the page.
        provenance: content of each run.json.  What all share is shown once.
        cards: the data cards.
        config_text: the config as it was written.
        title: title of the page, such as the experiment's name.
        look: the style in which the figures were drawn.
        layout: datasets, architectures and labels, as for :meth:`Layout.of`.

    Raises:
        UserError: a table or picture that is missing or corrupt.
    """
    folder, output = Path(tables_folder), Path(output_html)
    runs = read_table(folder / "runs.parquet", "runs")
    judged, compared = (
        read_table(path, path.stem) if path.is_file() else None
        for path in (folder / "claims.parquet", folder / "table_1.parquet")
    )
    shown = _figures(folder, Path(figures_folder), output, look, layout)
    # A study may draw its own figure alone.
    first = [figure for name in FIRST for figure in shown if figure["name"] == name] or shown[:1]
    shared, differing = parts.split_provenance(provenance)
    page = _render(
        title=title,
        sentence=_sentence(runs),
        version=__version__,
        first=first,
        figures=[figure for figure in shown if figure not in first],
        short=[phenomenon.short_name for phenomenon in claims.PHENOMENA],
        phenomena=claims.PHENOMENA,
        judged=[] if judged is None else claims.judged_claims(judged),
        verdicts=parts.verdicts(judged) if judged is not None else [],
        study_verdicts=parts.study_verdicts(judged) if judged is not None else [],
        claims_table=judged if judged is None else parts.claims_table(judged),
        noise=claims.NOISE,
        table_1=compared if compared is None else parts.table_1(compared),
        table_1_notes="" if compared is None else table1.notes(compared),
        recalled=paper.RECALLED,
        summary=_summary(runs, provenance),
        runs_table=parts.runs_table(runs, provenance),
        shared=shared,
        provenance_table=differing,
        provenance_json=json.dumps(list(provenance), indent=1, sort_keys=True, default=str),
        cards=[(_card_title(card), parts.flatten(card)) for card in cards],
        config_text=config_text,
        links=_links(folder, output),
    )
    write_text_atomically(output, page)


def _render(**values: Any) -> str:
    """The template filled with values, in which everything but the page's own files is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment.filters |= {"subscripts": parts.subscripts, "command": parts.command}
    own = {"style": Markup(style), "script": Markup(script), "policy": _policy(style, script)}
    return environment.get_template("page.html.j2").render(**own, **values)


def _policy(style: str, script: str) -> str:
    """Allows only the page's own style and script, by their hashes."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _sentence(runs: pd.DataFrame) -> str:
    """One sentence on the content of the page."""
    if runs.empty:
        return "No network has been trained yet."
    networks = counted(len(runs.drop_duplicates(["dataset", "architecture"])), "network")
    sets = in_a_list([*Layout.of(runs).datasets.values()])
    return (
        f"{networks} ({counted(len(runs), 'training')}) on {sets}, from before training through "
        "the terminal phase of training (TPT): whether features and classifiers collapse as "
        "Papyan, Han and Donoho found (PNAS 117 (40), 2020, 24652–24663)."
    )


def _summary(runs: pd.DataFrame, provenance: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    shipped = int((runs["origin"] == REFERENCE).sum())
    reached = int(runs["terminal_phase_epoch"].notna().sum())
    diverged = int(runs["diverged"].sum())
    devices = sorted({parts.device(run) for run in provenance} - {""})
    seconds = [run["seconds"] for run in provenance if "seconds" in run]
    rows = {
        "Trainings": f"{len(runs)} (seeds: {', '.join(map(str, sorted(set(runs['seed']))))})",
        "Of them reference runs": str(shipped or ""),
        "Reached the terminal phase": f"{reached} of {len(runs)}",
        "Diverged": str(diverged or ""),
        "Device": ", ".join(devices),
        "Training time without sweeps": duration_text(sum(seconds)) if seconds else "",
    }
    return [(name, text) for name, text in rows.items() if text]


def _figures(
    tables: Path, folder: Path, output: Path, look: Look, layout: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Every figure of which `<folder>/<name>.png` exists, with its caption and command."""
    options = look.options()
    for key in ("datasets", "architectures"):
        if layout.get(key):
            options += [f"--{key}", *layout[key]]
    found = []
    for name, entry in FIGURES.items():
        image = folder / f"{name}.png"
        if not image.is_file():
            continue
        with reading(image, "a PNG picture", "draw the figure again"):
            data = image.read_bytes()
            if data[:8] != b"\x89PNG\r\n\x1a\n":
                raise ValueError("its first bytes are not a PNG file's")
        command = ["neural-collapse", "plot", "--tables", str(tables), "--figure", name]
        formats = [f for f in (*STILL, *MOVING) if image.with_suffix(f".{f}").is_file()]
        found.append(
            {
                "name": name,
                "label": entry.label,
                "title": entry.title,
                "caption": caption(name, tables, look, **layout),
                "command": shlex.join([*command, *options, "--output", str(image)]),
                "uri": "data:image/png;base64," + base64.b64encode(data).decode(),
                "width": round(SCREEN_SCALE * int.from_bytes(data[16:20], "big")),
                "height": round(SCREEN_SCALE * int.from_bytes(data[20:24], "big")),
                "files": [(f, _link(image.with_suffix(f".{f}"), output)) for f in formats],
            }
        )
    return found


def _link(path: Path, output: Path) -> str:
    """`path` relative to the page, as a URL that stays on this machine."""
    relative = os.path.relpath(path, output.parent).replace(os.sep, "/")
    return quote("./" + relative, safe="/.")


def _links(folder: Path, output: Path) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Name, link, size and columns of every parquet file."""
    found = []
    for path in sorted(folder.glob("*.parquet")):
        schema = SCHEMAS.get(path.stem)
        columns = [(c.name, c.description) for c in schema.columns] if schema else []
        found.append((path.name, _link(path, output), size_text(path.stat().st_size), columns))
    return found


def _card_title(card: Mapping[str, Any]) -> str:
    return str(card.get("label") or card.get("name") or card.get("dataset") or "dataset")
