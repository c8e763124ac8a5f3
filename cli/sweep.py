"""`headgate train --sweep`: a run for each combination of values, all in one job array."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli import table
from cli.client import Control
from cli.pins import sources_pinned
from cli.train import train_spec
from launchers.launch import new_id
from launchers.run_folder import RunFolder
from launchers.scheduler import Scheduler, SchedulerError
from launchers.schedulers import scheduler_for, slurm_client
from launchers.spec import TrainSpec
from launchers.sweep import Combination, Sweep, array_request, combinations, launch_sweep, refuse_too_many
from registry.site import Site
from slurm.errors import SlurmError


def train_sweep(
    site: Site,
    recipe: Path,
    name: str | None,
    resources: dict[str, Any],
    asked: Sequence[str],
    parallel: int | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Check every combination, then submit them all. A mistake in any ends the command before anything is made."""
    if site.scheduler.kind != "slurm":
        raise click.ClickException("--sweep needs a site with Slurm, which has job arrays")
    try:
        combined = combinations(asked)
        specs = with_own_ids([spec_of(site, recipe, name, resources, one) for one in combined])
        scheduler = scheduler_for(site)
        if dry_run:
            click.echo(script_of(site, specs, scheduler, parallel), nl=False)
            return
        refuse_too_many(len(combined), slurm_client(site))
        with sources_pinned(specs):
            sweep = launch_sweep(specs, combined, site.runs_dir, scheduler, parallel)
    except OSError as e:
        raise click.ClickException(f"{site.runs_dir}: {e.strerror or e}") from e
    except (SchedulerError, SlurmError, ValueError) as e:
        raise click.ClickException(str(e)) from e
    Control(site.control_socket).poke()
    report(sweep, combined, as_json)


def spec_of(site: Site, recipe: Path, name: str | None, resources: dict[str, Any], one: Combination) -> TrainSpec:
    try:
        return train_spec(site, recipe, name, resources, one.layers())
    except click.ClickException as e:
        values = ", ".join(f"{key} = {value}" for key, value in one.shown().items())
        raise click.ClickException(f"with {values}: {e.message}") from e


def with_own_ids(specs: Sequence[TrainSpec]) -> list[TrainSpec]:
    """Ids made within one second differ by four digits, which are drawn by lot: among a thousand, some would agree."""
    ids: dict[str, None] = {}
    while len(ids) < len(specs):
        ids[new_id(specs[0].name)] = None
    return [dataclasses.replace(spec, id=own) for spec, own in zip(specs, ids, strict=True)]


def script_of(site: Site, specs: Sequence[TrainSpec], scheduler: Scheduler, parallel: int | None) -> str:
    sweep_id = new_id(specs[0].name)
    folder = RunFolder(site.runs_dir.resolve() / sweep_id)
    return scheduler.script(array_request(sweep_id, folder, specs[0], len(specs), parallel))


def report(sweep: Sweep, combined: Sequence[Combination], as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for run, combination in zip(sweep.runs, combined, strict=True):
        place = {"folder": str(run.folder.root), "cluster": run.job.cluster} if as_json else {}
        values = combination.shown()
        rows.append(
            {"run": run.folder.id, **({"values": values} if as_json else values), "job": run.job.job_id, **place}
        )
    table.show(rows, list(rows[0]), as_json)
    if not as_json:
        job = sweep.job
        click.echo(f"\n{len(rows)} runs submitted as job array {job.job_id} on {job.cluster}: {sweep.folder.root}")
