"""How a report's values are written for people, a column at a time: the same in a table, in HTML and in PDF."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from registry import clock
from registry.report import Column, Report, Section, Value

HOUR, DAY = 3600, 86400  # seconds
NOTHING = "-"
LEFT = ("text", "time")  # kinds; all others are numbers, to the right


def texts(column: Column, values: Sequence[Value]) -> list[str]:
    """One for each value. Credits have as many decimals as the column needs, so that what is shown adds up."""
    decimals = max((_decimals(v) for v in values), default=2) if column.kind == "credits" else 2
    return [_text(column.kind, v, decimals) for v in values]


def cells(section: Section) -> tuple[list[list[str]], list[str] | None]:
    """The rows of a section and its total, written; the total says so where its first column says nothing."""
    total = section.total
    rows = [*section.rows, *([] if total is None else [total])]
    columns = [texts(c, [row.get(c.key) for row in rows]) for c in section.columns]
    lines = [list(line) for line in zip(*columns, strict=True)]
    if total is None:
        return lines, None
    last = ["" if total.get(c.key) is None else text for c, text in zip(section.columns, lines.pop(), strict=True)]
    return lines, [last[0] or "total", *last[1:]]


def window(report: Report) -> str:
    """ "November 2026", "3 Nov 2026 to 9 Nov 2026", or both moments."""
    start, end = clock.parse(report.start), clock.parse(report.end)
    whole_days = all((t.hour, t.minute, t.second, t.microsecond) == (0, 0, 0, 0) for t in (start, end))
    if not whole_days or end <= start:
        return f"{_moment(start)} to {_moment(end)} UTC"
    if start.day == 1 and end == (start + timedelta(days=32)).replace(day=1):
        return f"{start:%B %Y}"
    last = end - timedelta(days=1)
    return _day(start) if last == start else f"{_day(start)} to {_day(last)}"


def moment(at: str) -> str:
    """A registry time, to the minute."""
    return f"{_moment(clock.parse(at))} UTC"


def _moment(at: datetime) -> str:
    return f"{_day(at)} {at:%H:%M}"


def _day(at: datetime) -> str:
    return f"{at.day} {at:%b %Y}"


def _decimals(value: Value) -> int:
    if not isinstance(value, int | float):
        return 2
    return max(2, len(f"{value:.6f}".partition(".")[2].rstrip("0")))


def _duration(seconds: float) -> str:
    """In its two largest units."""
    if seconds >= HOUR - 0.5:
        seconds = round(seconds / 60) * 60
    if seconds >= DAY:
        hours = round(seconds / HOUR)
        return f"{hours // 24:,} d {hours % 24} h"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def _text(kind: str, value: Value, decimals: int) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value.partition(".")[0].rstrip("Z").replace("T", " ") if kind == "time" else value
    match kind:
        case "credits":
            return f"{value:,.{decimals}f}"
        case "percent":
            return f"{100 * value:,.1f} %"
        case "seconds":
            return _duration(value)
        case "hours":
            return f"{value:,.2f}"
    if isinstance(value, int) or abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}".rstrip("0").rstrip(".")
