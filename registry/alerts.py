"""Who is told that a limit is nearly used up, and when: each threshold once. The only module that writes alerts.

A limit in a window of time has a mark: what was told of it last. A new window and a changed limit have none yet.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from registry import clock
from registry.db import Database, rows, transaction
from registry.ledger_sums import ALL
from registry.limits import Limits, Subject

MOVED = timedelta(days=1)  # what is forecast is told again once it is so much earlier; or later, and told so long ago
HORIZON = timedelta(days=14)  # and not at all while it is farther away
KEPT = timedelta(days=400)  # how long the alerts themselves are kept

# A limit that is used up -> whether it counts tokens or credits, and how long its window's name is ("2026-11-28").
QUANTITIES = {
    "tokens_per_day": ("tokens", 10),
    "tokens_per_month": ("tokens", 7),
    "credits_per_day": ("credits", 10),
    "credits_per_month": ("credits", 7),
    "token_budget": ("tokens", 0),
    "spend_ceiling": ("credits", 0),
}


@dataclass(frozen=True, slots=True)
class Key:
    """One limit, as large as it is, in one window."""

    subject: str  # key | user | tenant | model: registry.limits.Subject; or "account", Slurm's
    name: str
    limit: str  # "tokens_per_month", "GrpTRESMins=gres/gpu"
    window: str  # "2026-11-28", "2026-11", "all"
    allowed: int  # tokens, micro-credits, TRES-seconds


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of a limit is used."""

    key: Key
    used: int
    words: str  # "480 of 500 GPU-hours"
    runs_out_at: datetime | None = None  # where that is forecast
    stops: tuple[str, ...] = ()  # what would run on, and ends then: "endpoint chat (deployment chat-v1)"


@dataclass(frozen=True, slots=True)
class Mark:
    """What was told of a limit last."""

    threshold: int  # percent; 0: none
    used: int
    runs_out_at: datetime | None
    told_at: datetime


@dataclass(frozen=True, slots=True)
class Alert:
    standing: Standing
    kind: str  # "threshold" | "forecast"
    threshold: int  # the highest that is reached, percent; 0: none
    runs_out_at: datetime | None  # as the message says
    message: str


@dataclass(frozen=True, slots=True)
class Stored:
    """An alert that was noted, and who still has to be told."""

    id: int
    at: str
    document: Mapping[str, Any]  # as JSON
    waiting: tuple[str, ...]  # channels


# -- pure -----------------------------------------------------------------------------------------------------------


def forecast(used: int, allowed: int, per_second: float, now: datetime) -> datetime | None:
    """When a limit is used up at this rate: `now` where it is already, None where nothing is used or in no lifetime."""
    if used >= allowed:
        return now
    if per_second <= 0:
        return None
    try:
        return now + timedelta(seconds=(allowed - used) / per_second)
    except OverflowError:
        return None


def windows(now: datetime) -> tuple[str, str, str]:
    """The periods of the ledger's totals that count now: the day, the month, all."""
    day = clock.text(now)[:10]
    return day, day[:7], ALL


def standings(
    limited: Mapping[tuple[Subject, str], Limits], totals: Mapping[tuple[str, str, str], tuple[int, int]], now: datetime
) -> list[Standing]:
    """Every limit that can be used up. `totals` are `ledger.totals` of `windows(now)`; what is 0 allows nothing, and
    is not used up."""
    found = []
    for (subject, name), limits in limited.items():
        for limit, (unit, length) in QUANTITIES.items():
            scale = 1 if unit == "tokens" else 1_000_000
            allowed = getattr(limits, limit) or 0
            whole = round(allowed * scale)
            if not whole:
                continue
            window = clock.text(now)[:length] or ALL
            tokens, microcredits = totals.get((window, subject, name), (0, 0))
            used = tokens if unit == "tokens" else microcredits
            key = Key(subject, name, limit, window, whole)
            found.append(Standing(key, used, f"{_number(used / scale)} of {_number(allowed)} {unit}"))
    return found


def due(
    standing: Iterable[Standing], marks: Mapping[Key, Mark], thresholds: Collection[int], now: datetime
) -> list[Alert]:
    """What to tell now. Where several thresholds were passed since the last look, the highest speaks for all."""
    alerts = []
    for one in standing:
        mark = marks.get(one.key, Mark(0, 0, None, now))
        # Where only jobs run that end by themselves, what runs now says little of the days to come.
        ends = one.runs_out_at if one.stops else None
        if ends is not None and not now < ends <= now + HORIZON:
            ends = None
        reached = max((t for t in thresholds if one.used * 100 >= t * one.key.allowed), default=0)
        if reached > mark.threshold:
            text = f"{_used(one)}; {_stops(one, ends)}" if ends else _used(one)
            alerts.append(Alert(one, "threshold", reached, ends, text))
        elif ends is not None and _is_news(ends, mark, now):
            alerts.append(Alert(one, "forecast", mark.threshold, ends, f"{_stops(one, ends)}: {one.words} used"))
    return alerts


def _is_news(ends: datetime, mark: Mark, now: datetime) -> bool:
    """Replicas come and go, and with each the end moves: a later one can wait."""
    if mark.runs_out_at is None or mark.runs_out_at - ends > MOVED:
        return True
    return ends - mark.runs_out_at > MOVED and now - mark.told_at >= MOVED


def begun_anew(standing: Iterable[Standing], marks: Mapping[Key, Mark]) -> list[Key]:
    """Limits of which much less is used than when it was told: somebody reset the count (Slurm's can be)."""
    return [one.key for one in standing if (mark := marks.get(one.key)) is not None and 2 * one.used < mark.used]


def _used(one: Standing) -> str:
    key = one.key
    window = "" if key.window == ALL else f" in {key.window}"
    percent = 100 * one.used // key.allowed
    return f"{key.subject} {key.name} has used {one.words}{window}, {percent} % of its {key.limit}"


def _stops(one: Standing, ends: datetime) -> str:
    at = ends.astimezone(UTC)
    when = f"{at:%A}, {at.day} {at:%B}, {at:%H:%M} UTC"
    limit = f"{one.key.limit.partition('=')[0]} of {one.key.subject} {one.key.name}"
    return f"{', '.join(one.stops)} will be stopped by {limit} on {when}"


def _number(value: float) -> str:
    return f"{value:,.2f}".removesuffix("00").removesuffix(".")


# -- stored ---------------------------------------------------------------------------------------------------------


def marks(db: Database) -> dict[Key, Mark]:
    return {
        Key(*r[:5]): Mark(
            r["threshold"],
            r["used"],
            clock.parse(r["runs_out_at"]) if r["runs_out_at"] else None,
            clock.parse(r["told_at"]),
        )
        for r in rows(db, "SELECT subject, name, limited, period, allowed, * FROM alert_marks")
    }


def note(db: Database, alerts: Sequence[Alert], anew: Iterable[Key], channels: Sequence[str], now: datetime) -> None:
    """These alerts, for these channels to tell, and their marks; and forget the marks of what begins anew."""
    at = clock.text(now)
    with transaction(db) as c:
        of_key = "subject = ? AND name = ? AND limited = ? AND period = ? AND allowed = ?"
        c.executemany(f"DELETE FROM alert_marks WHERE {of_key}", [dataclasses.astuple(key) for key in anew])
        c.execute("DELETE FROM alert_marks WHERE period NOT IN (?, ?, ?)", windows(now))
        c.execute("DELETE FROM alerts WHERE waiting = '[]' AND at < ?", (clock.text(now - KEPT),))
        for alert in alerts:
            one = alert.standing
            runs_out_at = clock.text(alert.runs_out_at) if alert.runs_out_at else None
            c.execute(
                "INSERT OR REPLACE INTO alert_marks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*dataclasses.astuple(one.key), alert.threshold, one.used, runs_out_at, at),
            )
            document = {
                "at": at,
                "kind": alert.kind,
                **dataclasses.asdict(one.key),
                "used": one.used,
                "threshold": alert.threshold,
                "runs_out_at": runs_out_at,
                "stops": one.stops,
                "message": alert.message,
            }
            c.execute(
                "INSERT INTO alerts (at, document, waiting) VALUES (?, ?, ?)",
                (at, json.dumps(document), json.dumps(channels)),
            )


def waiting(db: Database) -> list[Stored]:
    """Alerts that somebody has still to be told of, oldest first."""
    return [
        Stored(r["id"], r["at"], json.loads(r["document"]), tuple(json.loads(r["waiting"])))
        for r in rows(db, "SELECT * FROM alerts WHERE waiting != '[]' ORDER BY id")
    ]


def told(db: Database, alert: Stored, still: Sequence[str]) -> None:
    """Who has still to be told of an alert."""
    with transaction(db) as c:
        c.execute("UPDATE alerts SET waiting = ? WHERE id = ?", (json.dumps(still), alert.id))
