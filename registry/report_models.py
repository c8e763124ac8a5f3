"""`headgate report models`: what each model was asked, what it cost as served, and what was charged for it."""

from __future__ import annotations

from collections.abc import Mapping

from registry.attribution import Line
from registry.report import Chart, Column, Section
from registry.report_columns import HOUR, TOP, Row, credits, ratio, row, top
from registry.report_gpu import Priced, Times, summed, together, total
from registry.usage_rows import Counts
from registry.usage_rows import together as counted_together

ALLOWED = ("model",)
DEFAULT = ("model",)
SERVED = ("serving", "startup", "idle")
MILLION = 1_000_000


def by_model(used: Mapping[str, Counts], lines: tuple[Line, ...], priced: Priced) -> Section:
    """A LoRA adapter has the time it was served in; start-up and idle time are its deployment's."""
    of = summed((line for line in lines if line.what in SERVED), priced, lambda line: line.model)
    rows = tuple(
        row(model=model or "none") | served(used.get(model, Counts()), of.get(model, {}))
        for model in sorted({*used, *of})
    )
    whole = served(counted_together(used.values()), together(of.values()))
    costly = top([r for r in rows if r["cost_per_million"] is not None], lambda r: (_number(r, "tokens"),))
    chart = Chart(
        "bars",
        "A million tokens: what they cost as served, and what was charged",
        "credits",
        tuple(str(r["model"]) for r in costly),
        (
            ("as served", tuple(_number(r, "cost_per_million") for r in costly)),
            ("charged", tuple(_number(r, "charged_per_million") for r in costly)),
        ),
    )
    return Section(
        "models",
        "Models",
        (
            Column("model", "Model"),
            Column("requests", "Requests", "count"),
            Column("cut", "Cut short", "count"),
            Column("tokens", "Tokens", "count"),
            Column("gpu_hours", "GPU-hours", "hours"),
            Column("idle_share", "Idle", "percent"),
            Column("startup_share", "Start-up", "percent"),
            Column("tokens_per_gpu_hour", "Tokens per GPU-hour", "count"),
            Column("cost", "Cost as served", "credits"),
            Column("cost_per_million", "per million tokens", "credits"),
            Column("charged", "Charged", "credits"),
            Column("charged_per_million", "per million tokens", "credits"),
        ),
        rows,
        row(model="total") | whole,
        notes=(
            "Cost as served: all GPU-hours of its replicas, idle and starting ones too, at the price of their type.",
            *((f"The chart shows the {TOP} that were used most.",) if len(costly) < len(rows) > TOP else ()),
        ),
        charts=(chart,) if costly else (),
    )


def served(counts: Counts, times: Times) -> Row:
    time = total(times)
    gpu_s, cost = time.gpu_s, time.microcredits
    return {
        "requests": counts.requests,
        "cut": counts.cut,
        "tokens": counts.tokens,
        "gpu_hours": gpu_s / HOUR,
        "idle_share": ratio(total(times, "idle").gpu_s, gpu_s),
        "startup_share": ratio(total(times, "startup").gpu_s, gpu_s),
        "tokens_per_gpu_hour": ratio(counts.tokens * HOUR, gpu_s),
        "cost": credits(cost),
        "cost_per_million": ratio(credits(cost) * MILLION, counts.tokens) if gpu_s else None,
        "charged": credits(counts.microcredits),
        "charged_per_million": ratio(credits(counts.microcredits) * MILLION, counts.tokens),
    }


def _number(row: Row, key: str) -> float:
    found = row[key]
    return float(found) if isinstance(found, int | float) else 0.0
