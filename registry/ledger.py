"""The ledger: who used what, in tokens and micro-credits. Append-only, integers, double entry.

Each tenant has three accounts. A hold moves credit from `available` to `held`; settling moves it on to `consumed` and
what was not used back to `available`; releasing moves it all back. The postings of every step sum to zero.

The steps (registry.steps) come from the gateways' journals (registry.journal); one gateway process is the writer
(`open_ledger`, registry.projection); any process may read. `write` is the ledger's rules, one step at a time;
registry.ledger_bulk does the same fast for steps that break none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import clock
from registry.db import Conflict, Database, open_writer, row, rows, snapshot, transaction
from registry.ledger_check import verify
from registry.ledger_migrations import MIGRATIONS
from registry.ledger_sums import TAKEN_BACK, Sums, totalled
from registry.prices import TokenPrice
from registry.steps import AMOUNT_LIMIT as AMOUNT_LIMIT
from registry.steps import Attempt as Attempt
from registry.steps import Hold as Hold
from registry.steps import Note as Note
from registry.steps import Outcome as Outcome
from registry.steps import Release as Release
from registry.steps import Reversal as Reversal
from registry.steps import Step as Step
from registry.steps import TooMuch as TooMuch
from registry.steps import UsageEvent as UsageEvent
from registry.steps import check as check_step
from registry.steps import mint as mint
from registry.steps import spelled

Totals = dict[tuple[str, str, str], tuple[int, int]]  # (period, subject, name) -> (tokens, micro-credits)


@dataclass(frozen=True, slots=True)
class Used:
    """What is settled, of some periods."""

    totals: Totals
    taken_back: Totals  # how much less those are for reversals


def open_ledger(path: Path) -> Database:
    """Open `ledger.db` as its one writer. Raises StorageError (see registry.db.open_writer)."""
    return open_writer(path, MIGRATIONS)


def cost(price: TokenPrice | None, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> int:
    """Micro-credits. `cached_tokens` are of the prompt's."""
    if price is None:
        return 0
    paid = prompt_tokens * price.prompt + completion_tokens * price.completion
    if cached_tokens and price.cached is not None:
        paid += cached_tokens * (price.cached - price.prompt)
    return round(paid)


def record(db: Database, steps: Sequence[Step], journal: str = "") -> list[Conflict | None]:
    """write() as a transaction of its own. Raises StorageError when the file cannot be written: then nothing is."""
    with transaction(db) as c:
        return write(c, steps, clock.now(), journal)


def write(c: sqlite3.Connection, steps: Sequence[Step], at: str, journal: str = "") -> list[Conflict | None]:
    """Write steps of one journal, in order, in the caller's transaction; for each, None or why it was refused.

    A refused step changes nothing but the table `conflicts`, and does not stop the others.
    """
    results: list[Conflict | None] = []
    sums = Sums()
    for step in steps:
        try:
            _write(c, step, at, journal, sums)
        except Conflict as e:
            results.append(e)
            c.execute(
                "INSERT INTO conflicts (at, journal, record, why) VALUES (?, ?, ?, ?)",
                (at, journal, spelled(step), str(e)),
            )
        else:
            results.append(None)
    sums.write(c)
    return results


def settle_orphans(db: Database, living: Collection[str] = ()) -> int:
    """Settle every hold whose journal is none of the `living` at its last noted running count; how many there were."""
    left = [h for h in rows(db, "SELECT * FROM holds") if h["journal"] not in living]
    at = clock.now()
    steps: list[Step] = [
        UsageEvent(
            _attempt(h),
            h["prompt_tokens"],
            h["completion_tokens"],
            h["microcredits"],
            Outcome.ORPHANED,
            at,
            h["cached_tokens"],
            h["reasoning_tokens"],
        )
        if h["prompt_tokens"] or h["completion_tokens"]
        else Release(h["event_id"])
        for h in left
    ]
    if steps:
        refused = [r for r in record(db, steps) if r]
        assert not refused, refused
    return len(left)


def _write(c: sqlite3.Connection, step: Step, at: str, journal: str, sums: Sums) -> None:
    """One step. Whatever may be refused is looked at before anything is written."""
    check_step(step)
    match step:
        case Hold(attempt, tokens, microcredits):
            if _held_before(c, step):
                return
            c.execute(
                "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, ?)",
                (*attempt, tokens, microcredits, journal),
            )
            _post(c, sums, attempt.event_id, "hold", attempt.tenant, at, available=-microcredits, held=microcredits)
        case Note(event_id, prompt, completion, microcredits, cached, reasoning):
            c.execute(
                """UPDATE holds SET prompt_tokens = ?, completion_tokens = ?, microcredits = ?, cached_tokens = ?,
                   reasoning_tokens = ? WHERE event_id = ?""",
                (prompt, completion, microcredits, cached, reasoning, event_id),
            )
        case UsageEvent(attempt):
            event = (*attempt, *step[1:])
            old = c.execute("SELECT * FROM usage_events WHERE event_id = ?", (attempt.event_id,)).fetchone()
            if old is not None:
                if tuple(old) == event:
                    return
                raise Conflict(f"event {attempt.event_id}: is in the ledger with other contents")
            hold = c.execute("SELECT * FROM holds WHERE event_id = ?", (attempt.event_id,)).fetchone()
            if hold is None or _attempt(hold) != attempt:
                raise Conflict(f"event {attempt.event_id}: nothing is held for it, or for another attempt")
            held, paid = hold["held_microcredits"], step.microcredits
            c.execute("DELETE FROM holds WHERE event_id = ?", (attempt.event_id,))
            _insert_event(c, sums, event)
            left = held - paid
            _post(c, sums, attempt.event_id, "settle", attempt.tenant, at, held=-held, consumed=paid, available=left)
        case Release(event_id):
            hold = c.execute("SELECT * FROM holds WHERE event_id = ?", (event_id,)).fetchone()
            if hold is None:
                return  # released already, or never held: nothing is owed either way
            held = hold["held_microcredits"]
            c.execute("DELETE FROM holds WHERE event_id = ?", (event_id,))
            _post(c, sums, event_id, "release", hold["tenant"], at, held=-held, available=held)
        case Reversal():
            _reverse(c, sums, step, at)


def _held_before(c: sqlite3.Connection, hold: Hold) -> bool:
    """Whether this very hold was written already. Raises Conflict when another one was for its event."""
    attempt = hold.attempt
    same = (attempt.tenant, hold.microcredits)
    found = c.execute(
        "SELECT tenant, held FROM entries WHERE event_id = ? ORDER BY step = 'hold' DESC LIMIT 1", (attempt.event_id,)
    ).fetchone()
    if found is None:
        return False
    held = c.execute("SELECT * FROM holds WHERE event_id = ?", (attempt.event_id,)).fetchone()
    over = c.execute("SELECT * FROM usage_events WHERE event_id = ?", (attempt.event_id,)).fetchone()
    known = held or over  # a release leaves the entry only
    if tuple(found) != same or (known and _attempt(known) != attempt) or (held and held["held_tokens"] != hold.tokens):
        raise Conflict(f"event {attempt.event_id}: is held already, or was, with other contents")
    return True


def _reverse(c: sqlite3.Connection, sums: Sums, step: Reversal, at: str) -> None:
    old = c.execute("SELECT * FROM reversals WHERE event_id = ?", (step.event_id,)).fetchone()
    if old is not None and tuple(old)[: len(step)] == tuple(step):
        return
    found = c.execute("SELECT * FROM usage_events WHERE event_id = ?", (step.corrects,)).fetchone()
    if old is not None:
        raise Conflict(f"event {step.event_id}: is in the ledger with other contents")
    if found is None or found["outcome"] == Outcome.REVERSED:
        raise Conflict(f"event {step.corrects}: cannot be reversed: it is not in the ledger, or is itself a reversal")
    if c.execute("SELECT 1 FROM reversals WHERE corrects = ?", (step.corrects,)).fetchone():
        raise Conflict(f"event {step.corrects}: was reversed before")
    taken = [found[name] for name in TAKEN_BACK]
    c.execute(f"INSERT INTO reversals VALUES ({', '.join('?' * (len(step) + len(taken)))})", (*step, *taken))
    attempt = _attempt(found)._replace(event_id=step.event_id)
    amounts = [-found[name] for name in ("prompt_tokens", "completion_tokens", "microcredits")]
    also = [-found[name] for name in ("cached_tokens", "reasoning_tokens")]
    _insert_event(c, sums, (*attempt, *amounts, Outcome.REVERSED, step.at, *also))
    paid = found["microcredits"]
    _post(c, sums, step.event_id, "reverse", attempt.tenant, at, available=paid, consumed=-paid)


def _insert_event(c: sqlite3.Connection, sums: Sums, event: Sequence[Any]) -> None:
    c.execute(f"INSERT INTO usage_events VALUES ({', '.join('?' * 15)})", event)
    sums.ended([event])


def _post(
    c: sqlite3.Connection,
    sums: Sums,
    event_id: str,
    step: str,
    tenant: str,
    at: str,
    *,
    available: int = 0,
    held: int = 0,
    consumed: int = 0,
) -> None:
    c.execute(
        "INSERT INTO entries (event_id, step, tenant, available, held, consumed, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (event_id, step, tenant, available, held, consumed, at),
    )
    sums.held(tenant, held)


def _attempt(r: sqlite3.Row) -> Attempt:
    return Attempt(*(r[name] for name in Attempt._fields))


# The read side: any process, read-only (registry.db.open_reader).


def totals(db: Database, *periods: str) -> Totals:
    """Of everything that is settled.

    A period is a day ("2026-11-28"), a month ("2026-11") or "all"; a subject registry.limits.Subject. A file that a
    gateway of before still writes has no such totals: then they are summed up of its events, which know no users.
    """
    if row(db, "SELECT 1 FROM sqlite_master WHERE name = 'usage_totals'") is None:
        return _summed(db, "SELECT *, '' AS user FROM usage_events", periods)
    places = ", ".join("?" * len(periods))
    return {
        (r["period"], r["subject"], r["name"]): (r["tokens"], r["microcredits"])
        for r in rows(db, f"SELECT * FROM usage_totals WHERE period IN ({places})", *periods)
    }


def used(db: Database, *periods: str) -> Used:
    """At one moment. A reversal counts in the periods in which it was made."""
    with snapshot(db):
        found = totals(db, *periods)
        if row(db, "SELECT 1 FROM sqlite_master WHERE name = 'reversals'") is None:
            return Used(found, {})
        back = _summed(db, "SELECT e.* FROM reversals JOIN usage_events AS e USING (event_id)", periods)
    return Used(found, {who: (-tokens, -microcredits) for who, (tokens, microcredits) in back.items()})


def _summed(db: Database, events: str, periods: Collection[str]) -> Totals:
    days = rows(
        db,
        f"""SELECT substr(ended_at, 1, 10), tenant, user, key_id, model, sum(prompt_tokens + completion_tokens),
            sum(microcredits) FROM ({events}) GROUP BY 1, 2, 3, 4, 5""",
    )
    found = totalled((tuple(r)[:5], r[5], r[6]) for r in days)
    return {who: amounts for who, amounts in found.items() if who[0] in periods}


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
            r["cached_tokens"],
            r["reasoning_tokens"],
        )
        for r in rows(db, "SELECT * FROM usage_events ORDER BY event_id")
    ]


def open_holds(db: Database) -> int:
    found = row(db, "SELECT count(*) FROM holds")
    assert found is not None
    return int(found[0])


def check(db: Database) -> list[str]:
    """What does not add up, in words; empty when the ledger is sound. All of it: registry.ledger_check.verify."""
    return list(verify(db).problems)
