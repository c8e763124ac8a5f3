"""When a run must save because its job's time is nearly up: early enough for a save as long as the last one took."""

from __future__ import annotations

from collections.abc import Callable

ASK_AGAIN_S = 60.0  # when Slurm did not say when the job ends

Ends = tuple[float, float]  # when a job ends, in seconds since the epoch, and its time limit in seconds


def lead_s(save_s: float, limit_s: float) -> float:
    """How long before its time limit a run is asked to save, that takes `save_s` by its last save.

    At most half of the limit: attempts that are asked to save before they have trained get a run nowhere.
    """
    return min(3 * save_s + min(30.0, limit_s / 4), limit_s / 2)


class Deadline:
    """`ask`: when the job ends, None while that is not known. It is asked once, and again when the moment has come."""

    def __init__(self, ask: Callable[[], Ends | None]) -> None:
        self._ask = ask
        self._ends: Ends | None = None
        self._not_before = 0.0
        self._over = False

    def reached(self, save_s: float, now: float) -> bool:
        """True once: then it is time to save."""
        if self._over:
            return False
        if self._ends is None and now >= self._not_before:
            self._ends, self._not_before = self._ask(), now + ASK_AGAIN_S
        if self._due(save_s, now):
            self._ends = self._ask() or self._ends  # it may have been extended
            self._over = self._due(save_s, now)
        return self._over

    def again(self) -> None:
        """Nobody could be told: it is reached at the next look, too."""
        self._over = False

    def _due(self, save_s: float, now: float) -> bool:
        return self._ends is not None and now >= self._ends[0] - lead_s(save_s, self._ends[1])
