"""`headgate report quota`: every limit, what is used of it and left, and the day it runs out at the latest rate."""

from __future__ import annotations

import calendar
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from registry.limits import Limits, Subject
from registry.report import Chart, Column, Kind, Section
from registry.report_columns import MICRO, TOP, Row, ratio, top

ALLOWED = tuple(subject.value for subject in (Subject.TENANT, Subject.USER, Subject.KEY, Subject.MODEL))
DEFAULT = (Subject.TENANT.value,)
RATE_DAYS = 7
HORIZON_DAYS = 3650

Amounts = Mapping[str, tuple[int, int]]  # name -> (tokens, micro-credits)

# Limit -> the window of Use it counts in, and how that is said.
_WINDOWS = {
    "tokens_per_day": ("day", "today"),
    "tokens_per_month": ("month", "month"),
    "token_budget": ("ever", "in all"),
    "credits_per_day": ("day", "today"),
    "credits_per_month": ("month", "month"),
    "spend_ceiling": ("ever", "in all"),
}
_TOKENS = ("tokens_per_day", "tokens_per_month", "token_budget")
_CREDITS = ("credits_per_day", "credits_per_month", "spend_ceiling")
_RATES = ("requests_per_minute", "burst", "tokens_per_minute", "concurrent_requests")


@dataclass(frozen=True, slots=True)
class Use:
    """What the limits of one kind of subject counted. `latest`: in the last RATE_DAYS days, today's among them."""

    day: Amounts = field(default_factory=dict)
    month: Amounts = field(default_factory=dict)
    ever: Amounts = field(default_factory=dict)
    latest: Amounts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccountLimit:
    """One of Slurm's own, GrpTRESMins of an account, in hours. `per_day`: at the rate of the last RATE_DAYS days."""

    account: str
    what: str  # "GPU-hours"
    allowed: float
    used: float
    per_day: float | None  # None: the books did not say


def per_day(amount: float, now: datetime) -> float:
    """Of an amount of the last RATE_DAYS days, the last of which is not over."""
    begun = (now - now.replace(hour=0, minute=0, second=0, microsecond=0)) / timedelta(days=1)
    return amount / (RATE_DAYS - 1 + begun)


def runs_out(left: float, rate: float, now: datetime, until: datetime | None = None) -> str | None:
    """The day on which nothing is left, at a rate per day; None where that is not in sight, or after `until`."""
    if left <= 0:
        return "used up"
    if rate <= 0 or left / rate > HORIZON_DAYS:
        return None
    day = now + timedelta(days=left / rate)
    return None if until is not None and day >= until else f"{day.astimezone(UTC):%Y-%m-%d}"


def end_of_month(now: datetime) -> datetime:
    days = calendar.monthrange(now.year, now.month)[1]
    return datetime(now.year, now.month, 1, tzinfo=UTC) + timedelta(days=days)


def sections(
    limits: Mapping[tuple[Subject, str], Limits],
    use: Mapping[Subject, Use],
    slurm: Sequence[AccountLimit],
    accounts: Mapping[str, str],
    now: datetime,
) -> tuple[Section, ...]:
    """`limits`: of all that are to be shown, UNLIMITED ones too. `accounts`: Slurm's -> its tenant."""
    tokens = _quantities("tokens", "Tokens", _TOKENS, 0, limits, use, now)
    credits = _quantities("credits", "Credits", _CREDITS, 1, limits, use, now)
    return (tokens, credits, _rates(limits), *((_slurm(slurm, accounts, now),) if slurm else ()))


def _quantities(
    key: str,
    title: str,
    names: Sequence[str],
    which: int,
    limits: Mapping[tuple[Subject, str], Limits],
    use: Mapping[Subject, Use],
    now: datetime,
) -> Section:
    unit = MICRO if which else 1
    rows: list[Row] = []
    for (subject, of), limited in limits.items():
        counted = use[subject]

        def amount(window: str, counted: Use = counted, of: str = of) -> float:
            found: int = getattr(counted, window).get(of, (0, 0))[which]
            return found / unit if which else found

        found = [(name, getattr(limited, name)) for name in names if getattr(limited, name) is not None]
        for name, allowed in found:
            window, said = _WINDOWS[name]
            used = amount(window)
            until = end_of_month(now) if window == "month" else None
            rate = 0.0 if window == "day" else per_day(amount("latest"), now)
            rows.append(
                {"subject": subject.value, "name": of, "limit": name, "window": said}
                | _left(allowed, used)
                | {"runs_out": runs_out(allowed - used, rate, now, until)}
            )
        if not found:
            rows.append(
                {"subject": subject.value, "name": of, "limit": "none", "window": "month", "used": amount("month")}
                | dict.fromkeys(("allowed", "left", "percent", "runs_out"))
            )
    full = [row for row in rows if isinstance(row["percent"], float)]
    most = top(full, lambda r: (float(r["percent"] or 0),))
    chart = Chart(
        "bars",
        f"Used of each limit of {key}",
        "%",
        tuple(f"{row['name']}, {row['window']}" for row in most),
        (("used", tuple(100 * float(row["percent"] or 0) for row in most)),),
    )
    return Section(
        key,
        title,
        _columns("count" if key == "tokens" else "credits"),
        tuple(rows),
        notes=((f"The chart shows the {TOP} that are used most.",) if len(full) > TOP else ()),
        charts=(chart,) if most else (),
    )


def _columns(kind: Kind) -> tuple[Column, ...]:
    return (
        Column("subject", "Of"),
        Column("name", "Name"),
        Column("limit", "Limit"),
        Column("window", "Window"),
        Column("allowed", "Allowed", kind),
        Column("used", "Used", kind),
        Column("left", "Left", kind),
        Column("percent", "Used", "percent"),
        Column("runs_out", "Runs out"),
    )


def _left(allowed: float, used: float) -> Row:
    return {
        "allowed": allowed,
        "used": used,
        "left": max(0, allowed - used),
        "percent": float(ratio(used, allowed) or 0) if allowed else 1.0,
    }


def _rates(limits: Mapping[tuple[Subject, str], Limits]) -> Section:
    return Section(
        "rates",
        "Rates",
        (
            Column("subject", "Of"),
            Column("name", "Name"),
            Column("requests_per_minute", "Requests/min", "count"),
            Column("burst", "Burst", "count"),
            Column("tokens_per_minute", "Tokens/min", "count"),
            Column("concurrent_requests", "At once", "count"),
        ),
        tuple(
            {"subject": subject.value, "name": of} | {name: getattr(limited, name) for name in _RATES}
            for (subject, of), limited in limits.items()
            if any(getattr(limited, name) is not None for name in _RATES)
        ),
    )


def _slurm(limits: Sequence[AccountLimit], accounts: Mapping[str, str], now: datetime) -> Section:
    rows = tuple(
        {"subject": "account", "name": one.account, "tenant": accounts.get(one.account), "limit": one.what}
        | {"window": "in Slurm"}
        | _left(one.allowed, one.used)
        | {"runs_out": None if one.per_day is None else runs_out(one.allowed - one.used, one.per_day, now)}
        for one in limits
    )
    of, name, *others = _columns("hours")
    return Section(
        "slurm",
        "Slurm's own limits (GrpTRESMins)",
        (of, name, Column("tenant", "Tenant"), *others),
        rows,
        notes=("When one is used up, Slurm stops the account's jobs: training, and the replicas of deployments too.",),
    )
