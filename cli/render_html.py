"""A report as one HTML file that refers to nothing outside itself, for a browser and for a printer."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cli import charts
from cli.render_values import LEFT, cells, moment, window
from registry.report import Chart, Report, Section

PORTRAIT = 8  # columns that an upright page holds
SHORT = 12  # rows that a page break does not part


def render(report: Report) -> str:
    # Everything in a report is text that somebody chose, tenants' names among it: escaped, charts excepted, which
    # escape for themselves.
    environment = Environment(
        loader=PackageLoader("cli", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["css"] = _quoted
    return environment.get_template("report.html.j2").render(
        report=report,
        window=window(report),
        made_at=moment(report.made_at),
        failed=[c for c in report.checks if not c.holds],
        wide=any(len(s.columns) > PORTRAIT for s in report.sections),
        sections=[
            _section(s, apart=before is not None and _group(before) != _group(s))
            for before, s in zip((None, *report.sections), report.sections, strict=False)
        ],
    )


def _group(section: Section) -> str:
    """Sections "acme/limits" and "acme/prices" belong together; another tenant's begin on a page of their own."""
    head, slash, _ = section.key.partition("/")
    return head if slash else ""


def _section(section: Section, apart: bool) -> dict[str, Any]:
    lines, total = cells(section)
    return {
        "apart": apart,
        "key": section.key,
        "title": section.title,
        "heads": [c.title for c in section.columns],
        "classes": [c.kind if c.kind in LEFT else "number" for c in section.columns],
        "sizes": " ".join(["short"] * (len(lines) <= SHORT) + ["wide"] * (len(section.columns) > PORTRAIT)),
        "lines": lines,
        "total": total,
        "notes": section.notes,
        "charts": [(c.title, _drawn(c)) for c in section.charts],
    }


def _quoted(text: str) -> Markup:
    """For a string in the style sheet, where HTML's escapes mean nothing: anything that is no word, by its number."""
    return Markup("".join(c if c.isalnum() or c == " " else f"\\{ord(c):x} " for c in text))


def _drawn(chart: Chart) -> Markup:
    return Markup(charts.svg(chart))
