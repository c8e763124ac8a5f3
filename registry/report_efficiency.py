"""`headgate report efficiency`: what the hours gave: tokens and cost, waits in the queue, hours wasted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from registry import clock
from registry.accounting import Job
from registry.attempts import Attempt
from registry.attribution import Allocation
from registry.report import Chart, Column, Section
from registry.report_columns import HOUR, Row, change, credits, dimensions, named, ratio, row
from registry.report_gpu import Times, total
from registry.report_models import MILLION, ONLY_OF_ALL, SERVED
from registry.usage_rows import Counts
from registry.window import Window

ALLOWED = ("partition", "account", "qos", "user")
DEFAULT = ("partition",)


@dataclass(frozen=True, slots=True)
class Lost:
    """Work of an attempt of a training run that was computed in vain: what it did after its newest checkpoint."""

    run: str
    attempt: str
    iterations: int
    seconds: float  # estimated: the attempt's time, by the share of its iterations that were lost
    gpus: int
    cpus: int


def lost(attempts: Iterable[Attempt], jobs: Mapping[str, Job]) -> list[Lost]:
    """`jobs` by run and job id, "RUN/JOB". Attempts that are not over, or of which too little is known, have none."""
    found = []
    for a in attempts:
        if a.ended_at is None or a.first_iteration is None or a.last_iteration is None or a.cause == "completed":
            continue
        kept = max(a.first_iteration, a.saved_iteration or 0)
        done, gone = a.last_iteration - a.first_iteration, a.last_iteration - kept
        job = jobs.get(f"{a.run}/{a.job_id}")
        if gone > 0 and job is not None:
            took = (clock.parse(a.ended_at) - clock.parse(a.started_at)).total_seconds()
            found.append(Lost(a.run, a.attempt, gone, max(took, 0.0) * gone / done, job.gpus, job.cpus))
    return found


@dataclass(frozen=True, slots=True)
class Month:
    """What is compared of two windows."""

    counts: Counts
    served: int | None  # tokens of the replicas that held GPUs; None for a tenant, whose GPU time is of other work
    times: Times | None  # None where the scheduler's books could not be had
    lost: Sequence[Lost]


def compared(now: Month, before: Month, window: Window) -> Section:
    this, that = _measures(now), _measures(before)
    return Section(
        "efficiency",
        f"{window} against {window.before}",
        (
            Column("what", "What"),
            Column("now", str(window), "count"),
            Column("before", str(window.before), "count"),
            Column("change", "Change", "percent"),
        ),
        tuple(
            {
                "what": what,
                "now": value,
                "before": (old := that[what]),
                "change": None if value is None or old is None else change(value, old),
            }
            for what, value in this.items()
        ),
        notes=(
            "As served: all GPU-hours of replicas, idle and starting ones too, at the price of their type.",
            *((ONLY_OF_ALL,) if now.served is None else ()),
        ),
    )


def _measures(of: Month) -> dict[str, float | None]:
    times, tokens, served = of.times or {}, of.counts.tokens, of.served
    replicas, idle = total(times, *SERVED), total(times, "idle")
    gpu_s, cost = replicas.gpu_s, credits(replicas.microcredits)
    lost_s = sum(x.seconds * x.gpus for x in of.lost)
    charged = "Credits per million tokens charged"
    said = {
        "Tokens": tokens,
        "GPU-hours of replicas": gpu_s / HOUR,
        "CPU-hours of replicas": replicas.cpu_s / HOUR,
        "Tokens per GPU-hour as served": None if served is None else ratio(served * HOUR, gpu_s),
        "Credits per million tokens as served": ratio(cost * MILLION, served) if served and gpu_s else None,
        charged: ratio(credits(of.counts.microcredits) * MILLION, tokens),
        "Idle replicas, % of their GPU-hours": ratio(100 * idle.gpu_s, gpu_s),
        "Idle replicas, credits": credits(idle.microcredits),
        "GPU-hours of training": total(times, "training").gpu_s / HOUR,
        "GPU-hours of batch jobs": total(times, "batch").gpu_s / HOUR,
        "GPU-hours wasted": (total(times, "idle", "startup").gpu_s + lost_s) / HOUR,
    }
    return said if of.times is not None else dict.fromkeys(said) | {"Tokens": tokens, charged: said[charged]}


def wasted(times: Times, lost: Sequence[Lost]) -> Section:
    rows = []
    for title, what in (("Replicas that were idle", "idle"), ("Replicas that were starting", "startup")):
        time = total(times, what)
        rows.append(_wasted(title, time.gpu_s, time.cpu_s, credits(time.microcredits)))
    gpu_s, cpu_s = (round(sum(x.seconds * n for x, n in pairs)) for pairs in _pairs(lost))
    rows.append(_wasted("Training lost to restarts (estimated)", gpu_s, cpu_s, None))
    return Section(
        "wasted",
        "Wasted hours",
        (
            Column("what", "What"),
            Column("gpu_hours", "GPU-hours", "hours"),
            Column("cpu_hours", "CPU-hours", "hours"),
            Column("credits", "Credits", "credits"),
        ),
        tuple(rows),
        row(what="total", **{name: sum(_number(r[name]) for r in rows) for name in ("gpu_hours", "cpu_hours")}),
        notes=(
            "Lost to restarts: iterations after an attempt's newest checkpoint, as a share of the attempt's time. "
            "They are part of the training hours.",
        ),
        charts=(
            Chart(
                "bars",
                "Wasted hours",
                "hours",
                tuple(str(r["what"]) for r in rows),
                (
                    ("GPU-hours", tuple(_number(r["gpu_hours"]) for r in rows)),
                    ("CPU-hours", tuple(_number(r["cpu_hours"]) for r in rows)),
                ),
            ),
        ),
    )


def _wasted(what: str, gpu_s: int, cpu_s: int, paid: float | None) -> Row:
    return {"what": what, "gpu_hours": gpu_s / HOUR, "cpu_hours": cpu_s / HOUR, "credits": paid}


def _pairs(of: Sequence[Lost]) -> tuple[list[tuple[Lost, int]], list[tuple[Lost, int]]]:
    return [(x, x.gpus) for x in of], [(x, x.cpus) for x in of]


def restarts(of: Sequence[Lost]) -> Section:
    return Section(
        "restarts",
        "Training lost to restarts",
        (
            Column("run", "Run"),
            Column("attempt", "Attempt"),
            Column("iterations", "Iterations lost", "count"),
            Column("seconds", "Time lost (estimated)", "seconds"),
            Column("gpu_hours", "GPU-hours", "hours"),
        ),
        tuple(
            {
                "run": x.run,
                "attempt": x.attempt,
                "iterations": x.iterations,
                "seconds": x.seconds,
                "gpu_hours": x.seconds * x.gpus / HOUR,
            }
            for x in of
        ),
    )


def waits(allocations: Iterable[Allocation], by: Sequence[str]) -> Section:
    """From submission to start, of the jobs that started in the window."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for a in allocations:
        if a.waited_s is not None:
            groups.setdefault(tuple(str(getattr(a, one)) or "none" for one in by), []).append(a.waited_s)
    everyone = [wait for some in groups.values() for wait in some]
    return Section(
        "waits",
        "Waits in the queue",
        (
            *dimensions(by),
            Column("jobs", "Started", "count"),
            Column("median_s", "Median", "seconds"),
            Column("p90_s", "90th percentile", "seconds"),
            Column("longest_s", "Longest", "seconds"),
        ),
        tuple(named(by, key) | _waited(some) for key, some in sorted(groups.items())),
        named(by[:1], ["all"]) | _waited(everyone) if everyone else None,
        notes=("From a job's submission to its start; one that was requeued counts again.",),
    )


def _waited(waits: Sequence[int]) -> Row:
    ordered = sorted(waits)
    return {
        "jobs": len(ordered),
        "median_s": _quantile(ordered, 0.5),
        "p90_s": _quantile(ordered, 0.9),
        "longest_s": ordered[-1],
    }


def _quantile(ordered: Sequence[int], part: float) -> int:
    """The smallest value that at least this part of all values is not above."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
