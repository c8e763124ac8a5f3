"""What the scheduler says of a job is true of every replica in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from launchers import job_facts
from launchers.scheduler import JobRef, JobState, JobStatus
from registry import accounting, clock, deployments
from registry.db import Database
from registry.deployments import Replica, ReplicaState

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
