"""Which of the books' records under one job id are attempts of the same job. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from slurm.model import Job, JobState, JobUsage

# An attempt that ended so may be followed by another of the same job.
REQUEUEABLE = frozenset({JobState.REQUEUED, JobState.PREEMPTED, JobState.NODE_FAIL})


def attempts(books: Iterable[JobUsage], submitted_at: datetime) -> list[JobUsage]:
    """A job's attempts, oldest first: the one submitted at this time, and those that requeued it.

    `books` are all records under its id. A requeue gives the job a new submit time, just as a recycled job id does;
    but it follows an attempt that ended in a requeueable state, and keeps the job's name and user.
    """
    mine: list[JobUsage] = []
    for attempt in sorted(books, key=lambda a: a.submitted_at):
        if not mine:
            if attempt.submitted_at == submitted_at:
                mine.append(attempt)
        elif mine[-1].state in REQUEUEABLE and (attempt.name, attempt.user) == (mine[0].name, mine[0].user):
            mine.append(attempt)
        else:
            break
    return mine


def continues(last: JobUsage, job: Job) -> bool:
    """Whether a job of the queue, under the same id, is this attempt, or the one that requeued it.

    The books run behind: for a while they have the end of the one and nothing of the other.
    """
    if job.submitted_at == last.submitted_at:
        return True
    requeued = last.state in REQUEUEABLE and job.restarts > 0 and job.submitted_at > last.submitted_at
    return requeued and job.user == last.user  # its name stands otherwise in the books, where it holds a quote
