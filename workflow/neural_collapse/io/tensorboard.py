"""Event files for TensorBoard, if a recipe enables them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UserError


class Events:
    """Writes values by step; writes nothing where no folder is given. A context manager.

    A resumed job's first step replaces what was written of that step and later ones.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._writer: Any = None
        if folder is not None:
            _writer_class()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add values, by name, of a step."""
        if self.folder is None:
            return
        if self._writer is None:
            self._writer = _writer_class()(str(self.folder), purge_step=step, flush_secs=10)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "training.tensorboard: TensorBoard is not installed; pip install tensorboard, or set "
            "the key to false"
        ) from None
    return SummaryWriter
