"""`headgate rollout`, `rollback` and `history`: the revisions of a deployment."""

from __future__ import annotations

from typing import Any

import click

from cli.client import Control
from cli.context import Context
from cli.serve import reference
from cli.settling import Changes, wait_settled, waiting_for
from cli.table import ago, json_option, printable, show
from registry import canary as percent


@click.command()
@click.argument("name")
@click.option("--to", "model", metavar="MODEL[@VERSION|@ALIAS]", help="What it is to serve from now on.")
@click.option("--restart", is_flag=True, help="The same again, in new replicas.")
@click.option("--status", is_flag=True, help="How far the newest revision is.")
@click.option(
    "--canary",
    type=click.IntRange(percent.LEAST, percent.MOST),
    metavar="PERCENT",
    help="Of the calls, for its first replica on trial.",
)
@click.option("--why", help="Kept in its history.")
@click.option("--wait/--no-wait", default=False, show_default=True, help="Until it has proven itself, or is given up.")
@click.pass_obj
def rollout(
    context: Context,
    /,
    name: str,
    model: str | None,
    restart: bool,
    status: bool,
    canary: int | None,
    why: str | None,
    wait: bool,
) -> None:
    """Roll another model version out as a new revision: it is given up if it fails, or answers worse.

    Its first replica is watched beside the old ones before it replaces them.
    """
    control = Control(context.site().control_socket)
    if [model is not None, restart, status].count(True) != 1:
        raise click.UsageError("say one of --to MODEL, --restart and --status")
    if status:
        described = control.get("/v1/deployments/{}", name)
        click.echo(printable(progress(described, control.get("/v1/deployments/{}/revisions", name))))
        return
    asked: dict[str, Any] = {"restart": True} if restart else {"model": reference(str(model))}
    made = control.post("/v1/deployments/{}/rollout", name, **asked, canary=canary, why=why)
    _tell(control, made, wait)


@click.command()
@click.argument("name")
@click.option("--to", "revision", type=click.IntRange(1), help="A good revision.  [default: the last before this one]")
@click.option("--why", help="Kept in its history.")
@click.option("--wait/--no-wait", default=False, show_default=True, help="Until it serves that again.")
@click.pass_obj
def rollback(context: Context, /, name: str, revision: int | None, why: str | None, wait: bool) -> None:
    """Serve again what a good revision did, at once and without a trial.

    An alias that the deployment followed it follows no more; `headgate rollout NAME --to MODEL@ALIAS` has it do so.
    """
    control = Control(context.site().control_socket)
    _tell(control, control.post("/v1/deployments/{}/rollback", name, revision=revision, why=why), wait)


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def history(context: Context, /, name: str, as_json: bool) -> None:
    """The revisions of a deployment: what each served, what became of it, and who asked for it and why."""
    found = Control(context.site().control_socket).get("/v1/deployments/{}/revisions", name)
    rows = found if as_json else [_row(revision) for revision in found]
    show(rows, ("revision", "model", "state", "by", "at", "why", "cause"), as_json)


def progress(described: dict[str, Any], revisions: list[dict[str, Any]]) -> str:
    """How far the wanted revision is, in words."""
    whole = described["deployment"]
    wanted = next(r for r in revisions if r["revision"] == whole["revision"])
    ready = [r["replica"]["revision"] for r in described["replicas"] if r["replica"]["state"] == "ready"]
    its = ready.count(wanted["revision"])
    lines = [
        f"revision {wanted['revision']} ({wanted['model']}@{wanted['version']}) is {wanted['state']}, "
        f"asked for {ago(wanted['created_at'])} ago by {wanted['created_by']}: {wanted['why']}",
        f"ready replicas: {its} of it, {len(ready) - its} of others",
    ]
    if whole["paused"]:
        lines.append(f"it is paused: `headgate pause {whole['name']} --off` goes on")
    if wanted["state"] == "rolling":
        lines.append(waiting_for(described))
    last = revisions[-1]
    if last["revision"] != wanted["revision"]:
        lines.append(
            f"revision {last['revision']} ({last['model']}@{last['version']}) is {last['state']}: {last['cause']}"
        )
    return "\n".join(lines)


def _tell(control: Control, made: dict[str, Any], wait: bool) -> None:
    whole = made["deployment"]
    click.echo(
        f"deployment {whole['name']}: revision {whole['revision']} ({whole['model']}@{whole['version']}) is wanted"
    )
    if wait:
        state = wait_settled(control, whole["name"], whole["revision"], Changes())["deployment"]["state"]
        click.echo(f"deployment {whole['name']} is {state}")


def _row(r: dict[str, Any]) -> dict[str, Any]:
    served = f"{r['model']}@{r['version']}"
    return {**r, "model": served, "by": r["created_by"], "at": r["created_at"][:19].replace("T", " ")}
