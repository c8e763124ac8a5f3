"""The limits of one subject, against what it has used: may one more request start, and if not, why and until when.

Texts go to whoever called: they name the caller's own key, user and tenant, and the model by the name asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.errors import RETRY_LIMIT_S, BudgetExhausted, TooManyRequests
from gateway.rate_headers import Left
from gateway.windows import WINDOW_S, Account, Calendar, Period, Standing
from registry import clock
from registry.limits import Limits, Subject

CREDIT = 1_000_000  # micro-credits
MAY_NEED = "its prompt, estimated, and max_tokens for each answer"
LASTS = {Period.DAY: "a day", Period.MONTH: "a month", Period.EVER: "in all"}


@dataclass(slots=True)  # not frozen, which would triple the cost of making one
class Now:
    """`monotonic` and `wall` (Unix) in seconds."""

    monotonic: float
    wall: float
    calendar: Calendar

    def until(self, period: Period) -> float:
        """Seconds; infinite where it does not end."""
        return self.calendar.ends[period] - self.wall


@dataclass(frozen=True, slots=True)
class Shown:
    """What is left of one limit; in credits, requests or tokens, as its name says."""

    limit: str  # registry.limits.NAMES
    allowed: float
    used: float
    held: float  # by requests that are running
    left: float
    ends: str | None  # when the window does; None for the last 60 s, and where there is none


@dataclass(frozen=True, slots=True)
class Budget:
    """Of tokens, or of micro-credits."""

    limit: str  # registry.limits.NAMES
    period: Period
    most: int
    account: Account
    unit: int  # 1, or what one credit has


@dataclass(frozen=True, slots=True)
class Gate:
    subject: Subject
    name: str
    standing: Standing
    requests: int | None  # a minute
    burst: int | None
    rate: float  # a second, at which the burst is refilled
    running: int | None
    minute_tokens: int | None
    tokens: tuple[Budget, ...]
    credits: tuple[Budget, ...]

    @property
    def counts_tokens(self) -> bool:
        return self.minute_tokens is not None or bool(self.tokens)


def gate(subject: Subject, name: str, limits: Limits, standing: Standing) -> Gate:
    def budgets(account: Account, unit: int, *names: str) -> tuple[Budget, ...]:
        most = [(name, period, getattr(limits, name)) for name, period in zip(names, Period, strict=True)]
        return tuple(Budget(n, period, round(m * unit), account, unit) for n, period, m in most if m is not None)

    return Gate(
        subject,
        name,
        standing,
        limits.requests_per_minute,
        limits.burst,
        (limits.requests_per_minute or 0) / WINDOW_S,
        limits.concurrent_requests,
        limits.tokens_per_minute,
        budgets(standing.tokens, 1, "tokens_per_day", "tokens_per_month", "token_budget"),
        budgets(standing.credits, CREDIT, "credits_per_day", "credits_per_month", "spend_ceiling"),
    )


def check(gate: Gate, tokens: int, microcredits: int, now: Now, asked: str) -> None:
    """Raises TooManyRequests or BudgetExhausted. `asked`: the model, as the client calls it."""
    standing = gate.standing
    standing.forget(now.monotonic)
    if gate.requests is not None and standing.minute_requests >= gate.requests:
        raise _too_many(gate, now, asked)
    if gate.burst is not None and standing.bucket(now.monotonic, gate.burst, gate.rate) < 1:
        raise _too_many_at_once(gate, gate.burst, now, asked)
    if gate.running is not None and standing.running >= gate.running:
        has = f"may have {gate.running} requests running at a time: 0 left, {standing.running} are running"
        raise TooManyRequests(f"{_who(gate, asked)} {has}", 1 if gate.running else None)
    if gate.minute_tokens is not None and standing.minute_tokens + tokens > gate.minute_tokens:
        raise _too_many_tokens(gate, gate.minute_tokens, tokens, now, asked)
    for budget in gate.tokens:
        if budget.account.used[budget.period] + budget.account.held + tokens > budget.most:
            raise _spent(gate, budget, tokens, now, asked)
    for budget in gate.credits:
        if budget.account.used[budget.period] + budget.account.held + microcredits > budget.most:
            raise _spent(gate, budget, microcredits, now, asked)


def left(gates: Iterable[Gate], now: Now) -> tuple[Left | None, Left | None]:
    """Of requests and of tokens: the limits of which there is least."""
    requests: list[Left] = []
    tokens: list[Left] = []
    for gate in gates:
        standing = gate.standing
        standing.forget(now.monotonic)
        # All are there again once the newest has left the window.
        reset_s = standing.minute[-1].at + WINDOW_S - now.monotonic if standing.minute else 0.0
        if gate.requests is not None:
            free = gate.requests - standing.minute_requests
            if gate.burst is not None:
                free = min(free, int(standing.bucket(now.monotonic, gate.burst, gate.rate)))
            requests.append(Left(gate.requests, max(0, free), reset_s))
        if gate.minute_tokens is not None:
            tokens.append(Left(gate.minute_tokens, max(0, gate.minute_tokens - standing.minute_tokens), reset_s))
        for budget in gate.tokens:
            ends_s = 0.0 if budget.period is Period.EVER else now.until(budget.period)
            tokens.append(Left(budget.most, _free(budget), ends_s))
    return min(requests, key=_remaining, default=None), min(tokens, key=_remaining, default=None)


def shown(gate: Gate, now: Now) -> list[Shown]:
    standing = gate.standing
    standing.forget(now.monotonic)
    started = 0 if gate.burst is None else gate.burst - int(standing.bucket(now.monotonic, gate.burst, gate.rate))
    flows = (
        ("requests_per_minute", gate.requests, standing.minute_requests),
        ("burst", gate.burst, started),
        ("tokens_per_minute", gate.minute_tokens, standing.minute_tokens),
        ("concurrent_requests", gate.running, standing.running),
    )
    found = [Shown(name, most, used, 0, max(0, most - used), None) for name, most, used in flows if most is not None]
    for b in (*gate.tokens, *gate.credits):
        amounts = (b.most, b.account.used[b.period], b.account.held, _free(b))
        most, used, held, free = (n if b.unit == 1 else n / b.unit for n in amounts)
        ends = None if b.period is Period.EVER else _instant(now.calendar.ends[b.period])
        found.append(Shown(b.limit, most, used, held, free, ends))
    return found


def spoken(seconds: float) -> str:
    """As a person says it, in two units at most. Never less than there is to wait."""
    whole = max(0, math.ceil(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = -(-whole // 60)
    days, hours, minutes = minutes // 1440, minutes % 1440 // 60, minutes % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _free(budget: Budget) -> int:
    return max(0, budget.most - budget.account.used[budget.period] - budget.account.held)


def _remaining(found: Left) -> int:
    return found.remaining


def _instant(seconds: float) -> str:
    return clock.text(datetime.fromtimestamp(seconds, UTC))


def _who(gate: Gate, asked: str) -> str:
    return f"{gate.subject} {asked if gate.subject is Subject.MODEL else gate.name}"


def _too_many(gate: Gate, now: Now, asked: str) -> TooManyRequests:
    said = f"{_who(gate, asked)} may start {gate.requests} requests a minute (any 60 s): 0 left"
    if not gate.requests:
        return TooManyRequests(said, None)
    wait = _leaves(gate.standing, gate.standing.minute_requests - gate.requests + 1, 0, now)
    return TooManyRequests(f"{said}, the next may start in {wait} s", wait)


def _too_many_at_once(gate: Gate, burst: int, now: Now, asked: str) -> TooManyRequests:
    lacks = 1 - gate.standing.bucket(now.monotonic, burst, gate.rate)
    wait = max(1, math.ceil(lacks / gate.rate))  # a rate of 0 was refused before
    said = f"{_who(gate, asked)} may start {burst} requests at once, of {gate.requests} a minute: 0 left, "
    return TooManyRequests(f"{said}the next may start in {wait} s", wait)


def _too_many_tokens(gate: Gate, most: int, tokens: int, now: Now, asked: str) -> TooManyRequests:
    used = gate.standing.minute_tokens
    said = f"{_who(gate, asked)} may use {most} tokens a minute (any 60 s): {max(0, most - used)} left, "
    said += f"this request may need {tokens} ({MAY_NEED})"
    if tokens > most:
        return TooManyRequests(f"{said}, which is more than any minute has", None, "tokens")
    wait = _leaves(gate.standing, 0, used + tokens - most, now)
    return TooManyRequests(f"{said}; there are enough in {wait} s", wait, "tokens")


def _leaves(standing: Standing, requests: int, tokens: int, now: Now) -> int:
    """Seconds until so much has left the minute."""
    wait = WINDOW_S
    for grain in standing.minute:
        requests -= grain.requests
        tokens -= grain.tokens
        if requests <= 0 and tokens <= 0:
            wait = grain.at + WINDOW_S - now.monotonic
            break
    return max(1, math.ceil(wait))


def _spent(gate: Gate, budget: Budget, needs: int, now: Now, asked: str) -> BudgetExhausted:
    def amount(count: int) -> str:
        return str(count) if budget.unit == 1 else f"{count / budget.unit:.6f}".rstrip("0").rstrip(".")

    used, held = budget.account.used[budget.period], budget.account.held
    use, things, need = ("use", "tokens", "need") if budget.unit == 1 else ("spend", "credits", "cost")
    said = f"{_who(gate, asked)} may {use} {amount(budget.most)} {things} {LASTS[budget.period]}: "
    said += f"{amount(_free(budget))} left"
    if held:
        said += f", {amount(held)} held by requests that are running"
    said += f", this request may {need} {amount(needs)} ({MAY_NEED})"
    ends_s = now.until(budget.period)
    if budget.period is not Period.EVER:
        at = "" if budget.period is Period.DAY else f"{_instant(now.calendar.ends[budget.period])[:10]} "
        said += f"; the {budget.period.name.lower()} ends in {spoken(ends_s)} ({at}00:00 UTC)"
    if used + needs <= budget.most:
        return BudgetExhausted(said, 1)  # only holds are in the way, and most of them comes back
    soon = needs <= budget.most and ends_s <= RETRY_LIMIT_S
    return BudgetExhausted(said, max(1, math.ceil(ends_s)) if soon else None)
