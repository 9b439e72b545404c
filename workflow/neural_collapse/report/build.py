"""Gather tables, figures and provenance, and fill the page's template."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from .. import __version__
from ..figures.registry import FIGURES, caption
from ..io.errors import UserError
from ..io.files import write_text_atomically
from ..io.text import duration_text
from ..results import claims, paper, table1
from ..results.tables import OWN, REFERENCE, SCHEMAS, read_table

HERE = Path(__file__).parent
DASH = "–"


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report."""

    name: str
    """Unique; the anchor of its section."""
    label: str
    """Figure 6."""
    title: str
    caption: str
    image: Path
    """A PNG file, inlined."""
    command: str = ""
    """What draws it."""
    files: tuple[Path, ...] = ()
    """Other formats, linked."""


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, and what it is sorted by where that is a number."""

    text: str
    sort: str = ""
    css: str = ""


@dataclass(frozen=True)
class PageTable:
    """A sortable table of the page."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: frozenset[int] = field(default_factory=frozenset)


def report_figures(
    tables_folder: str | Path,
    figures_folder: str | Path,
    datasets: Sequence[str] | None = None,
    architectures: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    epoch_axis: str = "linear",
) -> list[ReportFigure]:
    """Every figure of which `<figures_folder>/<name>.png` exists, with its caption and command."""
    given = {"--datasets": datasets or [], "--architectures": architectures or []}
    options = [part for key, names in given.items() if names for part in (key, *names)]
    options += ["--epoch-axis", epoch_axis] if epoch_axis != "linear" else []
    found = []
    for name, entry in FIGURES.items():
        image = Path(figures_folder) / f"{name}.png"
        if not image.is_file():
            continue
        files = [image.with_suffix(f".{suffix}") for suffix in ("png", "svg", "pdf", "gif", "html")]
        command = ["neural-collapse", "plot", "--tables", str(tables_folder), "--figure", name]
        found.append(
            ReportFigure(
                name,
                entry.label,
                entry.title,
                caption(name, tables_folder, datasets, architectures, labels),
                image,
                shlex.join([*command, *options, "--output", str(image)]),
                tuple(path for path in files if path.is_file()),
            )
        )
    return found


def build_report(
    tables_folder: str | Path,
    figures: Iterable[ReportFigure],
    output_html: str | Path,
    provenance: Sequence[Mapping[str, Any]] = (),
    cards: Sequence[Mapping[str, Any]] = (),
    config_text: str = "",
    title: str = "Neural collapse",
    notes: Sequence[str] = (),
) -> None:
    """Write the report.

    Args:
        tables_folder: holds runs.parquet; claims.parquet and table_1.parquet are shown where they
            exist, and every parquet file in it is linked.
        figures: in the order in which they are shown; see :func:`report_figures`.
        output_html: the page.
        provenance: what each run's run.json holds.  What all share is shown once.
        cards: the data cards.
        config_text: the config as it was written.
        title: of the page, e.g. the experiment's name.
        notes: sentences shown at the top, e.g. that this is a recipe of reduced size.

    Raises:
        UserError: a table or picture that is missing or damaged.
    """
    folder = Path(tables_folder)
    output = Path(output_html)
    runs = read_table(folder / "runs.parquet", "runs")
    tables = {}
    for name in ("claims", "table_1"):
        path = folder / f"{name}.parquet"
        tables[name] = read_table(path, name) if path.is_file() else None
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared, own = _split_provenance(provenance)
    page = environment.get_template("page.html.j2").render(
        title=title,
        notes=list(notes),
        version=__version__,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        summary=_summary(runs, provenance),
        claims_summary=_claims_summary(tables["claims"]),
        claims_matrix=_claims_matrix(tables["claims"]),
        claims_table=_claims_table(tables["claims"]),
        criteria=[(p.name, p.quantity, p.split, p.criterion) for p in claims.PHENOMENA],
        table_1=_table_1(tables["table_1"]),
        table_1_notes="" if tables["table_1"] is None else table1.notes(tables["table_1"]),
        recalled=paper.RECALLED,
        figures=[_figure(figure, output) for figure in figures],
        runs_table=_runs_table(runs, provenance),
        shared=shared,
        provenance_table=own,
        provenance_json=json.dumps(list(provenance), indent=1, sort_keys=True, default=str),
        cards=[(_card_title(card), _flatten(card)) for card in cards],
        config_text=config_text,
        links=_links(folder, output),
    )
    write_text_atomically(output, page)


def _policy(style: str, script: str) -> str:
    """Nothing from outside; this style and this script alone, known by their hashes."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


# --------------------------------------------------------------------------- parts of the page


def _number(value: float, digits: int = 4, sign: str = "") -> Cell:
    if pd.isna(value):
        return Cell(DASH)
    return Cell(f"{value:{sign}.{digits}g}".replace("-", "−"), repr(float(value)))


def _device(run: Mapping[str, Any]) -> str:
    """Where a run was trained: its GPU, otherwise its processor; or empty."""
    machine = run.get("machine", {})
    return str(machine.get("gpu") or machine.get("processor") or "")


def _summary(runs: pd.DataFrame, provenance: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    if runs.empty:
        return [("Runs", "none")]
    shipped = int((runs["origin"] == REFERENCE).sum())
    reached = int(runs["terminal_phase_epoch"].notna().sum())
    labels = runs.drop_duplicates("dataset")["dataset_label"]
    rows = [
        ("Datasets", ", ".join(labels)),
        ("Networks", ", ".join(sorted(set(runs["network"])))),
        ("Trainings", f"{len(runs)} (seeds: {', '.join(map(str, sorted(set(runs['seed']))))})"),
        *([("Of them reference runs", str(shipped))] if shipped else []),
        ("Reached the terminal phase", f"{reached} of {len(runs)}"),
    ]
    devices = sorted({_device(run) for run in provenance} - {""})
    if devices:
        rows.append(("Device", ", ".join(devices)))
    seconds = [run["seconds"] for run in provenance if "seconds" in run]
    if seconds:
        rows.append(("Training time, sweeps apart", duration_text(sum(seconds))))
    diverged = int(runs["diverged"].sum())
    return rows + ([("Diverged", str(diverged))] if diverged else [])


_VERDICTS = {"holds": ("✓", "yes"), "does not": ("✗", "no"), "cannot say": ("?", "open")}


def _claims_summary(table: pd.DataFrame | None) -> PageTable | None:
    if table is None:
        return None
    counts = claims.summary(table)
    rows = [
        [Cell(name), *(Cell(str(n), str(n)) for n in numbers)]
        for name, *numbers in counts.values.tolist()
    ]
    return PageTable(
        "How often each claim of the paper holds, over datasets and networks",
        list(counts.columns[:1].str.capitalize()) + list(counts.columns[1:]),
        rows,
        frozenset({1, 2, 3}),
    )


def _claims_matrix(table: pd.DataFrame | None) -> PageTable | None:
    """A row a cell, a column a phenomenon, a sign for each verdict."""
    if table is None:
        return None
    names = [p.name for p in claims.PHENOMENA]
    verdicts = {
        (row.origin, row.dataset, row.architecture, row.phenomenon): row.holds
        for row in table.itertuples()
    }
    rows = []
    for cell in table.drop_duplicates(["origin", "dataset", "architecture"]).itertuples():
        signs = []
        for name in names:
            key = (cell.origin, cell.dataset, cell.architecture, name)
            verdict = verdicts.get(key, "cannot say")
            sign, css = _VERDICTS[verdict]
            signs.append(Cell(f"{sign} {verdict}", css=css))
        network = cell.architecture_label + table1.origin_note(cell)
        rows.append([Cell(cell.dataset_label), Cell(network), *signs])
    return PageTable("Verdicts at a glance", ("Dataset", "Network", *names), rows)


def _claims_table(table: pd.DataFrame | None) -> PageTable | None:
    if table is None:
        return None
    rows = []
    criterion = claims.CLAIM_HEADINGS.index("Criterion")
    for row, text in zip(table.itertuples(), claims.display_rows(table), strict=True):
        sign, css = _VERDICTS[row.holds]
        values = (row.at_epoch_0, row.at_start, row.at_end, row.change)
        numbers = ["" if np.isnan(value) else repr(value) for value in values]
        cells = [Cell(part) for part in text]
        cells[3] = Cell(f"{sign} {row.holds}", css=css)
        cells[4:8] = [Cell(t, n) for t, n in zip(text[4:8], numbers, strict=True)]
        # The criterion stands once above the table, not in each of its rows.
        rows.append([cell for i, cell in enumerate(cells) if i != criterion])
    headings = [heading for heading in claims.CLAIM_HEADINGS if heading != "Criterion"]
    return PageTable("Every claim in every cell", headings, rows, frozenset(range(4, 8)))


def _table_1(table: pd.DataFrame | None) -> PageTable | None:
    if table is None:
        return None
    rows = [
        [
            Cell(text, text.replace("−", "-").lstrip("+") if 2 <= i <= 7 and text != DASH else "")
            for i, text in enumerate(row)
        ]
        for row in table1.display_rows(table)
    ]
    return PageTable("Table 1. Test accuracy (%)", table1.HEADINGS, rows, frozenset(range(2, 8)))


def _runs_table(runs: pd.DataFrame, provenance: Sequence[Mapping[str, Any]]) -> PageTable:
    facts = {
        (run.get("origin", OWN), run.get("dataset"), run.get("architecture"), run.get("seed")): run
        for run in provenance
    }
    headings = (
        "Dataset",
        "Row",
        "Network",
        "Whose",
        "Seed",
        "Learning rate",
        "Found by",
        "Epochs",
        "Start of TPT",
        "Train images",
        "Test images",
        "Classes",
        "Time",
        "Device",
        "Diverged",
    )
    rows = []
    for run in runs.itertuples():
        start = run.terminal_phase_epoch
        own = facts.get((run.origin, run.dataset, run.architecture, run.seed), {})
        seconds = own.get("seconds")
        rows.append(
            [
                Cell(run.dataset_label),
                Cell(run.architecture_label),
                Cell(run.network),
                Cell(run.origin),
                Cell(str(run.seed), str(run.seed)),
                _number(run.learning_rate, 5),
                Cell(run.learning_rate_origin),
                Cell(str(run.epochs), str(run.epochs)),
                Cell("not reached") if pd.isna(start) else Cell(str(start), str(start)),
                Cell(f"{run.train_examples:,}", str(run.train_examples)),
                Cell(f"{run.test_examples:,}", str(run.test_examples)),
                Cell(str(run.num_classes), str(run.num_classes)),
                Cell(DASH) if seconds is None else Cell(duration_text(seconds), repr(seconds)),
                Cell(_device(own) or DASH),
                Cell("yes" if run.diverged else "no"),
            ]
        )
    return PageTable("Every training", headings, rows, frozenset({4, 5, 7, 8, 9, 10, 11, 12}))


def _figure(figure: ReportFigure, output: Path) -> dict[str, Any]:
    try:
        data = Path(figure.image).read_bytes()
    except OSError as error:
        raise UserError(f"{figure.image}: cannot be read: {error.strerror}") from None
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError(f"{figure.image}: is not a PNG picture; draw the figure again")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    return {
        "name": figure.name,
        "label": figure.label,
        "title": figure.title,
        "caption": figure.caption,
        "command": figure.command,
        "uri": "data:image/png;base64," + base64.b64encode(data).decode(),
        "width": width,
        "height": height,
        "files": [(path.suffix.lstrip("."), _link(path, output)) for path in figure.files],
    }


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
        size = path.stat().st_size
        text = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(size / 1e3, 0.1):.1f} kB"
        found.append((path.name, _link(path, output), text, columns))
    return found


def _flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    """(dotted.key, text) of every leaf of a nested mapping; lists of plain values in one line."""
    if isinstance(value, Mapping) and value:
        return [
            leaf
            for key, item in value.items()
            for leaf in _flatten(item, f"{name}.{key}".lstrip("."))
        ]
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list)) for v in value):
        return [leaf for i, item in enumerate(value) for leaf in _flatten(item, f"{name}.{i}")]
    if isinstance(value, (list, tuple)):
        return [(name, ", ".join(map(str, value)))]
    return [(name, DASH if value is None else str(value))]


def _card_title(card: Mapping[str, Any]) -> str:
    return str(card.get("label") or card.get("name") or card.get("dataset") or "dataset")


MAX_COLUMNS = 14


def _split_provenance(
    provenance: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[str, str]], PageTable | None]:
    """What all runs share, and a table of what differs between them."""
    flat = [dict(_flatten(run)) for run in provenance]
    if not flat:
        return [], None
    keys = list(dict.fromkeys(key for run in flat for key in run))
    shared = [k for k in keys if len({run.get(k) for run in flat}) == 1]
    varying = [k for k in keys if k not in shared]
    # The table stays readable; the rest is in the JSON beneath it.
    varying = [k for k in varying if max(len(run.get(k, "")) for run in flat) <= 60][:MAX_COLUMNS]
    table = None
    if len(flat) > 1 and varying:
        rows = [[_guess(run.get(key, DASH)) for key in varying] for run in flat]
        table = PageTable("What differs between the runs", varying, rows)
    return [(key, flat[0][key]) for key in shared], table


def _guess(text: str) -> Cell:
    try:
        number = float(text)
    except ValueError:
        return Cell(text)
    return Cell(text, repr(number)) if np.isfinite(number) else Cell(text)
