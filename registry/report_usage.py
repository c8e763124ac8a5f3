"""`headgate report usage`: requests, tokens and credits by whom and what, and this month beside the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from registry.report import Chart, Check, Column, Section
from registry.report_columns import (
    COUNTS,
    DIMENSIONS,
    Row,
    change,
    counted,
    credits,
    dimensions,
    equal,
    named,
    regrouped,
    row,
    top,
)
from registry.usage_rows import Counts, Used, together
from registry.window import Window

ALLOWED = ("tenant", "user", "key", "model", "kind", "account")
DEFAULT = ("tenant", "model")
MOST_DAYS = 400  # that a chart has; of more, its points are months


def by_columns(used: Used, before: Used, by: Sequence[str]) -> Section:
    """Both are by the columns `by`; `before` is of the window before."""
    rows = []
    for key in sorted({*used, *before}):
        now, then = used.get(key, Counts()), before.get(key, Counts())
        rows.append(named(by, key) | counted(now) | _compared(now, then))
    whole, then = together(used.values()), together(before.values())
    return Section(
        "usage",
        "Tokens and credits",
        (
            *dimensions(by),
            *COUNTS,
            Column("before", "Credits before", "credits"),
            Column("change", "Change", "percent"),
        ),
        tuple(rows),
        named(by[:1], ["total"]) | counted(whole) | _compared(whole, then),
        notes=("Cached tokens are among the prompt's, reasoning tokens among the completion's.",),
    )


def _compared(now: Counts, before: Counts) -> Row:
    return row(before=credits(before.microcredits), change=change(now.microcredits, before.microcredits))


def top_users(used: Used) -> Section:
    """`used` is by tenant and user."""
    most = top([*used.items()], lambda item: (item[1].microcredits, item[1].tokens))
    rows = tuple(row(tenant=tenant, user=user or "unknown") | counted(counts) for (tenant, user), counts in most)
    return Section("top_users", "Top users", (DIMENSIONS["tenant"], DIMENSIONS["user"], *COUNTS), rows)


def compared(used: Counts, before: Counts, window: Window) -> Section:
    measures = (
        ("Requests", used.requests, before.requests),
        ("Requests cut short", used.cut, before.cut),
        ("Prompt tokens", used.prompt_tokens, before.prompt_tokens),
        ("of these cached", used.cached_tokens, before.cached_tokens),
        ("Completion tokens", used.completion_tokens, before.completion_tokens),
        ("of these reasoning", used.reasoning_tokens, before.reasoning_tokens),
        ("Credits", credits(used.microcredits), credits(before.microcredits)),
    )
    return Section(
        "compared",
        f"{window} against {window.before}",
        (
            Column("what", "What"),
            Column("now", str(window), "count"),
            Column("before", str(window.before), "count"),
            Column("change", "Change", "percent"),
        ),
        tuple({"what": what, "now": now, "before": then, "change": change(now, then)} for what, now, then in measures),
    )


def daily(by_day: Mapping[tuple[str, ...], Counts], window: Window) -> Section:
    days = [(day, by_day.get((day,), Counts())) for day in window.days]
    drawn, of = by_day, "day"
    labels = window.days
    if len(labels) > MOST_DAYS:
        drawn, of = regrouped(by_day, lambda key: (key[0][:7],)), "month"
        labels = tuple(dict.fromkeys(day[:7] for day in labels))
    points = [drawn.get((label,), Counts()) for label in labels]
    tokens = Chart(
        "stacked",
        f"Tokens by {of}",
        "tokens",
        labels,
        (
            ("prompt", tuple(float(c.prompt_tokens - c.cached_tokens) for c in points)),
            ("prompt, cached", tuple(float(c.cached_tokens) for c in points)),
            ("completion", tuple(float(c.completion_tokens) for c in points)),
        ),
    )
    paid = Chart(
        "line", f"Credits by {of}", "credits", labels, (("credits", tuple(credits(c.microcredits) for c in points)),)
    )
    return Section(
        "daily",
        "By day",
        (Column("day", "Day", "time"), *COUNTS),
        tuple(row(day=day) | counted(counts) for day, counts in days if counts != Counts()),
        row(day="total") | counted(together(counts for _, counts in days)),
        charts=(tokens, paid),
    )


def checks(consumed: tuple[int, int], used: Counts, limited: tuple[int, int] | None) -> tuple[Check, ...]:
    """`consumed`: registry.usage_rows.consumed(). `limited`: what limits counted in this month (tokens, micro-credits).

    Three sums of the same events, each kept apart as they are written.
    """
    by_day, posted = consumed
    found = [equal("the micro-credits of every day", by_day, posted, "what the ledger's postings consumed")]
    if limited is not None:
        found.append(equal("the tokens of these days", used.tokens, limited[0], "what this month's limits counted"))
        found.append(equal("their micro-credits", used.microcredits, limited[1], "what this month's limits counted"))
    return tuple(found)
