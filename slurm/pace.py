"""How often slurmctld is asked. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHARE = 0.2  # of the time, at most, is spent asking
EASE = 2.0  # half of the time since the last submit may pass until the next look


@dataclass(frozen=True, slots=True)
class Pace:
    """The site's bounds, in seconds: never more often than `least_s`; `most_s` when nothing happens."""

    least_s: float
    most_s: float

    def __post_init__(self) -> None:
        if not 0 < self.least_s <= self.most_s:
            raise ValueError(f"a watch waits 0 < least_s <= most_s seconds, not {self.least_s:g} and {self.most_s:g}")

    def wait_s(
        self,
        *,
        since_hurry_s: float,
        changing: bool = False,
        awaited: bool = False,
        took_s: float = 0.0,
        failures: int = 0,
        remembers_s: float = math.inf,
        chance: float = 1.0,
    ) -> float:
        """From the end of one look to the next.

        since_hurry_s: since somebody last submitted or cancelled something; inf: never
        changing: whether the last look saw anything change; awaited: whether somebody waits for the next one
        took_s: how long slurmctld needed for the last one; failures: looks without an answer, in a row
        remembers_s: how long the queue shows a job that has ended (MinJobAge): its end should be seen there
        chance: 0 ... 1, so that those who wait for one slurmctld do not all come back at once
        """
        rest_s = took_s * (1 - SHARE) / SHARE
        if failures:
            backed_off_s = max(self.least_s * 2.0 ** min(failures, 32), rest_s)
            return max(self.least_s, min(backed_off_s, 2 * self.most_s) * (1 + chance) / 2)
        longest_s = math.sqrt(self.least_s * self.most_s) if changing else self.most_s
        wanted_s = 0.0 if awaited else min(since_hurry_s / EASE, longest_s, remembers_s / 2)
        return max(self.least_s, wanted_s, rest_s)
