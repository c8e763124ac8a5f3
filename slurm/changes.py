"""What happened between two looks at the queue. Pure.

A job is (cluster, raw id, submit time); a watch is of one cluster. A requeue keeps the job, though it changes the
submit time: its restarts are counted. A recycled id is another job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter

from slurm.attempts import attempts
from slurm.model import Job, JobUsage


@dataclass(frozen=True, slots=True)
class Silence:
    """Slurm does not answer: nothing is known of now, and nothing may be concluded."""

    since: datetime  # when the first question without an answer was asked
    words: str  # of the latest one
    failures: int  # questions without an answer, in a row


@dataclass(frozen=True, slots=True)
class JobAppeared:
    job: Job


@dataclass(frozen=True, slots=True)
class JobChanged:
    """What is counted down or estimated anew at every look (time left, priority, expected start) is no change."""

    before: Job
    after: Job

    @property
    def job(self) -> Job:
        return self.after


@dataclass(frozen=True, slots=True)
class JobEnded:
    """By its state in the queue, or (`record`) by the books, after the queue had forgotten it."""

    job: Job  # as the queue showed it last
    record: JobUsage | None = None


@dataclass(frozen=True, slots=True)
class JobUnaccounted:
    """The queue no longer shows it, and the books do not say that it ended. It may be running."""

    job: Job
    words: str  # what the books said instead


@dataclass(frozen=True, slots=True)
class Silent:
    silence: Silence


@dataclass(frozen=True, slots=True)
class Answered:
    """Slurm answers again."""

    silence: Silence  # which is over


@dataclass(frozen=True, slots=True)
class LookAtLatest:
    """Here it begins, or more happened than is kept for a slow reader: the latest picture is the place to look."""


JobChange = JobAppeared | JobChanged | JobEnded | JobUnaccounted
Change = JobChange | Silent | Answered | LookAtLatest

_STANDING = attrgetter(
    *("id", "name", "user", "account", "partition", "qos", "state", "reason", "comment", "submitted_at"),
    *("started_at", "ended_at", "time_limit_s", "nodes", "node_count", "tres", "restarts", "dependency", "reservation"),
)


def same_job(before: Job, after: Job) -> bool:
    """Whether two records under one raw id are the same job's."""
    if before.submitted_at == after.submitted_at:
        return True
    # The restart is counted while the old attempt is COMPLETING; the submit time changes only afterwards.
    requeued = after.restarts >= max(before.restarts, 1)
    return requeued and (before.name, before.user) == (after.name, after.user)


def compare(
    known: Mapping[int, Job], lost: Iterable[Job], queue: Mapping[int, Job]
) -> tuple[list[JobChange], list[Job]]:
    """What changed, and which jobs the queue does not show though they were not seen to end.

    `known` is what the queue showed before, and `queue` what it shows now, by raw id; `lost` what was missing before.
    """
    before_all = {job.raw_id: job for job in lost} | dict(known)
    changes: list[JobChange] = []
    for raw_id, job in queue.items():
        before = before_all.get(raw_id)
        if before is None or not same_job(before, job):
            before = None
            changes.append(JobAppeared(job))
        elif _STANDING(before) != _STANDING(job):
            changes.append(JobChanged(before, job))
        if job.state.ended and (before is None or not before.state.ended):
            changes.append(JobEnded(job))
    active = (job for job in (*lost, *known.values()) if not job.state.ended)
    return changes, [job for job in active if job.raw_id not in queue or not same_job(job, queue[job.raw_id])]


def end_in_books(job: Job, books: Iterable[JobUsage]) -> tuple[JobUsage | None, str]:
    """The record that says that a job which the queue forgot has ended, if there is one, and what the books say."""
    mine = attempts((record for record in books if record.raw_id == job.raw_id), job.submitted_at)
    if not mine:
        return None, "accounting does not know it"
    last = mine[-1]
    return last if last.state.ended and last.ended_at is not None else None, f"accounting says {last.state_text}"
