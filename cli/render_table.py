"""A report as plain text, for a terminal or a mail."""

from __future__ import annotations

from cli.render_values import LEFT, cells, moment, window
from cli.table import aligned, printable
from registry.report import Report, Section


def render(report: Report) -> str:
    head = f"{report.title}, {report.of}, {window(report)}\n{report.site}, made at {moment(report.made_at)}"
    parts = [head, *(_section(s) for s in report.sections)]
    if report.checks:
        parts.append("\n".join(f"check: {c.text}{'' if c.holds else '  <- DOES NOT HOLD'}" for c in report.checks))
    if report.notes:
        parts.append("\n".join(f"note: {n}" for n in report.notes))
    return printable("\n\n".join(parts) + "\n")


def _section(section: Section) -> str:
    lines, total = cells(section)
    if total is not None:
        lines.append(total)
    shown = (
        aligned([c.title for c in section.columns], lines, [c.kind not in LEFT for c in section.columns])
        if lines
        else "nothing in this time"
    )
    return "\n".join([section.title, shown, *(f"note: {n}" for n in section.notes)])
