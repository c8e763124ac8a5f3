"""Why an attempt of a training run ended, and whether another follows. Pure.

An attempt is one life of the run: `JOB.RESTART`, a job id and how often Slurm had requeued that job. Its supervisor's
last word says what the training did; Slurm says what was done to the job. Together they make a cause, and each cause
has its policy.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

RETRY_DELAYS_S = (5, 30, 120, 300)  # before another attempt after the first, second, ... failure in a row
SOON_S = RETRY_DELAYS_S[0]


class Cause(enum.StrEnum):
    """What ended an attempt."""

    COMPLETED = "completed"
    TIME_LIMIT = "time-limit"
    PREEMPTED = "preempted"
    REQUEUED = "requeued"  # by an administrator, the owner, or Slurm for a reason that its books tell later
    NODE_FAILURE = "node-failure"
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    REFUSED = "refused"  # the program said that a person must change something: data, recipe, checkpoint
    OUT_OF_MEMORY = "out-of-memory"
    NO_PROGRESS = "no-progress"  # a hang
    LOST = "lost"  # its supervisor fell silent: killed, or the step around it

    @property
    def failure(self) -> bool:
        """Whether the run itself may be to blame, so that it is tried again with growing patience."""
        return self in (Cause.CRASHED, Cause.OUT_OF_MEMORY, Cause.NO_PROGRESS, Cause.LOST)


# How Slurm's books end an attempt, where that is more than the supervisor could know.
BOOKED = {
    "NODE_FAIL": Cause.NODE_FAILURE,
    "BOOT_FAIL": Cause.NODE_FAILURE,
    "PREEMPTED": Cause.PREEMPTED,
    "TIMEOUT": Cause.TIME_LIMIT,
    "DEADLINE": Cause.TIME_LIMIT,
    "CANCELLED": Cause.CANCELLED,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "REQUEUED": Cause.REQUEUED,
    "FAILED": Cause.CRASHED,
}


def booked(job_id: str, ends: Sequence[tuple[str, datetime | None]]) -> dict[str, tuple[Cause, datetime]]:
    """Slurm's books on the attempts of one job: its state and end for each restart -> attempt, cause, end."""
    return {
        f"{job_id}.{restarts}": (BOOKED[state], at)
        for restarts, (state, at) in enumerate(ends)
        if state in BOOKED and at is not None
    }


@dataclass(frozen=True, slots=True)
class JobFacts:
    """The job while the last of its attempt still runs, as slurmctld has it."""

    ending: bool  # COMPLETING: Slurm is ending it, we are in the seconds of KillWait
    restarts: int
    at_time_limit: bool  # Slurm's reason for ending it
    preempted: bool  # its end was moved forward


@dataclass(frozen=True, slots=True)
class Ended:
    """One attempt that is over."""

    attempt: str
    cause: Cause
    saved: int | None  # the newest complete checkpoint's iteration when it ended; None: there is none


@dataclass(frozen=True, slots=True)
class Limits:
    max_attempts: int
    without_progress: int


class Action(enum.StrEnum):
    STOP = "stop"
    RESTART = "restart"
    WAIT = "wait"  # Slurm restarts the job by itself


@dataclass(frozen=True, slots=True)
class Verdict:
    action: Action
    why: str
    delay_s: int = SOON_S


def cause_of(said: Cause | None, job: JobFacts | None, restarts: int) -> Cause:
    """`said`: the supervisor's last word, None when it could not say; CANCELLED there means that it was told to end.

    `job`: None when Slurm did not answer. `restarts`: how often the job had been requeued when this attempt began.
    """
    if said in (Cause.COMPLETED, Cause.NO_PROGRESS, Cause.REFUSED):
        return said
    if job is not None and job.restarts > restarts:
        return Cause.PREEMPTED if job.preempted else Cause.REQUEUED
    if job is not None and job.preempted and said in (None, Cause.CANCELLED, Cause.TIME_LIMIT):
        return Cause.PREEMPTED
    if job is not None and job.ending and not job.at_time_limit:
        return Cause.CANCELLED  # whatever it had been told before; where it was preempted, the books say so
    if job is not None and job.ending and said is not Cause.CRASHED:
        return Cause.TIME_LIMIT
    return Cause.LOST if said is None else said


def decide(past: Sequence[Ended], limits: Limits, *, requeued: bool = False) -> Verdict:
    """What follows the last of these attempts (all of the run's, oldest first).

    `requeued`: Slurm has requeued the job by itself.
    """
    last = past[-1]
    if last.cause is Cause.COMPLETED:
        return Verdict(Action.STOP, "the run is complete")
    if last.cause is Cause.CANCELLED:
        return Verdict(Action.STOP, "it was cancelled")
    if last.cause is Cause.REFUSED:
        return Verdict(Action.STOP, "it would end the same way again: somebody must change something first")
    if requeued:
        return Verdict(Action.WAIT, "Slurm requeued the job")
    if len(past) >= limits.max_attempts:
        return Verdict(
            Action.STOP, f"it was attempt {len(past)} of at most restart.max_attempts = {limits.max_attempts}"
        )
    idle = _without_progress(past)
    if idle >= limits.without_progress:
        return Verdict(
            Action.STOP,
            f"the last {idle} attempts saved nothing new, allowed: fewer than restart.without_progress = "
            f"{limits.without_progress}",
        )
    failures = _failures_in_a_row(past)
    delay_s = RETRY_DELAYS_S[min(failures, len(RETRY_DELAYS_S)) - 1] if failures else SOON_S
    where = "from the beginning" if last.saved is None else f"from iteration {last.saved}"
    return Verdict(Action.RESTART, f"it goes on {where}", delay_s)


def _without_progress(past: Sequence[Ended]) -> int:
    """How many of the last attempts saved nothing beyond what was there before. Being preempted counts for neither."""
    idle = 0
    for before, attempt in reversed(list(zip((None, *past), past, strict=False))):
        if attempt.cause in (Cause.PREEMPTED, Cause.REQUEUED, Cause.NODE_FAILURE):
            continue
        begun_with = -1 if before is None or before.saved is None else before.saved
        if (-1 if attempt.saved is None else attempt.saved) > begun_with:
            break
        idle += 1
    return idle


def _failures_in_a_row(past: Sequence[Ended]) -> int:
    count = 0
    for attempt in reversed(past):
        if not attempt.cause.failure:
            break
        count += 1
    return count
