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
HEADINGS = ("dataset", "network", "stage", *VALUES, "NC1", "GPU")


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
    picture, running = draw(folder, loaded)
    if not console.is_terminal:
        console.print(picture)
        return
    with Live(picture, console=console, auto_refresh=False) as live:
        try:
            while running:
                time.sleep(interval)
                picture, running = draw(folder, loaded)
                live.update(picture, refresh=True)
        except KeyboardInterrupt:
            pass


def draw(folder: Path, config: Config | None) -> tuple[Group, bool]:
    """The picture of this moment, and whether anything is left to do."""
    statuses, leftovers = experiment_statuses(folder, config)
    rows: list[list[str | Text]] = []
    for cell in dict.fromkeys(status.job.cell for status in statuses):
        own = [status for status in statuses if status.job.cell == cell]
        rows.append([*cell, _stages(own), *_now(own), _nc1(own), _gpus(own)])
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = list(zip(*rows, strict=True))
    filled = [i for i, column in enumerate(columns) if any(column)]
    for i in filled:
        # Of a narrow window, the columns of words give way and those of numbers stay whole.
        whole = HEADINGS[i] in ("left", "loss", "train error", "NC1")
        table.add_column(HEADINGS[i], no_wrap=whole, overflow="fold")
    for row in rows:
        table.add_row(*(row[i] for i in filled))
    done = sum(status.state == "done" for status in statuses)
    summary = f"{folder}: {done} of {counted(len(statuses), 'job')} done"
    if done < len(statuses):
        summary += f"; left: {left_text(statuses)}"
    failed = [f"failed: {s.job}: {s.note}" for s in statuses if s.state == "failed"]
    lines: list[Text | Table] = [
        Text(summary),
        Text(),
        table,
        *(Text(line, "red") for line in failed),
        *map(Text, leftovers),
    ]
    return Group(*lines), done < len(statuses)


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
