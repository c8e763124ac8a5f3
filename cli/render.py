"""A report in the format that was asked for."""

from __future__ import annotations

import json
from typing import Literal

from registry.report import Report, to_json

Format = Literal["table", "csv", "json", "html", "pdf"]
FORMATS: tuple[Format, ...] = ("table", "csv", "json", "html", "pdf")


def render(report: Report, format: Format) -> str | bytes:
    """Bytes for pdf, else text. Ends the command where what makes PDF is not installed."""
    match format:  # each imported when it is wanted: --help needs none of them
        case "table":
            from cli import render_table

            return render_table.render(report)
        case "csv":
            from cli import render_csv

            return render_csv.render(report)
        case "json":
            return json.dumps(to_json(report), indent=2) + "\n"
        case "html":
            from cli import render_html

            return render_html.render(report)
        case "pdf":
            from cli import render_pdf

            return render_pdf.render(report)
