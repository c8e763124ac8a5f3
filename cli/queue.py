"""`headgate queue`: who runs, who waits, and for what."""

from __future__ import annotations

import json
import os
import pwd
from typing import Any

import click

from cli.context import Context
from cli.sight import footing, hidden, local, look
from cli.table import json_option, table
from launchers import direct
from launchers.subjects import user_name
from slurm import amounts

COLUMNS = ("job", "what", "name", "partition", "asks", "state", "used", "left", "why")


@click.command()
@click.option("-a", "--all", "everybody", is_flag=True, help="Everybody's jobs, as far as Slurm shows them.")
@click.option("-u", "--user", help="Somebody else's jobs.")
@json_option
@click.pass_obj
def queue(context: Context, /, everybody: bool, user: str | None, as_json: bool) -> None:
    """My runs, replicas and other jobs, with why they wait in plain words.

    Where no controller answers, Slurm is asked: replicas, which run as the service's user, are then not among mine.
    """
    if everybody and user:
        raise click.UsageError("--all and --user exclude each other")
    site = context.site()
    whose = None if everybody else user or user_name(os.getuid())
    said = look(
        site,
        "/v1/queue",
        lambda source: direct.queue(source, site.runs_dir, whose),
        user=whose,
        all="1" if everybody else None,
    )
    if user and not said["jobs"] and not _exists(user):
        raise click.ClickException(f"no user is called {user!r} on this machine, and no job is theirs")
    click.echo(json.dumps(said, indent=2) if as_json else render(said, whose))


def render(said: dict[str, Any], user: str | None) -> str:
    lines = []
    if said["jobs"]:
        columns = COLUMNS if user else (*COLUMNS[:3], "user", *COLUMNS[3:])
        lines.append(table([_row(job) for job in said["jobs"]], columns))
    else:
        lines.append(f"no job of {user} waits or runs" if user else "no job waits or runs")
    if not (user and said["jobs"]) and (note := hidden(said, "jobs")):
        lines.append(note)
    if user and said["asked"] == "slurm" and not any(job["what"] == "replica" for job in said["jobs"]):
        lines.append(f"replicas run as their service's user: only a controller tells which are {user}'s")
    return "\n".join([*lines, footing(said)])


def _row(job: dict[str, Any]) -> dict[str, Any]:
    limit = job["left_s"] if job["started_at"] else job["time_limit_s"]
    return {
        **job,
        "used": "-" if job["used_s"] is None else amounts.duration(job["used_s"]),
        "left": "no limit" if limit is None else amounts.duration(limit),
        "why": local(job["why"]),
    }


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
