"""What Slurm says, in Slurm's own words: jobs, nodes, partitions, associations, QOS, and jobs in the books.

Times are timezone-aware, durations seconds, memory bytes. `None` is what Slurm does not set: no limit, no time yet.
A job is (cluster, raw id, submit time), because job ids are recycled.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


class JobState(enum.Enum):
    """Every state that squeue or sacct prints (slurm.h, `enum job_states`, and the flags shown in its place)."""

    BOOT_FAIL = "BOOT_FAIL"
    CANCELLED = "CANCELLED"
    COMPLETED = "COMPLETED"
    COMPLETING = "COMPLETING"
    CONFIGURING = "CONFIGURING"
    DEADLINE = "DEADLINE"
    EXPEDITING = "EXPEDITING"
    FAILED = "FAILED"
    GETENV_FAILED = "GETENV_FAILED"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PENDING = "PENDING"
    POWER_UP_NODE = "POWER_UP_NODE"
    PREEMPTED = "PREEMPTED"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESIZING = "RESIZING"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    REVOKED = "REVOKED"
    RUNNING = "RUNNING"
    SIGNALING = "SIGNALING"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    STAGE_OUT = "STAGE_OUT"
    STOPPED = "STOPPED"
    SUSPENDED = "SUSPENDED"
    TIMEOUT = "TIMEOUT"
    UNRECOGNISED = "UNRECOGNISED"  # ours: a word of a newer release, of which nothing is concluded

    @property
    def pending(self) -> bool:
        """Nothing is allocated: it waits to start, for the first time or again."""
        return self in _PENDING

    @property
    def ended(self) -> bool:
        """This attempt is over for good. COMPLETING and EXPEDITING are not: how it ends, or whether, is open."""
        return self in _ENDED


_PENDING = frozenset(
    {
        JobState.GETENV_FAILED,
        JobState.LAUNCH_FAILED,
        JobState.PENDING,
        JobState.REQUEUED,
        JobState.REQUEUE_FED,
        JobState.REQUEUE_HOLD,
        JobState.RESV_DEL_HOLD,
        JobState.SPECIAL_EXIT,
    }
)
_ENDED = frozenset(
    {
        JobState.BOOT_FAIL,
        JobState.CANCELLED,
        JobState.COMPLETED,
        JobState.DEADLINE,
        JobState.FAILED,
        JobState.NODE_FAIL,
        JobState.OUT_OF_MEMORY,
        JobState.PREEMPTED,
        JobState.REVOKED,
        JobState.TIMEOUT,
    }
)


@dataclass(frozen=True, slots=True)
class TRES:
    """Trackable resources: what a job was allocated or asks for, what a node or a partition has."""

    cpus: int = 0
    memory_bytes: int = 0
    nodes: int = 0
    billing: int = 0
    gpus: int = 0
    gpus_by_type: tuple[tuple[str, int], ...] = ()  # ("h100", 4): the same GPUs again, by type, sorted
    others: tuple[tuple[str, int], ...] = ()  # ("license/matlab", 1), ("gres/shard", 2): whatever else is tracked

    @property
    def gpus_of_each_type(self) -> dict[str, int]:
        """Adds up to `gpus`; those without a type stand under ""."""
        typed = dict(self.gpus_by_type)
        untyped = self.gpus - sum(typed.values())
        return typed | ({"": untyped} if untyped else {})


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the queue shows it; one record stands for all tasks of an array that still wait together."""

    id: str  # what every command takes: "12", "12_3" (array task), "12_[4-9%2]" (those that wait), "12+1" (het job)
    raw_id: int  # SLURM_JOB_ID in the job; of an array that waits, the array's
    name: str
    user: str
    account: str
    partition: str  # of a pending job maybe several, separated by commas
    qos: str
    state: JobState
    reason: str | None  # why it is pending, or what ended it
    comment: str
    submitted_at: datetime
    starts_at: datetime | None  # it did, or while it is pending: when Slurm expects it to
    ends_at: datetime | None  # it did, or while it runs: when its time limit ends it
    time_limit_s: int | None
    time_left_s: int | None
    nodes: tuple[str, ...]
    node_count: int
    tres: TRES  # allocated; while it is pending: asked for
    priority: int
    restarts: int
    dependency: str | None = None
    reservation: str | None = None

    @property
    def started_at(self) -> datetime | None:
        return None if self.state.pending else self.starts_at

    @property
    def expected_start_at(self) -> datetime | None:
        return self.starts_at if self.state.pending else None

    @property
    def ended_at(self) -> datetime | None:
        return self.ends_at if self.state.ended else None

    @property
    def array_job_id(self) -> int | None:
        return int(self.id.partition("_")[0]) if "_" in self.id else None

    @property
    def array_task(self) -> str | None:
        """ "3", or "4-9%2" for the tasks of an array that still wait."""
        return self.id.partition("_")[2].strip("[]") if "_" in self.id else None

    @property
    def het_job_id(self) -> int | None:
        return int(self.id.partition("+")[0]) if "+" in self.id else None

    @property
    def partitions(self) -> tuple[str, ...]:
        return tuple(self.partition.split(","))


@dataclass(frozen=True, slots=True)
class JobStep:
    """One step of a job as the books have it."""

    id: str  # "12.0", "12.batch", "12.extern"
    name: str
    state: JobState
    exit_code: str  # "3:0": status, signal
    started_at: datetime | None
    ended_at: datetime | None
    elapsed_s: int
    nodes: tuple[str, ...]
    tasks: int
    allocated: TRES
    max_rss_bytes: int | None  # of its largest task


@dataclass(frozen=True, slots=True)
class JobUsage:
    """One attempt of a job as accounting has it. A requeued job has several, each with a submit time of its own."""

    id: str
    raw_id: int
    cluster: str
    name: str
    user: str
    account: str
    partition: str
    qos: str
    state: JobState
    state_text: str  # "CANCELLED by 1000"
    exit_code: str  # "3:0": status, signal
    comment: str  # empty unless the cluster has AccountingStoreFlags=job_comment
    submit_line: str  # the sbatch command line, its arguments joined by spaces
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    elapsed_s: int  # without the time it was suspended
    suspended_s: int
    nodes: tuple[str, ...]
    allocated: TRES  # nothing before it starts
    reservation: str | None = None

    def carries(self, comment: str) -> bool:
        """Whether it was submitted with this comment, also on a cluster that stores submit lines only.

        A script may bring a comment of its owner's: then the submit line tells, if the script stands in a folder of
        that name.
        """
        line = f"{self.submit_line} "
        return self.comment == comment or f" --comment={comment} " in line or f"/{comment}/job.sh " in line


class NodeState(enum.Enum):
    """A node's base state (slurm.h, `enum node_states`)."""

    ALLOCATED = "ALLOCATED"
    DOWN = "DOWN"
    ERROR = "ERROR"
    FUTURE = "FUTURE"
    IDLE = "IDLE"
    MIXED = "MIXED"
    UNKNOWN = "UNKNOWN"


# Flags that keep a node from taking new jobs. PLANNED and RESERVED do not: somebody may still start there.
_CLOSED = frozenset(
    "BLOCKED DRAIN FAIL INVALID_REG MAINTENANCE NOT_RESPONDING POWERED_DOWN POWERING_DOWN POWER_DOWN POWERING_UP "
    "REBOOT_ISSUED REBOOT_REQUESTED".split()
)


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    state: NodeState
    flags: frozenset[str]  # in Slurm's spelling: DRAIN, MAINTENANCE, PLANNED, NOT_RESPONDING, ...
    reason: str | None  # why an administrator, or Slurm, took it out
    partitions: tuple[str, ...]
    tres: TRES
    allocated: TRES
    features: tuple[str, ...]
    free_memory_bytes: int | None  # as its kernel says; None: it has not said
    cpu_load: float | None
    version: str | None  # of its slurmd

    @property
    def available(self) -> bool:
        """Whether new jobs may start there (as far as there is room)."""
        usable = self.state in (NodeState.IDLE, NodeState.MIXED, NodeState.ALLOCATED)
        return usable and not self.flags & _CLOSED

    @property
    def free_gpus_by_type(self) -> dict[str, int]:
        """GPUs that a job could have now, by type ("" for GPUs without one); nothing on a node that is closed.

        Slurm may not tell the type of a GPU in use though the node's have one, or the other way round. Such a GPU is
        taken from the types in their order, so that those free are never more than the node has left.
        """
        if not self.available:
            return {}
        has, used = self.tres.gpus_of_each_type, self.allocated.gpus_of_each_type
        free = {kind: max(0, count - used.get(kind, 0)) for kind, count in has.items()}
        elsewhere = sum(free.values()) - max(0, self.tres.gpus - self.allocated.gpus)
        for kind, count in free.items() if elsewhere > 0 else ():
            free[kind] = max(0, count - elsewhere)
            elsewhere -= count - free[kind]
        return free


@dataclass(frozen=True, slots=True)
class Partition:
    name: str
    state: str  # UP | DOWN | DRAIN | INACTIVE
    default: bool
    hidden: bool
    nodes: tuple[str, ...]
    tres: TRES
    max_time_s: int | None
    default_time_s: int | None
    max_nodes: int | None
    qos: str | None
    allow_accounts: tuple[str, ...] | None  # None: all
    allow_qos: tuple[str, ...] | None
    allow_groups: tuple[str, ...] | None
    preempt_mode: str
    grace_time_s: int
    priority_tier: int


@dataclass(frozen=True, slots=True)
class Reservation:
    name: str
    starts_at: datetime
    ends_at: datetime
    nodes: tuple[str, ...]
    flags: frozenset[str]  # MAINT, IGNORE_JOBS, FLEX, DAILY, ...
    users: tuple[str, ...]
    accounts: tuple[str, ...]
    partition: str | None
    active: bool
    tres: TRES

    @property
    def maintenance(self) -> bool:
        return "MAINT" in self.flags


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit and how much of it is used now.

    Amounts are Slurm's own, but for time and memory: *Mins count TRES-seconds here, GrpWall and MaxWall seconds, and
    memory bytes.
    """

    kind: str  # in Slurm's spelling: GrpTRES, GrpTRESMins, GrpJobs, MaxJobs, MaxSubmitJobs, MaxTRESPU, ...
    tres: str | None  # "gres/gpu:h100", "cpu", ...; None: the limit counts jobs, or time
    allowed: int | None  # None: no limit
    used: int | None  # None: Slurm does not count it here
    holder: str | None = None  # whom a QOS's limit per user or per account is counted for; None: everybody together


@dataclass(frozen=True, slots=True)
class Association:
    """A user in an account (or, with user None, the account itself), with its limits and their live use."""

    cluster: str
    account: str
    user: str | None
    partition: str | None
    parent: str | None  # the account above it; of a user's association: its account
    default: bool  # the account that the user's jobs are charged to unless they say otherwise
    limits: tuple[Limit, ...]
    shares: int | None = None  # None: it uses its parent's
    usage_raw: float | None = None  # decayed TRES-seconds, which fair-share goes by
    fair_share: float | None = None  # 0 (used far more than its share) to 1


@dataclass(frozen=True, slots=True)
class QOS:
    name: str
    priority: int
    preempts: tuple[str, ...]  # the QOS whose jobs it may preempt
    preempt_mode: str  # cluster | cancel | requeue | suspend,...
    grace_time_s: int  # from a preempted job's signal to its end
    usage_factor: float
    flags: frozenset[str]
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The configuration that matters to us; `settings` holds all of `scontrol show config`, in Slurm's words."""

    name: str
    version: tuple[int, int]  # (22, 5)
    version_text: str  # "22.05.8"
    answered_at: datetime  # by slurmctld's own clock, in whole seconds
    accounting: bool  # whether there is a slurmdbd
    enforce: frozenset[str]  # AccountingStorageEnforce: associations, limits, qos, safe
    store_flags: frozenset[str]  # AccountingStoreFlags: job_comment, job_script, job_env
    auth: str  # munge | slurm
    job_requeue: bool
    kill_wait_s: int
    max_array_size: int
    max_job_count: int
    min_job_age_s: int  # how long the queue remembers a job that has ended
    preempt_type: str  # none | qos | partition_prio
    preempt_mode: frozenset[str]  # REQUEUE, CANCEL, SUSPEND, GANG, OFF
    preempt_sends_signal: bool  # preempted jobs get the signal they asked for (sbatch --signal)
    private_data: frozenset[str]  # what slurmctld hides from ordinary users: jobs, nodes, usage, ...
    settings: Mapping[str, str] = field(repr=False, default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccountingConfig:
    """What matters to us of slurmdbd's configuration."""

    version_text: str
    private_data: frozenset[str]  # what slurmdbd hides from ordinary users: jobs, usage, users, accounts, ...
    settings: Mapping[str, str] = field(repr=False, default_factory=dict)
