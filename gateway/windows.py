"""What one subject of limits used: in the last minute, this day, this month, ever. No clock here: callers say when."""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from registry.ledger_sums import ALL

WINDOW_S = 60.0
DAY_S = 86400.0
GRAIN_S = 0.01  # starts that are no further apart are remembered as one, however many they are


class Period(enum.IntEnum):
    """What a budget is for. A place in Standing's lists."""

    DAY = 0
    MONTH = 1
    EVER = 2


class Calendar:
    """Which day and month it is, in UTC.

    A clock that is set back gives no budget back: the day stays until the clock has caught up with it. One that says
    more than a day before it was wrong then, and is believed now.
    """

    def __init__(self, now: float) -> None:
        """Times are Unix seconds."""
        self.words = ("", "", ALL)  # by Period, as the ledger spells them
        self.ends = (-math.inf, -math.inf, math.inf)  # by Period
        self.day_ends = -math.inf
        self.turn(now)

    def turn(self, now: float) -> tuple[Period, ...]:
        """Those that are others than at the last call."""
        if self.day_ends - 2 * DAY_S <= now < self.day_ends:
            return ()
        midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        first = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        month = f"{midnight:%Y-%m}"
        over = (Period.DAY,) if month == self.words[Period.MONTH] else (Period.DAY, Period.MONTH)
        self.words = (f"{midnight:%Y-%m-%d}", month, ALL)
        self.day_ends = (midnight + timedelta(days=1)).timestamp()
        self.ends = (self.day_ends, first.timestamp(), math.inf)
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

    def pay(self, amount: int) -> None:
        used = self.used
        used[0] += amount
        used[1] += amount
        used[2] += amount


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

    def settle(self, now: float, grain: Grain, tokens: int, microcredits: int, used: int, paid: int) -> None:
        """The request is over: `tokens` and `microcredits` were held for it, and so many `used` and `paid`."""
        if grain.at > now - WINDOW_S:  # else it is forgotten, or is about to be as it is
            grain.tokens += used - tokens
            self.minute_tokens += used - tokens
        self.running -= 1
        self.tokens.held -= tokens
        self.credits.held -= microcredits
        if used:
            self.tokens.pay(used)
        if paid:
            self.credits.pay(paid)

    def bucket(self, now: float, burst: int, rate: float) -> float:
        """Starts that are allowed at once now; `rate` comes in per second, until there are `burst`."""
        return min(float(burst), self.level + (now - self.filled_at) * rate)

    def take(self, now: float, burst: int, rate: float) -> None:
        """One start out of the bucket."""
        self.level, self.filled_at = self.bucket(now, burst, rate) - 1, now

    def at_least(self, period: Period, used: tuple[int, int], taken_back: tuple[int, int]) -> None:
        """The ledger says that so many (tokens, micro-credits) are used, and how many were taken back since it last
        said so. Never less than nothing: what is taken back of a day gives another no more than its limit."""
        for account, most, back in zip((self.tokens, self.credits), used, taken_back, strict=True):
            account.used[period] = max(account.used[period] - back, most, 0)

    def over(self, period: Period) -> None:
        self.tokens.used[period] = self.credits.used[period] = 0

    def matters(self, now: float) -> bool:
        """Even without a limit for now: by the time that it does not, the ledger has all there is to know."""
        return self.running > 0 or bool(self.minute and self.minute[-1].at > now - WINDOW_S)
