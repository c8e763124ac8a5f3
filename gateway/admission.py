"""May this request run now? Every limit is checked together, and debited together or not at all."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from gateway.errors import BudgetExhausted, TooManyRequests
from gateway.rate_headers import Left
from registry.keys import LiveKey
from registry.limits import UNLIMITED, Limits, Subject

WINDOW_S = 60.0
GRAIN_S = 0.01  # starts that are no further apart are remembered as one, however many they are


@dataclass(slots=True)
class Standing:
    """One tenant's, in memory. Tokens count prompt and completion."""

    used: int = 0  # settled
    held: int = 0  # set aside by requests that are running
    started: int = 0  # requests admitted in the last WINDOW_S
    starts: deque[list[float]] = field(default_factory=deque)  # [when (monotonic), how many] of these, GRAIN_S each


class Hold:
    """Tokens set aside for one request. Leaving the block gives them back, less what `used` was set to."""

    __slots__ = ("_standing", "budget", "paid", "requests", "tokens", "used")

    def __init__(self, standing: Standing, tokens: int, requests: Left | None, budget: Left | None) -> None:
        self._standing = standing
        self.tokens = tokens
        self.used = 0
        self.paid = 0  # micro-credits
        self.requests = requests  # what is left of them, this request counted
        self.budget = budget

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._standing.held -= self.tokens
        self._standing.used += self.used


class Admission:
    """`used` is what each tenant has used so far, from the ledger; `clock` is monotonic, in seconds."""

    def __init__(self, used: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._standings = {tenant: Standing(tokens) for tenant, tokens in used.items()}
        self._clock = clock
        self._limits: Mapping[tuple[Subject, str], Limits] = {}

    def settled(self, used: Mapping[str, int]) -> None:
        """What the ledger says tenants used: another gateway may have settled some of it. Nothing is ever used less."""
        for tenant, tokens in used.items():
            standing = self._standings.setdefault(tenant, Standing())
            standing.used = max(standing.used, tokens)

    def limit(self, limits: Mapping[tuple[Subject, str], Limits]) -> None:
        """What the registry says now."""
        self._limits = limits

    def counts_tokens(self, caller: LiveKey, model: str) -> bool:
        """Whether any limit of this caller is on tokens or credits."""
        return self._limits.get((Subject.TENANT, caller.tenant.name), UNLIMITED).token_budget is not None

    def admit(self, caller: LiveKey, model: str, tokens: int, microcredits: int) -> Hold:
        """Raises TooManyRequests or BudgetExhausted; then nothing was debited."""
        tenant = caller.tenant.name
        limits = self._limits.get((Subject.TENANT, tenant), UNLIMITED)
        standing = self._standings.setdefault(tenant, Standing())
        now = self._clock()
        starts = standing.starts
        while starts and starts[0][0] <= now - WINDOW_S:
            standing.started -= int(starts.popleft()[1])
        check(tenant, limits, standing, tokens, now)
        standing.started += 1
        if starts and now - starts[-1][0] < GRAIN_S:
            starts[-1][1] += 1
        else:
            starts.append([now, 1])
        standing.held += tokens
        return Hold(standing, tokens, *left(limits, standing, now))


def left(limits: Limits, standing: Standing, now: float) -> tuple[Left | None, Left | None]:
    """Of the requests a minute and of the token budget, where they are limited. Pure."""
    requests = budget = None
    if (limit := limits.requests_per_minute) is not None:
        # All are there again once the newest has left the window.
        reset_s = standing.starts[-1][0] + WINDOW_S - now if standing.starts else 0.0
        requests = Left(limit, max(0, limit - standing.started), reset_s)
    if (limit := limits.token_budget) is not None:
        budget = Left(limit, max(0, limit - standing.used - standing.held), 0.0)
    return requests, budget


def _leaving(standing: Standing, limit: int, now: float) -> float:
    """When that request started which has to leave the window first; with a limit of 0 none ever will."""
    left = standing.started - limit
    for at, count in standing.starts if limit else ():
        if left < count:
            return at
        left -= int(count)
    return now


def check(tenant: str, limits: Limits, standing: Standing, tokens: int, now: float) -> None:
    """Pure. `standing.starts` holds only what is within the window."""
    limit = limits.requests_per_minute
    if limit is not None and standing.started >= limit:
        wait = max(1, math.ceil(_leaving(standing, limit, now) + WINDOW_S - now))
        raise TooManyRequests(f"tenant {tenant} may start {limit} requests a minute; wait {wait} s", wait)
    budget = limits.token_budget
    if budget is not None and standing.used + standing.held + tokens > budget:
        left = max(0, budget - standing.used)
        text = (
            f"tenant {tenant} has {left} of {budget} tokens left, {standing.held} of them held by requests that "
            f"are running; this one may need {tokens} (its prompt, estimated, and max_tokens for each answer)"
        )
        raise BudgetExhausted(text, 1 if standing.used + tokens <= budget else None)
