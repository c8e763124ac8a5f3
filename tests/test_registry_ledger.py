"""The ledger's rules, and the same rules in bulk."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from registry import clock, ledger, ledger_bulk, steps
from registry.db import Conflict, Database, StorageError, open_reader, open_writer, transaction
from registry.ledger import Attempt, Hold, Note, Outcome, Release, Step, UsageEvent
from registry.ledger_migrations import MIGRATIONS
from registry.site import Price

TABLES = ("holds", "usage_events", "postings", "totals")
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
    other = first._replace(completion_tokens=21)
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


def test_the_check_sees_a_total_that_is_not_what_the_events_say(db: Database) -> None:
    ledger.record(db, [Hold(attempt(), 1, 1), event(attempt())])
    db.conn.execute("UPDATE totals SET tokens = 31")
    assert ledger.check(db) == ["tenant physics: 31 tokens are its total, its events say 30"]
    db.conn.execute("DELETE FROM totals")
    assert ledger.check(db) == ["tenant physics: 0 tokens are its total, its events say 30"]


def test_totals_are_read_without_the_events(db: Database) -> None:
    for n in range(3):
        ledger.record(db, [Hold(attempt(n), 1, 1), event(attempt(n))])
    db.conn.execute("DROP TRIGGER usage_events_no_delete")
    db.conn.execute("DELETE FROM usage_events")
    assert (ledger.tokens_by_tenant(db), ledger.tokens_used(db, "physics")) == ({"physics": 90}, 90)


def test_a_file_of_an_older_headgate_is_read_as_it_is_and_gets_its_totals_from_its_writer(path: Path) -> None:
    old = open_writer(path, MIGRATIONS[:3])
    for n, tenant in enumerate(("physics", "physics", "biology")):
        one = attempt(n, tenant=tenant)
        old.conn.execute(
            f"INSERT INTO usage_events VALUES ({','.join('?' * 12)})", (*one, 10, 20, 0, "completed", clock.text(NOON))
        )
    for moved in (False, True):
        reader = open_reader(path)
        assert ledger.tokens_by_tenant(reader) == {"physics": 60, "biology": 30}
        assert ledger.check(reader) == []
        reader.close()
        if not moved:
            old.close()
            ledger.open_ledger(path).close()


def recorded(step: Step) -> steps.Record:
    """As a journal would have it, even where it would refuse it."""
    if isinstance(step, Hold):
        return ["h", *step.attempt, *step[1:]]
    return steps.record(step)


@pytest.mark.parametrize("seed", range(30))
def test_steps_in_bulk_leave_the_rows_that_they_leave_one_by_one(tmp_path: Path, seed: int) -> None:
    """Plain ones, repeated ones, wrong ones, in any order, in batches of any size."""
    dice = random.Random(seed)
    attempts = [attempt(n, tenant=dice.choice(("physics", "biology"))) for n in range(60)]
    taken: list[Step] = []
    for one in attempts:
        count = (dice.randrange(50), dice.randrange(50), dice.randrange(200))
        end = dice.choice((Release(one.event_id), UsageEvent(one, *count, Outcome.COMPLETED, clock.text(NOON)), None))
        taken += [Hold(one, 100, 300), Note(one.event_id, *count)] + ([end] if end else [])
    odd_ones, swaps = dice.choice((0, 3, 30)), dice.choice((0, 0, 100))
    for _ in range(odd_ones):  # wrong ones: out of order, twice, of another attempt, too much
        odd: Step = dice.choice(taken)
        if isinstance(odd, UsageEvent) and dice.random() < 0.5:
            odd = odd._replace(attempt=odd.attempt._replace(model="other"))
        elif isinstance(odd, Hold) and dice.random() < 0.5:
            odd = odd._replace(tokens=-1)
        taken.insert(dice.randrange(len(taken)), odd)
    for _ in range(swaps):  # out of order
        at = dice.randrange(len(taken) - 1)
        taken[at : at + 2] = reversed(taken[at : at + 2])
    books = []
    refused = []
    in_bulk = 0
    for name in ("one", "bulk"):
        db = ledger.open_ledger(tmp_path / f"{name}.db")
        places = random.Random(seed)
        left = list(taken)
        said: list[str] = []
        while left:
            size = places.choice((1, 2, 10, 100))
            batch, left = left[:size], left[size:]
            try:
                if name == "bulk":
                    with transaction(db) as c:
                        ledger_bulk.write(c, [recorded(s) for s in batch], "now", "j")
                    in_bulk += len(batch)
                    continue
            except ledger_bulk.NotPlain:
                pass
            with transaction(db) as c:
                said += [str(r) for r in ledger.write(c, batch, "now", "j") if r]
        assert ledger.check(db) == []
        books.append([[tuple(r) for r in db.conn.execute(f"SELECT * FROM {t}")] for t in TABLES])
        refused.append(said)
        db.close()
    assert books[0] == books[1]
    assert refused[0] == refused[1]
    assert books[0][1] and books[0][2]
    if not odd_ones and not swaps:
        assert in_bulk == len(taken)


def test_a_step_reads_back_from_its_record() -> None:
    hold = Hold(attempt(), 100, 300)
    for step in (hold, Note("event-1", 1, 2, 3), event(attempt()), Release("event-1")):
        assert steps.decode(steps.record(step)) == step
        assert steps.encode(step) == orjson.dumps(steps.record(step))
    for absurd in (-1, 2**53 + 1, 2**64):
        with pytest.raises(ledger.TooMuch, match=str(absurd)):
            steps.encode(hold._replace(tokens=absurd))
    with pytest.raises(ValueError, match="not a step"):
        steps.decode(["x", "event-1"])


def test_prices_are_credits_per_million_tokens_in_microcredits() -> None:
    prices = {"default": Price(prompt=1, completion=2), "cheap": Price(prompt=0.15, completion=0.6)}
    assert ledger.cost(ledger.price_of(prices, "tiny"), 1_000_000, 500_000) == 2_000_000  # two credits
    assert ledger.cost(ledger.price_of(prices, "cheap"), 10, 10) == 8  # 7.5 to the nearest
    assert ledger.cost(ledger.price_of({}, "tiny"), 10, 10) == 0


def test_an_adapter_costs_what_its_deployment_does_unless_it_has_a_price_of_its_own() -> None:
    own, large, default = (Price(prompt=n, completion=n) for n in (1, 2, 3))
    prices = {"default": default, "large": large, "poet": own}
    assert ledger.price_of(prices, "poet", "large") == own
    assert ledger.price_of(prices, "clerk", "large") == large
    assert ledger.price_of(prices, "clerk", "small") == ledger.price_of(prices, "clerk") == default


def test_event_ids_sort_by_time() -> None:
    noon = int(NOON.timestamp()) * 1_000_000_000
    ids = [ledger.mint(noon + n) for n in range(20)]
    assert ids == sorted(ids) and {len(i) for i in ids} == {24}
    assert len({ledger.mint(noon) for _ in range(1000)}) == 1000


def test_stamps_are_the_registrys_times() -> None:
    stamps = clock.Stamps()
    for moment in (NOON, NOON + timedelta(microseconds=1), NOON + timedelta(seconds=59, microseconds=999_999), NOON):
        ns = (int(moment.timestamp()) * 1_000_000 + moment.microsecond) * 1000
        assert stamps.text(ns) == clock.text(moment)


def test_only_one_process_may_write(path: Path, db: Database) -> None:
    with pytest.raises(StorageError, match="its writer already"):
        ledger.open_ledger(path)
