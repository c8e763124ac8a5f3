"""Attempts of runs: numbered as they begin, and known ever better."""

from __future__ import annotations

import pytest

from registry import attempts, runs
from registry.db import Database

AT = "2026-11-24T09:00:00.000000Z"
LATER = "2026-11-24T10:00:00.000000Z"


@pytest.fixture
def db(registry: Database) -> Database:
    runs.adopt(registry, "r", kind="train", name="r", owner="ada", folder="/r", created_at=AT)
    return registry


def begin(db: Database, *names: str) -> None:
    for name in names:
        attempts.started(db, "r", name, job_id="7", nodes="g[1-2]", at=AT)


def test_attempts_are_numbered_in_the_order_in_which_they_began_and_once(db: Database) -> None:
    begin(db, "7.0", "7.1", "7.0", "9.0")
    assert [(a.attempt, a.number) for a in attempts.of_run(db, "r")] == [("7.0", 1), ("7.1", 2), ("9.0", 3)]


def test_what_is_learnt_later_replaces_what_was_known_and_nothing_changes_nothing(db: Database) -> None:
    begin(db, "7.0")
    attempts.learn(db, "r", "7.0", cause="cancelled", last_iteration=40, ended_at=AT)
    attempts.learn(db, "r", "7.0", cause="preempted", last_iteration=None)
    (known,) = attempts.of_run(db, "r")
    assert (known.cause, known.last_iteration, known.ended_at) == ("preempted", 40, AT)


def test_slurms_books_fill_in_only_what_nobody_knew(db: Database) -> None:
    begin(db, "7.0", "7.1", "7.2")
    attempts.learn(db, "r", "7.0", cause="crashed", ended_at=AT)
    attempts.learn(db, "r", "7.1", cause="requeued", ended_at=AT)
    books = {"7.0": "node-failure", "7.1": "preempted", "7.2": "node-failure"}
    attempts.settle(db, "r", {name: (cause, LATER) for name, cause in books.items()})
    known = [(a.cause, a.ended_at) for a in attempts.of_run(db, "r")]
    assert known == [("crashed", AT), ("preempted", AT), ("node-failure", LATER)]
