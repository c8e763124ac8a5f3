"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool, empty: str = "nothing yet") -> None:
    """Print `rows` as JSON whole, or as a table of the named columns (numbers to the right)."""
    if as_json:
        click.echo(json.dumps(list(rows), indent=2))
    elif not rows:
        click.echo(empty)
    else:
        click.echo(table(rows, columns))


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    cells = [[cell(row.get(c)) for c in columns] for row in rows]
    numeric = [all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns]
    return aligned([c.replace("_", " ") for c in columns], cells, numeric)


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Columns of texts, as wide as they need to be; `right` says which are set to the right."""
    shown = [[_on_one_line(text) for text in line] for line in [head, *lines]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    align: list[Callable[[str, int], str]] = [str.rjust if r else str.ljust for r in right]
    return "\n".join("  ".join(align[i](text, widths[i]) for i, text in enumerate(line)).rstrip() for line in shown)


def printable(text: str) -> str:
    """What a job wrote must not steer the terminal of whoever reads it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.6g}"
        case list() | tuple():
            return _on_one_line(",".join(map(str, value))) or "-"
    return _on_one_line(str(value))


def _on_one_line(text: str) -> str:
    """A line break or a tab would break the columns."""
    return printable(text.translate({ord(c): " " for c in "\n\t"}))


def ago(at: str | None, now: datetime | None = None) -> str:
    """How long ago a registry time was: '12s', '3m', '5h', '2d'."""
    if at is None:
        return "-"
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(at)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"
