"""What the scheduler says of jobs becomes registry rows, as `facts` does it with what jobs say of themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timedelta

from launchers import restart
from launchers.scheduler import JobRef, JobState, JobStatus, JobUsage
from launchers.spec import ScriptSpec, ServeSpec
from registry import accounting, attempts, clock, deployments, promotions, runs
from registry.db import Database
from registry.deployments import ReplicaState
from registry.replicas import explain_end, replicas_of_job


def observe(db: Database, statuses: Mapping[JobRef, JobStatus]) -> None:
    """The state of each job. Of a script, in whose job nothing of ours runs, it is the run's state too."""
    known = {ref: status for ref, status in statuses.items() if status.state is not JobState.UNKNOWN}
    accounting.observe(
        db,
        [
            (ref.cluster, ref.job_id, clock.text(ref.submitted_at), status.state.value, status.reason)
            for ref, status in known.items()
        ],
    )
    for job in accounting.unsettled(db):
        if job.purpose == ServeSpec.kind and (status := known.get(ref_of(job))) is not None:
            _waits_or_runs(db, job, status)
    running = {(ref.cluster, ref.job_id) for ref, status in known.items() if status.state is JobState.RUNNING}
    for job in accounting.unsettled(db) if running else ():
        if job.purpose == ScriptSpec.kind and (job.cluster, job.job_id) in running:
            runs.started(db, job.subject)


def _waits_or_runs(db: Database, job: accounting.Job, status: JobStatus) -> None:
    """What the gateway tells those who wait for a replica, and when the replica's time is up."""
    start, ends_at = status.expected_start_at, status.ends_at
    for replica in replicas_of_job(db, job.subject):
        match status.state:
            case JobState.PENDING:
                deployments.note_job(
                    db,
                    replica.id,
                    job_id=job.job_id,
                    waiting_reason=None if status.reason == "None" else status.reason,
                    expected_start_at=clock.text(_next_minute(start)) if start else None,
                )
            case JobState.RUNNING:
                deployments.note_job(
                    db,
                    replica.id,
                    job_id=job.job_id,
                    ends_at=clock.text(ends_at) if ends_at else None,
                    nodes=",".join(status.nodes),
                )


def _next_minute(at: datetime) -> datetime:
    """Slurm's estimates move by seconds with each look, and every change here is read by the gateway."""
    return at + timedelta(seconds=-at.timestamp() % 60)


def ref_of(job: accounting.Job) -> JobRef:
    return JobRef(job.cluster, job.job_id, clock.parse(job.submitted_at))


def is_over(db: Database, job: accounting.Job, state: JobState, reason: str | None) -> None:
    """A job has ended. What its supervisor said before counts for more."""
    why = f" ({reason})" if reason and reason != "None" else ""
    unsaid = "" if job.purpose == ScriptSpec.kind else " without a word from its supervisor"
    cause = f"the job ended as {state.value}{why}{unsaid}"
    stopped, done = state is JobState.CANCELLED, state is JobState.COMPLETED
    if job.purpose == ServeSpec.kind:
        end = ReplicaState.STOPPED if stopped else ReplicaState.LOST
        for replica in replicas_of_job(db, job.subject):
            deployments.set_replica_state(db, replica.id, end, None if stopped else cause)
            if state.may_be_requeued:  # a supervisor hears SIGTERM, and not what it is for
                explain_end(db, replica.id, f"the job ended as {state.value}{why}")
    elif stopped:
        runs.ended(db, job.subject, runs.RunState.STOPPED, None)
    elif done:
        runs.ended(db, job.subject, runs.RunState.COMPLETED, None)
    else:
        runs.ended(db, job.subject, runs.RunState.FAILED, cause)
        if state.may_be_requeued:
            promotions.explain_end(db, job.subject, f"the job ended as {state.value}{why}")


def settle(db: Database, job: accounting.Job, books: JobUsage) -> None:
    """The scheduler's books on a job: its usage, and the ends of attempts that nobody announced."""
    ends = restart.booked(job.job_id, books.ends)
    attempts.settle(db, job.subject, {a: (cause, clock.text(at)) for a, (cause, at) in ends.items()})
    accounting.settle(
        db,
        dataclasses.replace(
            job,
            state=books.state.value if books.state is not JobState.UNKNOWN else job.state,
            partition=books.partition,
            account=books.account,
            started_at=clock.text(books.started_at) if books.started_at else None,
            ended_at=clock.text(books.ended_at) if books.ended_at else None,
            elapsed_s=books.elapsed_s,
            cpus=books.cpus,
            gpus=books.gpus,
            settled=books.state.ended and books.ended_at is not None,
        ),
    )
