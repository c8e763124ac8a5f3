"""Whether training still moves, by what it says of itself. Pure: looked at with a clock that the caller has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launchers.megatron.recipe import Restart

ASLEEP_S = 10.0  # between two looks: nobody was looking, because the whole job was suspended


class Watchdog:
    """Whether training still moves, by what it says of itself. Times in seconds, by any steady clock."""

    def __init__(self, limits: Restart) -> None:
        self._limits = limits
        self._seen: object = None
        self._since: float | None = None
        self._looked = 0.0
        self._iterations = False

    def look(self, said: Mapping[str, Any], attempt: str, now: float) -> str | None:
        """What hangs, in words, or None."""
        if said.get("attempt") not in (attempt, None):
            said = {}  # an earlier attempt's
        if self._since is not None and now - self._looked > ASLEEP_S:
            self._since += now - self._looked
        self._looked = now
        phase, iteration = said.get("phase"), said.get("iteration")
        seen = (phase, iteration, said.get("at") if phase in ("data", "evaluating") else None)
        if self._since is None or seen != self._seen:
            self._iterations = self._iterations or phase == "training"
            self._seen, self._since = seen, now
        limit = self._limits.hang_timeout_s if self._iterations else self._limits.start_timeout_s
        if now - self._since <= limit:
            return None
        name = "restart.hang_timeout_s" if self._iterations else "restart.start_timeout_s"
        return f"no progress for {limit} s ({name}) while {phase or 'starting'}, after iteration {iteration or 0}"
