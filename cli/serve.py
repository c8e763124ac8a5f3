"""`headgate serve` and `headgate stop`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.client import Control
from cli.context import Context
from cli.logs import newest_log
from cli.resources import WithSbatchOptions, asked, resource_options
from launchers.run_folder import RunFolder
from registry.site import Site


@click.command(cls=WithSbatchOptions)
@click.argument("model")
@click.option("--name", help="What clients call it; default: the model's name.")
@click.option(
    "--replicas", type=click.IntRange(0), default=1, show_default=True, help="0: one, and only while it is called."
)
@click.option("--engine-arg", "engine_args", multiple=True, help="One more argument for the engine; repeatable.")
@click.option(
    "--routing",
    # registry.deployments.ROUTING, whose import takes a tenth of a second; a test holds them equal
    type=click.Choice(["least-work", "least-outstanding", "round-robin"]),
    help="How the gateway chooses a replica.  [default: least-work]",
)
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
    routing: str | None,
    wait: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Deploy MODEL: NAME, NAME@ALIAS, NAME@VERSION, or a model directory with --name."""
    site = context.site()
    if "/" in model:
        model = str(Path(model).absolute())
    made = create(site, model, name, replicas, asked(options), list(engine_args), routing)
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
    routing: str | None = None,
) -> dict[str, Any]:
    made: dict[str, Any] = Control(site.control_socket).post(
        "/v1/deployments",
        model=model,
        name=name,
        replicas=replicas,
        resources=resources,
        engine_args=engine_args,
        routing=routing,
    )
    return made


def wait_ready(site: Site, name: str, progress: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Wait until the deployment is ready. One that fails ends the command with its cause and its last lines."""
    control = Control(site.control_socket)
    while True:
        described: dict[str, Any] = control.get("/v1/deployments/{}", name)
        state, cause = described["deployment"]["state"], described["deployment"]["cause"]
        if state in ("ready", "asleep"):
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
