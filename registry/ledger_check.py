"""The proof that a ledger is sound: each rule by itself, in SQL, whatever its size.

Only the months that were rolled up (registry.rollup) are taken at their word: their events are gone, and what is left
is that their sums agree with each other, and that no more is missing than they say.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from registry.db import Database, snapshot
from registry.ledger_sums import ALL, COUNTED, SUMS, TAKEN_BACK
from registry.steps import APPLICATION, Outcome

NAMED = 20  # problems of one kind that are told one by one


@dataclass(frozen=True, slots=True)
class Counts:
    entries: int
    events: int
    holds: int
    reversals: int
    rolled_events: int


@dataclass(frozen=True, slots=True)
class Verified:
    """`problems`: rules that are broken, in words. `conflicts`: steps that were refused, which breaks none."""

    problems: tuple[str, ...]
    conflicts: tuple[str, ...]  # the latest
    refused: int  # of them all
    counts: Counts


def verify(db: Database) -> Verified:
    """Reads one state of the file, whoever writes it meanwhile. Raises StorageError."""
    c = db.conn
    with snapshot(db):
        problems: list[str] = []
        for rule in (_entries, _sequence, _steps, _holds, _reversals, _balances, _totals, _days, _rolled_days, _busy):
            found = rule(c)
            problems += islice(found, NAMED)
            if next(found, None) is not None:
                problems.append(f"... and more like the {NAMED} before")
        counts = Counts(
            entries=_number(c, "SELECT count(*) FROM entries"),
            events=_number(c, "SELECT count(*) FROM usage_events"),
            holds=_number(c, "SELECT count(*) FROM holds"),
            reversals=_number(c, "SELECT count(*) FROM reversals"),
            rolled_events=_number(c, "SELECT coalesce(sum(events), 0) FROM rollups"),
        )
        latest = c.execute("SELECT * FROM conflicts ORDER BY id DESC LIMIT ?", (NAMED,)).fetchall()
        refused = _number(c, "SELECT count(*) FROM conflicts")
    conflicts = tuple(f"{r['at']} journal {r['journal'] or '-'}: {r['why']}: {r['record']}" for r in latest)
    return Verified(tuple(problems), conflicts, refused, counts)


def _entries(c: sqlite3.Connection) -> Iterator[str]:
    for r in c.execute("SELECT * FROM entries WHERE available + held + consumed != 0"):
        yield f"entry {r['seq']} (event {r['event_id']}, {r['step']}) does not sum to 0"


def _sequence(c: sqlite3.Connection) -> Iterator[str]:
    """Numbers from 1 on: each is an entry's, or of one that a roll-up took."""
    (entries, newest) = c.execute("SELECT count(*), coalesce(max(seq), 0) FROM entries").fetchone()
    (rolled, last) = c.execute(
        "SELECT coalesce(sum(last - first + 1), 0), coalesce(max(last), 0) FROM rolled"
    ).fetchone()
    if entries + rolled == max(newest, last):
        twice = c.execute("SELECT seq FROM rolled JOIN entries ON seq BETWEEN first AND last").fetchone()
        if twice is None:
            return
    expected = 1
    numbers = c.execute("SELECT seq, seq FROM entries UNION ALL SELECT first, last FROM rolled ORDER BY 1")
    for first, last in numbers:
        if first > expected:
            yield f"entries {expected} to {first - 1} are missing"
        elif first < expected:
            yield f"entry {first} is in the ledger, and was rolled up as well"
        expected = max(expected, last + 1)


def _steps(c: sqlite3.Connection) -> Iterator[str]:
    """What was posted for each event, beside the event and the hold."""
    found = c.execute(
        f"""SELECT event_id, steps, available, held, consumed, e.microcredits AS cost, e.outcome AS outcome,
               h.held_microcredits AS open, p.tenant AS tenant, one_tenant,
               coalesce(e.tenant, h.tenant, p.tenant) AS its
            FROM (SELECT event_id, {_WHICH} AS steps, sum(available) AS available, sum(held) AS held,
                      sum(consumed) AS consumed, min(tenant) AS tenant, min(tenant) = max(tenant) AS one_tenant
                  FROM entries WHERE step != 'carried' GROUP BY event_id) AS p
            LEFT JOIN usage_events AS e USING (event_id) LEFT JOIN holds AS h USING (event_id)
            WHERE NOT (one_tenant AND p.tenant = its AND CASE steps
                WHEN {_HELD} THEN e.event_id IS NULL AND held IS h.held_microcredits AND consumed = 0
                WHEN {_SETTLED} THEN h.event_id IS NULL AND held = 0 AND consumed IS e.microcredits
                    AND e.outcome != '{Outcome.REVERSED}'
                WHEN {_RELEASED} THEN h.event_id IS NULL AND e.event_id IS NULL AND held = 0 AND consumed = 0
                WHEN {_REVERSED} THEN h.event_id IS NULL AND held = 0 AND consumed IS e.microcredits
                    AND e.outcome = '{Outcome.REVERSED}'
                ELSE 0 END)"""
    )
    for r in found:
        yield _wrong_steps(r)
    for table, steps in (("usage_events", "'settle', 'reverse'"), ("holds", "'hold'")):
        for r in c.execute(
            f"""SELECT event_id FROM {table} AS t WHERE NOT EXISTS
                (SELECT 1 FROM entries AS p WHERE p.event_id = t.event_id AND step IN ({steps}))"""
        ):
            yield f"event {r[0]}: is in {table}, and nothing was posted for it"


def _wrong_steps(r: sqlite3.Row) -> str:
    event = f"event {r['event_id']}"
    if not r["one_tenant"] or r["tenant"] != r["its"]:
        return f"{event}: its entries are not its tenant's"
    steps, open_, known = r["steps"], r["open"] is not None, r["outcome"] is not None
    if steps == _HELD and not known:
        said = f"its hold says {r['open']}" if open_ else "its hold is gone"
        return f"{event}: {r['held']} micro-credits are posted as held, and {said}"
    if steps == _HELD:
        return f"{event}: is in the ledger, and was never settled"
    if steps in (_SETTLED, _REVERSED) and not known:
        return f"{event}: was settled, and is not in the ledger"
    if steps == _RELEASED and known:
        return f"{event}: was released, and is in the ledger"
    if open_:
        return f"{event}: is over, and held still"
    if steps in (_SETTLED, _RELEASED, _REVERSED) and r["held"] != 0:
        return f"{event}: is over, and {r['held']} micro-credits stay posted as held"
    if steps in (_SETTLED, _REVERSED) and r["consumed"] != r["cost"]:
        return f"{event}: {r['consumed']} micro-credits are posted as consumed, it says {r['cost']}"
    times = [f"{steps // one % 10} x {name}" for name, one in _STEPS.items() if steps // one % 10]
    return (
        f"{event}: its entries ({', '.join(times) or 'none'}) cannot be those of one that is {r['outcome'] or 'open'}"
    )


def _holds(c: sqlite3.Connection) -> Iterator[str]:
    """A projector settles what a dead process left before it forgets its journal."""
    for r in c.execute(
        """SELECT event_id, journal FROM holds WHERE journal != '' AND NOT EXISTS
           (SELECT 1 FROM journals WHERE substr(segment, 1, length(journal) + 1) = journal || '.')"""
    ):
        yield f"event {r['event_id']}: is held by journal {r['journal']}, which is gone"


def _reversals(c: sqlite3.Connection) -> Iterator[str]:
    rolled, amounts = _number(c, "SELECT count(*) FROM rollups"), SUMS.split(", ")[2:]
    for r in c.execute(
        f"""SELECT r.event_id, r.corrects, e.outcome AS outcome, n.outcome AS own
            FROM reversals AS r LEFT JOIN usage_events AS e ON e.event_id = r.corrects
            LEFT JOIN usage_events AS n ON n.event_id = r.event_id
            WHERE n.outcome IS NOT '{Outcome.REVERSED}' OR e.outcome IS NULL OR e.outcome = n.outcome
               OR {" OR ".join(f"e.{name} != -n.{name}" for name in amounts)}"""
    ):
        if r["own"] is None and not rolled:
            yield f"reversal {r['event_id']}: has no event"
        elif r["outcome"] is None and not rolled:
            yield f"reversal {r['event_id']}: the event it corrects, {r['corrects']}, is not in the ledger"
        elif r["own"] is not None and r["outcome"] is not None:
            yield f"reversal {r['event_id']}: does not take back what event {r['corrects']} used"
    for r in c.execute(
        f"""SELECT event_id FROM usage_events WHERE outcome = '{Outcome.REVERSED}'
            AND event_id NOT IN (SELECT event_id FROM reversals)"""
    ):
        yield f"event {r[0]}: takes something back, and no reversal says what"
    for r in c.execute(
        f"""SELECT event_id FROM reversals AS r JOIN usage_events AS e USING (event_id)
            WHERE {" OR ".join(f"r.{name} != {'-' if name in amounts else ''}e.{name}" for name in TAKEN_BACK)}"""
    ):
        yield f"reversal {r[0]}: keeps something else than its event took back"


def _balances(c: sqlite3.Connection) -> Iterator[str]:
    for r in _differing(c, "SELECT * FROM balances", _POSTED, 1, 3):
        yield (
            f"tenant {r[0]}: its balance (available, held, consumed) is {tuple(r)[1:4]}, its entries say {tuple(r)[4:]}"
        )


def _totals(c: sqlite3.Connection) -> Iterator[str]:
    """Against `daily`, which is proved against the events."""
    user = f"CASE WHEN substr(user, 1, {len(APPLICATION)}) = '{APPLICATION}' THEN tenant || '/' || user ELSE user END"
    said = " UNION ALL ".join(
        f"""SELECT {period} AS period, '{subject}' AS subject, {column} AS name,
            sum(prompt_tokens + completion_tokens), sum(microcredits) FROM daily WHERE {column} != '' GROUP BY 1, 3"""
        for period in (f"'{ALL}'", "substr(day, 1, 7)", "day")
        for subject, column in (("key", "key_id"), ("user", user), ("tenant", "tenant"), ("model", "model"))
    )
    for r in _differing(c, "SELECT * FROM usage_totals", said, 3, 2):
        total, summed = tuple(r)[3:5], tuple(r)[5:]
        yield f"{r[1]} {r[2]}, {r[0]}: its total (tokens, micro-credits) is {total}, its days say {summed}"


def _days(c: sqlite3.Connection) -> Iterator[str]:
    """Of months of which nothing was rolled up."""
    ours = "NOT IN (SELECT month FROM rollups)"
    daily = f"SELECT * FROM daily WHERE substr(day, 1, 7) {ours}"
    events = f"""SELECT substr(ended_at, 1, 10), tenant, user, key_id, model, replica, kind, {_COUNTED}
                 FROM usage_events WHERE substr(ended_at, 1, 7) {ours} GROUP BY 1, 2, 3, 4, 5, 6, 7"""
    for r in _differing(c, daily, events, 7, 7):
        yield f"{_named(tuple(r)[:7])}: its sums are {tuple(r)[7:14]}, its events say {tuple(r)[14:]}"


def _rolled_days(c: sqlite3.Connection) -> Iterator[str]:
    """Of months of which something was: what their events say that are left, and what went."""
    daily = f"""SELECT substr(day, 1, 7), tenant, {_SUMMED} FROM daily
                WHERE substr(day, 1, 7) IN (SELECT month FROM rollups) GROUP BY 1, 2"""
    left = f"""SELECT month, tenant, {_SUMMED} FROM (
               SELECT substr(ended_at, 1, 7) AS month, tenant, {_COUNTED} FROM usage_events
               WHERE substr(ended_at, 1, 7) IN (SELECT month FROM rollups) GROUP BY 1, 2
               UNION ALL SELECT month, tenant, {SUMS} FROM rollups) GROUP BY 1, 2"""
    for r in _differing(c, daily, left, 2, 7):
        yield f"{r[0]} of tenant {r[1]}: its days sum to {tuple(r)[2:9]}, its events and roll-ups to {tuple(r)[9:]}"
    carried = (
        """SELECT substr(event_id, 1, 7), tenant, sum(consumed) FROM entries WHERE step = 'carried' GROUP BY 1, 2"""
    )
    for r in _differing(c, carried, "SELECT month, tenant, microcredits FROM rollups", 2, 1):
        yield f"{r[0]} of tenant {r[1]}: {r[2]} micro-credits are carried, its roll-up says {r[3]}"


def _busy(c: sqlite3.Connection) -> Iterator[str]:
    for r in c.execute("SELECT replica, hour FROM busy WHERE length(seconds) != 450"):
        yield f"replica {r['replica']}, hour {r['hour']}: its busy seconds are no 450 bytes"


_STEPS = {"hold": 1, "release": 10, "settle": 100, "reverse": 1000}  # a digit counts each
_CASES = " ".join(f"WHEN '{name}' THEN {one}" for name, one in _STEPS.items())
_WHICH = f"sum(CASE step {_CASES} ELSE 10000 END)"
_HELD, _RELEASED, _SETTLED, _REVERSED = 1, 11, 101, 1000
_POSTED = "SELECT tenant, sum(available), sum(held), sum(consumed) FROM entries GROUP BY tenant"
_SUMMED = ", ".join(f"sum({name}) AS {name}" for name in SUMS.split(", "))
_COUNTED = ", ".join(f"sum({amount}) AS {name}" for amount, name in zip(COUNTED, SUMS.split(", "), strict=True))


def _differing(c: sqlite3.Connection, one: str, other: str, keys: int, sums: int) -> Iterator[sqlite3.Row]:
    """Rows (keys, what `one` sums up, what `other` does) where two queries do not say the same; a missing row is 0."""
    k = [f"k{n}" for n in range(keys)]
    a, b = [f"a{n}" for n in range(sums)], [f"b{n}" for n in range(sums)]
    zeros = ", ".join("0" * sums)
    yield from c.execute(
        f"""WITH one({", ".join(k + a)}) AS ({one}), other({", ".join(k + b)}) AS ({other})
            SELECT {", ".join(k)}, {", ".join(f"sum({x})" for x in a + b)} FROM (
                SELECT {", ".join(k + a)}, {", ".join(f"0 AS {x}" for x in b)} FROM one
                UNION ALL SELECT {", ".join(k)}, {zeros}, {", ".join(b)} FROM other)
            GROUP BY {", ".join(k)} HAVING {" OR ".join(f"sum({x}) != sum({y})" for x, y in zip(a, b, strict=True))}"""
    )


def _named(day: tuple[str, ...]) -> str:
    return "{} of tenant {}, user {}, key {}, model {}, replica {}, {}".format(*(name or "-" for name in day))


def _number(c: sqlite3.Connection, sql: str) -> int:
    return int(c.execute(sql).fetchone()[0])
