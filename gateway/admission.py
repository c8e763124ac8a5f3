"""May this request run now? Every limit is checked together, and debited together or not at all."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from gateway.errors import BudgetExhausted, TooManyRequests
from gateway.rate_headers import Limits
from registry.tenants import Tenant

WINDOW_S = 60.0


@dataclass(slots=True)
class Standing:
    """One tenant's, in memory. Tokens count prompt and completion."""

    used: int = 0  # settled
    held: int = 0  # set aside by requests that are running
    starts: deque[float] = field(default_factory=deque)  # of the requests admitted in the last WINDOW_S, monotonic


class Hold:
    """Tokens set aside for one request. Leaving the block gives them back, less what `used` was set to."""

    __slots__ = ("_standing", "budget", "requests", "tokens", "used")

    def __init__(self, standing: Standing, tokens: int, requests: Limits | None, budget: Limits | None) -> None:
        self._standing = standing
        self.tokens = tokens
        self.used = 0
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

    def admit(self, tenant: Tenant, tokens: int) -> Hold:
        """Raises TooManyRequests or BudgetExhausted; then nothing was debited."""
        standing = self._standings.setdefault(tenant.name, Standing())
        now = self._clock()
        while standing.starts and standing.starts[0] <= now - WINDOW_S:
            standing.starts.popleft()
        check(tenant, standing, tokens, now)
        standing.starts.append(now)
        standing.held += tokens
        return Hold(standing, tokens, *left(tenant, standing, now))


def left(tenant: Tenant, standing: Standing, now: float) -> tuple[Limits | None, Limits | None]:
    """Of the requests a minute and of the token budget, where they are limited. Pure."""
    requests = budget = None
    if (limit := tenant.requests_per_minute) is not None:
        started = len(standing.starts)
        # All are there again once the newest has left the window.
        requests = Limits(limit, max(0, limit - started), standing.starts[-1] + WINDOW_S - now if started else 0.0)
    if (limit := tenant.token_budget) is not None:
        budget = Limits(limit, max(0, limit - standing.used - standing.held), 0.0)
    return requests, budget


def check(tenant: Tenant, standing: Standing, tokens: int, now: float) -> None:
    """Pure. `standing.starts` holds only what is within the window."""
    limit = tenant.requests_per_minute
    if limit is not None and len(standing.starts) >= limit:
        # The request that has to leave the window first; with a limit of 0 none ever will.
        leaving = standing.starts[len(standing.starts) - limit] if limit else now
        wait = max(1, math.ceil(leaving + WINDOW_S - now))
        raise TooManyRequests(f"tenant {tenant.name} may start {limit} requests a minute; wait {wait} s", wait)
    budget = tenant.token_budget
    if budget is not None and standing.used + standing.held + tokens > budget:
        left = max(0, budget - standing.used)
        text = (
            f"tenant {tenant.name} has {left} of {budget} tokens left, {standing.held} of them held by requests that "
            f"are running; this one may need {tokens} (its prompt, estimated, and max_tokens for each answer)"
        )
        raise BudgetExhausted(text, 1 if standing.used + tokens <= budget else None)
