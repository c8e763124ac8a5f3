"""Runs that ended and may speak again: their owner can submit a run folder's script by hand at any time."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from launchers.run_folder import RunFolder

LOOKS = 100  # how many of them are looked at each time, in turn: there may be thousands


class EndedRuns:
    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._heard: dict[str, int] = {}  # by id: when their announcements had last changed
        self._next: deque[str] = deque()  # in the order in which they are looked at

    def spoke_again(self, ended: list[str]) -> set[str]:
        """Which of the next few have announced something since they were last looked at: one `stat` for each."""
        self._next = self._next or deque(ended)
        changed = set()
        for run in [self._next.popleft() for _ in range(min(LOOKS, len(self._next)))]:
            try:
                at = os.stat(RunFolder(self._runs_dir / run).announcements).st_mtime_ns  # before they are read
            except OSError:
                continue  # deleted, or looked at later
            if self._heard.get(run) != at:
                self._heard[run] = at
                changed.add(run)
        return changed
