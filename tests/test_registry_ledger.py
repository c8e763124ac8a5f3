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
from registry.db import Conflict, Database, StorageError, open_writer, transaction
from registry.ledger import Attempt, Hold, Note, Outcome, Release, Reversal, Step, UsageEvent
from registry.ledger_migrations import MIGRATIONS
from registry.settings import Price
from registry.steps import PLATFORM

TABLES = ("holds", "usage_events", "entries", "balances", "usage_totals", "daily", "busy", "reversals", "conflicts")
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


def balance(db: Database, tenant: str = "physics") -> tuple[int, ...]:
    """What is available, held and consumed."""
    found = db.conn.execute("SELECT available, held, consumed FROM balances WHERE tenant = ?", (tenant,)).fetchone()
    return tuple(found or (0, 0, 0))


def rows(db: Database, table: str) -> list[tuple[object, ...]]:
    return [tuple(r) for r in db.conn.execute(f"SELECT * FROM {table}")]


def tokens_by_tenant(db: Database) -> dict[str, int]:
    return {name: tokens for (_, of, name), (tokens, _) in ledger.totals(db, "all").items() if of == "tenant"}


def test_a_hold_that_is_settled_consumes_what_was_used_and_gives_back_the_rest(db: Database) -> None:
    assert ledger.record(db, [Hold(attempt(), 100, 300)]) == [None]
    assert balance(db) == (-300, 300, 0)
    assert ledger.record(db, [event(attempt())]) == [None]
    assert balance(db) == (-50, 0, 50)
    assert ledger.check(db) == []


def test_a_hold_that_is_released_leaves_no_trace_in_the_balances(db: Database) -> None:
    ledger.record(db, [Hold(attempt(), 100, 300), Release("event-1"), Release("event-1")])
    assert balance(db) == (0, 0, 0)
    assert ledger.usage_events(db) == []
    assert ledger.check(db) == []


def test_more_may_be_used_than_was_held(db: Database) -> None:
    ledger.record(db, [Hold(attempt(), 1, 1), event(attempt())])
    assert balance(db) == (-50, 0, 50)
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
        [event(attempt(1)), Hold(attempt(2), 1, 1), Hold(attempt(2), 1, 2), event(attempt(2)), Hold(attempt(2), 2, 2)],
    )
    assert [type(r) for r in results] == [Conflict, type(None), Conflict, type(None), Conflict]
    assert [(r[2], r[4]) for r in rows(db, "conflicts")] == [("", str(r)) for r in results if r]
    assert len(ledger.usage_events(db)) == 1


@pytest.mark.parametrize("table", ["usage_events", "entries"])
def test_nothing_is_changed_or_deleted_afterwards(db: Database, table: str) -> None:
    ledger.record(db, [Hold(attempt(), 1, 1), event(attempt())])
    for statement in (f"UPDATE {table} SET tenant = 'x'", f"DELETE FROM {table}"):
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


def test_totals_are_read_without_the_events(db: Database) -> None:
    for n in range(3):
        ledger.record(db, [Hold(attempt(n), 1, 1), event(attempt(n))])
    db.conn.execute("DROP TRIGGER usage_events_no_delete")
    db.conn.execute("DELETE FROM usage_events")
    assert tokens_by_tenant(db) == {"physics": 90}
    assert ledger.totals(db, "2026-01", "2026-01-01", "all")["2026-01", "key", "key-1"] == (90, 150)


def test_a_file_of_an_older_headgate_keeps_what_it_has(path: Path) -> None:
    old = open_writer(path, MIGRATIONS[:4])
    when = clock.text(NOON)
    for n, tenant in enumerate(("physics", "physics", "biology")):
        old.conn.execute(
            f"INSERT INTO usage_events VALUES ({','.join('?' * 12)})",
            (f"event-{n}", tenant, "key-1", "tiny", "replica-1", "chat", when, 10, 20, 50, "completed", when),
        )
    held = ("open", "physics", "key-1", "tiny", "replica-1", "chat", when, 99, 300, 7, 3, 13, "old")
    old.conn.execute(f"INSERT INTO holds VALUES ({','.join('?' * 13)})", held)
    old.conn.execute("INSERT INTO journals VALUES ('old.000000', 0)")
    for n, tenant, amount in ((0, "physics", 300), (1, "physics", 0), (2, "biology", 300), (3, "physics", 300)):
        steps = [("hold", "available", -amount), ("hold", "held", amount)]
        if n < 3:
            steps += [("settle", "held", -amount), ("settle", "consumed", 50), ("settle", "available", amount - 50)]
        for step, account, posted in steps:
            event_id = "open" if n == 3 else f"event-{n}"
            old.conn.execute(
                "INSERT INTO postings VALUES (?, ?, ?, ?, ?)", (event_id, step, f"{tenant}/{account}", posted, when)
            )
    old.close()
    db = ledger.open_ledger(path)
    assert ledger.check(db) == []
    assert tokens_by_tenant(db) == {"physics": 60, "biology": 30}
    assert balance(db) == (-400, 300, 100)
    assert ledger.settle_orphans(db) == 1
    assert ledger.check(db) == []
    assert [e.completion_tokens for e in ledger.usage_events(db)] == [20, 20, 20, 3]
    db.close()


def test_what_an_older_headgate_journaled_is_written_as_its_own(db: Database) -> None:
    old = ["h", "event-1", "physics", "key-1", "tiny", "replica-1", "chat", clock.text(NOON), 100, 300]
    settled = ["s", *old[1:8], 10, 20, 50, "completed", clock.text(NOON)]
    assert [steps.decode(r) for r in (old, ["n", "event-1", 1, 2, 3], settled)] == [
        Hold(attempt(), 100, 300),
        Note("event-1", 1, 2, 3),
        event(attempt()),
    ]
    with pytest.raises(ledger_bulk.NotPlain), transaction(db) as c:
        ledger_bulk.write(c, [old], "now", "j")


@pytest.mark.parametrize("step", [Hold(attempt(), 1, 1), event(attempt()), Note("e", 1, 2, 3), Release("e")])
def test_a_record_with_a_field_more_is_a_newer_headgates(db: Database, step: Step) -> None:
    for newer in ([*recorded(step), "new"], [*recorded(step)[:2], "new", *recorded(step)[2:]]):
        with pytest.raises(ValueError, match="not a step of the ledger"):
            steps.decode(newer)
        with pytest.raises(ledger_bulk.NotPlain), transaction(db) as c:
            ledger_bulk.write(c, [newer], "now", "j")


def test_an_attempt_over_days_is_a_clock_that_was_set_and_makes_nothing_busy(db: Database) -> None:
    began = attempt()._replace(started_at="1970-01-01T00:00:00.000000Z")
    ledger.record(db, [Hold(began, 1, 1), event(began)])
    assert rows(db, "busy") == []
    long = attempt(2)._replace(started_at=clock.text(NOON - timedelta(days=2)))
    ledger.record(db, [Hold(long, 1, 1), event(long)])
    assert len(rows(db, "busy")) == 49


def test_what_headgate_asks_itself_is_no_users(db: Database) -> None:
    own = attempt(1, PLATFORM)._replace(user="probe")
    theirs = attempt(2)._replace(user="probe")
    ledger.record(db, [Hold(own, 1, 1), event(own), Hold(theirs, 1, 1), event(theirs)])
    assert ledger.totals(db, "all")["all", "user", "probe"] == (30, 50)
    assert ledger.check(db) == []


def test_what_was_taken_back_is_told_beside_the_totals(db: Database) -> None:
    ledger.record(db, [Hold(attempt(), 1, 1), event(attempt()), Hold(attempt(2), 1, 1), event(attempt(2))])
    ledger.record(db, [Reversal("back", "event-1", "root", "a mistake", "2026-02-01T00:00:00.000000Z")])
    found = ledger.used(db, "2026-01", "2026-02", "all")
    who = "tenant", "physics"
    assert [found.totals[period, *who] for period in ("2026-01", "2026-02", "all")] == [(60, 100), (-30, -50), (30, 50)]
    assert {period: back for (period, *of), back in found.taken_back.items() if tuple(of) == who} == {
        "2026-02": (30, 50),
        "all": (30, 50),
    }


def test_the_same_step_again_changes_nothing_and_one_with_other_contents_is_kept_as_a_conflict(db: Database) -> None:
    held = [Hold(attempt(n), 100, 300) for n in range(3)]
    ends: list[Step] = [event(attempt(0)), Release("event-1")]
    back = Reversal("back-0", "event-0", "root", "a mistake", clock.text(NOON))
    ledger.record(db, [*held, *ends, back])
    before = [rows(db, t) for t in TABLES]
    assert ledger.record(db, [*held, *ends, back]) == [None] * 6
    assert [rows(db, t) for t in TABLES] == before
    other = [
        *(h._replace(microcredits=301) for h in held),
        held[2]._replace(tokens=101),
        held[0]._replace(attempt=held[0].attempt._replace(model="other")),
        event(attempt(0), completion=21),
        back._replace(reason="another"),
        back._replace(event_id="back-1"),
        back._replace(event_id="back-2", corrects="back-0"),
    ]
    assert [type(r) for r in ledger.record(db, other, "j")] == [Conflict] * len(other)
    assert [steps.decode(orjson.loads(str(r[3]))) for r in rows(db, "conflicts")] == other
    assert [rows(db, t) for t in TABLES[:-1]] == before[:-1]
    assert ledger.check(db) == []


def test_a_reversal_takes_back_all_that_its_event_used(db: Database) -> None:
    ledger.record(db, [Hold(attempt(), 100, 300), event(attempt())])
    ledger.record(db, [Reversal("back-1", "event-1", "root", "a mistake", clock.text(NOON + timedelta(days=40)))])
    assert balance(db) == (0, 0, 0)
    assert tokens_by_tenant(db) == {"physics": 0}
    assert ledger.totals(db, "2026-01", "2026-02")["2026-02", "tenant", "physics"] == (-30, -50)
    assert ledger.check(db) == []


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
        db.conn.execute("INSERT INTO journals VALUES ('j.000000', 0)")
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
        books.append([rows(db, t) for t in TABLES])
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
        assert orjson.loads(steps.encode_all([steps.fields(step)] * 2)) == [steps.record(step)] * 2
    for absurd in (-1, 2**53 + 1, 2**64):
        with pytest.raises(ledger.TooMuch, match=str(absurd)):
            steps.encode(hold._replace(tokens=absurd))
    with pytest.raises(ValueError, match="not a step"):
        steps.decode(["x", "event-1"])


def test_prices_are_credits_per_million_tokens_in_microcredits() -> None:
    assert ledger.cost(Price(prompt=1, completion=2), 1_000_000, 500_000) == 2_000_000  # two credits
    assert ledger.cost(Price(prompt=0.15, completion=0.6), 10, 10) == 8  # 7.5 to the nearest
    assert ledger.cost(Price(prompt=1, completion=2, cached=0.25), 100, 10, 80) == 60
    assert ledger.cost(Price(prompt=1, completion=2), 100, 10, 80) == 120
    assert ledger.cost(None, 10, 10) == 0


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
