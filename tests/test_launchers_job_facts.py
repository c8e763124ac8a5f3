"""What the scheduler says of a job is true of every replica in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from launchers import job_facts
from launchers.scheduler import JobRef, JobState, JobStatus
from registry import accounting, clock, deployments, promotions, runs
from registry.db import Database
from registry.deployments import Replica, ReplicaState
from registry.runs import RunState

JOB = JobRef("big", "12", datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def packed(registry: Database) -> Database:
    """Two replicas that share a job, and one that has another."""
    wanted: dict[str, Any] = dict(model="m", version=1, model_path="/m", request={}, by="ada", why="")
    deployments.create(registry, "chat", "ada", min_replicas=3, max_replicas=3, **wanted)
    for name, pack in (("r1", "r1"), ("r2", "r1"), ("r3", None)):
        deployments.add_replica(registry, name, "chat", "ada", f"/runs/{name}", pack=pack)
    for job_id, subject in (("12", "r1"), ("13", "r3")):
        accounting.record(
            registry,
            cluster="big",
            job_id=job_id,
            submitted_at=clock.text(JOB.submitted_at),
            key=subject,
            subject=subject,
            purpose="serve",
            owner="ada",
        )
    return registry


def by_id(db: Database) -> dict[str, Replica]:
    return {r.id: r for r in deployments.replicas(db)}


def test_every_replica_of_a_job_waits_for_what_the_job_waits_for_and_ends_when_it_ends(packed: Database) -> None:
    job_facts.observe(packed, {JOB: JobStatus(JOB, JobState.PENDING, "Resources")})
    told = {name: (r.job_id, r.waiting_reason) for name, r in by_id(packed).items()}
    assert told == {"r1": ("12", "Resources"), "r2": ("12", "Resources"), "r3": (None, None)}
    ends_at = JOB.submitted_at + timedelta(hours=1)
    job_facts.observe(packed, {JOB: JobStatus(JOB, JobState.RUNNING, nodes=("g1", "g2"), ends_at=ends_at)})
    running = {name: (r.ends_at, r.nodes) for name, r in by_id(packed).items()}
    assert running == {"r1": (clock.text(ends_at), "g1,g2"), "r2": (clock.text(ends_at), "g1,g2"), "r3": (None, "")}


def test_when_their_job_ends_without_a_word_its_replicas_are_lost_but_for_those_that_ended_before(
    packed: Database,
) -> None:
    deployments.set_replica_state(packed, "r2", ReplicaState.FAILED, "out of memory")
    (job,) = accounting.of_subject(packed, "r1")
    job_facts.is_over(packed, job, JobState.NODE_FAIL, None)
    assert {name: r.state for name, r in by_id(packed).items()} == {
        "r1": ReplicaState.LOST,
        "r2": ReplicaState.FAILED,
        "r3": ReplicaState.PENDING,
    }
    assert by_id(packed)["r2"].cause == "out of memory"


def test_a_replica_that_was_told_to_end_and_not_why_has_the_schedulers_word(packed: Database) -> None:
    (job,) = accounting.of_subject(packed, "r1")
    deployments.set_replica_state(packed, "r1", ReplicaState.STOPPED)
    deployments.set_replica_state(packed, "r2", ReplicaState.STOPPED, "time limit")
    job_facts.is_over(packed, job, JobState.PREEMPTED, "None")
    told = by_id(packed)
    assert (told["r1"].state, told["r1"].cause) == (ReplicaState.STOPPED, "the job ended as PREEMPTED")
    assert told["r2"].cause == "the job ended as PREEMPTED"  # Slurm's signal before it looks like a time limit's


def conversion(db: Database, promotion: str | None) -> accounting.Job:
    """The job of a conversion, which is the first step of a promotion or of none."""
    at = clock.text(JOB.submitted_at)
    runs.adopt(db, "convert-1", kind="convert", name="c", owner="ada", folder="/runs/convert-1", created_at=at)
    if promotion is not None:
        words: dict[str, Any] = dict(owner="ada", source="t-1/20", model="chat", alias="prod", canary=None)
        promotions.adopt(db, promotion, steps=("convert-1", "smoke-1"), run="convert-1", created_at=at, **words)
    job: dict[str, Any] = dict(cluster="big", job_id="14", submitted_at=at, key="convert-1", subject="convert-1")
    accounting.record(db, **job, purpose="convert", owner="ada")
    return accounting.of_subject(db, "convert-1")[0]


@pytest.mark.parametrize("taken_for", [None, "time limit; promote again with more (--convert-time)"])
@pytest.mark.parametrize("known_before", [True, False])
def test_a_step_that_slurm_preempted_is_neither_cancelled_nor_out_of_time_and_its_promotion_says_so(
    registry: Database, taken_for: str | None, known_before: bool
) -> None:
    job = conversion(registry, "p")
    runs.started(registry, "convert-1")
    runs.ended(registry, "convert-1", RunState.STOPPED, taken_for)
    if not known_before:
        assert len(promotions.advance(registry)) == 1
    job_facts.is_over(registry, job, JobState.PREEMPTED, "None")
    promotions.advance(registry)
    found = promotions.get(registry, "p")
    assert (found.state, found.cause) == ("failed", "the conversion was stopped: the job ended as PREEMPTED")
    assert runs.get(registry, "convert-1").cause == "the job ended as PREEMPTED"


def test_a_promotion_that_had_another_reason_to_fail_keeps_it(registry: Database) -> None:
    job = conversion(registry, "p")
    runs.ended(registry, "convert-1", RunState.FAILED, "no disk")
    promotions.advance(registry)
    job_facts.is_over(registry, job, JobState.PREEMPTED, None)
    assert promotions.get(registry, "p").cause == "the conversion: no disk"


@pytest.mark.parametrize(
    ("end", "cause"), [(JobState.PREEMPTED, "the job ended as PREEMPTED"), (JobState.CANCELLED, None)]
)
def test_a_run_that_was_told_to_end_and_not_why_has_the_schedulers_word(
    registry: Database, end: JobState, cause: str | None
) -> None:
    job = conversion(registry, None)
    runs.ended(registry, "convert-1", RunState.STOPPED, None)
    job_facts.is_over(registry, job, end, None)
    assert (runs.get(registry, "convert-1").state, runs.get(registry, "convert-1").cause) == (RunState.STOPPED, cause)
