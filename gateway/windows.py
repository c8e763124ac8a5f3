"""What one subject of limits used: in the last minute, this day, this month, ever. No clock here: callers say when."""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from registry.ledger_sums import ALL

WINDOW_S = 60.0
GRAIN_S = 0.01  # starts that are no further apart are remembered as one, however many they are


class Period(enum.IntEnum):
    """What a budget is for. A place in Standing's lists."""

    DAY = 0
    MONTH = 1
    EVER = 2


class Calendar:
    """Which day and month it is, in UTC. Never an earlier one than before: a clock set back gives no budget back."""

    def __init__(self, now: float) -> None:
        """Times are Unix seconds."""
        self.words = ("", "", ALL)  # by Period, as the ledger spells them
        self.ends = (-math.inf, -math.inf, math.inf)  # by Period
        self.turn(now)

    def turn(self, now: float) -> tuple[Period, ...]:
        """Those that ended since the last call."""
        if now < self.ends[Period.DAY]:
            return ()
        midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        first = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        month = f"{midnight:%Y-%m}"
        over = (Period.DAY,) if month == self.words[Period.MONTH] else (Period.DAY, Period.MONTH)
        self.words = (f"{midnight:%Y-%m-%d}", month, ALL)
        self.ends = ((midnight + timedelta(days=1)).timestamp(), first.timestamp(), math.inf)
        return over


@dataclass(slots=True)
class Grain:
    """What was admitted within GRAIN_S of `at` (monotonic seconds)."""

    at: float
    requests: int = 0
    tokens: int = 0  # of those that are settled what they used, of the others what they may use


@dataclass(slots=True)
class Account:
    """In tokens (of prompt and completion) or in micro-credits."""

    used: list[int] = field(default_factory=lambda: [0, 0, 0])  # settled, by Period
    held: int = 0  # set aside by requests that are running

    def settle(self, held: int, used: int) -> None:
        self.held -= held
        if used:
            mine = self.used
            mine[0] += used
            mine[1] += used
            mine[2] += used


@dataclass(slots=True)
class Standing:
    """One subject's."""

    tokens: Account = field(default_factory=Account)
    credits: Account = field(default_factory=Account)
    running: int = 0  # requests
    minute: deque[Grain] = field(default_factory=deque)  # the last WINDOW_S, oldest first
    minute_requests: int = 0  # the sums of it
    minute_tokens: int = 0
    level: float = math.inf  # of the bucket of starts that are allowed at once, at `filled_at`
    filled_at: float = 0.0

    def forget(self, now: float) -> None:
        """What has left the minute."""
        minute, first = self.minute, now - WINDOW_S
        while minute and minute[0].at <= first:
            gone = minute.popleft()
            self.minute_requests -= gone.requests
            self.minute_tokens -= gone.tokens

    def start(self, now: float, tokens: int, microcredits: int) -> Grain:
        """Debit a request; what it counts in."""
        minute = self.minute
        if minute and now - minute[-1].at < GRAIN_S:
            grain = minute[-1]
        else:
            grain = Grain(now)
            minute.append(grain)
        grain.requests += 1
        grain.tokens += tokens
        self.minute_requests += 1
        self.minute_tokens += tokens
        self.running += 1
        self.tokens.held += tokens
        self.credits.held += microcredits
        return grain

    def settle(self, now: float, grain: Grain, held: tuple[int, int], used: tuple[int, int]) -> None:
        """The request is over. `held` and `used`: tokens, micro-credits."""
        if grain.at > now - WINDOW_S:  # else it is forgotten, or is about to be as it is
            grain.tokens += used[0] - held[0]
            self.minute_tokens += used[0] - held[0]
        self.running -= 1
        self.tokens.settle(held[0], used[0])
        self.credits.settle(held[1], used[1])

    def bucket(self, now: float, burst: int, rate: float) -> float:
        """Starts that are allowed at once now; `rate` comes in per second, until there are `burst`."""
        return min(float(burst), self.level + (now - self.filled_at) * rate)

    def take(self, now: float, burst: int, rate: float) -> None:
        """One start out of the bucket."""
        self.level, self.filled_at = self.bucket(now, burst, rate) - 1, now

    def at_least(self, period: Period, tokens: int, microcredits: int) -> None:
        """The ledger says that so much is used."""
        self.tokens.used[period] = max(self.tokens.used[period], tokens)
        self.credits.used[period] = max(self.credits.used[period], microcredits)

    def over(self, period: Period) -> None:
        self.tokens.used[period] = self.credits.used[period] = 0

    def matters(self, now: float) -> bool:
        """Even without a limit for now: by the time that it does not, the ledger has all there is to know."""
        return self.running > 0 or bool(self.minute and self.minute[-1].at > now - WINDOW_S)
