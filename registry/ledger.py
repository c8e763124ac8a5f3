"""The ledger: who used what, in tokens and micro-credits. Append-only, integers, double entry.

Each tenant has three accounts. A hold moves credit from `available` to `held`; settling moves it on to `consumed` and
what was not used back to `available`; releasing moves it all back. The postings of every step sum to zero.

The gateway's process is the one writer (`open_ledger`, `record`, `settle_orphans`); any process may read.
"""

from __future__ import annotations

import enum
import random
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from registry import clock
from registry.db import Conflict, Database, open_writer, row, rows, snapshot, transaction
from registry.ledger_migrations import MIGRATIONS

AMOUNT_LIMIT = 2**53  # of tokens or micro-credits in one step: sums of a thousand such still fit SQLite's integers


class TooMuch(Conflict):
    """A step states an amount that cannot be one."""


class Outcome(enum.StrEnum):
    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    UPSTREAM_FAILED = "upstream_failed"
    ORPHANED = "orphaned"  # the gateway's process ended, or was about to, before the request did


class Price(Protocol):
    """Credits per million tokens, which is the same number as micro-credits per token."""

    @property
    def prompt(self) -> float: ...
    @property
    def completion(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One dispatch of one request to one replica."""

    event_id: str
    tenant: str
    key_id: str
    model: str  # the name the client asked for
    replica: str  # its id, or the provider's model for an external one
    kind: str  # chat | completion
    started_at: str


ATTEMPT = tuple(f.name for f in fields(Attempt))
_columns = attrgetter(*ATTEMPT)


@dataclass(frozen=True, slots=True)
class Hold:
    """What is set aside before an attempt is dispatched."""

    attempt: Attempt
    tokens: int
    microcredits: int


@dataclass(frozen=True, slots=True)
class Note:
    """A running count: what an attempt that is still streaming has used so far."""

    event_id: str
    prompt_tokens: int
    completion_tokens: int
    microcredits: int


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """What an attempt used, once it is over."""

    attempt: Attempt
    prompt_tokens: int
    completion_tokens: int
    microcredits: int
    outcome: Outcome
    ended_at: str


@dataclass(frozen=True, slots=True)
class Release:
    """An attempt that used nothing: the hold goes back and leaves no usage event."""

    event_id: str


Step = Hold | Note | UsageEvent | Release


@dataclass(frozen=True, slots=True)
class UsageRow:
    tenant: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    microcredits: int


def open_ledger(path: Path) -> Database:
    """Open `ledger.db` as its one writer. Raises StorageError (see registry.db.open_writer)."""
    return open_writer(path, MIGRATIONS)


def mint(at: datetime) -> str:
    """A new event id: 12 hex digits of milliseconds, then 80 random bits (unique, not secret). Later ids sort later."""
    return f"{int(at.timestamp() * 1000):012x}{random.getrandbits(80):020x}"


def price(prices: Mapping[str, Price], model: str, prompt_tokens: int, completion_tokens: int) -> int:
    """Micro-credits. A model without a price of its own costs "default"; where there is none either, nothing."""
    found = prices.get(model) or prices.get("default")
    if found is None:
        return 0
    return round(prompt_tokens * found.prompt + completion_tokens * found.completion)


def record(db: Database, steps: Sequence[Step]) -> list[Conflict | None]:
    """Write all steps in one transaction, in order; for each, None or why it was refused.

    A refused step changes nothing and does not stop the others. Raises StorageError when the file cannot be written:
    then none of them is.
    """
    results: list[Conflict | None] = []
    with transaction(db) as c:
        at = clock.now()
        for step in steps:
            try:
                _write(c, step, at)
            except Conflict as e:
                results.append(e)
            else:
                results.append(None)
    return results


def settle_orphans(db: Database) -> int:
    """Settle every hold that a dead process left open at its last noted running count; how many there were."""
    left = rows(db, "SELECT * FROM holds")
    at = clock.now()
    steps: list[Step] = [
        UsageEvent(_attempt(h), h["prompt_tokens"], h["completion_tokens"], h["microcredits"], Outcome.ORPHANED, at)
        if h["prompt_tokens"] or h["completion_tokens"]
        else Release(h["event_id"])
        for h in left
    ]
    refused = [r for r in record(db, steps) if r]
    assert not refused, refused
    return len(left)


def _write(c: sqlite3.Connection, step: Step, at: str) -> None:
    """One step. Whatever may be refused is looked at before anything is written."""
    for name, amount in _amounts(step):
        if not 0 <= amount <= AMOUNT_LIMIT:
            raise TooMuch(f"{amount} {name} in one request; the ledger takes 0 to {AMOUNT_LIMIT}")
    match step:
        case Hold(attempt, tokens, microcredits):
            if c.execute("SELECT 1 FROM holds WHERE event_id = ?", (attempt.event_id,)).fetchone():
                raise Conflict(f"event {attempt.event_id}: is held already")
            if c.execute("SELECT 1 FROM postings WHERE event_id = ? LIMIT 1", (attempt.event_id,)).fetchone():
                raise Conflict(f"event {attempt.event_id}: was held before and is over")
            c.execute(
                "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0)",
                (*_columns(attempt), tokens, microcredits),
            )
            _post(c, attempt.event_id, "hold", attempt.tenant, at, available=-microcredits, held=microcredits)
        case Note(event_id, prompt, completion, microcredits):
            c.execute(
                "UPDATE holds SET prompt_tokens = ?, completion_tokens = ?, microcredits = ? WHERE event_id = ?",
                (prompt, completion, microcredits, event_id),
            )
        case UsageEvent(attempt, prompt, completion, microcredits, outcome, ended_at):
            event = (*_columns(attempt), prompt, completion, microcredits, outcome, ended_at)
            old = c.execute("SELECT * FROM usage_events WHERE event_id = ?", (attempt.event_id,)).fetchone()
            if old is not None:
                if tuple(old) == event:
                    return
                raise Conflict(f"event {attempt.event_id}: is in the ledger with other contents")
            hold = c.execute("SELECT * FROM holds WHERE event_id = ?", (attempt.event_id,)).fetchone()
            if hold is None or _attempt(hold) != attempt:
                raise Conflict(f"event {attempt.event_id}: nothing is held for it, or for another attempt")
            held = hold["held_microcredits"]
            c.execute("DELETE FROM holds WHERE event_id = ?", (attempt.event_id,))
            c.execute("INSERT INTO usage_events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", event)
            back = held - microcredits
            _post(c, attempt.event_id, "settle", attempt.tenant, at, held=-held, consumed=microcredits, available=back)
        case Release(event_id):
            hold = c.execute("SELECT * FROM holds WHERE event_id = ?", (event_id,)).fetchone()
            if hold is None:
                return  # released already, or never held: nothing is owed either way
            held = hold["held_microcredits"]
            c.execute("DELETE FROM holds WHERE event_id = ?", (event_id,))
            _post(c, event_id, "release", hold["tenant"], at, held=-held, available=held)


def _amounts(step: Step) -> list[tuple[str, int]]:
    match step:
        case Hold(_, tokens, microcredits):
            return [("tokens", tokens), ("micro-credits", microcredits)]
        case Note(_, prompt, completion, microcredits) | UsageEvent(_, prompt, completion, microcredits):
            return [("prompt tokens", prompt), ("completion tokens", completion), ("micro-credits", microcredits)]
        case Release():
            return []


def _post(c: sqlite3.Connection, event_id: str, step: str, tenant: str, at: str, **amounts: int) -> None:
    assert sum(amounts.values()) == 0, amounts
    c.executemany(
        "INSERT INTO postings VALUES (?, ?, ?, ?, ?)",
        [(event_id, step, f"{tenant}/{account}", amount, at) for account, amount in amounts.items()],
    )


def _attempt(r: sqlite3.Row) -> Attempt:
    return Attempt(*(r[name] for name in ATTEMPT))


# The read side: any process, read-only (registry.db.open_reader).


def usage_by_tenant_and_model(
    db: Database, since: datetime | None = None, until: datetime | None = None
) -> list[UsageRow]:
    """What attempts that ended in [since, until) used, by tenant and model name."""
    return [
        UsageRow(*r)
        for r in rows(
            db,
            """SELECT tenant, model, count(*), sum(prompt_tokens), sum(completion_tokens), sum(microcredits)
               FROM usage_events WHERE ended_at >= ? AND ended_at < ? GROUP BY tenant, model ORDER BY tenant, model""",
            clock.text(since) if since else "",
            clock.text(until) if until else "~",  # sorts after every time
        )
    ]


def tokens_used(db: Database, tenant: str) -> int:
    """Prompt and completion tokens of everything that is settled."""
    found = row(
        db, "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) FROM usage_events WHERE tenant = ?", tenant
    )
    assert found is not None
    return int(found[0])


def tokens_by_tenant(db: Database) -> dict[str, int]:
    """tokens_used() of every tenant that used any."""
    return dict(
        tuple(r)
        for r in rows(db, "SELECT tenant, sum(prompt_tokens + completion_tokens) FROM usage_events GROUP BY tenant")
    )


def usage_events(db: Database) -> list[UsageEvent]:
    """Every event, oldest first."""
    return [
        UsageEvent(
            _attempt(r),
            r["prompt_tokens"],
            r["completion_tokens"],
            r["microcredits"],
            Outcome(r["outcome"]),
            r["ended_at"],
        )
        for r in rows(db, "SELECT * FROM usage_events ORDER BY event_id")
    ]


def open_holds(db: Database) -> int:
    found = row(db, "SELECT count(*) FROM holds")
    assert found is not None
    return int(found[0])


def check(db: Database) -> list[str]:
    """What does not add up, in words; empty when the ledger is sound.

    Every step's postings sum to zero; each tenant's `consumed` is what its events cost, its `held` what is open.
    """
    with snapshot(db):
        wrong = [
            f"event {r['event_id']}: the postings of its {r['step']} sum to {r['total']}, not 0"
            for r in rows(
                db,
                """SELECT event_id, step, sum(microcredits) AS total FROM postings
                   GROUP BY event_id, step HAVING total != 0""",
            )
        ]
        posted = dict(tuple(r) for r in rows(db, "SELECT account, sum(microcredits) FROM postings GROUP BY account"))
        consumed = dict(
            tuple(r) for r in rows(db, "SELECT tenant, sum(microcredits) FROM usage_events GROUP BY tenant")
        )
        held = dict(tuple(r) for r in rows(db, "SELECT tenant, sum(held_microcredits) FROM holds GROUP BY tenant"))
    for account, expected in (("consumed", consumed), ("held", held)):
        for tenant in sorted({a.split("/")[0] for a in posted} | set(expected)):
            got, want = posted.get(f"{tenant}/{account}", 0), expected.get(tenant, 0)
            if got != want:
                wrong.append(f"tenant {tenant}: {got} micro-credits are posted as {account}, its rows say {want}")
    return wrong
