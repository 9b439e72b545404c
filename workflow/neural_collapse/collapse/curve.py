"""Statistics over the epochs of a training, as a table or plotted as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..io.errors import UserError
from .registry import PAPER_FIGURES, of_figure
from .result import CollapseResult

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_PANELS = (6, 2, 3, 4, 5, 7)
"""The paper's figures in the order of NC1 to NC4."""


class CollapseCurve:
    """Results by epoch.

    >>> from neural_collapse import measure
    >>> curve = CollapseCurve()
    >>> curve.log(1, measure([[2.0, 0.1], [0.0, 0.0], [2.0, -0.1]], [0, 1, 0]))
    >>> float(curve.to_frame().query("statistic == 'cdnv'")["value"].iloc[0].round(6))
    0.00125
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def log(self, epoch: float, result: CollapseResult, split: str = "train") -> None:
        """Add a result; its `test` goes in as the split "test".

        Args:
            epoch: of the training, or any position along it.
            split: what the result was measured on.

        Raises:
            UserError: that epoch and split are there already.
        """
        if any(row["epoch"] == epoch and row["split"] == split for row in self._rows):
            raise UserError(f"Epoch {epoch} of the split {split!r} has been logged already.")
        self._rows += [
            {"epoch": epoch, "split": split, "statistic": name, "value": value}
            for name, value in result.items()
        ]
        if result.test is not None:
            self.log(epoch, result.test, "test")

    def to_frame(self) -> pd.DataFrame:
        """A table in long form: epoch, split, statistic, value. Needs pandas."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=["epoch", "split", "statistic", "value"])

    def plot(self, statistics: Sequence[str] | None = None, split: str = "train") -> np.ndarray:
        """Draw over the epochs, a panel for each of the paper's figures 2 to 7, class means in
        solid and classifiers in dashed lines. Needs matplotlib.

        Args:
            statistics: names to draw, each in a panel of its own, instead of the paper's.
            split: of the examples measured.

        Returns:
            The matplotlib Axes, in an array.
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
            ax.set(title=title, xlabel="epoch")
            if title == PAPER_FIGURES[6].label:
                ax.set_yscale("log")
            if len(names) > 1:
                ax.legend(frameon=False)
        for ax in flat[len(panels) :]:
            ax.remove()
        return np.array(flat[: len(panels)])

    def _panels(self, statistics: Sequence[str] | None, split: str) -> dict[str, list[str]]:
        logged = {row["statistic"] for row in self._rows if row["split"] == split}
        if not logged:
            raise UserError(f"Nothing has been logged of the split {split!r}.")
        if statistics is not None:
            missing = [name for name in statistics if name not in logged]
            if missing:
                raise UserError(f"{missing[0]!r} has not been logged of the split {split!r}.")
            return {name: [name] for name in statistics}
        panels: dict[str, list[str]] = {}
        for figure in _PANELS:
            names = [entry.name for entry in of_figure(figure) if entry.name in logged]
            if names:
                panels[PAPER_FIGURES[figure].label] = names
        return panels
