"""The scheduler protocol over Slurm: the queue for jobs it still knows, accounting for the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property

from launchers import submit
from launchers.scheduler import (
    JobRef,
    JobRequest,
    JobState,
    JobStatus,
    JobUsage,
    SchedulerError,
    SchedulerUnavailable,
)
from slurm import model
from slurm.backend import connect
from slurm.client import SlurmClient
from slurm.errors import SlurmError, SlurmUnavailable

FIND = timedelta(days=7)  # how far back in accounting a lost submission is looked for

# Slurm's states as the protocol knows them. COMPLETING says that a job is ending, not yet how.
STATES = {
    model.JobState.BOOT_FAIL: JobState.NODE_FAIL,
    model.JobState.CANCELLED: JobState.CANCELLED,
    model.JobState.COMPLETED: JobState.COMPLETED,
    model.JobState.COMPLETING: JobState.RUNNING,
    model.JobState.CONFIGURING: JobState.PENDING,
    model.JobState.DEADLINE: JobState.TIMEOUT,
    model.JobState.EXPEDITING: JobState.RUNNING,
    model.JobState.FAILED: JobState.FAILED,
    model.JobState.GETENV_FAILED: JobState.PENDING,
    model.JobState.LAUNCH_FAILED: JobState.PENDING,
    model.JobState.NODE_FAIL: JobState.NODE_FAIL,
    model.JobState.OUT_OF_MEMORY: JobState.OUT_OF_MEMORY,
    model.JobState.PENDING: JobState.PENDING,
    model.JobState.POWER_UP_NODE: JobState.PENDING,
    model.JobState.PREEMPTED: JobState.PREEMPTED,
    model.JobState.RECONFIG_FAIL: JobState.RUNNING,
    model.JobState.REQUEUED: JobState.PENDING,
    model.JobState.REQUEUE_FED: JobState.PENDING,
    model.JobState.REQUEUE_HOLD: JobState.PENDING,
    model.JobState.RESIZING: JobState.RUNNING,
    model.JobState.RESV_DEL_HOLD: JobState.PENDING,
    model.JobState.REVOKED: JobState.CANCELLED,
    model.JobState.RUNNING: JobState.RUNNING,
    model.JobState.SIGNALING: JobState.RUNNING,
    model.JobState.SPECIAL_EXIT: JobState.PENDING,
    model.JobState.STAGE_OUT: JobState.RUNNING,
    model.JobState.STOPPED: JobState.SUSPENDED,
    model.JobState.SUSPENDED: JobState.SUSPENDED,
    model.JobState.TIMEOUT: JobState.TIMEOUT,
}
# An attempt that ended so may be followed by another of the same job.
REQUEUEABLE = frozenset({model.JobState.REQUEUED, model.JobState.PREEMPTED, model.JobState.NODE_FAIL})


class SlurmScheduler:
    """Over the cluster that `client` speaks for; by default the one this process's environment points at."""

    def __init__(self, client: SlurmClient | None = None) -> None:
        self._client = connect() if client is None else client

    @property
    def client(self) -> SlurmClient:
        return self._client

    @cached_property
    def cluster(self) -> str:
        with _in_protocol_words():
            return self._client.config().name

    def submit(self, request: JobRequest) -> JobRef:
        """Raises SchedulerUnavailable also when the job was submitted and Slurm then fell silent: see `find`."""
        cluster = self.cluster  # asked first: without an answer there is nothing to submit to
        with _in_protocol_words():
            job_id = submit.submit_to_slurm(request, self._client)
            for job in self._client.jobs([job_id]):
                return JobRef(cluster, job.id, job.submitted_at)
        raise SchedulerUnavailable(f"job {job_id} was submitted, and the queue does not know it")

    def script(self, request: JobRequest) -> str:
        return submit.script(request)

    def find(self, key: str) -> JobRef | None:
        with _in_protocol_words():
            us = str(os.getuid())
            found: Sequence[model.Job | model.JobUsage] = [j for j in self._client.jobs(user=us) if j.comment == key]
            if not found:
                now = datetime.now(UTC)
                books = self._client.accounting_between(now - FIND, now, user=us)
                found = [attempt for attempt in books if attempt.carries(key)]
        newest = max(found, key=lambda job: job.submitted_at, default=None)
        return None if newest is None else JobRef(self.cluster, newest.id, newest.submitted_at)

    def states(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobStatus]:
        asked = list(refs)
        with _in_protocol_words():
            queue = {(job.id, job.submitted_at): job for job in self._client.jobs(ref.job_id for ref in asked)}
            others = [ref for ref in asked if (ref.job_id, ref.submitted_at) not in queue]
            # A job that the queue has under another submit time was requeued, or has only our job's id: accounting
            # tells the two apart. It runs behind the queue, so the queue's word counts where it has one.
            books = self._client.accounting(ref.job_id for ref in others)
        return {ref: _status(ref, queue, attempts(books, ref)) for ref in asked}

    def cancel(self, ref: JobRef) -> None:
        """The supervisor gets SIGTERM, and SIGKILL after the cluster's KillWait (30 s by default)."""
        state = self.states([ref])[ref].state  # scancel knows only the id, which may be somebody else's job by now
        if not state.ended and state is not JobState.UNKNOWN:
            with _in_protocol_words():
                self._client.cancel(ref.job_id)

    def drain(self, ref: JobRef) -> None:
        """No KillWait; and the seconds in which it drains are in the books, which scancel alone would close at once."""
        state = self.states([ref])[ref].state
        if state is not JobState.RUNNING:
            self.cancel(ref)  # nothing that waits can drain
            return
        with _in_protocol_words():
            self._client.signal(ref.job_id, "TERM")

    def usage(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobUsage]:
        """Elapsed time is summed over a job's attempts; the allocation is the largest that any of them had.

        Slurm ends a cancelled job's books when scancel is called: what follows (`drain` avoids it) is not in them.
        """
        asked = list(refs)
        with _in_protocol_words():
            books = self._client.accounting(ref.job_id for ref in asked)
        return {ref: _usage(ref, mine) for ref in asked if (mine := attempts(books, ref))}


def attempts(books: Sequence[model.JobUsage], ref: JobRef) -> list[model.JobUsage]:
    """A job's attempts, oldest first: the one submitted when `ref` says, and those that requeued it.

    A requeue gives the job a new submit time, just as a recycled job id does; but it follows an attempt that ended in
    a requeueable state, and keeps the job's name and user.
    """
    mine: list[model.JobUsage] = []
    for attempt in sorted((a for a in books if a.id == ref.job_id), key=lambda a: a.submitted_at):
        if not mine:
            if attempt.submitted_at == ref.submitted_at:
                mine.append(attempt)
        elif mine[-1].state in REQUEUEABLE and (attempt.name, attempt.user) == (mine[0].name, mine[0].user):
            mine.append(attempt)
        else:
            break
    return mine


def _status(ref: JobRef, queue: Mapping[tuple[str, datetime], model.Job], mine: Sequence[model.JobUsage]) -> JobStatus:
    job = queue.get((ref.job_id, mine[-1].submitted_at if mine else ref.submitted_at))
    if job is not None:
        state = STATES[job.state]
        return JobStatus(ref, state, job.reason, job.nodes, job.started_at, job.ended_at)
    if not mine:
        return JobStatus(ref, JobState.UNKNOWN)
    last = mine[-1]
    reason = f"{last.state_text}, exit code {last.exit_code}"
    return JobStatus(ref, STATES[last.state], reason, last.nodes, last.started_at, last.ended_at)


def _usage(ref: JobRef, mine: Sequence[model.JobUsage]) -> JobUsage:
    last = mine[-1]
    return JobUsage(
        ref=ref,
        state=STATES[last.state],
        started_at=mine[0].started_at,
        ended_at=last.ended_at,
        elapsed_s=sum(a.elapsed_s for a in mine),
        cpus=max(a.allocated.cpus for a in mine),
        gpus=max(a.allocated.gpus for a in mine),
        partition=last.partition or None,
        account=last.account or None,
    )


@contextmanager
def _in_protocol_words() -> Iterator[None]:
    try:
        yield
    except SlurmUnavailable as e:
        raise SchedulerUnavailable(str(e)) from e
    except SlurmError as e:
        raise SchedulerError(str(e)) from e
