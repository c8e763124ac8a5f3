"""What Slurm says, in Slurm's own words: jobs in the queue, jobs in the books, and what they were allocated."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class JobState(enum.Enum):
    """Every state that squeue or sacct prints (slurm.h, `enum job_states`, and the flags shown in its place)."""

    BOOT_FAIL = "BOOT_FAIL"
    CANCELLED = "CANCELLED"
    COMPLETED = "COMPLETED"
    COMPLETING = "COMPLETING"
    CONFIGURING = "CONFIGURING"
    DEADLINE = "DEADLINE"
    FAILED = "FAILED"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PENDING = "PENDING"
    PREEMPTED = "PREEMPTED"
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


@dataclass(frozen=True, slots=True)
class TRES:
    """Trackable resources of one job, over all its nodes."""

    cpus: int = 0
    memory_mb: int = 0
    nodes: int = 0
    billing: int = 0
    gpus: int = 0
    gpus_by_type: tuple[tuple[str, int], ...] = ()  # ("h100", 4): the same GPUs again, by type


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the queue shows it."""

    id: str
    name: str
    comment: str
    state: JobState
    reason: str | None  # why it is pending, or what ended it
    submitted_at: datetime
    started_at: datetime | None  # for a pending job: when Slurm expects it to start
    ended_at: datetime | None  # for a running job: when its time limit ends it
    nodes: tuple[str, ...]
    partition: str
    account: str
    user: str
    time_limit_s: int | None  # None: no limit


@dataclass(frozen=True, slots=True)
class JobUsage:
    """One attempt of a job as accounting has it. A requeued job has several, each with a submit time of its own."""

    id: str
    name: str
    comment: str  # empty unless the cluster has AccountingStoreFlags=job_comment
    submit_line: str  # the sbatch command line, its arguments joined by spaces
    state: JobState
    state_text: str  # "CANCELLED by 1000"
    exit_code: str  # "3:0": status, signal
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    nodes: tuple[str, ...]
    partition: str
    account: str
    user: str
    allocated: TRES
    elapsed_s: int
