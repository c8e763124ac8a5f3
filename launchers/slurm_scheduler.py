"""The scheduler protocol over Slurm: the queue for jobs it still knows, accounting for the others.

Where a watch runs, the queue is its latest picture, and Slurm's silence is what the watch says: questions about jobs
then cost slurmctld nothing, however many are asked.
"""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from launchers import job_array, submit
from launchers.books import books_of
from launchers.outlook import outlook as looked
from launchers.scheduler import (
    JobRef,
    JobRequest,
    JobState,
    JobStatus,
    JobUsage,
    Outlook,
    SchedulerError,
    SchedulerUnavailable,
)
from registry.attribution import Books
from slurm import accounting, model
from slurm.attempts import attempts, continues
from slurm.backend import connect
from slurm.client import SlurmClient
from slurm.errors import SlurmError, SlurmUnavailable
from slurm.picture import Picture

if TYPE_CHECKING:
    from slurm.watch import Watch

log = logging.getLogger(__name__)

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
    model.JobState.UNRECOGNISED: JobState.UNKNOWN,
}
Records = list[list[model.JobUsage]]  # the attempts of each of its tasks: of one, unless it is an array


class SlurmScheduler:
    """Over the cluster that `client` speaks for; by default the one this process's environment points at.

    `watch` is that cluster's, where somebody runs one.
    """

    watch: Watch | None = None

    def __init__(self, client: SlurmClient | None = None) -> None:
        self.client = connect() if client is None else client
        self._acted_at = datetime.min.replace(tzinfo=UTC)  # when we last changed the queue, or tried to
        self._resubmitted: dict[JobRef, datetime] = {}  # of jobs that were requeued: their newest submit time
        # What accounting said of jobs that this picture does not show, so that it is asked once for each picture.
        self._books: dict[JobRef, Records] = {}
        self._books_for: Picture | None = None

    @cached_property
    def cluster(self) -> str:
        self._picture()  # where the watch hears nothing, nobody has to wait for the same
        with _in_protocol_words():
            return self.client.config().name

    def submit(self, request: JobRequest) -> JobRef:
        """Raises SchedulerUnavailable also when the job was submitted and Slurm then fell silent: see `find`."""
        return self._submit(lambda: submit.submit_to_slurm(request, self.client))

    def submit_again(self, request: JobRequest, script: Path) -> JobRef:
        return self._submit(lambda: self.client.submit(script, request.key))

    def _submit(self, submit_job: Callable[[], str]) -> JobRef:
        cluster = self.cluster  # asked first: without an answer there is nothing to submit to
        with self._acting():
            job_id = submit_job()
            for job in self.client.jobs([job_id]):
                return JobRef(cluster, job.id, job.submitted_at)
        raise SchedulerUnavailable(f"job {job_id} was submitted, and the queue does not know it")

    def script(self, request: JobRequest) -> str:
        return submit.script(request)

    def find(self, key: str) -> JobRef | None:
        picture = self._picture()
        us = str(os.getuid())
        found: Sequence[model.Job | model.JobUsage] = []
        if picture is not None:
            found = [j for j in picture.jobs if j.comment == key and j.user == _name(us)]
        with _in_protocol_words():
            if not found:  # whoever submitted it may have done so since the picture
                found = [j for j in self.client.jobs(user=us) if j.comment == key]
            if not found:
                now = datetime.now(UTC)
                books = self.client.accounting_between(now - FIND, now, user=us)
                found = [attempt for attempt in books if attempt.carries(key)]
        newest = max(found, key=lambda job: job.submitted_at, default=None)
        if newest is None:
            return None
        return JobRef(self.cluster, job_array.named_by(newest.id, [job.id for job in found]), newest.submitted_at)

    def states(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobStatus]:
        """Jobs that only accounting could tell of are absent when it does not answer, unless no job is left then."""
        return self._states(list(refs), self._picture())

    def cancel(self, ref: JobRef) -> None:
        """The supervisor gets SIGTERM, and SIGKILL after the cluster's KillWait (30 s by default)."""
        # Looked at now: scancel knows only the id, which may be somebody else's job by now.
        state = self._states([ref], None)[ref].state
        if not state.ended and state is not JobState.UNKNOWN:
            with self._acting():
                self.client.cancel(ref.job_id)

    def drain(self, ref: JobRef) -> None:
        """No KillWait; and the seconds in which it drains are in the books, which scancel alone would close at once."""
        state = self._states([ref], None)[ref].state
        if state is not JobState.RUNNING:
            self.cancel(ref)  # nothing that waits can drain
            return
        with self._acting():
            self.client.signal(ref.job_id, "TERM")

    def shorten(self, ref: JobRef, time_limit_s: int) -> None:
        state = self._states([ref], None)[ref].state
        if state is not JobState.PENDING:
            raise SchedulerError(f"job {ref.job_id} is {state.value}, and only one that waits is given less time")
        with self._acting():
            self.client.update(ref.job_id, time_limit_s=time_limit_s)

    def outlook(self) -> Outlook:
        picture = self._picture()
        if picture is not None and picture.cluster_at is not None:
            return looked(picture)
        with _in_protocol_words():
            nodes, partitions = self.client.nodes(), self.client.partitions()
            now = datetime.now(UTC)
            return looked(Picture(now, (), now, tuple(nodes), tuple(partitions), tuple(self.client.reservations())))

    def usage(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobUsage]:
        """Elapsed time is summed over a job's attempts; the allocation is the largest that any of them had.

        Slurm ends a cancelled job's books when scancel is called: what follows (`drain` avoids it) is not in them.
        """
        asked = list(refs)
        with _in_protocol_words():
            books = self.client.accounting(ref.job_id for ref in asked)
        return {ref: _usage(ref, mine) for ref in asked if self._ours(ref) and (mine := records_of(ref, books))}

    def books(self, start: datetime, end: datetime) -> Books:
        with _in_protocol_words():
            return books_of(accounting.usage(self.client, start, end), self.client.reservations())

    def _picture(self) -> Picture | None:
        """The watch's, if it shows all that we did ourselves. None: the queue has to be asked.

        Raises SchedulerUnavailable while the watch gets no answer: it asks again in good time, and nobody else need.
        """
        if self.watch is None or not self.watch.running:
            return None
        latest, silence = self.watch.latest, self.watch.silence
        if silence is not None:
            raise SchedulerUnavailable(silence.words)
        return latest if latest is not None and latest.at > self._acted_at else None

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """Around what changes the queue: older pictures do not count any more, and a newer one is wanted soon."""
        try:
            with _in_protocol_words():
                yield
        finally:
            self._acted_at = datetime.now(UTC)
            if self.watch is not None:
                self.watch.hurry()

    def _ours(self, ref: JobRef) -> bool:
        """Another cluster's ids mean nothing here."""
        return ref.cluster == self.cluster

    def _states(self, refs: Sequence[JobRef], picture: Picture | None) -> dict[JobRef, JobStatus]:
        ids = {ref.job_id for ref in refs}
        with _in_protocol_words():
            jobs = self.client.jobs(ids) if picture is None else picture.jobs
        asked = [ref for ref in refs if self._ours(ref)]
        queue = {(job.id, job.submitted_at): job for job in jobs}
        known = {ref: job for ref in asked if (job := queue.get(self._now_called(ref))) is not None}
        arrays = {ref: tasks for ref in asked if ref not in known and (tasks := job_array.queued_tasks(ref, jobs))}
        # A job that the queue has under another submit time was requeued, or has only our job's id: accounting
        # tells the two apart. It runs behind the queue, so the queue's word counts where it has one.
        others = [ref for ref in asked if ref not in known and ref not in arrays]
        try:
            with _in_protocol_words():
                books = self._attempts(others, picture)
        except SchedulerUnavailable as e:
            if not known and not arrays:
                raise
            log.warning("%d jobs that the queue does not show remain as they were: %s", len(others), e)
            books, others = {}, []
        by_id = {job.id: job for job in jobs}
        for ref in others:
            job = by_id.get(ref.job_id)
            if job is not None and books[ref] and continues(books[ref][0][-1], job):
                self._resubmitted[ref] = job.submitted_at
                known[ref] = job
        strangers = {ref: JobStatus(ref, JobState.UNKNOWN) for ref in refs if not self._ours(ref)}
        booked = {ref: _booked(ref, books[ref]) for ref in others if ref not in known}
        grouped = {ref: job_array.whole(ref, [_queued(ref, task) for task in tasks]) for ref, tasks in arrays.items()}
        return strangers | booked | grouped | {ref: _queued(ref, job) for ref, job in known.items()}

    def _now_called(self, ref: JobRef) -> tuple[str, datetime]:
        return ref.job_id, self._resubmitted.get(ref, ref.submitted_at)

    def _attempts(self, refs: Sequence[JobRef], picture: Picture | None) -> Mapping[JobRef, Records]:
        if picture is None or picture is not self._books_for:
            self._books, self._books_for = {}, picture
        new = [ref for ref in refs if ref not in self._books]
        books = self.client.accounting(ref.job_id for ref in new)
        self._books |= {ref: records_of(ref, books) for ref in new}
        return self._books


def records_of(ref: JobRef, books: Sequence[model.JobUsage]) -> Records:
    """A job's attempts, oldest first; of an array, those of each task."""
    mine = attempts((attempt for attempt in books if attempt.id == ref.job_id), ref.submitted_at)
    return [mine] if mine else job_array.booked_tasks(ref, books)


def _name(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except KeyError:
        return uid  # as squeue has it


def _queued(ref: JobRef, job: model.Job) -> JobStatus:
    state = STATES[job.state]
    ends_at = job.ends_at if state is JobState.RUNNING else None
    return JobStatus(ref, state, job.reason, job.nodes, job.started_at, job.ended_at, job.expected_start_at, ends_at)


def _booked(ref: JobRef, tasks: Records) -> JobStatus:
    return job_array.whole(ref, [_recorded(ref, mine[-1]) for mine in tasks] or [JobStatus(ref, JobState.UNKNOWN)])


def _recorded(ref: JobRef, last: model.JobUsage) -> JobStatus:
    reason = f"{last.state_text}, exit code {last.exit_code}"
    return JobStatus(ref, STATES[last.state], reason, last.nodes, last.started_at, last.ended_at)


def _usage(ref: JobRef, tasks: Records) -> JobUsage:
    everything = [attempt for mine in tasks for attempt in mine]
    last = tasks[-1][-1]
    status = _booked(ref, tasks)
    return JobUsage(
        ref=ref,
        state=status.state,
        started_at=min((a.started_at for a in everything if a.started_at is not None), default=None),
        ended_at=status.ended_at if len(tasks) > 1 else last.ended_at,
        elapsed_s=sum(a.elapsed_s for a in everything),
        cpus=max(a.allocated.cpus for a in everything),
        gpus=max(a.allocated.gpus for a in everything),
        partition=last.partition or None,
        account=last.account or None,
        ends=tuple((a.state.value, a.ended_at) for a in tasks[0]) if len(tasks) == 1 else (),
    )


@contextmanager
def _in_protocol_words() -> Iterator[None]:
    try:
        yield
    except SlurmUnavailable as e:
        raise SchedulerUnavailable(str(e)) from e
    except SlurmError as e:
        raise SchedulerError(str(e)) from e
