"""The time that plans are made by: the host's, but for jumps, which are not believed before they have lasted.

A clock that somebody sets, or that a time server sets right after days, would otherwise end all
replicas' time at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

JUMP_S = 10.0  # between two looks; what is less is followed
BELIEVED_AFTER_S = 600.0


class SteadyClock:
    """Seconds since the epoch. `wall` may jump, `monotonic` does not; neither is asked before a call."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._offset: float | None = None  # of our time to the monotonic one
        self.jump = 0.0  # by how much the host's clock is ahead of ours, while that is not believed
        self._since = 0.0  # when it jumped there, by the monotonic clock

    def now(self) -> float:
        monotonic = self._monotonic()
        said = self._wall() - monotonic
        if self._offset is None:
            self._offset = said
        jump = said - self._offset
        if abs(jump) <= JUMP_S:
            self._offset, self.jump = said, 0.0
        elif abs(jump - self.jump) > JUMP_S:
            log.warning("this host's clock jumped by %.0f s; that is not believed yet", jump - self.jump)
            self.jump, self._since = jump, monotonic
        elif monotonic - self._since >= BELIEVED_AFTER_S:
            log.warning("this host's clock has stayed %.0f s ahead; from now on that counts", jump)
            self._offset, self.jump = said, 0.0
        return monotonic + self._offset

    def corrected(self, at: float, now: float) -> float:
        """A moment that was written down by the host's clock, perhaps after it jumped; `now`: what now() said.

        Where both are possible the later one counts: whoever is to wait waits rather too long.
        """
        if not self.jump:
            return at
        ours = at - self.jump
        return ours if ours <= now + JUMP_S and (self.jump < 0 or at > now + JUMP_S) else at
