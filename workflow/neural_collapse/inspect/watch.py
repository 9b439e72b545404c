"""`neural-collapse watch`: a running experiment, refreshed every few seconds.

It only reads files, so it works during any job, also on a cluster's login node.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..experiment.config import Config, load_config
from ..io.text import counted
from .jobs import STAGES
from .status import JobStatus, experiment_statuses, left_text, stage_summary

NC1 = "nc1_within_class_variability"
COLOURS = {"failed": "red", "running": "cyan", "outdated": "yellow", "stopped": "yellow"}
VALUES = {
    "now": r"^(\w+(?: +\d+/\d+)?)",
    "left": r"(\S+) left$",
    "loss": r"train loss (\S+)",
    "train error": r"train error (\S+ %)",
}
"""Columns that a running job's line of progress fills."""
HEADINGS = ("cell", "stage", *VALUES, "NC1", "GPU")
OF_WORDS = ("cell", "stage", "now", "GPU")
"""Columns whose lines may be broken between words."""
SPARE = ("GPU", "train error", "loss", "NC1", "left", "now")
"""Columns that a window leaves out, in this order, if words would not fit into it."""


def watch(results: Path | None, config: Path | None, interval: int = 2) -> None:
    """Draw the experiment's cells until all is done, or until Ctrl-C; once where no terminal is.

    Args:
        results: an experiment's folder.
        config: or its config, which counts what was not begun, too.
        interval: seconds between two looks at the files.
    """
    loaded = None if config is None else load_config(config)
    folder = Path(loaded.folder) if loaded else results
    assert folder is not None
    console = Console()
    picture, running = draw(folder, loaded, console.width)
    if not console.is_terminal:
        console.print(picture)
        return
    with Live(picture, console=console, auto_refresh=False) as live:
        try:
            while running:
                time.sleep(interval)
                picture, running = draw(folder, loaded, console.width)
                live.update(picture, refresh=True)
        except KeyboardInterrupt:
            pass


def draw(folder: Path, config: Config | None, width: int) -> tuple[Group, bool]:
    """The picture of this moment, `width` characters wide, and whether anything is left to do."""
    statuses, leftovers = experiment_statuses(folder, config)
    rows: list[list[str | Text]] = []
    # A window that is too low for all cells shows those at work.
    at_work = {status.job.cell for status in statuses if status.state in COLOURS}
    cells = dict.fromkeys(status.job.cell for status in statuses)
    for cell in sorted(cells, key=lambda cell: cell not in at_work):
        own = [status for status in statuses if status.job.cell == cell]
        rows.append([" x ".join(cell), _stages(own), *_now(own), _nc1(own), _gpus(own)])
    done = sum(status.state == "done" for status in statuses)
    summary = f"{folder}: {done} of {counted(len(statuses), 'job')} done"
    if done < len(statuses):
        summary += f"; left: {left_text(statuses)}"
    failed = [f"failed: {s.job}: {s.note}" for s in statuses if s.state == "failed"]
    lines: list[Text | Table] = [
        Text(summary),
        Text(),
        _table(rows, width),
        *(Text(line, "red") for line in failed),
        *map(Text, leftovers),
    ]
    return Group(*lines), done < len(statuses)


def _table(rows: Sequence[Sequence[str | Text]], width: int) -> Table:
    """The filled columns; of a narrow window, words have lines of their own, or columns go."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = {n: c for n, c in zip(HEADINGS, zip(*rows, strict=True), strict=False) if any(c)}
    texts = {n: "\n".join(map(str, c)) for n, c in columns.items()}
    whole = {n: _longest([n, *text.split("\n")]) for n, text in texts.items()}
    narrow = {
        n: _longest([*n.split(), *(text.split() if n in OF_WORDS else text.split("\n"))])
        for n, text in texts.items()
    }
    for name in SPARE:
        if _spare(narrow, width) < 0:
            narrow.pop(name, None)
    for name, characters in narrow.items():
        narrow[name] = min(whole[name], characters + max(_spare(narrow, width), 0))
        table.add_column(name, width=narrow[name], overflow="fold")
    for row in zip(*(columns[name] for name in narrow), strict=True):
        table.add_row(*row)
    return table


def _longest(texts: Sequence[str]) -> int:
    return max(map(len, texts))


def _spare(widths: dict[str, int], width: int) -> int:
    """What columns with two spaces between them leave of a window."""
    return width - sum(widths.values()) - 2 * (len(widths) - 1)


def _stages(statuses: Sequence[JobStatus]) -> Text:
    """The stages of a cell that are begun and not done, a line each; else what all of it is."""
    lines = []
    for rule, name in STAGES.items():
        own = [status for status in statuses if status.job.rule == rule]
        states = {status.state for status in own}
        if states & COLOURS.keys() or {"done", "waiting"} <= states:
            colour = next((c for state, c in COLOURS.items() if state in states), "")
            lines.append(Text(f"{name} {stage_summary(own)}", colour))
    if lines:
        return Text("\n").join(lines)
    done = all(status.state == "done" for status in statuses)
    return Text("done", "green") if done else Text("waiting", "dim")


def _now(statuses: Sequence[JobStatus]) -> list[str]:
    """What the running jobs of a cell are at: a line each in every column."""
    running = [status for status in statuses if status.state == "running"]
    columns = []
    for pattern in VALUES.values():
        found = [re.search(pattern, status.note) for status in running]
        columns.append([match[1] if match else "" for match in found])
    return ["\n".join(column) for column in columns]


def _nc1(statuses: Sequence[JobStatus]) -> str:
    """NC1 on the train set at the last measured epoch, of the first run that is measured."""
    for status in statuses:
        if status.job.rule == "compute_statistics" and status.state == "done":
            wanted = [("statistic", "=", NC1), ("split", "=", "train")]
            try:
                rows = pq.read_table(
                    status.job.output, columns=["epoch", "value"], filters=wanted
                ).to_pylist()
            except (OSError, ValueError):  # being written by a newer job
                continue
            if rows:
                return f"{max(rows, key=lambda row: row['epoch'])['value']:.2e}"
    return ""


def _gpus(statuses: Sequence[JobStatus]) -> str:
    running = [status for status in statuses if status.state == "running"]
    return "\n".join(status.device[:20] for status in running)
