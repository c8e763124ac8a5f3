"""`headgate status` and `models`."""

from __future__ import annotations

import json
from typing import Any

import click

from cli.client import Control, Unreachable
from cli.context import Context
from cli.deployments import live, ready_of_wanted
from cli.runs import first_line
from cli.services import gateway_answers, url
from cli.table import ago, json_option, show, table


@click.command()
@json_option
@click.pass_obj
def status(context: Context, /, as_json: bool) -> None:
    """Services, runs and deployments at a glance. Exits 1 when a service is down."""
    site = context.site()
    control = Control(site.control_socket)
    try:
        said = control.get("/v1/status")
        runs, deployments = control.get("/v1/runs"), control.get("/v1/deployments")
    except Unreachable:
        said, runs, deployments = None, [], []
    gateway_up = gateway_answers(site)
    if as_json:
        whole = {"gateway": {"url": url(site), "up": gateway_up}, "controller": said, "runs": runs}
        click.echo(json.dumps({**whole, "deployments": deployments}, indent=2))
    else:
        click.echo(f"gateway     {url(site)}  {'up' if gateway_up else 'down'}")
        what = f"up, scheduler {said['scheduler']['cluster'] or 'not heard of yet'}" if said else "down"
        click.echo(f"controller  {site.control_socket}  {what}")
        if said and said["scheduler_error"]:
            click.echo(f"            the scheduler did not answer: {said['scheduler_error']}")
        if runs:
            click.echo("\n" + table([_run(r) for r in runs[-10:]], ("run", "kind", "state", "age", "cause")))
        if deployments:
            columns = (
                "deployment",
                "state",
                "model",
                "ready",
                "replica",
                "revision",
                "replica_state",
                "endpoint",
                "job",
                "cause",
            )
            click.echo("\n" + table([row for d in deployments for row in _deployment(d)], columns))
    if not (said and gateway_up):
        raise SystemExit(1)


@click.command()
@json_option
@click.pass_obj
def models(context: Context, /, as_json: bool) -> None:
    """Models: servable once an engine has loaded one and generated a token."""
    found = Control(context.site().control_socket).get("/v1/models")
    columns = ("name", "version", "aliases", "state", "parameters", "bytes", "max_logit_difference", "checkpoint")
    show(found, columns, as_json, "no model yet: `headgate publish RUN --as NAME@ALIAS` makes one")


def _run(r: dict[str, Any]) -> dict[str, Any]:
    return {"run": r["id"], **r, "age": ago(r["created_at"]), "cause": first_line(r["cause"])}


def _deployment(d: dict[str, Any]) -> list[dict[str, Any]]:
    whole = d["deployment"]
    row = {
        "deployment": whole["name"],
        "state": whole["state"],
        "model": f"{whole['model']}@{whole['version']}",
        "ready": ready_of_wanted(d),
        "cause": first_line(whole["cause"]),
    }
    rows = []
    for r in live(d) or d["replicas"][-1:]:
        replica, jobs = r["replica"], r["jobs"]
        job = jobs[-1] if jobs else None
        rows.append(
            {
                **row,
                "replica": replica["id"],
                "revision": replica["revision"],
                "replica_state": replica["state"],
                "endpoint": f"{replica['host']}:{replica['port']}" if replica["host"] else None,
                "job": f"{job['job_id']} {job['state']}" if job else None,
            }
        )
    return rows or [row]
