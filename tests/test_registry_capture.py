"""What the ledger has of a replica, against what its engine counted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry import ledger
from registry.capture import Compared, Counters, Cut, compare, note_counters, tokens
from registry.db import Database, row
from registry.rollup import RollUp
from registry.steps import Attempt, Hold, Outcome, Reversal, UsageEvent

DAY = "2026-11-28"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    opened = ledger.open_ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def used(
    db: Database, event_id: str, replica: str, prompt: int, completion: int, outcome: Outcome = Outcome.COMPLETED
) -> None:
    attempt = Attempt(event_id, "physics", "k1", "tiny", replica, "chat", f"{DAY}T10:00:00.000000Z", "ada")
    ended = UsageEvent(attempt, prompt, completion, 1, outcome, f"{DAY}T10:00:01.000000Z")
    assert ledger.record(db, [Hold(attempt, 100, 10), ended]) == [None, None]


def read(replica: str, prompt: int, completion: int, second: int) -> Counters:
    return Counters(replica, "tiny", prompt, completion, f"{DAY}T10:00:{second:02d}.000000Z")


def test_a_replica_is_compared_by_all_that_it_did_also_once_it_is_gone(db: Database) -> None:
    used(db, "a:1", "r1", 7, 4)
    used(db, "b:1", "r1", 9, 1)
    used(db, "c:1", "r2", 5, 5)
    used(db, "d:1", "claude-3", 100, 100)  # a provider's, which has no engine here
    note_counters(db, [read("r1", 16, 5, 1), read("r2", 10, 6, 1)], {})
    one, two = Compared("r1", "tiny", 16, 16, 5, 5), Compared("r2", "tiny", 5, 10, 5, 6)
    assert compare(db) == [one, two]
    assert tokens(db, {"r2"}, DAY) == [two]
    assert tokens(db, {"r1"}, "2026-11-29") == [Compared("r1", "tiny", 0, 16, 0, 5)]


def test_requests_that_were_cut_are_listed_with_their_tokens(db: Database) -> None:
    used(db, "a:1", "r1", 7, 4)
    used(db, "b:1", "r1", 7, 2, Outcome.CLIENT_LEFT)
    used(db, "c:1", "r1", 7, 3, Outcome.ORPHANED)
    note_counters(db, [read("r1", 21, 12, 1)], {})
    (found,) = compare(db)
    assert found.cut == (
        Cut("c:1", "physics", "tiny", "orphaned", 7, 3),
        Cut("b:1", "physics", "tiny", "client_left", 7, 2),
    )
    assert found.engine_completion - found.ledger_completion == 3


def test_what_an_engine_read_again_is_not_its_tenants(db: Database) -> None:
    used(db, "a:1", "r1", 7, 8)
    note_counters(db, [read("r1", 14, 8, 1)], {"r1": 7, "claude-3": 40})
    note_counters(db, [], {"r1": 0})
    assert compare(db) == [Compared("r1", "tiny", 7, 7, 8, 8)]


def test_an_engine_that_was_started_again_has_its_earlier_counts_too(db: Database) -> None:
    for second, (prompt, completion) in enumerate([(10, 4), (12, 5), (0, 0), (3, 1), (3, 1), (20, 9)]):
        note_counters(db, [read("r1", prompt, completion, second)], {})
    (found,) = compare(db)
    assert (found.engine_prompt, found.engine_completion) == (32, 14)


def test_a_look_that_is_older_than_the_last_changes_nothing(db: Database) -> None:
    note_counters(db, [read("r1", 12, 5, 7)], {})
    note_counters(db, [read("r1", 10, 4, 6)], {})
    (found,) = compare(db)
    assert (found.engine_prompt, found.engine_completion) == (12, 5)


def test_a_correction_takes_back_a_charge_and_not_the_work(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.rollup.FORWARD", timedelta(days=36_500))  # whenever this test runs
    used(db, "a:1", "r1", 7, 4)
    assert ledger.record(db, [Reversal("z:1", "a:1", "root", "a mistake", f"{DAY}T11:00:00.000000Z")]) == [None]
    note_counters(db, [read("r1", 7, 4, 1)], {})
    assert compare(db) == [Compared("r1", "tiny", 7, 7, 4, 4)]
    old = RollUp(db, 1, lambda: datetime(2027, 3, 1, tzinfo=UTC))
    while old.turn():
        pass
    assert row(db, "SELECT 1 FROM usage_events") is None
    assert compare(db) == [Compared("r1", "tiny", 7, 7, 4, 4)]


def test_the_cut_ones_are_found_without_reading_all_events(db: Database) -> None:
    plan = db.conn.execute(
        "EXPLAIN QUERY PLAN SELECT 1 FROM usage_events WHERE replica = 'r1' AND outcome != 'completed' "
        "AND outcome != 'reversed' ORDER BY event_id DESC LIMIT 3"
    ).fetchall()
    assert [row for row in plan if "usage_events_uncommon" in row[3]]
