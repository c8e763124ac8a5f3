"""Retention: single events of old months go, and what they summed up to stays.

A roll-up takes some events, with their entries, in one transaction, after which the ledger is as sound as before
(registry.ledger_check): for each month and tenant the entry `carried` takes over what they consumed, `rollups` has
their sums, `rolled` the numbers of the entries that are gone. `daily`, `usage_totals` and `balances` do not change.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

from registry import clock
from registry.db import Database, transaction
from registry.ledger_sums import COUNTED, SUMS

log = logging.getLogger(__name__)

FORWARD = timedelta(days=62)  # that a clock is believed to have moved since something was written by it
ENTRIES = 2000  # looked at in one transaction, which takes some tens of milliseconds


def oldest_kept(keep_months: int, now: datetime) -> str:
    """The oldest month ("2026-11") whose events stay: `keep_months` whole ones do, and the one that runs."""
    months = now.year * 12 + now.month - 1 - keep_months
    return f"{months // 12:04}-{months % 12 + 1:02}"


class RollUp:
    """Goes through all entries once after it is made, and again whenever another month is due.

    `db` is open as the ledger's writer, and stays its owner's; best nothing was written yet since. `now`: in UTC. By a
    clock that is far ahead of the newest entry, or jumps ahead, nothing is taken away.
    """

    def __init__(self, db: Database, keep_months: int, now: Callable[[], datetime]) -> None:
        self._db = db
        self._keep_months = keep_months
        self._now = now
        newest = db.conn.execute("SELECT at FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        self._believed = clock.parse(newest[0]) if newest else now()
        self._doubted = False
        self._oldest_kept = ""
        self._looked_at = 0  # numbers of entries: up to this one, of those up to `_end`
        self._end = 0

    def turn(self, entries: int = ENTRIES) -> bool:
        """Look at the next `entries`, and roll up what of them is due. False when there was nothing to look at.

        Raises StorageError when the file cannot be written.
        """
        now = self._now()
        if now > self._believed + FORWARD:
            self._doubt(now)
            return False
        self._believed, self._doubted = now, False
        oldest_kept_ = oldest_kept(self._keep_months, now)
        c = self._db.conn
        if oldest_kept_ != self._oldest_kept:
            self._oldest_kept, self._looked_at = oldest_kept_, 0
            self._end = c.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()[0]
        if self._looked_at >= self._end:
            return False
        last = c.execute(
            "SELECT max(seq) FROM (SELECT seq FROM entries WHERE seq > ? ORDER BY seq LIMIT ?)",
            (self._looked_at, entries),
        ).fetchone()[0]
        due = c.execute(
            """SELECT event_id, substr(coalesce(ended_at, at), 1, 7) AS month, p.tenant AS tenant
               FROM entries AS p LEFT JOIN usage_events USING (event_id)
               WHERE seq > ? AND seq <= ? AND step IN ('settle', 'release', 'reverse') AND month < ?""",
            (self._looked_at, last, oldest_kept_),
        ).fetchall()
        if due:
            with transaction(self._db) as c:
                _take_away(c, due, clock.text(now))
        self._looked_at = last
        return True

    def _doubt(self, now: datetime) -> None:
        if not self._doubted:
            self._doubted = True
            log.warning(
                "no old events are rolled up: the clock says %s, the ledger was last written at %s; if the clock is "
                "right, start the gateway again once something was written",
                clock.text(now),
                clock.text(self._believed),
            )


def _take_away(c: sqlite3.Connection, due: Iterable[sqlite3.Row], at: str) -> None:
    """`due`: event, month, tenant of each."""
    c.executemany("INSERT INTO rolling VALUES (?, ?, ?)", [tuple(r) for r in due])
    names = SUMS.split(", ")
    counted = ", ".join(f"{amount} AS {name}" for amount, name in zip(COUNTED, names, strict=True))
    c.execute(
        f"""INSERT INTO rollups SELECT month, r.tenant, count(e.event_id),
                sum((SELECT count(*) FROM entries AS p WHERE p.event_id = r.event_id)),
                {", ".join(f"coalesce(sum({name}), 0)" for name in names)}
            FROM rolling AS r LEFT JOIN (SELECT event_id, {counted} FROM usage_events) AS e USING (event_id)
            WHERE true GROUP BY month, r.tenant
            ON CONFLICT DO UPDATE SET {", ".join(f"{n} = {n} + excluded.{n}" for n in ("events", "entries", *names))}"""
    )
    months = c.execute(
        """SELECT month, tenant, microcredits FROM rollups
           WHERE (month, tenant) IN (SELECT month, tenant FROM rolling) ORDER BY month, tenant"""
    ).fetchall()
    # Some of the entries were posted in a later month, which has them no more either.
    c.execute(
        f"""INSERT OR IGNORE INTO rollups
            SELECT DISTINCT substr(at, 1, 7), tenant, 0, 0, {", ".join("0" for _ in names)}
            FROM entries WHERE event_id IN (SELECT event_id FROM rolling)"""
    )
    # What these carried so far is in the new sum.
    c.executemany("INSERT INTO rolling VALUES (?, ?, ?)", [(_carried(*r[:2]), *r[:2]) for r in map(tuple, months)])
    gone = c.execute("SELECT seq FROM entries WHERE event_id IN (SELECT event_id FROM rolling) ORDER BY seq")
    _note_numbers(c, _runs(r[0] for r in gone))
    # Given, not chosen by SQLite: it would give a number of those that go away a second time.
    (newest,) = c.execute("SELECT max(seq) FROM entries").fetchone()
    for table in ("entries", "usage_events"):
        c.execute(f"DELETE FROM {table} WHERE event_id IN (SELECT event_id FROM rolling)")
    c.execute("DELETE FROM rolling")
    c.executemany(
        "INSERT INTO entries VALUES (?, ?, 'carried', ?, ?, 0, ?, ?)",
        [
            (seq, _carried(month, tenant), tenant, -paid, paid, at)
            for seq, (month, tenant, paid) in enumerate(map(tuple, months), newest + 1)
        ],
    )


def _carried(month: str, tenant: str) -> str:
    """What stands for an event in the entry that carries a month's sum."""
    return f"{month}:{tenant}"


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of successive numbers, which come in order."""
    first = last = None
    for number in numbers:
        if first is None or last is None or number != last + 1:
            if first is not None and last is not None:
                yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last


def _note_numbers(c: sqlite3.Connection, runs: Iterable[tuple[int, int]]) -> None:
    """Each run becomes one with those that it adjoins."""
    for first, last in list(runs):
        before = c.execute("SELECT first FROM rolled WHERE first < ? ORDER BY first DESC LIMIT 1", (first,)).fetchone()
        if before and c.execute("DELETE FROM rolled WHERE first = ? AND last = ?", (before[0], first - 1)).rowcount:
            first = before[0]
        behind = c.execute("SELECT last FROM rolled WHERE first = ?", (last + 1,)).fetchone()
        if behind:
            c.execute("DELETE FROM rolled WHERE first = ?", (last + 1,))
            last = behind[0]
        c.execute("INSERT INTO rolled VALUES (?, ?)", (first, last))
