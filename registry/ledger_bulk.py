"""registry.ledger.write for many records at once: the same rows, at a tenth of the cost.

Records are gathered first and written table by table, many rows to a statement. Whatever is not plain (an event held
twice, settled twice, never held, an amount that cannot be one) is not written here: the caller rolls back, and sends
the batch through ledger.write one step at a time. That module alone says what is refused, and why.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from registry.ledger_sums import Sums
from registry.steps import AMOUNT_LIMIT, HOLD, NOTE, RELEASE, REVERSAL, SETTLE, Record

ROWS = 64  # in one statement: more is no faster
IDS = 500  # looked for by one statement
_ATTEMPT = slice(1, 9)  # of a record: the attempt's fields


class NotPlain(Exception):
    """These records are for ledger.write, after a rollback: some rows may be written."""


def write(c: sqlite3.Connection, records: Sequence[Record], at: str, journal: str) -> None:
    """Write records of one journal, in order, in the caller's transaction. Raises NotPlain or sqlite3.Error."""
    try:
        if not _write_plain(c, records, at, journal):
            raise NotPlain
    except sqlite3.IntegrityError as e:
        raise NotPlain from e


def _write_plain(c: sqlite3.Connection, records: Sequence[Record], at: str, journal: str) -> bool:
    """False when these records are not plain; some rows may be written then."""
    opened = {r[1] for r in records if r[0] == HOLD}
    before = _holds(c, {r[1] for r in records if r[0] != HOLD} - opened)  # records that an earlier batch wrote
    held: dict[str, Record] = {}  # opened by these records and not over yet
    noted: dict[str, Record] = {}
    over: list[str] = []  # of those before
    events: list[Record] = []
    entries: list[Any] = []  # row after row, flat
    sums = Sums()

    def closed(event_id: str) -> Record | None:
        hold = held.pop(event_id, None)
        if hold is None:
            hold = before.pop(event_id, None)
            if hold is not None:
                over.append(event_id)
                sums.held(hold[2], -hold[10])
        return hold

    for record in records:
        letter, event_id = record[0], record[1]
        if letter == HOLD:
            if len(record) != 11:
                return False
            amount = record[10]
            if not (0 <= record[9] <= AMOUNT_LIMIT and 0 <= amount <= AMOUNT_LIMIT):
                return False
            held[event_id] = record
            entries += (event_id, "hold", record[2], -amount, amount, 0, at)
        elif letter == SETTLE:
            if len(record) != 16:
                return False
            hold = closed(event_id)
            if hold is None or hold[_ATTEMPT] != record[_ATTEMPT]:
                return False
            amount, used = hold[10], record[11]
            if not (
                0 <= record[9] <= AMOUNT_LIMIT
                and 0 <= record[10] <= AMOUNT_LIMIT
                and 0 <= used <= AMOUNT_LIMIT
                and 0 <= record[14] <= AMOUNT_LIMIT
                and 0 <= record[15] <= AMOUNT_LIMIT
            ):
                return False
            events.append(record[1:])
            entries += (event_id, "settle", hold[2], amount - used, -amount, used, at)
        elif letter == NOTE:
            if len(record) != 7 or not all(0 <= amount <= AMOUNT_LIMIT for amount in record[2:]):
                return False
            if event_id in held or event_id in before:
                noted[event_id] = record
        elif letter == RELEASE:
            if len(record) != 2:
                return False
            hold = closed(event_id)
            if hold is not None:
                entries += (event_id, "release", hold[2], hold[10], -hold[10], 0, at)
        elif letter == REVERSAL:
            return False
        else:
            raise ValueError(f"not a step of the ledger: {record!r}")

    left = []
    for event_id, hold in sorted(held.items()):
        sums.held(hold[2], hold[10])
        left.append((*hold[1:], *(noted[event_id][2:] if event_id in noted else (0, 0, 0, 0, 0)), journal))
    _delete(c, over)
    _insert(c, "holds", 16, list(chain.from_iterable(left)))
    events.sort(key=itemgetter(0))  # in order of their keys, so that each page is touched once
    _insert(c, "usage_events", 15, list(chain.from_iterable(events)))
    _insert(c, "entries (event_id, step, tenant, available, held, consumed, at)", 7, entries)
    c.executemany(
        """UPDATE holds SET prompt_tokens = ?, completion_tokens = ?, microcredits = ?, cached_tokens = ?,
           reasoning_tokens = ? WHERE event_id = ?""",
        [(*record[2:], event_id) for event_id, record in noted.items() if event_id in before],
    )
    sums.ended(events)
    sums.write(c)
    return True


def _holds(c: sqlite3.Connection, event_ids: Collection[str]) -> dict[str, Record]:
    """The open holds of these events, as the records that opened them."""
    found: dict[str, Record] = {}
    for ids in _parts(list(event_ids), IDS):
        places = ",".join("?" * len(ids))
        for r in c.execute(f"SELECT * FROM holds WHERE event_id IN ({places})", ids):
            found[r[0]] = [HOLD, *tuple(r)[:10]]
    return found


def _delete(c: sqlite3.Connection, event_ids: list[str]) -> None:
    for ids in _parts(event_ids, IDS):
        c.execute(f"DELETE FROM holds WHERE event_id IN ({','.join('?' * len(ids))})", ids)


def _insert(c: sqlite3.Connection, table: str, columns: int, values: list[Any]) -> None:
    """`values` is row after row, flat."""
    row = f"({','.join('?' * columns)})"
    for part in _parts(values, columns * ROWS):
        c.execute(f"INSERT INTO {table} VALUES {','.join([row] * (len(part) // columns))}", part)


def _parts(values: list[Any], size: int) -> Iterable[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
