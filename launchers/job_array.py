"""A job array as one job: what its tasks' states and books amount to. Pure.

Slurm lists the tasks of array 12 as "12_1", "12_2" and, while they wait, "12_[3-9%2]". All have the array's submit time
until one of them is requeued.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from launchers.scheduler import JobRef, JobState, JobStatus
from slurm.attempts import attempts
from slurm.model import Job, JobUsage

# What an array is when all of its tasks have ended: as bad as the worst of them.
WORST = (
    *(JobState.FAILED, JobState.OUT_OF_MEMORY, JobState.NODE_FAIL, JobState.TIMEOUT, JobState.PREEMPTED),
    *(JobState.CANCELLED, JobState.COMPLETED),
)
_WAITING = re.compile(r"\d+_\[([^%\]]*)(?:%\d+)?\]")
_SPAN = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+))?")
LIVELIEST = (JobState.RUNNING, JobState.SUSPENDED, JobState.PENDING, JobState.UNKNOWN)


def array_of(job_id: str) -> str:
    """The array of a task; any other job is its own."""
    return job_id.partition("_")[0]


def named_by(newest: str, found: Iterable[str]) -> str:
    """Which job a key that these ids carry names: one task of an array (a sweep's run), or several: the array."""
    siblings = {job_id for job_id in found if array_of(job_id) == array_of(newest)}
    return newest if len(siblings) == 1 and not waiting(newest) else array_of(newest)


def queued_tasks(ref: JobRef, jobs: Iterable[Job]) -> list[Job]:
    """What the queue still knows of an array, or of a task that waits among others; nothing of any other job."""
    array, _, task = ref.job_id.partition("_")
    return [
        job
        for job in jobs
        if array_of(job.id) == array
        and job.submitted_at >= ref.submitted_at
        and (job.id != ref.job_id if not task else task in waiting(job.id))
    ]


def waiting(job_id: str) -> set[str]:
    """The task numbers that "12_[3-5,9%2]" stands for; none for the id of one job."""
    found = _WAITING.fullmatch(job_id)
    numbers: set[str] = set()
    for part in found[1].split(",") if found else ():
        if span := _SPAN.fullmatch(part):  # a long list is cut off with dots
            numbers |= {str(n) for n in range(int(span[1]), int(span[2] or span[1]) + 1, int(span[3] or 1))}
    return numbers


def booked_tasks(ref: JobRef, books: Iterable[JobUsage]) -> list[list[JobUsage]]:
    """The attempts of each task of this array, oldest first."""
    by_id: dict[str, list[JobUsage]] = {}
    for attempt in books:
        if attempt.id != ref.job_id and array_of(attempt.id) == ref.job_id:
            by_id.setdefault(attempt.id, []).append(attempt)
    return [mine for records in by_id.values() if (mine := attempts(records, ref.submitted_at))]


def whole(ref: JobRef, tasks: Sequence[JobStatus]) -> JobStatus:
    """The array's own status; `tasks` is not empty."""
    states = {task.state for task in tasks}
    state = next(s for s in (*LIVELIEST, *WORST) if s in states)
    decisive = [task for task in tasks if task.state is state]
    started = [task.started_at for task in tasks if task.started_at is not None]
    ended = [task.ended_at for task in tasks if task.ended_at is not None]
    return JobStatus(
        ref,
        state,
        decisive[0].reason,
        tuple(sorted({node for task in decisive for node in task.nodes})),
        min(started, default=None),
        max(ended, default=None) if state.ended else None,
    )
