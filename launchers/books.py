"""The scheduler's books of a window as `registry.attribution` wants them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from registry import clock
from registry.attribution import Allocation, Books
from slurm.accounting import Usage, clip, span, tres_seconds
from slurm.model import JobUsage, Reservation


def books_of(usage: Usage, reservations: Iterable[Reservation]) -> Books:
    """What Slurm says was used, attempt by attempt, beside its own total."""
    total = usage.total.tres_s
    return Books(
        tuple(_allocation(attempt, usage) for attempt in usage.attempts),
        total.gpus,
        total.cpus,
        usage.partial,
        tuple((one.name, one.accounts[0]) for one in reservations if one.accounts),
    )


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
