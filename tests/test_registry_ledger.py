"""The ledger by itself, and the thread that writes it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway import calls
from gateway.admission import Admission
from gateway.auth import Caller
from gateway.billing import Billing
from gateway.calls import Kind
from gateway.errors import LedgerUnwritable
from gateway.ledger_writer import LedgerWriter
from gateway.metering import Meter
from registry import clock, ledger
from registry.db import Conflict, Database, StorageError, open_reader
from registry.ledger import Attempt, Hold, Note, Outcome, Release, UsageEvent
from registry.site import Price
from registry.tenants import Tenant

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    db = ledger.open_ledger(path)
    yield db
    db.close()


def attempt(n: int = 1, tenant: str = "physics", model: str = "tiny") -> Attempt:
    return Attempt(f"event-{n}", tenant, "key-1", model, "replica-1", "chat", clock.text(NOON))


def event(of: Attempt, prompt: int = 10, completion: int = 20, hour: int = 0) -> UsageEvent:
    ended = clock.text(NOON + timedelta(hours=hour))
    return UsageEvent(of, prompt, completion, prompt + 2 * completion, Outcome.COMPLETED, ended)


def balances(db: Database) -> dict[str, int]:
    return {
        row[0]: row[1]
        for row in db.conn.execute("SELECT account, sum(microcredits) FROM postings GROUP BY account").fetchall()
    }


def test_a_hold_that_is_settled_consumes_what_was_used_and_gives_back_the_rest(db: Database) -> None:
    assert ledger.record(db, [Hold(attempt(), 100, 300)]) == [None]
    assert balances(db) == {"physics/available": -300, "physics/held": 300}
    assert ledger.record(db, [event(attempt())]) == [None]
    assert balances(db) == {"physics/available": -50, "physics/held": 0, "physics/consumed": 50}
    assert ledger.check(db) == []


def test_a_hold_that_is_released_leaves_no_trace_in_the_balances(db: Database) -> None:
    ledger.record(db, [Hold(attempt(), 100, 300), Release("event-1"), Release("event-1")])
    assert set(balances(db).values()) == {0}
    assert ledger.usage_events(db) == []
    assert ledger.check(db) == []


def test_more_may_be_used_than_was_held(db: Database) -> None:
    ledger.record(db, [Hold(attempt(), 1, 1), event(attempt())])
    assert balances(db)["physics/available"] == -50
    assert ledger.check(db) == []


def test_the_same_event_twice_is_once_and_other_contents_are_a_conflict(db: Database) -> None:
    first = event(attempt())
    other = replace(first, completion_tokens=21)
    results = ledger.record(db, [Hold(attempt(), 1, 1), first, first, other])
    assert results[:3] == [None] * 3
    assert isinstance(results[3], Conflict)
    assert ledger.usage_events(db) == [first]
    assert ledger.check(db) == []


def test_a_refused_step_does_not_stop_the_others(db: Database) -> None:
    results = ledger.record(
        db,
        [event(attempt(1)), Hold(attempt(2), 1, 1), Hold(attempt(2), 1, 1), event(attempt(2)), Hold(attempt(2), 1, 1)],
    )
    assert [type(r) for r in results] == [Conflict, type(None), Conflict, type(None), Conflict]
    assert len(ledger.usage_events(db)) == 1


@pytest.mark.parametrize("table", ["usage_events", "postings"])
def test_nothing_is_changed_or_deleted_afterwards(db: Database, table: str) -> None:
    ledger.record(db, [Hold(attempt(), 1, 1), event(attempt())])
    for statement in (f"UPDATE {table} SET microcredits = 0", f"DELETE FROM {table}"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.conn.execute(statement)


def test_orphans_are_settled_at_their_last_noted_count(path: Path) -> None:
    db = ledger.open_ledger(path)
    ledger.record(db, [Hold(attempt(1), 99, 99), Hold(attempt(2), 99, 99), Note("event-1", 7, 3, 13)])
    db.close()
    db = ledger.open_ledger(path)
    assert ledger.settle_orphans(db) == 2
    (only,) = ledger.usage_events(db)
    assert (only.prompt_tokens, only.completion_tokens, only.microcredits) == (7, 3, 13)
    assert only.outcome is Outcome.ORPHANED
    assert ledger.open_holds(db) == 0
    assert ledger.check(db) == []
    assert ledger.settle_orphans(db) == 0
    db.close()


def test_usage_is_read_by_tenant_model_and_window(path: Path, db: Database) -> None:
    attempts = [attempt(1), attempt(2), attempt(3, model="large"), attempt(4, tenant="biology")]
    for n, one in enumerate(attempts):
        ledger.record(db, [Hold(one, 1, 1), event(one, hour=n)])
    reader = open_reader(path)
    everything = ledger.usage_by_tenant_and_model(reader)
    assert [(r.tenant, r.model, r.requests, r.prompt_tokens, r.completion_tokens) for r in everything] == [
        ("biology", "tiny", 1, 10, 20),
        ("physics", "large", 1, 10, 20),
        ("physics", "tiny", 2, 20, 40),
    ]
    assert sum(r.microcredits for r in everything) == 200
    windowed = ledger.usage_by_tenant_and_model(reader, NOON + timedelta(hours=1), NOON + timedelta(hours=3))
    assert [(r.tenant, r.model, r.requests) for r in windowed] == [("physics", "large", 1), ("physics", "tiny", 1)]
    assert ledger.tokens_used(reader, "physics") == 90
    assert ledger.tokens_used(reader, "nobody") == 0
    assert ledger.tokens_by_tenant(reader) == {"biology": 30, "physics": 90}
    reader.close()


def test_the_check_sees_what_was_tampered_with(db: Database) -> None:
    ledger.record(db, [Hold(attempt(), 1, 1), event(attempt())])
    db.conn.execute("DROP TRIGGER postings_no_update")
    db.conn.execute("UPDATE postings SET microcredits = 49 WHERE account = 'physics/consumed'")
    assert len(ledger.check(db)) == 2


def test_prices_are_credits_per_million_tokens_in_microcredits() -> None:
    prices = {"default": Price(prompt=1, completion=2), "cheap": Price(prompt=0.15, completion=0.6)}
    assert ledger.price(prices, "tiny", 1_000_000, 500_000) == 2_000_000  # two credits
    assert ledger.price(prices, "cheap", 10, 10) == 8  # 7.5 to the nearest
    assert ledger.price({}, "tiny", 10, 10) == 0


def test_event_ids_sort_by_time() -> None:
    ids = [ledger.mint(NOON + timedelta(milliseconds=n)) for n in range(20)]
    assert ids == sorted(ids)
    assert len({ledger.mint(NOON) for _ in range(1000)}) == 1000


async def test_what_is_queued_is_written_before_the_ledger_closes(path: Path) -> None:
    writer = LedgerWriter(ledger.open_ledger(path), asyncio.get_running_loop())
    await asyncio.gather(*(writer.hold(Hold(attempt(n), 1, 1)) for n in range(50)))
    for n in range(50):
        writer.record(event(attempt(n)))
    await writer.close()
    reader = open_reader(path)
    assert len(ledger.usage_events(reader)) == 50
    assert ledger.check(reader) == []
    reader.close()


async def test_a_full_ledger_refuses_holds_and_keeps_settlements_until_there_is_room(path: Path) -> None:
    db = ledger.open_ledger(path)
    writer = LedgerWriter(db, asyncio.get_running_loop())
    await writer.hold(Hold(attempt(0), 1, 1))
    db.conn.execute("PRAGMA max_page_count = 1")  # SQLite raises it to what the file has
    with pytest.raises(LedgerUnwritable, match="full"):
        for n in range(1, 1000):
            await writer.hold(Hold(attempt(n), 1, 1))
            settled = n
    assert writer.failure is not None
    writer.record(event(attempt(0)))
    with pytest.raises(LedgerUnwritable):
        await writer.hold(Hold(attempt(2000), 1, 1))
    db.conn.execute("PRAGMA max_page_count = 100000")
    await writer.hold(Hold(attempt(3000), 1, 1))
    assert writer.failure is None
    await writer.close()
    reader = open_reader(path)
    assert [e.attempt.event_id for e in ledger.usage_events(reader)] == ["event-0"]
    assert ledger.open_holds(reader) == settled + 1
    assert ledger.check(reader) == []
    reader.close()


async def test_a_client_that_leaves_while_its_hold_is_written_leaves_nothing_held(path: Path) -> None:
    writer = LedgerWriter(ledger.open_ledger(path), asyncio.get_running_loop())
    billing = Billing(writer, {}, lambda: NOON)
    caller = Caller("key-1", Tenant("physics", "root", None, None, None, ""))
    call = calls.read(Kind.COMPLETION, b'{"model":"tiny","prompt":"x"}')

    async def request() -> None:
        with Admission({}, lambda: 0.0).admit(caller.tenant, 1) as hold:
            async with billing.attempt(caller, call, "replica-1", hold, Meter(call)):
                raise AssertionError("it was dispatched")

    task = asyncio.create_task(request())
    await asyncio.sleep(0)  # runs it until it waits for its hold
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await writer.close()
    reader = open_reader(path)
    assert ledger.open_holds(reader) == 0
    assert ledger.check(reader) == []
    reader.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_writer_that_broke_refuses_holds_instead_of_keeping_them_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ledger, "record", broken)
    died = threading.Event()
    writer = LedgerWriter(ledger.open_ledger(path), asyncio.get_running_loop(), died=died.set)
    for n in range(2):
        with pytest.raises(LedgerUnwritable, match="stopped"):
            await writer.hold(Hold(attempt(n), 1, 1))
    assert died.wait(5)
    await writer.close()


def test_only_one_process_may_write(path: Path, db: Database) -> None:
    with pytest.raises(StorageError, match="its writer already"):
        ledger.open_ledger(path)
