"""Statistics over the epochs of a training, as a table or plotted like the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..io.errors import UserError
from .registry import ALIASES, PAPER_FIGURES, of_figure
from .result import CollapseResult

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_PANELS = (6, 2, 3, 4, 5, 7)
"""The paper's figures in the order of NC1 to NC4."""


class CollapseCurve:
    """A list of results by epoch and split, as a table or a plot.

    >>> from neural_collapse import measure
    >>> curve = CollapseCurve()
    >>> curve.log(1, measure([[2.0, 0.1], [0.0, 0.0], [2.0, -0.1]], [0, 1, 0]))
    >>> float(curve.to_frame().query("statistic == 'cdnv'")["value"].iloc[0].round(6))
    0.00125
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def log(self, epoch: float, result: CollapseResult, split: str = "train") -> None:
        """Add a result, and its `test`, if present, as the split "test".

        Args:
            epoch: epoch of the training; may be fractional.
            result: from `measure`, `measure_model` or `CollapseMetric.compute`.
            split: name of the split on which it was measured.

        Raises:
            UserError: that epoch and split have already been logged, or epoch is not a number.
        """
        if not isinstance(result, CollapseResult):
            raise UserError(f"log(epoch, result) was given a {type(result).__name__} as result.")
        if not isinstance(epoch, Real):
            raise UserError(f"log(epoch, result) was given {epoch!r} as epoch, not a number.")
        if any(row["epoch"] == epoch and row["split"] == split for row in self._rows):
            raise UserError(f"Epoch {epoch} of the split {split!r} has already been logged.")
        self._rows += [
            {"epoch": epoch, "split": split, "statistic": name, "value": value}
            for name, value in result.items()
        ]
        if result.test is not None:
            self.log(epoch, result.test, "test")

    def __repr__(self) -> str:
        return f"<CollapseCurve of epochs {sorted({row['epoch'] for row in self._rows})}>"

    def to_frame(self) -> pd.DataFrame:
        """A table in long form with columns epoch, split, statistic, value. Needs pandas."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=["epoch", "split", "statistic", "value"])

    def plot(
        self, statistics: str | Sequence[str] | None = None, split: str = "train"
    ) -> np.ndarray:
        """Plot statistics over the epochs: by default one panel for each of the paper's Figures 2
        to 7, class means as solid and classifiers as dashed lines. Needs matplotlib.

        Args:
            statistics: names to plot instead, such as "nc1" or "cdnv", one panel each.
            split: the split to plot.

        Returns:
            A 1-D array of matplotlib Axes.

        Raises:
            UserError: nothing, or one of the statistics, has not been logged for that split; an
                empty list.
        """
        import matplotlib.pyplot as plt
        import numpy as np

        panels = self._panels(statistics, split)
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        size = (3.2 * columns, 2.6 * rows)
        _, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        flat = axes.ravel()
        for ax, (title, names) in zip(flat, panels.items(), strict=False):
            for name in names:
                points = sorted(
                    (row["epoch"], row["value"])
                    for row in self._rows
                    if row["statistic"] == name and row["split"] == split
                )
                classifier = name.endswith("_classifier")
                label = "classifier" if classifier else "class means"
                style = "--" if classifier else "-"
                ax.plot(*zip(*points, strict=True), style, marker=".", label=label)
            ax.set_title(title, fontsize="medium")  # of the default size, the longest is cut off
            ax.set_xlabel("epoch")
            if title == PAPER_FIGURES[6].label:
                ax.set_yscale("log")
            if len(names) > 1:
                ax.legend(frameon=False)
        for ax in flat[len(panels) :]:
            ax.remove()
        return np.array(flat[: len(panels)])

    def _panels(self, statistics: str | Sequence[str] | None, split: str) -> dict[str, list[str]]:
        logged = {row["statistic"] for row in self._rows if row["split"] == split}
        if not logged:
            known = ", ".join(sorted({str(row["split"]) for row in self._rows})) or "none"
            raise UserError(f"Nothing has been logged for the split {split!r}; logged: {known}.")
        if statistics is not None:
            given = [statistics] if isinstance(statistics, str) else statistics
            if not given:
                raise UserError("plot() was given no statistics; name some, or leave them out.")
            statistics = [ALIASES.get(name, name) for name in given]
            missing = [name for name in statistics if name not in logged]
            if missing:
                raise UserError(
                    f"{missing[0]!r} has not been logged for the split {split!r}; "
                    "to_frame() lists the full names."
                )
            return {name: [name] for name in statistics}
        panels: dict[str, list[str]] = {}
        for figure in _PANELS:
            names = [entry.name for entry in of_figure(figure) if entry.name in logged]
            if names:
                panels[PAPER_FIGURES[figure].label] = names
        return panels
