"""The ledger: who used what, in tokens and micro-credits. Append-only, integers, double entry.

Each tenant has three accounts. A hold moves credit from `available` to `held`; settling moves it on to `consumed` and
what was not used back to `available`; releasing moves it all back. The postings of every step sum to zero.

The steps (registry.steps) come from the gateways' journals (registry.journal); one gateway process is the writer
(`open_ledger`, registry.projection); any process may read. `write` is the ledger's rules, one step at a time;
registry.ledger_bulk does the same fast for steps that break none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from registry import clock
from registry.db import Conflict, Database, open_writer, row, rows, snapshot, transaction
from registry.ledger_bulk import ADD_TO_TOTAL
from registry.ledger_migrations import MIGRATIONS
from registry.steps import AMOUNT_LIMIT as AMOUNT_LIMIT
from registry.steps import Attempt as Attempt
from registry.steps import Hold as Hold
from registry.steps import Note as Note
from registry.steps import Outcome as Outcome
from registry.steps import Release as Release
from registry.steps import Step as Step
from registry.steps import TooMuch as TooMuch
from registry.steps import UsageEvent as UsageEvent
from registry.steps import check as check_step
from registry.steps import mint as mint


class Price(Protocol):
    """Credits per million tokens, which is the same number as micro-credits per token."""

    @property
    def prompt(self) -> float: ...
    @property
    def completion(self) -> float: ...


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


def price_of(prices: Mapping[str, Price], model: str, deployment: str = "") -> Price | None:
    """A model without a price of its own costs what its deployment does, where `model` is a LoRA adapter of one.

    What has no price either way costs "default"; where there is none, nothing.
    """
    return prices.get(model) or prices.get(deployment) or prices.get("default")


def cost(price: Price | None, prompt_tokens: int, completion_tokens: int) -> int:
    """Micro-credits."""
    if price is None:
        return 0
    return round(prompt_tokens * price.prompt + completion_tokens * price.completion)


def record(db: Database, steps: Sequence[Step], journal: str = "") -> list[Conflict | None]:
    """write() as a transaction of its own. Raises StorageError when the file cannot be written: then nothing is."""
    with transaction(db) as c:
        return write(c, steps, clock.now(), journal)


def write(c: sqlite3.Connection, steps: Sequence[Step], at: str, journal: str = "") -> list[Conflict | None]:
    """Write steps of one journal, in order, in the caller's transaction; for each, None or why it was refused.

    A refused step changes nothing and does not stop the others.
    """
    results: list[Conflict | None] = []
    for step in steps:
        try:
            _write(c, step, at, journal)
        except Conflict as e:
            results.append(e)
        else:
            results.append(None)
    return results


def settle_orphans(db: Database, living: Collection[str] = ()) -> int:
    """Settle every hold whose journal is none of the `living` at its last noted running count; how many there were."""
    left = [h for h in rows(db, "SELECT * FROM holds") if h["journal"] not in living]
    at = clock.now()
    steps: list[Step] = [
        UsageEvent(_attempt(h), h["prompt_tokens"], h["completion_tokens"], h["microcredits"], Outcome.ORPHANED, at)
        if h["prompt_tokens"] or h["completion_tokens"]
        else Release(h["event_id"])
        for h in left
    ]
    if steps:
        refused = [r for r in record(db, steps) if r]
        assert not refused, refused
    return len(left)


def _write(c: sqlite3.Connection, step: Step, at: str, journal: str) -> None:
    """One step. Whatever may be refused is looked at before anything is written."""
    check_step(step)
    match step:
        case Hold(attempt, tokens, microcredits):
            if c.execute("SELECT 1 FROM holds WHERE event_id = ?", (attempt.event_id,)).fetchone():
                raise Conflict(f"event {attempt.event_id}: is held already")
            if c.execute("SELECT 1 FROM postings WHERE event_id = ? LIMIT 1", (attempt.event_id,)).fetchone():
                raise Conflict(f"event {attempt.event_id}: was held before and is over")
            c.execute(
                "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?)",
                (*attempt, tokens, microcredits, journal),
            )
            _post(c, attempt.event_id, "hold", attempt.tenant, at, available=-microcredits, held=microcredits)
        case Note(event_id, prompt, completion, microcredits):
            c.execute(
                "UPDATE holds SET prompt_tokens = ?, completion_tokens = ?, microcredits = ? WHERE event_id = ?",
                (prompt, completion, microcredits, event_id),
            )
        case UsageEvent(attempt, prompt, completion, microcredits, outcome, ended_at):
            event = (*attempt, prompt, completion, microcredits, outcome, ended_at)
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
            c.execute(ADD_TO_TOTAL, (attempt.tenant, prompt + completion))
            back = held - microcredits
            _post(c, attempt.event_id, "settle", attempt.tenant, at, held=-held, consumed=microcredits, available=back)
        case Release(event_id):
            hold = c.execute("SELECT * FROM holds WHERE event_id = ?", (event_id,)).fetchone()
            if hold is None:
                return  # released already, or never held: nothing is owed either way
            held = hold["held_microcredits"]
            c.execute("DELETE FROM holds WHERE event_id = ?", (event_id,))
            _post(c, event_id, "release", hold["tenant"], at, held=-held, available=held)


def _post(c: sqlite3.Connection, event_id: str, step: str, tenant: str, at: str, **amounts: int) -> None:
    assert sum(amounts.values()) == 0, amounts
    c.executemany(
        "INSERT INTO postings VALUES (?, ?, ?, ?, ?)",
        [(event_id, step, f"{tenant}/{account}", amount, at) for account, amount in amounts.items()],
    )


def _attempt(r: sqlite3.Row) -> Attempt:
    return Attempt(*(r[name] for name in Attempt._fields))


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
    return tokens_by_tenant(db).get(tenant, 0)


def tokens_by_tenant(db: Database) -> dict[str, int]:
    """tokens_used() of every tenant that used any."""
    if not row(db, "SELECT 1 FROM sqlite_master WHERE name = 'totals'"):
        return _tokens_of_events(db)  # the file's writer is an older Headgate, which is still to make way
    return {r["tenant"]: r["tokens"] for r in rows(db, "SELECT tenant, tokens FROM totals")}


def _tokens_of_events(db: Database) -> dict[str, int]:
    by_tenant = "SELECT tenant, sum(prompt_tokens + completion_tokens) AS tokens FROM usage_events GROUP BY tenant"
    return {r["tenant"]: r["tokens"] for r in rows(db, by_tenant)}


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

    Every step's postings sum to zero; each tenant's `consumed` is what its events cost, its `held` what is open, its
    total what its events used.
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
        totals, used = tokens_by_tenant(db), _tokens_of_events(db)
    for tenant in sorted({*totals, *used}):
        if (got := totals.get(tenant, 0)) != (want := used.get(tenant, 0)):
            wrong.append(f"tenant {tenant}: {got} tokens are its total, its events say {want}")
    for account, expected in (("consumed", consumed), ("held", held)):
        for tenant in sorted({a.split("/")[0] for a in posted} | set(expected)):
            got, want = posted.get(f"{tenant}/{account}", 0), expected.get(tenant, 0)
            if got != want:
                wrong.append(f"tenant {tenant}: {got} micro-credits are posted as {account}, its rows say {want}")
    return wrong
