"""The scheduler protocol over processes of this machine, for laptops, tests and single servers.

A job is (host, process id, start time) of submitit's local controller. What is known of it stands in two places that
outlive every process: its record in the spool directory (launchers/local_job.py), and what its supervisor announced in
the run folder, the parent of its log directory.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from launchers import announce, submit
from launchers.announce import Announcement, AnnouncementError
from launchers.local_job import LocalJob, records
from launchers.outlook import NOTHING
from launchers.run_folder import RunFolder
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
from launchers.subjects import user_name
from registry import clock
from registry.attribution import Allocation, Books

log = logging.getLogger(__name__)

# The causes that are states; what else a supervisor gives as its cause is words for people.
CAUSES = (JobState.CANCELLED, JobState.TIMEOUT)


@dataclass(frozen=True, slots=True)
class _Story:
    """What became of a job, as far as anybody said. Seconds since the epoch."""

    state: JobState
    reason: str | None
    started_at: float
    ended_at: float | None


class LocalScheduler:
    """`spool`: this scheduler's own directory, the same after every restart."""

    def __init__(self, spool: Path) -> None:
        self.host = socket.gethostname()
        self.cluster = f"local:{self.host}"
        self._spool = spool.absolute()

    def submit(self, request: JobRequest) -> JobRef:
        """It starts at once: what it comes after, it has to wait for itself."""
        return self._ref(submit.submit_locally(replace(request, after=()), self._spool))

    def submit_again(self, request: JobRequest, script: Path) -> JobRef:
        return self.submit(request)

    def script(self, request: JobRequest) -> str:
        return submit.script(request)

    def find(self, key: str) -> JobRef | None:
        found = (job for job in records(self._spool) if job.key == key)
        newest = max(found, key=lambda job: job.created_at, default=None)  # two may have started in one second
        return None if newest is None else self._ref(newest)

    def states(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobStatus]:
        return {ref: self._status(ref, self._job(ref)) for ref in refs}

    def cancel(self, ref: JobRef) -> None:
        if (job := self._job(ref)) is not None and job.process() is not None:
            job.terminate(self._spool)

    def drain(self, ref: JobRef) -> None:
        self.cancel(ref)  # nobody here is impatient

    def shorten(self, ref: JobRef, time_limit_s: int) -> None:
        raise SchedulerError(f"job {ref.job_id} is a process of this machine, which starts at once: it does not wait")

    def outlook(self) -> Outlook:
        return NOTHING

    def usage(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobUsage]:
        jobs = {ref: self._job(ref) for ref in refs}
        return {ref: self._usage(ref, job) for ref, job in jobs.items() if job is not None}

    def books(self, start: datetime, end: datetime) -> Books:
        first, last = int(start.timestamp()), int(end.timestamp())
        held = [one for job in records(self._spool) if (one := self._allocation(job, first, last)) is not None]
        return Books(tuple(held), sum(one.gpu_s for one in held), sum(one.cpu_s for one in held), None)

    def _allocation(self, job: LocalJob, start: int, end: int) -> Allocation | None:
        """What a job held in [start, end); None: nothing."""
        story = self._story(job)
        began, over = int(story.started_at), int(time.time() if story.ended_at is None else story.ended_at)
        first, last = max(began, start), min(over, end)
        if last <= first:
            return None
        return Allocation(
            cluster=self.cluster,
            job=str(job.pid),
            submitted_at=clock.text(job.submitted_at),
            user=user_name((self._spool / f"{job.stem}.json").stat().st_uid),
            account="",
            partition="",
            qos="",
            name=job.name,
            state=story.state.value,
            reservation=None,
            start=first,
            end=last,
            began_at=began,
            waited_s=began - int(job.created_at) if began >= start else None,
            gpus_by_type=(("", job.gpus),) if job.gpus else (),
            gpu_s=job.gpus * (last - first),
            cpu_s=job.cpus * (last - first),
            purpose=None,
            subject=None,
        )

    def _ref(self, job: LocalJob) -> JobRef:
        return JobRef(self.cluster, str(job.pid), job.submitted_at)

    def _job(self, ref: JobRef) -> LocalJob | None:
        # Not by `ref.cluster`: a machine may have had another name when the job was submitted. Its spool is the same.
        try:
            return LocalJob.load(self._spool / f"{ref.job_id}-{int(ref.submitted_at.timestamp())}.json")
        except FileNotFoundError:
            return None

    def _status(self, ref: JobRef, job: LocalJob | None) -> JobStatus:
        if job is None:
            return JobStatus(ref, JobState.UNKNOWN)
        story = self._story(job)
        limited = story.ended_at is None and job.time_limit_s is not None
        return JobStatus(
            ref,
            story.state,
            story.reason,
            (self.host,),
            _moment(story.started_at),
            _moment(story.ended_at),
            ends_at=_moment(job.created_at + (job.time_limit_s or 0)) if limited else None,
        )

    def _usage(self, ref: JobRef, job: LocalJob) -> JobUsage:
        story = self._story(job)
        end = time.time() if story.ended_at is None else story.ended_at
        elapsed_s = max(0, int(end) - int(story.started_at))  # so that elapsed is ended_at - started_at, as in sacct
        started_at, ended_at = _moment(story.started_at), _moment(story.ended_at)
        return JobUsage(ref, story.state, started_at, ended_at, elapsed_s, job.cpus, job.gpus)

    def _story(self, job: LocalJob) -> _Story:
        running = job.process() is not None  # asked first: whoever is gone by now has said all it will say
        announced = _announced(RunFolder(Path(job.log_dir).parent).announcements)
        started, ended = attempts_of(announced, str(job.pid), job.created_at)
        started_at = min((a.at for a in started), default=job.created_at)
        if running:
            return _Story(JobState.RUNNING, None, started_at, None)
        state, reason = how_it_ended(ended, job.cancelled(self._spool))
        ended_at = max((a.at for a in ended), default=_last_sign_of_life(job))
        return _Story(state, reason, started_at, max(started_at, ended_at))


def attempts_of(
    announced: Sequence[Announcement], job_id: str, since: float
) -> tuple[list[Announcement], list[Announcement]]:
    """The attempt-started of this job, and the attempt-ended of the same attempts. A run folder sees many jobs."""
    after = [a for a in announced if a.at >= since]
    started = [a for a in after if a.kind == "attempt-started" and str(a.facts.get("job_id")) == job_id]
    numbers = {a.facts.get("attempt") for a in started}
    ended = [a for a in after if a.kind == "attempt-ended" and a.facts.get("attempt") in numbers]
    return started, ended


def how_it_ended(ended: Sequence[Announcement], cancelled: bool) -> tuple[JobState, str | None]:
    """The state of a job whose process is gone, from its supervisors' last words: the worst of its tasks counts."""
    if not ended:
        if cancelled:
            return JobState.CANCELLED, "cancelled before its supervisor said how it ended"
        return JobState.FAILED, "the supervisor vanished"
    causes = [str(a.facts.get("cause")) for a in ended]
    for state in CAUSES:
        if state.value.lower() in causes:
            return state, state.value.lower()
    for announcement, cause in zip(ended, causes, strict=True):
        if (exit_code := announcement.facts.get("exit_code")) != 0:
            return JobState.FAILED, f"{cause} (exit code {exit_code})"
    return JobState.COMPLETED, None


def _announced(directory: Path) -> list[Announcement]:
    found = []
    for name in announce.names(directory):
        try:
            found.append(announce.read(directory / name, directory.stat().st_uid))
        except AnnouncementError as e:
            log.warning("ignored: %s", e)
        except OSError as e:
            raise SchedulerUnavailable(f"{directory / name} cannot be read: {e.strerror}") from e
    return found


def _last_sign_of_life(job: LocalJob) -> float:
    """When a job that ended without a word last wrote to its logs."""
    logs = Path(job.log_dir).glob(f"{job.pid}_*_log.*")
    return max((p.stat().st_mtime for p in logs), default=job.created_at)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC)
