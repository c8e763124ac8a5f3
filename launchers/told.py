"""What a supervisor was told from outside: to stop, by whom, and since when. Signal handlers write it."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Told:
    asked: str | None = None  # what it was first asked to end for: "cancelled" or "timeout"
    why: str | None = None  # the same for people
    stopping_since: float | None = None  # by the monotonic clock; None: its child may go on

    def stop(self, asked: str, why: str) -> None:
        self.ask(asked, why)
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()

    def ask(self, asked: str, why: str) -> None:
        """The first word counts."""
        if self.asked is None:
            self.asked, self.why = asked, why
