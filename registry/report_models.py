"""`headgate report models`: what each model was asked, what it cost as served, and what was charged for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from registry.attribution import Line
from registry.report import Chart, Column, Section
from registry.report_columns import HOUR, TOP, Row, credits, ratio, row, top
from registry.report_gpu import Priced, Times, paid, summed, together, total
from registry.usage_rows import Counts
from registry.usage_rows import together as counted_together

ALLOWED = ("model",)
DEFAULT = ("model",)
SERVED = ("serving", "startup", "idle")
MILLION = 1_000_000
AS_SERVED = ("gpu_hours", "cost", "idle_share", "startup_share", "tokens_per_gpu_hour", "cost_per_million")
ONLY_OF_ALL = (
    "What tokens cost as served is told of all tenants together: the GPU time that one pays for is not that of its "
    "tokens alone."
)


def by_model(
    used: Mapping[str, Counts], served: Mapping[str, int] | None, lines: Iterable[Line] | None, priced: Priced
) -> Section:
    """A LoRA adapter has the time it was served in; start-up and idle time are its deployment's.

    `served`: tokens of the replicas that held these GPUs; None for a tenant, whose lines are of other work than its
    tokens. `lines`: None where the scheduler's books could not be had.
    """
    of = summed((line for line in lines or () if line.what in SERVED), priced, lambda line: line.model)
    names = sorted({*used, *of})
    costs = paid([total(of.get(model, {})) for model in names])
    rows = tuple(
        row(model=model or "none")
        | _asked(used.get(model, Counts()))
        | _as_served(
            None if served is None else served.get(model, 0), None if lines is None else of.get(model, {}), cost
        )
        for model, cost in zip(names, costs, strict=True)
    )
    everything = together(of.values())
    whole = _asked(counted_together(used.values())) | _as_served(
        None if served is None else sum(served.values()),
        None if lines is None else everything,
        credits(total(everything).microcredits),
    )
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
            *((ONLY_OF_ALL,) if served is None else ()),
            *((f"The chart shows the {TOP} that were used most.",) if costly and len(costly) < len(rows) > TOP else ()),
        ),
        charts=(chart,) if costly else (),
    )


def _asked(counts: Counts) -> Row:
    return {
        "requests": counts.requests,
        "cut": counts.cut,
        "tokens": counts.tokens,
        "charged": credits(counts.microcredits),
        "charged_per_million": ratio(credits(counts.microcredits) * MILLION, counts.tokens),
    }


def _as_served(tokens: int | None, times: Times | None, cost: float) -> Row:
    if times is None:
        return dict.fromkeys(AS_SERVED)
    gpu_s = total(times).gpu_s
    shares = [ratio(total(times, what).gpu_s, gpu_s) for what in ("idle", "startup")]
    rates = [tokens * HOUR / gpu_s, ratio(cost * MILLION, tokens)] if tokens is not None and gpu_s else [None, None]
    return dict(zip(AS_SERVED, [gpu_s / HOUR, cost, *shares, *rates], strict=True))


def _number(row: Row, key: str) -> float:
    found = row[key]
    return float(found) if isinstance(found, int | float) else 0.0
