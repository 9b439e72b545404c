"""Draw every shipped set of reference runs with one command.

Rules draw one experiment; for several small sets, most of the time would be spent on starting
Snakemake and importing matplotlib for each.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable
from pathlib import Path

from ..experiment.config import Config, load_config
from ..experiment.stages.collect import collect_tables, compare
from ..experiment.targets import Experiment
from ..figures.registry import plot
from ..io.errors import UserError
from ..io.progress import say

LIBRARY = Path(__file__).parents[1]


def draw_reference(sets_folder: Path, processes: int) -> None:
    """Draw each set of reference runs below a folder whose figures are missing or out of date.

    A set's config.yaml says what is drawn, and into which folder.
    """
    # Figures are many objects; searching them for cycles takes a tenth of the time.
    gc.set_threshold(100_000)
    configs = sorted(sets_folder.rglob("config.yaml"))
    if not configs:
        raise UserError(f"{sets_folder}: holds no set of reference runs with a config.yaml")
    for config in configs:
        _draw(config.parent, load_config(config), processes)


def _draw(folder: Path, config: Config, processes: int) -> None:
    experiment = Experiment(config)
    drawings = experiment.drawings(*config.figures.formats, "rst").values()
    reason = _out_of_date([*experiment.table_files(), *drawings], folder)
    say(f"{config.folder}: {f'drawing, since {reason}' if reason else 'up to date'}")
    if not reason:
        return
    labels = json.loads(experiment.titles())
    layout = {"datasets": config.datasets, "architectures": config.architectures, "labels": labels}
    tables = Path(experiment.paths.table("runs")).parent
    nothing_of_own = dict.fromkeys(
        ("histories", "statistics", "robustness", "activations", "runs", "sweeps", "recipes"), ()
    )
    collect_tables(**nothing_of_own, labels=labels, output_folder=tables, reference_folder=folder)
    compare(tables, tables, **layout)
    files = {n: [p for p in drawings if Path(p).stem == n] for n in experiment.figures}
    plot(tables, files, experiment.look, processes=processes, **layout)


def _out_of_date(outputs: Iterable[str], folder: Path) -> str | None:
    """Why the outputs of the set in `folder` have to be made; None where they need not."""
    times = {}
    for path in map(Path, outputs):
        if not path.is_file():
            return f"{path.name} is missing"
        times[path] = path.stat().st_mtime_ns
    code = [path for room in ("figures", "results") for path in (LIBRARY / room).glob("*.py")]
    code.append(LIBRARY / "collapse/registry.py")  # which names what is drawn
    for path in [*folder.rglob("*"), *code]:
        if path.is_file() and path.stat().st_mtime_ns > min(times.values()):
            return f"{path.name} is newer"
    return None
