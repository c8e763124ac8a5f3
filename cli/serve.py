"""`headgate serve` and `headgate stop`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.client import Control, Refused, Unreachable
from cli.context import Context
from cli.logs import find_folder, has_ended, newest_log
from cli.resources import asked, resource_options
from launchers.launch import read_job
from launchers.run_folder import RunFolder
from launchers.scheduler import SchedulerError
from launchers.schedulers import scheduler_for
from registry.site import Site


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("model")
@click.option("--name", help="What clients call it; default: the model's name.")
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True)
@click.option("--engine-arg", "engine_args", multiple=True, help="One more argument for the engine; repeatable.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until a replica has generated a token.")
@resource_options
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def serve(
    context: Context,
    /,
    model: str,
    name: str | None,
    replicas: int,
    engine_args: tuple[str, ...],
    wait: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Deploy MODEL: NAME, NAME@ALIAS, NAME@VERSION, or a model directory with --name."""
    site = context.site()
    if "/" in model:
        model = str(Path(model).absolute())
    made = create(site, model, name, replicas, asked(options), list(engine_args))
    deployment = made["deployment"]["name"]
    if wait:
        made = wait_ready(site, deployment, Changes())
    if as_json:
        click.echo(json.dumps(made, indent=2))
    else:
        click.echo(f"deployment {deployment} is {made['deployment']['state']}")


class Changes:
    """Says on stderr what a deployment waits for, each time that changes."""

    def __init__(self) -> None:
        self.said = ""

    def __call__(self, described: dict[str, Any]) -> None:
        waits = waiting_for(described)
        if waits != self.said:
            self.said = waits
            click.echo(waits, err=True)


def waiting_for(described: dict[str, Any]) -> str:
    """Each replica's state and, while its job is in the queue, the scheduler's reason."""
    parts = []
    for r in described["replicas"]:
        job = r["jobs"][-1] if r["jobs"] else None
        reason = f" ({job['reason']})" if job and job["state"] == "PENDING" and job["reason"] else ""
        parts.append(f"{r['replica']['id']} {r['replica']['state']}{reason}")
    return f"waiting for a generated token: {', '.join(parts) or 'no replica yet'}"


def create(
    site: Site,
    model: str,
    name: str | None = None,
    replicas: int = 1,
    resources: dict[str, Any] | None = None,
    engine_args: list[str] | None = None,
) -> dict[str, Any]:
    made: dict[str, Any] = Control(site.control_socket).post(
        "/v1/deployments", model=model, name=name, replicas=replicas, resources=resources, engine_args=engine_args
    )
    return made


def wait_ready(site: Site, name: str, progress: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Wait until the deployment is ready. One that fails ends the command with its cause and its last lines."""
    control = Control(site.control_socket)
    while True:
        described: dict[str, Any] = control.get(f"/v1/deployments/{name}")
        state, cause = described["deployment"]["state"], described["deployment"]["cause"]
        if state == "ready":
            return described
        if state in ("failed", "stopped", "stopping"):
            words = last_lines(described)
            raise click.ClickException(f"deployment {name} {state}: {cause or 'no cause was given'}{words}")
        progress(described)
        time.sleep(0.5)


def last_lines(described: dict[str, Any]) -> str:
    """What the last replica's engine printed last."""
    from launchers.supervisor import tail

    if not described["replicas"]:
        return ""
    log = newest_log(RunFolder(Path(described["replicas"][-1]["replica"]["folder"])))
    text = tail(log) if log else ""
    return f"\nits last lines ({log}):\n{text}" if text else ""


@click.command()
@click.argument("name", metavar="DEPLOYMENT|RUN")
@click.option("--wait/--no-wait", default=True, show_default=True)
@click.pass_obj
def stop(context: Context, /, name: str, wait: bool) -> None:
    """Stop a deployment (its requests in flight finish first), or a run (it saves a checkpoint first)."""
    site = context.site()
    control = Control(site.control_socket)
    state = deployment_state(control, name)
    run = find_folder(site, name, ("train", "convert"))
    runs_on = run is not None and not has_ended(run)
    if state not in (None, "stopped", "failed"):
        control.post(f"/v1/deployments/{name}/stop")
        while wait and (state := deployment_state(control, name)) == "stopping":
            time.sleep(0.3)
        click.echo(f"deployment {name}: {state}")
        if run is not None and runs_on:
            click.echo(f"run {run.id} of the same name goes on; `headgate stop {run.id}` stops it")
    elif run is not None and runs_on:
        cancel_run(site, run)
        click.echo(f"run {run.id}: asked to stop")
    elif run is None and state is None:
        raise click.ClickException(f"there is no deployment and no run called {name!r}; `headgate status` lists them")
    else:
        click.echo(f"{name} had ended already")


def deployment_state(control: Control, name: str) -> str | None:
    """None when there is no such deployment, or no controller to ask."""
    try:
        return str(control.get(f"/v1/deployments/{name}")["deployment"]["state"])
    except Unreachable:
        return None
    except Refused as e:
        if e.status != 404:
            raise
        return None


def cancel_run(site: Site, folder: RunFolder) -> None:
    """Cancel a run's job as the person who asks: Slurm itself says whether they may."""
    job = read_job(folder)
    if job is None:
        raise click.ClickException(f"run {folder.id} has no job yet")
    try:
        scheduler_for(site).cancel(job)
    except SchedulerError as e:
        raise click.ClickException(str(e)) from e
