"""Where training stands now: one small file that the supervisor, and people, look at. Standard library only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

EVERY_S = 1.0
Phase = Literal["starting", "data", "loading", "training", "saving", "evaluating", "done", "stopped"]


class Progress:
    """Replaces `progress.json` on rank 0, about every second and at every change of phase; does nothing elsewhere.

    The file: attempt, phase, iteration, iterations, at (epoch seconds), saved (the newest iteration with a complete
    checkpoint), save_s (what the last save took from its beginning to its manifest, also when that was an attempt ago),
    and documents while data are prepared.
    """

    def __init__(self, path: Path, writes: bool, attempt: str, clock: Callable[[], float] = time.time) -> None:
        self._path, self._writes, self._clock = path, writes, clock
        self._told = float("-inf")
        self._complained = False
        before = _before(path) if writes else {}
        self._now: dict[str, Any] = {
            "attempt": attempt or None, "phase": "starting", "iteration": 0, "iterations": 0, "at": 0.0,
            "saved": before.get("saved"), "save_s": before.get("save_s"),
        }  # fmt: skip
        self._tell()

    def phase(self, name: Phase, **facts: Any) -> None:
        self._now.pop("documents", None)
        self._now.update(facts, phase=name)
        self._tell()

    def at(self, **facts: Any) -> None:
        """Something moved on within the phase."""
        self._now.update(facts)
        if self._clock() - self._told >= EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._told = self._clock()
        if not self._writes:
            return
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps({**self._now, "at": round(self._told, 3)}) + "\n", encoding="utf-8")
            os.rename(temporary, self._path)
        except OSError as e:  # training does not end over it; the next time may succeed
            if not self._complained:
                self._complained = True
                print(f"progress could not be told; training goes on, and this is said once: {e}", flush=True)


def _before(path: Path) -> dict[str, Any]:
    """What an earlier attempt left."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
