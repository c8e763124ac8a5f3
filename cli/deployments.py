"""`headgate get`, `scale`, `pause`, `delete` and `explain`: deployments as they are, and their smaller changes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from cli.client import Control
from cli.context import Context
from cli.runs import first_line
from cli.settling import ENDED, LIVE, Changes, counts, wait_settled, wait_stopped
from cli.table import ago, json_option, printable, table

COLUMNS = ("name", "state", "model", "revision", "replicas", "waiting", "age", "cause")
OF_REPLICAS = ("replica", "state", "revision", "job", "age", "cause")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "toml", "json"]),
    default="table",
    show_default=True,
    help="toml: as `headgate apply` takes it.",
)
@click.option("--json", "as_json", is_flag=True, help="Short for -o json.")
@click.option("--all", "ended", is_flag=True, help="Those that have stopped, too.")
@click.pass_obj
def get(context: Context, /, names: tuple[str, ...], form: str, as_json: bool, ended: bool) -> None:
    """Deployments: what is wanted of each, and what there is.

    With NAME, its replicas too: those that it has, and those that ended last, each with the cause of its end.
    """
    control = Control(context.site().control_socket)
    if names:
        found = [control.get("/v1/deployments/{}", name) for name in names]
    else:
        found = [d for d in control.get("/v1/deployments") if ended or d["deployment"]["state"] not in ENDED]
        found = [control.get("/v1/deployments/{}", d["deployment"]["name"]) for d in found]  # with their loads
    if as_json or form == "json":
        click.echo(json.dumps(found, indent=2))
    elif form == "toml":
        click.echo("\n".join(_toml(described) for described in found), nl=False)
    elif names:
        click.echo("\n\n".join(of_one(described) for described in found))
    elif found:
        click.echo(table([_row(described) for described in found], COLUMNS))
    else:
        click.echo("no deployment yet: `headgate serve MODEL` makes one")


@click.command()
@click.argument("name")
@click.argument("replicas", type=click.IntRange(0), required=False)
@click.option("--min", "least", type=click.IntRange(0), help="Replicas at least; 0: none while nobody calls.")
@click.option("--max", "most", type=click.IntRange(1), help="Replicas at most.")
@click.option("--wait/--no-wait", default=False, show_default=True, help="Until just as many are ready.")
@click.pass_obj
def scale(
    context: Context, /, name: str, replicas: int | None, least: int | None, most: int | None, wait: bool
) -> None:
    """Have so many REPLICAS of a deployment, or as many as its load asks for from --min to --max."""
    if (replicas is None) == (least is None and most is None):
        raise click.UsageError("say how many: REPLICAS, or --min and --max")
    control = Control(context.site().control_socket)
    described = control.post("/v1/deployments/{}/scale", name, replicas=replicas, min=least, max=most)
    if wait:
        described = wait_settled(control, name, None, Changes(), scaled=True)
    click.echo(f"deployment {name}: {replicas_in_words(described)}")


@click.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="Go on.")
@click.pass_obj
def pause(context: Context, /, name: str, off: bool) -> None:
    """Roll nothing out and scale nothing of a deployment; replicas that end are replaced all the same."""
    Control(context.site().control_socket).post("/v1/deployments/{}/pause", name, paused=not off)
    click.echo(f"deployment {name} {'goes on' if off else f'is paused; `headgate pause {name} --off` goes on'}")


@click.command()
@click.argument("name")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until it has stopped.")
@click.pass_obj
def delete(context: Context, /, name: str, wait: bool) -> None:
    """Stop a deployment for good: its requests in flight finish first, and its replicas' jobs end."""
    control = Control(context.site().control_socket)
    state = control.post("/v1/deployments/{}/stop", name)["deployment"]["state"]
    if wait and state == "stopping":
        state = wait_stopped(control, name)
    click.echo(f"deployment {name}: {state}")


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def explain(context: Context, /, name: str, as_json: bool) -> None:
    """In plain words: what a deployment wants, what it has, why, and what happens next and when."""
    said = Control(context.site().control_socket).get("/v1/deployments/{}/explain", name)
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        click.echo(printable(explained(said, datetime.now(UTC))))


def explained(said: dict[str, Any], now: datetime) -> str:
    whole = said["deployment"]
    lines = [
        f"{whole['name']}  {whole['state']}  {whole['model']}@{whole['version']}, {_revision(whole)}"
        + (", paused" if whole["paused"] else "")
    ]
    lines += [f"  {words}" for words in said["why"]]
    if said["next"]:
        lines.append("next:")
        lines += [f"  {_when(step['at'], now)}{step['words']}" for step in said["next"]]
    if said.get("planned_at"):
        lines.append(f"as of {ago(said['planned_at'], now)} ago")
    return "\n".join(lines)


def _when(at: str | None, now: datetime) -> str:
    if at is None:
        return ""
    moment = datetime.fromisoformat(at)
    local = moment.astimezone()
    shown = local.strftime("%H:%M:%S" if local.date() == now.astimezone().date() else "%Y-%m-%d %H:%M")
    return f"{shown} (in {ago(now.isoformat(), moment)}): " if moment > now else f"{shown} (now): "


def replicas_in_words(described: dict[str, Any]) -> str:
    """`1 of 2 replicas ready, 1 to 8 as the load asks`."""
    whole, (ready, wanted) = described["deployment"], counts(described)
    least, most = whole["min_replicas"], whole["max_replicas"]
    bounds = f", {least} to {most} as the load asks" if most > max(least, 1) else ""
    return f"{ready} of {wanted} replicas ready{bounds}"


def ready_of_wanted(described: dict[str, Any]) -> str:
    """`1/2`."""
    ready, wanted = counts(described)
    return f"{ready}/{wanted}"


def live(described: dict[str, Any]) -> list[dict[str, Any]]:
    """Its replicas that have not ended, each with its jobs."""
    return [r for r in described["replicas"] if r["replica"]["state"] in LIVE]


def of_one(described: dict[str, Any]) -> str:
    """A deployment, and its replicas below."""
    rows = [_replica_row(r["replica"]) for r in described["replicas"]]
    shown = table(rows, OF_REPLICAS) if rows else "no replica yet"
    return f"{table([_row(described)], COLUMNS)}\n\n{shown}"


def _replica_row(r: dict[str, Any]) -> dict[str, Any]:
    return {
        **r,
        "replica": r["id"],
        "job": r["job_id"],
        "age": ago(r["created_at"]),
        "cause": first_line(r["cause"]),
    }


def _row(described: dict[str, Any]) -> dict[str, Any]:
    whole = described["deployment"]
    waiting = [int(r["load"]["waiting"]) for r in live(described) if r["load"] and "waiting" in r["load"]]
    return {
        "name": whole["name"],
        "state": whole["state"] + (", paused" if whole["paused"] else ""),
        "model": whole["follows"] or f"{whole['model']}@{whole['version']}",
        "revision": _revision(whole),
        "replicas": f"{ready_of_wanted(described)} ({whole['min_replicas']}..{whole['max_replicas']})",
        "waiting": sum(waiting) if waiting else None,
        "age": ago(whole["created_at"]),
        "cause": first_line(whole["cause"]),
    }


def _revision(whole: dict[str, Any]) -> str:
    """The one that is wanted, and the stable one where that is another."""
    if whole["stable"] in (None, whole["revision"]):
        return f"revision {whole['revision']}"
    return f"revision {whole['revision']} on trial, {whole['stable']} stable"


def _toml(described: dict[str, Any]) -> str:
    from launchers.deployment_file import write
    from launchers.deployment_spec import from_document

    return write(from_document(described["spec"]))
