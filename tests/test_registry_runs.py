"""Runs: one id, many attempts."""

from __future__ import annotations

import pytest

from registry import runs
from registry.db import Database, NotFound
from registry.runs import RunState


def adopt(db: Database, run_id: str, created_at: str = "2026-01-01T00:00:00Z", name: str = "r") -> bool:
    return runs.adopt(db, run_id, kind="train", name=name, owner="ada", folder=f"/runs/{run_id}", created_at=created_at)


def test_a_run_is_adopted_once_and_waits(registry: Database) -> None:
    assert adopt(registry, "r-1") and not adopt(registry, "r-1", name="other")
    run = runs.get(registry, "r-1")
    assert (run.state, run.name, run.started_at, run.ended_at) == (RunState.PENDING, "r", None, None)


def test_a_run_that_started_and_ended_keeps_both_times(registry: Database) -> None:
    adopt(registry, "r-1")
    runs.started(registry, "r-1")
    assert runs.get(registry, "r-1").state is RunState.RUNNING
    runs.ended(registry, "r-1", RunState.COMPLETED, None)
    run = runs.get(registry, "r-1")
    assert run.state is RunState.COMPLETED and run.started_at and run.ended_at and run.ended_at >= run.started_at


def test_the_first_ending_counts(registry: Database) -> None:
    adopt(registry, "r-1")
    runs.ended(registry, "r-1", RunState.FAILED, "out of memory")
    runs.ended(registry, "r-1", RunState.COMPLETED, None)
    run = runs.get(registry, "r-1")
    assert (run.state, run.cause) == (RunState.FAILED, "out of memory")


def test_only_a_run_that_never_started_is_failed_for_its_lost_submission(registry: Database) -> None:
    for name in ("r-1", "r-2"):
        adopt(registry, name)
    runs.started(registry, "r-2")
    for name in ("r-1", "r-2", "a-replica"):
        runs.never_started(registry, name, "lost")
    assert [(r.state, r.cause) for r in runs.everything(registry)] == [
        (RunState.FAILED, "lost"), (RunState.RUNNING, None)
    ]  # fmt: skip


def test_another_attempt_of_a_failed_run_runs_again_without_the_old_cause(registry: Database) -> None:
    adopt(registry, "r-1")
    runs.started(registry, "r-1")
    first = runs.get(registry, "r-1").started_at
    runs.ended(registry, "r-1", RunState.FAILED, "preempted")
    runs.started(registry, "r-1")
    run = runs.get(registry, "r-1")
    assert (run.state, run.cause, run.ended_at, run.started_at) == (RunState.RUNNING, None, None, first)
    runs.ended(registry, "r-1", RunState.COMPLETED, None)
    assert runs.get(registry, "r-1").state is RunState.COMPLETED


def test_a_run_ends_in_an_ending_only(registry: Database) -> None:
    adopt(registry, "r-1")
    with pytest.raises(AssertionError):
        runs.ended(registry, "r-1", RunState.RUNNING, None)


def test_a_run_is_found_by_id_and_by_name_the_newest(registry: Database) -> None:
    adopt(registry, "r-2", "2026-01-02T00:00:00Z")
    adopt(registry, "r-1", "2026-01-01T00:00:00Z")
    assert runs.get(registry, "r-1").id == "r-1"
    assert runs.get(registry, "r").id == "r-2"
    assert [r.id for r in runs.everything(registry)] == ["r-1", "r-2"]
    with pytest.raises(NotFound, match="no run has the id or name 'x'"):
        runs.get(registry, "x")
