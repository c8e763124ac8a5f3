"""`headgate report statement`: what a tenant owes for a month, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from registry.limits import Limits
from registry.report import Chart, Column, Section
from registry.report_columns import COUNTS, HOUR, MICRO, Row, counted, credits, named, row
from registry.report_gpu import WHATS, Time, Times, paid, total
from registry.report_models import SERVED
from registry.report_prices import InForce
from registry.usage_rows import Correction, Counts, together
from registry.window import Window


@dataclass(frozen=True, slots=True)
class Account:
    """What one tenant's statement is made of. Usage is of the window, by name."""

    tenant: str
    limits: Limits
    before: Counts  # all that ended before the window
    by_model: Mapping[str, Counts]
    by_user: Mapping[str, Counts]
    corrections: Sequence[Correction]
    times: Times | None  # GPU time attributed to it; None: the scheduler's books could not be had
    prices: Sequence[InForce]


def sections(of: Account, window: Window) -> tuple[Section, ...]:
    """Keys and titles begin with the tenant's name: a report may have several tenants' statements."""
    used = together(of.by_model.values())
    parts = [
        _summary(of, used),
        _limits(of, used, window),
        _usage(of, "model", "By model", of.by_model),
        _usage(of, "user", "By user", of.by_user),
        _prices(of),
    ]
    if of.times is not None:
        parts.append(_gpu(of, of.times))
    parts.append(_corrections(of))
    return tuple(parts)


def _section(
    of: Account,
    key: str,
    title: str,
    columns: Iterable[Column],
    rows: Iterable[Row],
    total: Row | None = None,
    notes: tuple[str, ...] = (),
    charts: tuple[Chart, ...] = (),
) -> Section:
    return Section(f"{of.tenant}/{key}", f"{of.tenant}: {title}", tuple(columns), tuple(rows), total, notes, charts)


def _summary(of: Account, used: Counts) -> Section:
    taken_back = sum(c.microcredits for c in of.corrections)
    times = of.times or {}
    own = total(times, *(what for what in WHATS if what not in SERVED)).microcredits
    served = total(times, *SERVED).microcredits
    rows: list[Row] = [
        {"what": "Tokens, before corrections", "credits": credits(used.microcredits + taken_back)},
        {"what": "Corrections", "credits": credits(-taken_back)},
        {"what": "GPU time of training and batch jobs", "credits": None if of.times is None else credits(own)},
    ]
    notes = [f"GPU time of replicas, {credits(served):,.2f} credits at cost, is what the tokens pay for: not added."]
    if of.times is None:
        notes = ["The scheduler's books could not be had: what GPU time costs is not known, and so the total is not."]
    return _section(
        of,
        "summary",
        "summary",
        (Column("what", "What"), Column("credits", "Credits", "credits")),
        rows,
        {"what": "total", "credits": None if of.times is None else credits(used.microcredits + own)},
        tuple(notes),
    )


def _limits(of: Account, used: Counts, window: Window) -> Section:
    """What was left of the limits that outlast a day, when the window began and when it ended."""
    limits = of.limits
    rows: list[Row] = []
    for name, allowed, unit, spent, before in (
        ("tokens_per_month", limits.tokens_per_month, 1, used.tokens, 0),
        ("token_budget", limits.token_budget, 1, used.tokens, of.before.tokens),
        ("credits_per_month", limits.credits_per_month, MICRO, used.microcredits, 0),
        ("spend_ceiling", limits.spend_ceiling, MICRO, used.microcredits, of.before.microcredits),
    ):
        if allowed is not None:
            opening = allowed - before / unit
            rows.append(
                {
                    "limit": name,
                    "allowed": allowed,
                    "opening": max(0.0, opening),
                    "used": spent / unit,
                    "closing": max(0.0, opening - spent / unit),
                }
            )
    return _section(
        of,
        "limits",
        "limits",
        (
            Column("limit", "Limit"),
            Column("allowed", "Allowed", "count"),
            Column("opening", "Left on " + str(window.first), "count"),
            Column("used", "Used", "count"),
            Column("closing", "Left at the end", "count"),
        ),
        rows,
        notes=("Limits are as they are set now.",) if rows else ("No limit on tokens or credits is set.",),
    )


def _usage(of: Account, key: str, title: str, used: Mapping[str, Counts]) -> Section:
    each = [(name or "unknown", counts) for name, counts in sorted(used.items())]
    chart = Chart(
        "bars",
        f"Credits {title.lower()}",
        "credits",
        tuple(name for name, _ in each),
        (("credits", tuple(credits(counts.microcredits) for _, counts in each)),),
    )
    return _section(
        of,
        key,
        title.lower(),
        (Column(key, key.capitalize()), *COUNTS),
        [named([key], [name]) | counted(counts) for name, counts in each],
        named([key], ["total"]) | counted(together(used.values())),
        charts=(chart,) if 1 < len(each) <= 20 else (),
    )


def _prices(of: Account) -> Section:
    return _section(
        of,
        "prices",
        "prices in force",
        (
            Column("name", "Of"),
            Column("since", "From", "time"),
            Column("until", "Until", "time"),
            Column("prompt", "Prompt", "credits"),
            Column("cached", "Cached", "credits"),
            Column("completion", "Completion", "credits"),
            Column("hour", "GPU-hour", "credits"),
        ),
        [
            {
                "name": p.name,
                "since": p.since or "site's file",
                "until": p.until,
                "prompt": p.prompt,
                "cached": p.cached,
                "completion": p.completion,
                "hour": p.hour,
            }
            for p in of.prices
        ],
        notes=("Tokens: credits per million. Cached tokens without a price of their own cost what the prompt does.",),
    )


def _gpu(of: Account, times: Times) -> Section:
    whats = [what for what in WHATS if what in times]
    prices = paid([times[what] for what in whats])
    return _section(
        of,
        "gpu",
        "GPU time",
        (
            Column("what", "What for"),
            Column("gpu_hours", "GPU-hours", "hours"),
            Column("cpu_hours", "CPU-hours", "hours"),
            Column("credits", "Credits", "credits"),
        ),
        [_time(WHATS[what], times[what], price) for what, price in zip(whats, prices, strict=True)],
        _time("total", total(times), credits(total(times).microcredits)),
    )


def _time(what: str, of: Time, price: float) -> Row:
    return row(what=what, gpu_hours=of.gpu_s / HOUR, cpu_hours=of.cpu_s / HOUR, credits=price)


def _corrections(of: Account) -> Section:
    return _section(
        of,
        "corrections",
        "corrections",
        (
            Column("at", "At", "time"),
            Column("model", "Model"),
            Column("corrects", "Event"),
            Column("tokens", "Tokens taken back", "count"),
            Column("credits", "Credits taken back", "credits"),
            Column("by", "By"),
            Column("reason", "Why"),
        ),
        [
            {
                "at": c.at,
                "model": c.model,
                "corrects": c.corrects,
                "tokens": c.tokens,
                "credits": credits(c.microcredits),
                "by": c.by,
                "reason": c.reason,
            }
            for c in of.corrections
        ],
        notes=() if of.corrections else ("There were none.",),
    )
