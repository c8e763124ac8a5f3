"""One protocol over Slurm and local processes: submit, find, states, cancel, usage.

Nothing above this module knows which scheduler it talks to. "The scheduler did not answer" is an exception
(`SchedulerUnavailable`), never an absent job: a job is gone only when its state says so.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launchers.spec import Resources

if TYPE_CHECKING:
    from registry.attribution import Books  # not where somebody asks Slurm directly: it opens no database


class SchedulerError(RuntimeError):
    """The scheduler refused a request. The message is what it said."""


# Words of refusals that pass with time: a slurmctld that is busy, nodes that drain, a limit on jobs that is full now
# (AssocMaxSubmitJobLimit and its like). Slurm has one text for such a limit and for a job that is itself too large.
PASSING = re.compile(
    r"temporarily|limit (reached|exceeded)|required (node|partition) not available"
    r"|requested partition configuration not available now|job submit limit|\b(assoc|qos)\w+limit\b",
    re.IGNORECASE,
)
TOO_MUCH = re.compile(r"\b(Assoc|QOS)(Max\w+Per(Job|Node)|Min)")  # for one job: the reason that it may print beside


def passes(refusal: SchedulerError) -> bool:
    """Whether the same request may be taken later. Slurm's other refusals stay: no such account, partition or QOS, a
    time limit that it never takes."""
    words = str(refusal)
    return PASSING.search(words) is not None and TOO_MUCH.search(words) is None


class SchedulerUnavailable(SchedulerError):
    """The scheduler did not answer; nothing is known about any job."""


class JobState(enum.Enum):
    """Slurm's states, in Slurm's spelling; UNKNOWN means that neither the queue nor accounting knows the job (yet)."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        return self not in (JobState.PENDING, JobState.RUNNING, JobState.SUSPENDED, JobState.UNKNOWN)

    @property
    def may_be_requeued(self) -> bool:
        """Whether the scheduler may start the job again after an attempt that ended so."""
        return self in (JobState.NODE_FAIL, JobState.PREEMPTED)


@dataclass(frozen=True, slots=True)
class JobRef:
    """A job's identity. Job ids (and process ids) are recycled, so the id alone never names a job."""

    cluster: str
    job_id: str
    submitted_at: datetime  # timezone-aware, whole seconds


NOTICE_S = 90  # between the warning and a time limit that is long


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What to submit: `command` runs once in each task. Under Slurm `batch` starts it there, where one is given: it
    runs once, in the batch script, and the job may be requeued."""

    key: str  # idempotency key; travels in the job's comment, so that a lost submission is found again
    name: str
    command: tuple[str, ...]
    log_dir: Path
    resources: Resources
    batch: tuple[str, ...] | None = None
    modules: tuple[str, ...] = ()  # loaded before anything is started
    apart: bool = False  # its tasks have nothing to do with each other: when one ends, the others go on
    notice_s: int = NOTICE_S
    after: tuple[JobRef, ...] = ()  # jobs that must have ended well before this one starts (Slurm: afterok)


@dataclass(frozen=True, slots=True)
class JobStatus:
    ref: JobRef
    state: JobState
    reason: str | None = None  # why it is pending, or what ended it, in the scheduler's words
    nodes: tuple[str, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expected_start_at: datetime | None = None  # while it is pending, where the scheduler has an estimate
    ends_at: datetime | None = None  # while it runs: when its time limit ends it


@dataclass(frozen=True, slots=True)
class JobUsage:
    """What a job was allocated and for how long, as the scheduler's own books say. Seconds are whole seconds."""

    ref: JobRef
    state: JobState
    started_at: datetime | None
    ended_at: datetime | None
    elapsed_s: int
    cpus: int
    gpus: int
    partition: str | None = None
    account: str | None = None
    ends: tuple[tuple[str, datetime | None], ...] = ()  # of each attempt of this job, oldest first: Slurm's state, when

    @property
    def cpu_seconds(self) -> int:
        return self.elapsed_s * self.cpus

    @property
    def gpu_seconds(self) -> int:
        return self.elapsed_s * self.gpus


@dataclass(frozen=True, slots=True)
class Maintenance:
    """A time in which nodes belong to their administrators: jobs that would run into it do not start."""

    name: str
    starts_at: datetime
    ends_at: datetime
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the scheduler has in mind for its nodes."""

    leaving: Mapping[str, str]  # nodes that take no new jobs though some still run there -> the reason, in its words
    down: Mapping[str, str]  # nodes on which nothing runs any more -> the reason
    maintenance: tuple[Maintenance, ...]  # that goes on or is to come, by its beginning
    partition_nodes: Mapping[str, frozenset[str]]  # each partition's; "" is the default partition
    at: datetime | None = None  # when that was asked: the past is not in it; None: it has none


class Scheduler(Protocol):
    @property
    def cluster(self) -> str:
        """The cluster's name, as it stands in every JobRef."""

    def submit(self, request: JobRequest) -> JobRef:
        """Raises SchedulerError with the scheduler's own words when it refuses."""

    def submit_again(self, request: JobRequest, script: Path) -> JobRef:
        """Submit a run folder once more, where there are batch scripts by its own as it stands. Raises as `submit`."""

    def script(self, request: JobRequest) -> str:
        """The text that `submit` would submit; a person can submit it by hand."""

    def find(self, key: str) -> JobRef | None:
        """The job submitted with this idempotency key, if the scheduler knows one."""

    def states(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobStatus]:
        """One batched question. A job that nobody knows is UNKNOWN; no answer at all raises SchedulerUnavailable."""

    def cancel(self, ref: JobRef) -> None:
        """End the job, running or not. Its supervisor gets SIGTERM and as long as the scheduler grants after that.

        Cancelling a job that has ended is not an error.
        """

    def drain(self, ref: JobRef) -> None:
        """SIGTERM for the supervisor alone, which must have begun: the job ends when it does, however long that takes.

        Its state is then what the scheduler makes of that (CANCELLED or COMPLETED); the cause is the supervisor's.
        """

    def shorten(self, ref: JobRef, time_limit_s: int) -> None:
        """Give a job that waits a shorter time limit. Raises SchedulerError when it began meanwhile or is not ours."""

    def outlook(self) -> Outlook:
        """Nodes that leave, and maintenance. Raises SchedulerUnavailable. Empty where there are no nodes."""

    def usage(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobUsage]:
        """The scheduler's books for these jobs; jobs it has no record of yet are absent."""

    def books(self, start: datetime, end: datetime) -> Books:
        """Everybody's jobs in [start, end), attempt by attempt; those that run count up to now.

        Whole seconds. What they are for is not in the books: `registry.replica_work.named` adds it.
        """
