"""The same figures for TensorBoard, where its package is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Events:
    """Writes event files on the one rank that writes metrics; nothing where there is no package for it.

    `resumed_from`: what an earlier attempt told of later iterations is hidden by TensorBoard.
    """

    def __init__(self, directory: Path, writes: bool, resumed_from: int) -> None:
        self._writer: Any = None
        if not writes:
            return
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            print("no TensorBoard files: tensorboardX is not installed in the training environment", flush=True)
            return
        self._writer = SummaryWriter(str(directory), purge_step=resumed_from + 1, flush_secs=30)

    def scalars(self, iteration: int, **values: float | None) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
