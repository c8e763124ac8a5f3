"""Attributed GPU time for the tests of reports: what the scheduler's books might say."""

from __future__ import annotations

from registry.attribution import Allocation, Attributed, Books, Line

HOUR = 3600


def line(what: str, gpu_s: int, **others: object) -> Line:
    said = {
        "tenant": "physics",
        "user": "ada",
        "account": "phys",
        "partition": "gpu",
        "qos": "normal",
        "model": "chat",
        "subject": "replica-1",
        "gpu_type": "h100",
        "began_at": 0,
        "cpu_s": gpu_s * 8,
    }
    return Line(what=what, gpu_s=gpu_s, **said | others)  # type: ignore[arg-type]


def allocation(job: str, start: int, end: int, *, gpus: int = 1, **others: object) -> Allocation:
    said = {
        "cluster": "test",
        "submitted_at": "2026-11-01T00:00:00.000000Z",
        "user": "ada",
        "account": "phys",
        "partition": "gpu",
        "qos": "normal",
        "name": "job",
        "state": "COMPLETED",
        "reservation": None,
        "began_at": start,
        "waited_s": 0,
        "gpus_by_type": (("h100", gpus),),
        "gpu_s": gpus * (end - start),
        "cpu_s": 8 * gpus * (end - start),
        "purpose": "serve",
        "subject": "replica-1",
    }
    return Allocation(job=job, start=start, end=end, **said | others)  # type: ignore[arg-type]


def attributed(*lines: Line, allocations: tuple[Allocation, ...] = (), gpu_s: int | None = None) -> Attributed:
    """`gpu_s`: the scheduler's own total, where it is not that of the lines."""
    total = sum(x.gpu_s for x in lines) if gpu_s is None else gpu_s
    return Attributed(lines, Books(allocations, total, sum(x.cpu_s for x in lines), None))
