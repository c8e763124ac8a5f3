"""The attempts of runs: one life of a run each, from its job's start to its end or its requeue.

The only module that writes them. The supervisor's words come first; what Slurm's books say of an end that nobody
could announce is filled in later, and never the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from registry import clock
from registry.db import Database, rows, transaction

LEARNT = frozenset("ended_at cause detail exit_code first_iteration last_iteration saved_iteration verdict".split())


@dataclass(frozen=True, slots=True)
class Attempt:
    run: str
    attempt: str  # JOB.RESTART: the job's id, and how often it had been requeued
    number: int  # 1, 2, ...: the order in which they began
    job_id: str
    nodes: str  # as Slurm writes them: "g[1-2]"
    started_at: str
    ended_at: str | None
    cause: str | None  # launchers.restart.Cause
    detail: str | None  # in words
    exit_code: int | None
    first_iteration: int | None  # it began after this one: 0, or a checkpoint's
    last_iteration: int | None  # the last that it finished
    saved_iteration: int | None  # the newest complete checkpoint when it ended
    verdict: str | None  # what follows, in words


def started(db: Database, run: str, attempt: str, *, job_id: str, nodes: str, at: str) -> None:
    """Idempotent: an attempt that is known keeps its number and what is known of it."""
    with transaction(db) as c:
        c.execute(
            """INSERT INTO attempts (run, attempt, number, job_id, nodes, started_at)
               VALUES (?, ?, (SELECT count(*) + 1 FROM attempts WHERE run = ?), ?, ?, ?)
               ON CONFLICT (run, attempt) DO NOTHING""",
            (run, attempt, run, job_id, nodes, at),
        )


def learn(db: Database, run: str, attempt: str, **said: str | int | None) -> None:
    """What is known of an attempt now, by column. It replaces what was known; None changes nothing."""
    known = {name: value for name, value in said.items() if value is not None}
    assert known.keys() <= LEARNT, known
    if known:
        with transaction(db) as c:
            c.execute(
                f"UPDATE attempts SET {', '.join(f'{name} = ?' for name in known)} WHERE run = ? AND attempt = ?",
                (*known.values(), run, attempt),
            )


def settle(db: Database, run: str, ends: Mapping[str, tuple[str, str | None]]) -> None:
    """Slurm's word on attempts of which nobody knows more than that they were requeued: -> (cause, when it ended)."""
    with transaction(db) as c:
        c.executemany(
            "UPDATE attempts SET cause = ?, ended_at = coalesce(ended_at, ?) "
            "WHERE run = ? AND attempt = ? AND coalesce(cause, 'requeued') = 'requeued'",
            [(cause, at or clock.now(), run, attempt) for attempt, (cause, at) in ends.items()],
        )


def of_run(db: Database, run: str) -> list[Attempt]:
    """Oldest first."""
    return [Attempt(**dict(r)) for r in rows(db, "SELECT * FROM attempts WHERE run = ? ORDER BY number", run)]


def ended_between(db: Database, start: str, end: str) -> list[Attempt]:
    """Of all runs, those that ended in [start, end), oldest first."""
    found = rows(db, "SELECT * FROM attempts WHERE ended_at >= ? AND ended_at < ? ORDER BY ended_at", start, end)
    return [Attempt(**dict(r)) for r in found]
