"""What was used, read from the ledger's sums: as quick after ten million events as after ten."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date

from registry.db import Database, rows
from registry.limits import Subject
from registry.window import Window

COLUMNS = {name: name for name in ("day", "tenant", "user", "model", "replica", "kind")} | {"key": "key_id"}


@dataclass(frozen=True, slots=True)
class Counts:
    requests: int = 0
    cut: int = 0  # of the requests, those that did not end normally
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts'
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of the completions'
    microcredits: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.requests + other.requests,
            self.cut + other.cut,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.microcredits + other.microcredits,
        )


Used = Mapping[tuple[str, ...], Counts]


def used(
    db: Database, window: Window, *by: str, tenants: Collection[str] | None = None
) -> dict[tuple[str, ...], Counts]:
    """What ended in the window, by any of COLUMNS, in their order. `tenants`: of these alone."""
    columns = [COLUMNS[one] for one in by]
    chosen = ", ".join([*columns, *(f"sum({name})" for name in Counts.__dataclass_fields__)])
    whose, names = _of(tenants)
    groups = f"GROUP BY {', '.join(columns)} ORDER BY {', '.join(columns)}" if columns else "HAVING count(*) > 0"
    found = rows(
        db,
        f"SELECT {chosen} FROM daily WHERE day >= ? AND day < ? {whose} {groups}",
        str(window.first),
        str(window.last),
        *names,
    )
    return {tuple(r)[: len(by)]: Counts(*tuple(r)[len(by) :]) for r in found}


def used_before(db: Database, day: date, tenants: Collection[str]) -> dict[str, Counts]:
    """By tenant: everything that ended before a day."""
    return {name: counts for (name,), counts in used(db, Window(date.min, day), "tenant", tenants=tenants).items()}


def tokens_of(db: Database, window: Window, replicas: Collection[str]) -> dict[str, int]:
    """By model: tokens of these replicas."""
    found: dict[str, int] = {}
    for (model, replica), counts in used(db, window, "model", "replica").items():
        if replica in replicas:
            found[model] = found.get(model, 0) + counts.tokens
    return found


def together(of: Iterable[Counts]) -> Counts:
    return sum(of, Counts())


def totals(db: Database, subject: Subject, *periods: str) -> dict[str, tuple[int, int]]:
    """By name: (tokens, micro-credits) that limits of this subject count, in these periods together."""
    places = ", ".join("?" * len(periods))
    return {
        r[0]: (r[1], r[2])
        for r in rows(
            db,
            f"""SELECT name, sum(tokens), sum(microcredits) FROM usage_totals
                WHERE period IN ({places}) AND subject = ? GROUP BY name""",
            *periods,
            subject,
        )
    }


def consumed(db: Database, tenants: Collection[str] | None = None) -> tuple[int, int]:
    """Micro-credits of all time, twice: as the days' sums have them, and as the balances of the postings do."""
    whose, names = _of(tenants)
    (by_day,) = rows(db, f"SELECT coalesce(sum(microcredits), 0) FROM daily WHERE 1 {whose}", *names)
    (posted,) = rows(db, f"SELECT coalesce(sum(consumed), 0) FROM balances WHERE 1 {whose}", *names)
    return int(by_day[0]), int(posted[0])


@dataclass(frozen=True, slots=True)
class Correction:
    """`microcredits` and `tokens` are what was taken back."""

    at: str
    tenant: str
    model: str
    event_id: str
    corrects: str
    by: str
    reason: str
    tokens: int
    microcredits: int


def corrections(db: Database, window: Window, tenants: Collection[str] | None = None) -> list[Correction]:
    """Those made in the window, oldest first. `tenants`: of these alone."""
    whose, names = _of(tenants)
    return [
        Correction(*r)
        for r in rows(
            db,
            f"""SELECT at, tenant, model, event_id, corrects, by, reason, prompt_tokens + completion_tokens,
                   microcredits FROM reversals WHERE at >= ? AND at < ? {whose} ORDER BY at, event_id""",
            str(window.first),
            str(window.last),
            *names,
        )
    ]


def _of(tenants: Collection[str] | None) -> tuple[str, tuple[str, ...]]:
    if tenants is None:
        return "", ()
    names = tuple(sorted(tenants))
    return f"AND tenant IN ({', '.join('?' * len(names))})", names
