"""The time that planning goes by: a wall clock that somebody sets is not believed at once.

Leases, drains and time limits are counted in it. A jump forwards would otherwise end every drain, and put every
deployment to sleep; one backwards would keep a replica until its job ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from registry import clock

log = logging.getLogger(__name__)

TOLERATED_S = 10.0  # between two looks: as much as a clock that is corrected in small steps is out
BELIEVED_AFTER_S = 600.0  # a jump that nobody took back for so long was meant


class SteadyClock:
    """Seconds since the epoch that go on as the monotonic clock does. One look per turn is enough."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._offset = wall() - monotonic()
        self._jumped_at: float | None = None  # by the monotonic clock
        self._jump_s = 0.0
        self._wrong_from = 0.0  # what the wall clock showed at its jump

    def now(self) -> float:
        """Looks at both clocks, and decides whether the wall clock is believed."""
        wall, monotonic = self._wall(), self._monotonic()
        ahead = wall - monotonic - self._offset
        if abs(ahead) <= TOLERATED_S:
            if self._jumped_at is not None:
                log.info("the wall clock is right again")
            self._offset, self._jumped_at = self._offset + ahead, None
        elif self._jumped_at is None or abs(ahead - self._jump_s) > TOLERATED_S:
            self._jumped_at, self._jump_s, self._wrong_from = monotonic, ahead, wall
            log.warning("%s", self.doubt)
        elif monotonic - self._jumped_at >= BELIEVED_AFTER_S:
            log.warning("the wall clock has been %+.0f s off for %.0f s, and is believed", ahead, BELIEVED_AFTER_S)
            self._offset, self._jumped_at = self._offset + ahead, None
        return monotonic + self._offset

    @property
    def doubt(self) -> str | None:
        """In words, that the wall clock is not believed now; None: it is."""
        if self._jumped_at is None:
            return None
        minutes = BELIEVED_AFTER_S / 60
        return f"the wall clock jumped by {self._jump_s:+.0f} s, which is not believed for {minutes:.0f} min"

    def steady(self, written: str) -> float:
        """What the registry's time, which is this host's wall clock's, is by this one.

        What was written since a jump is told from what was written before by its time: after a jump backwards that may
        take something older for newer, by no more than the jump.
        """
        at = clock.parse(written).timestamp()
        if self._jumped_at is None or at < self._wrong_from:
            return at
        return min(at - self._jump_s, self._monotonic() + self._offset)

    def written(self, at: float) -> float:
        """The wall clock's time, as the registry has it now, of a time by this one."""
        return at if self._jumped_at is None else at + self._jump_s
