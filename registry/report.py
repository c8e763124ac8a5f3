"""What a report is, whatever it is about and however it is shown: sections of rows, with charts, notes and checks.

Made by the registry.report_* modules, sent as JSON by the control API, shown by the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Value = str | int | float | None
Kind = Literal["text", "count", "credits", "percent", "seconds", "hours", "time"]


@dataclass(frozen=True, slots=True)
class Column:
    """`kind` says how a value is shown: text and times are left, all else right; percent is of 1 (0.5 is 50 %)."""

    key: str  # of a row, and in JSON and CSV
    title: str
    kind: Kind = "text"


@dataclass(frozen=True, slots=True)
class Chart:
    """ "bars": a bar for each label and series; "stacked": these on one another; "line": labels are times in order."""

    kind: Literal["bars", "stacked", "line"]
    title: str
    unit: str
    labels: tuple[str, ...]
    series: tuple[tuple[str, tuple[float, ...]], ...]  # (name, a value for each label)


@dataclass(frozen=True, slots=True)
class Section:
    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Value], ...]
    total: Mapping[str, Value] | None = None  # the rows' sum, as a last row
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """Two numbers that must be one, and whether they are."""

    text: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Report:
    kind: str  # quota | usage | gpu | models | efficiency | statement
    title: str
    site: str
    of: str  # "all tenants", or "tenant NAME"
    start: str  # of the window, as registry.clock writes times
    end: str
    made_at: str
    sections: tuple[Section, ...]
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()  # why this may not be all, say


def to_json(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report)


def from_json(said: Mapping[str, Any]) -> Report:
    """Raises KeyError or TypeError for what to_json() does not write."""

    def section(s: Mapping[str, Any]) -> Section:
        charts = tuple(
            Chart(
                c["kind"],
                c["title"],
                c["unit"],
                tuple(c["labels"]),
                tuple((name, tuple(values)) for name, values in c["series"]),
            )
            for c in s["charts"]
        )
        columns = tuple(Column(**c) for c in s["columns"])
        return Section(s["key"], s["title"], columns, tuple(s["rows"]), s["total"], tuple(s["notes"]), charts)

    return Report(
        **{
            **said,
            "sections": tuple(section(s) for s in said["sections"]),
            "checks": tuple(Check(**c) for c in said["checks"]),
            "notes": tuple(said["notes"]),
        }
    )
