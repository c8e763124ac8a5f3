"""`headgate report`."""

from __future__ import annotations

import json
from typing import Any

import click

from cli.client import Control
from cli.context import Context
from cli.table import json_option, table

TOKENS = ("tenant", "model", "requests", "prompt_tokens", "completion_tokens", "credits")
QUOTA = ("tenant", "requests_per_minute", "token_budget", "tokens_used", "tokens_left")
JOBS = ("job", "purpose", "subject", "partition", "state")
SECONDS = ("elapsed_s", "cpu_seconds", "gpu_seconds")


@click.group()
def report() -> None:
    """What was used, by whom, and what is left."""


@report.command("usage")
@json_option
@click.pass_obj
def usage(context: Context, /, as_json: bool) -> None:
    """Tokens and credits by tenant and model, quota left, and each job's seconds from the scheduler's books."""
    said = Control(context.site().control_socket).get("/v1/report/usage")
    click.echo(json.dumps(said, indent=2) if as_json else render(said))


def render(said: dict[str, Any]) -> str:
    parts = ["Tokens, from the engines' own counts"]
    parts.append(table(said["tokens"], TOKENS) if said["tokens"] else "none yet")
    if said["quota"]:
        parts.append("\nQuota")
        parts.append(table(said["quota"], QUOTA))
    if said["jobs"]:
        silent = said["scheduler_error"]
        parts.append("\nJobs, from the scheduler's books" + (f" as last read (now: {silent})" if silent else ""))
        total = {"job": "total", **{c: sum(j[c] for j in said["jobs"]) for c in SECONDS}}
        parts.append(table([*said["jobs"], total], (*JOBS, *SECONDS)))
    problems = said["ledger_problems"]
    parts.append("\nLedger: " + ("every posting sums to zero" if not problems else "; ".join(problems)))
    return "\n".join(parts)
