"""Being asked to stop: a signal sets a flag, which training reads between two iterations."""

from __future__ import annotations

import signal
from types import FrameType


class Stop:
    """Which signal asked, if any did. Slurm announces the time limit and preemption by one of these."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def listen(self) -> None:
        for number in self.SIGNALS:
            signal.signal(number, self._note)

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
