"""`headgate usage`: what my accounts use, and what their limits leave."""

from __future__ import annotations

import json
from typing import Any

import click

from cli.context import Context
from cli.sight import footing, hidden, look
from cli.table import json_option, table
from launchers import direct

LIMITS = ("of", "what", "limit", "used", "left", "in Slurm's words")
FAIR_SHARE = ("of", "shares", "recent billing-hours", "fair-share")


@click.command()
@click.option("-A", "--account", help="One account; by default all that I may use.")
@json_option
@click.pass_obj
def usage(context: Context, /, account: str | None, as_json: bool) -> None:
    """My accounts' use against their limits, those of the accounts above them, and of each QOS; my fair-share."""
    said = look(context.site(), "/v1/limits", lambda source: direct.usage(source, account), account=account)
    click.echo(json.dumps(said, indent=2) if as_json else render(said))


def render(said: dict[str, Any]) -> str:
    lines = []
    if said["limits"]:
        rows = [
            {**row, "limit": "none" if row["allowed"] is None else row["allowed"], "in Slurm's words": row["kind"]}
            for row in said["limits"]
        ]
        lines.append(table(rows, LIMITS))
    if said["fair_share"]:
        rows = [
            {**row, "recent billing-hours": row["recent_billing_hours"], "fair-share": row["fair_share"]}
            for row in said["fair_share"]
        ]
        lines += ["", "Fair-share (0: far more used than its share, 1: nothing)", table(rows, FAIR_SHARE), ""]
    if not lines:
        nothing = "this machine limits nothing" if said["asked"] == "local" else "no account limits"
        lines.append(f"{nothing} {said['user']}")
    if note := hidden(said, "usage"):
        lines.append(note)
    return "\n".join([*lines, footing(said)])
