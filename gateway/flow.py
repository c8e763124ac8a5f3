"""How fast a deployment gets its work done, as far as that decides how long the next request would wait."""

from __future__ import annotations


class Flow:
    """How fast tokens leave. From the places that were held and the tokens that left them, not from tokens by time: so
    a deployment with little to do is not taken for a slow one, and one with more replicas is faster at once."""

    WINDOW_S = 30.0  # what is older than two of them is forgotten, unless fewer than SAMPLE left since
    SAMPLE = 8

    def __init__(self, now: float) -> None:
        self.held = 0.0  # seconds, of all places together: less the clock when one is taken, plus the clock when left
        self.tokens = self.count = 0  # that left
        self._old = self._new = (0.0, 0, 0)  # held, tokens and count when the last two windows began
        self._window_ends = now + self.WINDOW_S

    def leave(self, tokens: int, taken: int, now: float) -> None:
        """`taken`: how many places are, without the one that was left."""
        self.held += now
        self.tokens += tokens
        self.count += 1
        if now >= self._window_ends and self.count - self._new[2] >= self.SAMPLE:
            self._window_ends = now + self.WINDOW_S
            self._old, self._new = self._new, (self.held + taken * now, self.tokens, self.count)

    def wait_behind(self, tokens: int, taken: int, capacity: int, now: float) -> float:
        """Seconds until so many tokens have left, and one request more; 0 while nothing is known."""
        held = self.held + taken * now - self._old[0]
        left, count = self.tokens - self._old[1], self.count - self._old[2]
        if count == 0 or held <= 0:
            return 0.0
        return (tokens + left / count) * held / (max(capacity, 1) * max(left, 1))
