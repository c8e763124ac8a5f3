"""The scheduler's books of a window as `registry.attribution` wants them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from registry import clock
from registry.attribution import Allocation, Books
from slurm.accounting import Usage, clip, span, tres_seconds
from slurm.model import JobUsage, Reservation


def books_of(usage: Usage, reservations: Iterable[Reservation]) -> Books:
    """What Slurm says was used, attempt by attempt, beside its own total."""
    return Books(
        tuple(_allocation(attempt, usage) for attempt in usage.attempts),
        *_total(usage),
        usage.partial,
        tuple((one.name, one.accounts[0]) for one in reservations if one.accounts),
    )


def _total(usage: Usage) -> tuple[int, int]:
    """GPU-seconds and CPU-seconds by what Slurm itself counted of each attempt, which is not what allocations are made
    of. Of one that reaches beyond the window, still runs or was resized, it counts more than was held within: those
    are clipped."""
    gpu_s = cpu_s = 0
    for a in usage.attempts:
        assert a.started_at is not None  # of whatever used something
        if a.ended_at is not None and max(usage.start, a.submitted_at) <= a.started_at and a.ended_at <= usage.end:
            held_s, ran_s = a.elapsed_s + a.suspended_s, a.elapsed_s
        else:
            held_s, suspended_s = clip(a, *(int(moment.timestamp()) for moment in (usage.start, usage.end, usage.at)))
            ran_s = held_s - suspended_s
        gpu_s += a.allocated.gpus * held_s
        cpu_s += a.allocated.cpus * ran_s
    return gpu_s, cpu_s


def _allocation(attempt: JobUsage, usage: Usage) -> Allocation:
    start, end, at = (int(moment.timestamp()) for moment in (usage.start, usage.end, usage.at))
    first, last = span(attempt, start, end, at)
    used = tres_seconds(attempt.allocated, *clip(attempt, start, end, at))
    started = attempt.started_at
    assert started is not None  # of whatever used something
    waited_s = int((started - attempt.submitted_at).total_seconds())
    return Allocation(
        cluster=attempt.cluster,
        job=attempt.id,
        submitted_at=clock.text(attempt.submitted_at),
        user=attempt.user,
        account=attempt.account,
        partition=attempt.partition,
        qos=attempt.qos,
        name=attempt.name,
        state=attempt.state.value,
        reservation=attempt.reservation,
        start=first,
        end=last,
        began_at=int(started.timestamp()),
        # The record of a job that was resized begins later than the job did.
        waited_s=waited_s if started >= usage.start and waited_s >= 0 else None,
        gpus_by_type=tuple(sorted(attempt.allocated.gpus_of_each_type.items())),
        gpu_s=used.gpus,
        cpu_s=used.cpus,
        purpose=None,
        subject=None,
    )
