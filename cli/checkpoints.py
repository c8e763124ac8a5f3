"""`headgate checkpoints` and `headgate verify`: what a run has saved, and whether it is still whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from cli import pins, record
from cli.client import Control
from cli.context import Context
from cli.folders import run_folder
from cli.runs import completed, registered
from cli.table import ago, json_option, printable, show
from launchers.megatron import manifest
from launchers.megatron.manifest import CheckpointError
from launchers.megatron.stop import Switches
from launchers.run_folder import RunFolder
from registry.site import Site
from slurm import amounts

OF_A_RUN = ("iteration", "state", "bytes", "age", "used_by", "path")


@click.command()
@click.argument("run", required=False)
@json_option
@click.pass_obj
def checkpoints(context: Context, /, run: str | None, as_json: bool) -> None:
    """Complete checkpoints of every run (a manifest was written), oldest first; with RUN, all of its own.

    Of one run its folder tells, and a controller, where one answers, who uses them.
    """
    site = context.site()
    if run is None:
        found = Control(site.control_socket).get("/v1/checkpoints")
        show(found, ("id", "owner", "iteration", "bytes", "path"), as_json, "no checkpoint yet")
        return
    folder = run_folder(site, run, ("train", "convert"))
    users, pinned = used_by(registered(site, folder.id)), still_pinned(site, folder)
    rows = [dataclasses.asdict(c) for c in record.checkpoints(folder)]
    for row in rows:
        row["used_by"] = [*users.get(row["iteration"], []), *(["a pin"] if row["iteration"] in pinned else [])]
        row["state"] = "complete" if row["problem"] is None else "not complete"
        row["age"] = ago(row["created_at"])
    show(rows, OF_A_RUN, as_json, f"run {folder.id} has saved nothing yet")


def still_pinned(site: Site, folder: RunFolder) -> set[int]:
    """The iterations whose pins `headgate prune` would heed; none where the pins are not ours to see."""
    try:
        return Switches(folder.switches).pinned().difference(pins.outlived(folder, completed(site)))
    except OSError:
        return set()


@click.command()
@click.argument("checkpoint", metavar="RUN[/ITERATION]")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def verify(context: Context, /, checkpoint: str, as_json: bool) -> None:
    """Compare checkpoints with their manifests: every file's size and sha256. Exits 1 when one is damaged.

    A checkpoint that was never completed is no damage, unless it is the one asked for.
    """
    site = context.site()
    run, _, iteration = checkpoint.partition("/")
    folder = run_folder(site, run, ("train", "convert"))
    found = record.checkpoints(folder)
    if iteration:
        found = [c for c in found if str(c.iteration) == iteration]
    if not found:
        raise click.ClickException(f"{folder.checkpoints}: there is no checkpoint {checkpoint!r}")
    verdicts = [examine(c, asked_for=bool(iteration)) for c in found]
    if as_json:
        click.echo(json.dumps(verdicts, indent=2))
    else:
        click.echo(printable("\n".join(f"{folder.id}/{v['iteration']}: {v['words']}" for v in verdicts)))
    raise SystemExit(1 if any(v["verdict"] == "damaged" for v in verdicts) else 0)


def examine(checkpoint: record.Checkpoint, *, asked_for: bool) -> dict[str, Any]:
    if not checkpoint.complete and not asked_for and not (Path(checkpoint.path) / manifest.NAME).exists():
        return {"iteration": checkpoint.iteration, "verdict": "incomplete", "words": "not complete"}
    try:
        whole = manifest.verify(Path(checkpoint.path))
    except CheckpointError as e:
        return {"iteration": checkpoint.iteration, "verdict": "damaged", "words": str(e)}
    words = f"whole: {amounts.counted(len(whole.files), 'file')}, {whole.bytes:,} bytes, as its manifest promises"
    return {"iteration": checkpoint.iteration, "verdict": "whole", "words": words}


def used_by(known: dict[str, Any] | None) -> dict[int, list[str]]:
    """Who uses a run's checkpoints, by iteration: aliases and deployments of the models made of them."""
    branches = known["checkpoints"] if known else []
    return {branch["checkpoint"]["iteration"]: branch["users"] for branch in branches}
