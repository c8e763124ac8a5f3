"""A report as a site has them: twenty tenants, long and hostile names, rows of zeros, a month of days."""

from __future__ import annotations

from typing import Any

from registry.report import Chart, Check, Column, Report, Section, Value

HOSTILE = "<script>alert('tenant')</script>"
LONG = "department-of-computational-fluid-dynamics-and-combustion-group-7"
NAMES = ("astro", "climate", HOSTILE, LONG, "=cmd|'/c calc'!A1", "idle", *(f"group-{n:02d}" for n in range(1, 15)))
DAYS = tuple(f"2026-11-{day:02d}" for day in range(1, 31))
USAGE = (
    Column("tenant", "Tenant"),
    Column("requests", "Requests", "count"),
    Column("prompt_tokens", "Prompt tokens", "count"),
    Column("completion_tokens", "Completion tokens", "count"),
    Column("credits", "Credits", "credits"),
    Column("share", "Share", "percent"),
    Column("gpu_hours", "GPU-hours", "hours"),
    Column("wait", "Median wait", "seconds"),
    Column("last", "Last request", "time"),
)


def usage_row(n: int, tenant: str) -> dict[str, Value]:
    requests = 0 if tenant == "idle" else 900_000 // (n + 1)
    return {
        "tenant": tenant,
        "requests": requests,
        "prompt_tokens": requests * 1311,
        "completion_tokens": requests * 287,
        "credits": requests * 1234 / 1e6,
        "share": requests / 3_100_000,
        "gpu_hours": requests / 1700,
        "wait": None if tenant == "idle" else 12 * n,
        "last": None if tenant == "idle" else "2026-11-30T21:04:05.123456Z",
    }


def sample() -> Report:
    rows = [usage_row(n, tenant) for n, tenant in enumerate(NAMES)]
    summed = ("requests", "prompt_tokens", "completion_tokens", "credits", "gpu_hours")
    totals: dict[str, Any] = {k: sum(r[k] for r in rows) for k in summed}  # type: ignore[misc]
    usage = Section(
        "usage",
        "Tokens and credits by tenant",
        USAGE,
        tuple(rows),
        totals | {"share": 1.0},
        ("Cut requests are counted at what was delivered.",),
        (
            Chart(
                "stacked",
                "Tokens a day",
                "tokens",
                DAYS,
                tuple(
                    (name, tuple(float((d * 37 + n * 11) % 50 * 90_000 // (n + 1)) for d in range(30)))
                    for n, name in enumerate(NAMES)
                ),
            ),
            Chart("bars", "Credits", "credits", NAMES, (("credits", tuple(float(r["credits"] or 0) for r in rows)),)),
        ),
    )
    models = Section(
        "models",
        "Models as served",
        (
            Column("model", "Model"),
            Column("cost", "Credits per million tokens", "credits"),
            Column("hours", "GPU-hours", "hours"),
        ),
        (
            {"model": "meta-llama/Llama-3.3-70B-Instruct", "cost": 0.81, "hours": 711.5},
            {"model": "demo@latest", "cost": 0.000364, "hours": 0},
        ),
        charts=(
            Chart(
                "line",
                "Requests a day",
                "requests",
                DAYS,
                (
                    ("llama", tuple(4000 + 900 * ((d * 7) % 5) for d in range(30))),
                    ("demo", tuple(d * 20.0 for d in range(30))),
                ),
            ),
            Chart(
                "stacked",
                "GPU-hours by what they were",
                "GPU-hours",
                ("llama", "demo", "none at all"),
                (("serving", (500.5, 10, 0)), ("startup", (11, 1, 0)), ("idle", (200, 40, 0))),
            ),
            Chart("bars", "Queue wait", "s", ("gpu", "cpu"), (("median", (120.0, 3.0)), ("p90", (1800.0, 60.0)))),
        ),
    )
    empty = Section(
        "corrections", "Corrections", (Column("event", "Event"), Column("credits", "Credits", "credits")), ()
    )
    return Report(
        "usage",
        "Usage",
        "alps",
        "all tenants",
        "2026-11-01T00:00:00.000000Z",
        "2026-12-01T00:00:00.000000Z",
        "2026-12-01T06:30:11.000000Z",
        (usage, models, empty),
        (
            Check("the ledger's entries sum to zero (1,234,567 entries)", True),
            Check("the parts add up to Slurm's total: 4,321,000 GPU-seconds", True),
        ),
        ("Slurm's books were last read at 06:29.",),
    )
