"""`headgate nodes`: what is free, what is out of service, and what maintenance is planned."""

from __future__ import annotations

import json
from typing import Any

import click

from cli.context import Context
from cli.sight import footing, hidden, local, look
from cli.table import json_option, table
from launchers import direct
from slurm import amounts

COLUMNS = ("partition", "gpu", "free", "of", "on nodes", "most on one", "nodes", "out", "cpus free", "of cpus")


@click.command()
@click.option("-p", "--partition", help="One partition; by default all that are not hidden.")
@json_option
@click.pass_obj
def nodes(context: Context, /, partition: str | None, as_json: bool) -> None:
    """Free GPUs by partition and type, nodes out of service with why, the next maintenance."""
    said = look(context.site(), "/v1/nodes", lambda source: direct.nodes(source, partition), partition=partition)
    click.echo(json.dumps(said, indent=2) if as_json else render(said))


def render(said: dict[str, Any]) -> str:
    lines = []
    if said["partitions"]:
        lines.append(table([_row(r) for r in said["partitions"]], COLUMNS))
    if note := hidden(said, "nodes", "partitions", "reservations"):
        lines.append(note)
    elif not said["partitions"]:
        lines.append("no partition has nodes")
    for out in said["out"]:
        lines.append(f"out: {out['text']}")
    for r in said["reservations"]:
        reserved = "reserved" if r["whole"] else "partly reserved"
        what = "maintenance" if r["maintenance"] else f"{reserved} for {amounts.several(r['users'] + r['accounts'])}"
        since = "until" if r["active"] else f"{r['starts_at']} to"
        lines.append(local(f"{what} ({r['name']}) on {amounts.several(r['nodes'])}: {since} {r['ends_at']}"))
    return "\n".join([*lines, footing(said)])


def _row(room: dict[str, Any]) -> dict[str, Any]:
    has_gpus = room["gpu"] is not None
    up = room["partition_state"] == "UP"
    return {
        "partition": room["partition"] if up else f"{room['partition']} ({room['partition_state']})",
        "gpu": amounts.gpu(room["gpu"]) if has_gpus else None,
        "free": room["gpus_free"] if has_gpus else None,
        "of": room["gpus"] if has_gpus else None,
        "on nodes": room["nodes_free"] if has_gpus else None,
        "most on one": room["most_on_one_node"] if has_gpus else None,
        "nodes": room["nodes"],
        "out": room["nodes_out"],
        "cpus free": room["cpus_free"],
        "of cpus": room["cpus"],
    }
