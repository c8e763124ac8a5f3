"""Runs: one piece of offline work (training, conversion) with one id and, over time, many attempts.

The only module that changes a run's state.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from registry import clock
from registry.db import Database, NotFound, row, rows, transaction


class RunState(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def ended(self) -> bool:
        return self in (RunState.COMPLETED, RunState.FAILED, RunState.STOPPED)


@dataclass(frozen=True, slots=True)
class Run:
    id: str
    kind: str  # train | convert | smoke | evaluate | script
    name: str
    owner: str
    state: RunState
    folder: str
    cause: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None


def adopt(db: Database, run_id: str, *, kind: str, name: str, owner: str, folder: str, created_at: str) -> bool:
    """Record a run found by its folder. Returns False when it is known already."""
    with transaction(db) as c:
        cursor = c.execute(
            "INSERT INTO runs (id, kind, name, owner, state, folder, created_at) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO NOTHING",
            (run_id, kind, name, owner, RunState.PENDING, folder, created_at),
        )
        return cursor.rowcount > 0


def started(db: Database, run_id: str) -> None:
    with transaction(db) as c:
        c.execute(
            "UPDATE runs SET state = ?, started_at = coalesce(started_at, ?), cause = NULL, ended_at = NULL "
            "WHERE id = ? AND state != ?",
            (RunState.RUNNING, clock.now(), run_id, RunState.RUNNING),
        )


def waits(db: Database, run_id: str, why: str) -> None:
    """An attempt has ended, and the run goes on when its job starts again. Not for a run that is over."""
    with transaction(db) as c:
        c.execute(
            "UPDATE runs SET state = ?, cause = ? WHERE id = ? AND ended_at IS NULL", (RunState.PENDING, why, run_id)
        )


def ended(db: Database, run_id: str, state: RunState, cause: str | None) -> None:
    assert state.ended
    with transaction(db) as c:
        c.execute(
            "UPDATE runs SET state = ?, cause = ?, ended_at = ? WHERE id = ? AND ended_at IS NULL",
            (state, cause, clock.now(), run_id),
        )


def explain_end(db: Database, run_id: str, cause: str) -> None:
    """Of one that was told to end and not why, or took the signal before a preemption for its time limit's."""
    unknown = "(cause IS NULL OR cause LIKE 'time limit%')"
    with transaction(db) as c:
        c.execute(
            f"UPDATE runs SET cause = ? WHERE id = ? AND state = ? AND {unknown}", (cause, run_id, RunState.STOPPED)
        )


def never_started(db: Database, run_id: str, cause: str) -> None:
    """The run failed unless it has started: then its own words count, whatever anybody else knows of it."""
    if any(r["state"] == RunState.PENDING for r in rows(db, "SELECT state FROM runs WHERE id = ?", run_id)):
        ended(db, run_id, RunState.FAILED, cause)


def get(db: Database, run_id: str) -> Run:
    """By id, or by name: then the newest of that name."""
    found = row(db, "SELECT * FROM runs WHERE id = ?", run_id) or row(
        db, "SELECT * FROM runs WHERE name = ? ORDER BY created_at DESC", run_id
    )
    if found is None:
        raise NotFound(f"no run has the id or name {run_id!r}; `headgate status` lists them")
    return _run(found)


def everything(db: Database) -> list[Run]:
    return [_run(r) for r in rows(db, "SELECT * FROM runs ORDER BY created_at")]


def _run(r: Any) -> Run:
    return Run(**{**dict(r), "state": RunState(r["state"])})
