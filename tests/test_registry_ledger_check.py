"""`verify` names every rule that is broken, and none that is not; roll-ups keep the ledger sound."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry import clock, ledger
from registry.db import Conflict, Database, transaction
from registry.ledger import Attempt, Hold, Outcome, Release, Reversal, Step, UsageEvent
from registry.ledger_check import NAMED, verify
from registry.rollup import RollUp, oldest_kept

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TABLES = ("usage_totals", "daily", "balances", "busy")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = ledger.open_ledger(tmp_path / "ledger.db")
    db.conn.execute("INSERT INTO journals VALUES ('alive.000000', 0)")
    yield db
    db.close()


def attempt(n: int, days: int = 0, tenant: str = "physics") -> Attempt:
    began = clock.text(NOON + timedelta(days=days))
    return Attempt(f"event-{n:04}", tenant, "key-1", "tiny", "replica-1", "chat", began, "ada")


def used(n: int, days: int = 0, tenant: str = "physics") -> list[Step]:
    one = attempt(n, days, tenant)
    ended = clock.text(NOON + timedelta(days=days, seconds=3))
    return [Hold(one, 100, 300), UsageEvent(one, 10, 20, 50, Outcome.COMPLETED, ended, 4, 5)]


def back(n: int, days: int = 0) -> Reversal:
    return Reversal(f"back-{n:04}", f"event-{n:04}", "root", "a mistake", clock.text(NOON + timedelta(days=days)))


@pytest.fixture
def books(db: Database) -> Database:
    """Two events, one taken back, one released, one that runs."""
    steps = [*used(1), *used(2), back(2), Hold(attempt(3), 1, 1), Release("event-0003"), Hold(attempt(4), 9, 7)]
    assert set(ledger.record(db, steps, "alive")) == {None}
    return db


def test_a_sound_ledger_has_no_problems_and_says_what_was_looked_at(books: Database) -> None:
    found = verify(books)
    assert (found.problems, found.conflicts, found.refused) == ((), (), 0)
    counts = found.counts
    assert (counts.entries, counts.events, counts.holds, counts.reversals, counts.rolled_events) == (8, 3, 1, 1, 0)


def test_refused_steps_are_listed_apart(books: Database) -> None:
    ledger.record(books, [used(1)[1]._replace(prompt_tokens=11), *used(1)], "alive")  # type: ignore[call-arg]
    found = verify(books)
    assert found.problems == () and found.refused == 1
    assert "journal alive: event event-0001: is in the ledger with other contents" in found.conflicts[0]


@pytest.mark.parametrize(
    ("breakage", "named"),
    [
        ("UPDATE entries SET held = held + 1 WHERE seq = 2", "entry 2 (event event-0001, settle) does not sum to 0"),
        ("DELETE FROM entries WHERE seq = 2", "entries 2 to 2 are missing"),
        ("DELETE FROM entries WHERE seq <= 2", "entries 1 to 2 are missing"),
        ("UPDATE entries SET seq = 90 WHERE seq = 8", "entries 8 to 89 are missing"),
        ("INSERT INTO rolled VALUES (2, 2)", "entry 2 is in the ledger, and was rolled up as well"),
        ("DELETE FROM holds", "7 micro-credits are posted as held, and its hold is gone"),
        ("UPDATE holds SET held_microcredits = 8", "are posted as held, and its hold says 8"),
        ("UPDATE holds SET journal = 'dead'", "event event-0004: is held by journal dead, which is gone"),
        ("INSERT INTO holds SELECT 'x', tenant, key_id, model, replica, kind, started_at, user, 1, 1, 0, 0, 0, 0, 0, ''"
         " FROM usage_events LIMIT 1", "event x: is in holds, and nothing was posted for it"),
        ("UPDATE holds SET event_id = 'event-0001'", "event event-0001: is over, and held still"),
        ("DELETE FROM usage_events WHERE event_id = 'event-0001'", "event event-0001: was settled, and is not in"),
        ("DELETE FROM entries WHERE event_id = 'event-0001'", "event event-0001: is in usage_events, and nothing was"),
        ("DELETE FROM entries WHERE seq = 1", "event event-0001: its entries (1 x settle) cannot be those of"),
        ("DELETE FROM entries WHERE seq = 2", "event event-0001: is in the ledger, and was never settled"),
        ("UPDATE entries SET tenant = 'biology' WHERE seq = 2", "event event-0001: its entries are not its tenant's"),
        ("UPDATE usage_events SET microcredits = 51 WHERE event_id = 'event-0001'",
         "event event-0001: 50 micro-credits are posted as consumed, it says 51"),
        ("UPDATE entries SET step = 'release' WHERE seq = 2", "event event-0001: was released, and is in the ledger"),
        ("UPDATE entries SET held = -299, available = 249 WHERE seq = 2", "event event-0001: is over, and 1 micro-"),
        ("UPDATE reversals SET corrects = 'gone'", "the event it corrects, gone, is not in the ledger"),
        ("UPDATE reversals SET event_id = 'gone'", "reversal gone: has no event"),
        ("UPDATE reversals SET cached_tokens = 5", "reversal back-0002: keeps something else than its event took back"),
        ("UPDATE reversals SET user = 'eve'", "reversal back-0002: keeps something else than its event took back"),
        ("DELETE FROM reversals", "event back-0002: takes something back, and no reversal says what"),
        ("UPDATE usage_events SET cached_tokens = 0 WHERE event_id = 'back-0002'", "does not take back what event"),
        ("UPDATE balances SET available = available + 1, held = held - 1", "tenant physics: its balance (avail"),
        ("DELETE FROM balances", "tenant physics: its balance (available, held, consumed) is (0, 0, 0)"),
        ("UPDATE usage_totals SET tokens = 31 WHERE subject = 'user' AND period = '2026-01'", "user ada, 2026-01: its"),
        ("INSERT INTO usage_totals VALUES ('all', 'key', 'x', 1, 1)", "key x, all: its total (tokens, micro-credits)"),
        ("UPDATE daily SET reasoning_tokens = 6", "2026-01-01 of tenant physics, user ada, key key-1, model tiny"),
        ("DELETE FROM daily", "2026-01-01 of tenant physics, user ada, key key-1, model tiny, replica replica-1"),
        ("UPDATE busy SET seconds = x'00'", "replica replica-1, hour 2026-01-01T12: its busy seconds are no 450 bytes"),
    ],
)  # fmt: skip
def test_each_broken_rule_is_named(books: Database, breakage: str, named: str) -> None:
    for table in ("usage_events", "entries"):
        for verb in ("update", "delete"):
            books.conn.execute(f"DROP TRIGGER {table}_no_{verb}")
    books.conn.execute("PRAGMA ignore_check_constraints = 1")
    books.conn.execute(breakage)
    problems = verify(books).problems
    assert any(named in problem for problem in problems), problems


def test_many_problems_of_a_kind_are_not_all_told(db: Database) -> None:
    ledger.record(db, [step for n in range(NAMED + 5) for step in used(n)])
    db.conn.execute("UPDATE daily SET replica = 'other'")
    db.conn.execute("DROP TRIGGER usage_events_no_delete")
    db.conn.execute("DELETE FROM usage_events")
    problems = verify(db).problems
    assert len([p for p in problems if "was settled, and is not in the ledger" in p]) == NAMED
    assert f"... and more like the {NAMED} before" in problems


def test_the_file_itself_refuses_an_entry_that_does_not_sum_to_zero(db: Database) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        db.conn.execute("INSERT INTO entries VALUES (1, 'x', 'hold', 'physics', -1, 2, 0, '')")


def test_whole_months_are_kept() -> None:
    assert oldest_kept(1, datetime(2026, 3, 31, tzinfo=UTC)) == "2026-02"
    assert oldest_kept(3, datetime(2026, 3, 1, tzinfo=UTC)) == "2025-12"
    assert oldest_kept(12, datetime(2026, 1, 1, tzinfo=UTC)) == "2025-01"


def sums(db: Database) -> list[list[tuple[object, ...]]]:
    return [[tuple(r) for r in db.conn.execute(f"SELECT * FROM {table}")] for table in TABLES]


def test_old_months_are_rolled_up_in_small_pieces_and_every_sum_stays(db: Database) -> None:
    tenants = ("physics", "biology")
    story = [step for n in range(90) for step in used(n, days=n, tenant=tenants[n % 2])]
    # An event of January taken back in March, one of February in February; one that used nothing; one that runs.
    story += [back(3, days=70), back(40, days=45)]
    story += [Hold(attempt(200), 1, 1), Release("event-0200"), Hold(attempt(201), 1, 1)]
    ledger.record(db, story, "alive")
    before = sums(db)
    now = NOON + timedelta(days=85)
    rolling = RollUp(db, 1, lambda: now)
    turns = 0
    while rolling.turn(entries=7):
        turns += 1
        assert verify(db).problems == (), "after each piece"
        assert sums(db) == before
    assert turns == 27
    assert [e.attempt.event_id for e in ledger.usage_events(db) if e.ended_at < "2026-02"] == []
    assert len(ledger.usage_events(db)) == 90 - 31 + 2
    gone = db.conn.execute("SELECT month, tenant, events, requests, microcredits FROM rollups").fetchall()
    assert [tuple(r) for r in gone] == [("2026-01", "biology", 15, 15, 750), ("2026-01", "physics", 16, 16, 800)]
    carried = db.conn.execute("SELECT tenant, available, held, consumed FROM entries WHERE step = 'carried'").fetchall()
    assert sorted(map(tuple, carried)) == [("biology", -750, 0, 750), ("physics", -800, 0, 800)]
    assert db.conn.execute("SELECT count(*) FROM rolling").fetchone()[0] == 0

    now = NOON + timedelta(days=110)  # another month is due, without a new start
    while rolling.turn(entries=1000):
        assert verify(db).problems == ()
    assert sums(db) == before
    assert {e.ended_at[:7] for e in ledger.usage_events(db)} == {"2026-03"}
    assert ledger.open_holds(db) == 1, "what runs is nothing of the past"
    ledger.record(db, [*used(300, days=121), back(300, days=122)], "alive")
    assert verify(db).problems == ()


def test_a_ledger_whose_every_entry_is_rolled_up_gives_no_number_twice(db: Database) -> None:
    ledger.record(db, [step for n in range(5) for step in used(n)])
    assert RollUp(db, 1, lambda: NOON + timedelta(days=100)).turn()
    ledger.record(db, used(9, days=99))
    assert verify(db).problems == ()
    assert [r[0] for r in db.conn.execute("SELECT seq FROM entries ORDER BY seq")] == [11, 12, 13]


def test_what_is_kept_is_looked_at_once_and_not_again(db: Database) -> None:
    ledger.record(db, used(1))
    rolling = RollUp(db, 1, lambda: NOON)
    assert [rolling.turn() for _ in range(3)] == [True, False, False]
    assert len(ledger.usage_events(db)) == 1


def test_a_roll_up_that_is_cut_off_leaves_all_as_it_was(db: Database) -> None:
    ledger.record(db, used(1))
    db.conn.execute("CREATE TRIGGER cut BEFORE DELETE ON usage_events BEGIN SELECT RAISE(ABORT, 'cut'); END")
    with pytest.raises(Exception, match="cut"):
        RollUp(db, 1, lambda: NOON + timedelta(days=100)).turn()
    assert verify(db).problems == ()
    assert len(ledger.usage_events(db)) == 1 and db.conn.execute("SELECT 1 FROM rolling").fetchall() == []


def test_deletions_by_hand_stay_refused(db: Database) -> None:
    ledger.record(db, used(1))
    for table in ("usage_events", "entries"):
        with pytest.raises(Conflict, match="append-only"), transaction(db):
            db.conn.execute(f"DELETE FROM {table}")
