"""A supervisor's announcements, through times at which the shared file system takes none: full, read-only, away.

What could not be written is kept, with the time at which it was said, and written once that is possible again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launchers.announce import announce_later

MOST = 256  # announcements that wait; the oldest goes first: what came after it says more
RETRY_S = 1.0
LAST_WORD_S = 60.0  # for what waits at the end


class Voice:
    def __init__(
        self,
        directory: Path,
        now: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._directory, self._now, self._clock, self._sleep = directory, now, clock, sleep
        self._waiting: deque[tuple[int, str, dict[str, Any]]] = deque(maxlen=MOST)
        self._said_ns = 0
        self._tried_at = 0.0
        self._gone = False  # the directory: the run was deleted, and nobody listens

    def say(self, kind: str, **facts: Any) -> None:
        """State a fact: now, or as soon as it can be written. In the order in which they were said."""
        self._said_ns = max(self._now(), self._said_ns + 1)  # the clock may be set back meanwhile
        self._waiting.append((self._said_ns, kind, facts))
        self._write()

    def retry(self) -> None:
        """Called often: tries again about every second."""
        if self._waiting and self._clock() - self._tried_at >= RETRY_S:
            self._write()

    def finish(self, timeout_s: float = LAST_WORD_S) -> bool:
        """Wait for what is not yet written, unless its directory was deleted. Whether all was said."""
        until = self._clock() + timeout_s
        self._write()
        while self._waiting and not self._gone and self._clock() < until:
            self._sleep(RETRY_S)
            self._write()
        return not self._waiting

    def _write(self) -> None:
        self._tried_at, self._gone = self._clock(), False
        try:
            while self._waiting:
                at_ns, kind, facts = self._waiting[0]
                announce_later(self._directory, at_ns, kind, facts)
                self._waiting.popleft()
        except FileNotFoundError:
            self._gone = True
        except OSError:
            pass  # later
