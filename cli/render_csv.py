"""A report as one CSV table (RFC 4180): every section's rows under the columns of all, the first of which is `section`.

Numbers are plain. Totals are left out, so that a column can be added up; so are charts, checks
and notes, which `headgate report` prints beside it.
"""

from __future__ import annotations

import csv
import io

from registry.report import Report, Value

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would begin to compute


def render(report: Report) -> str:
    keys = list(dict.fromkeys(c.key for s in report.sections for c in s.columns))
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["section", *keys])
    for section in report.sections:
        own = {c.key for c in section.columns}
        for row in section.rows:
            table.writerow([section.key, *(_cell(row.get(k)) if k in own else "" for k in keys)])
    return text.getvalue()


def _cell(value: Value) -> str | int | float:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return "" if value is None else value
