"""`headgate train` and `headgate publish`: offline work, submitted as the person who types it.

Both speak to the scheduler directly and work while the control plane is down: the controller adopts their run folders
when it is back.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli.client import Control, Unreachable
from cli.context import Context
from cli.folders import find_folder
from cli.pins import sources_pinned
from cli.resources import WithSbatchOptions, asked, resource_options
from launchers.launch import Launched, launch, new_id, request_for
from launchers.megatron import manifest, shelf
from launchers.megatron.arithmetic import check
from launchers.megatron.recipe import read_recipe, to_dict
from launchers.resources import check_gpus, resources_from, training_environment
from launchers.run_folder import RunFolder
from launchers.scheduler import SchedulerError
from launchers.schedulers import scheduler_for
from launchers.spec import ConvertSpec, SupervisedSpec, TrainSpec
from registry import clock
from registry.db import RegistryError
from registry.site import Site
from registry.strict_toml import Layer
from registry.tenants import checked_name


@click.command(cls=WithSbatchOptions)
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("-J", "--job-name", "name", help="The run's name; default: the recipe's file name.")
@resource_options
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="KEY=VALUES",
    help="A run for each value: lr=1e-3,3e-4 or seed=1..4. Several: for each combination.",
)
@click.option("--sweep-parallel", type=click.IntRange(1), metavar="N", help="At most N runs of the sweep at once.")
@click.option("--dry-run", is_flag=True, help="Print the script that would be submitted, and submit nothing.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def train(
    context: Context,
    /,
    recipe: Path,
    name: str | None,
    sweeps: tuple[str, ...],
    sweep_parallel: int | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit a training run, with any of sbatch's options and SBATCH_* variables.

    Does not wait for it: `headgate logs -f RUN` follows.
    """
    site = context.site()
    resources = asked(options, os.environ)
    if sweeps:
        from cli.sweep import train_sweep

        train_sweep(site, recipe, name, resources, sweeps, sweep_parallel, dry_run=dry_run, as_json=as_json)
        return
    if sweep_parallel is not None:
        raise click.UsageError("--sweep-parallel is for a sweep: there is no --sweep")
    spec = train_spec(site, recipe, name, resources)
    if dry_run:
        click.echo(script_of(site, spec), nl=False)
    else:
        report(submit(site, spec), as_json)


@click.command(cls=WithSbatchOptions)
@click.argument("checkpoint", metavar="RUN[/ITERATION]")
@click.option("--as", "target", required=True, metavar="MODEL[@ALIAS]", help="What it will be called: demo@latest.")
@resource_options
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def publish(context: Context, /, checkpoint: str, target: str, as_json: bool, **options: Any) -> None:
    """Convert a checkpoint to Hugging Face format, compare logits with the trainer's, and register it as a model."""
    site = context.site()
    found = find_checkpoint(site, checkpoint)
    report(submit(site, publish_spec(site, found, target, asked(options, os.environ))), as_json)


def find_checkpoint(site: Site, ref: str) -> dict[str, Any]:
    """A complete checkpoint by RUN or RUN/ITERATION: from the registry, or from the run folder while that is down."""
    try:
        found: dict[str, Any] = Control(site.control_socket).get("/v1/checkpoints/{}", ref)
        return found
    except Unreachable:
        pass
    run, _, iteration = ref.partition("/")
    folder = find_folder(site, run, ("train", "convert"))
    if folder is None:
        raise click.ClickException(f"no run called {run!r} has left a folder in {site.runs_dir}")
    complete = shelf.complete(folder.checkpoints)
    wanted = [n for n in complete if iteration in ("", str(n), manifest.name_of(n).removeprefix("iter_"))]
    if not wanted:
        raise click.ClickException(f"{folder.checkpoints}: no complete checkpoint is called {ref!r}")
    newest = wanted[-1]
    return {"id": f"{folder.id}/{newest}", "path": str(folder.checkpoints / manifest.name_of(newest))}


def train_spec(
    site: Site, recipe_file: Path, name: str | None, resources: dict[str, Any], overrides: Sequence[Layer] = ()
) -> TrainSpec:
    """Read and check a recipe before anything is submitted. A mistake ends the command with what is wrong where."""
    try:
        recipe = read_recipe(recipe_file, overrides)
        asks = resources_from(site.defaults.train, resources)
        check(recipe, asks.nodes * asks.tasks_per_node)
        check_gpus(asks)
        name = checked_name("run", name or recipe_file.stem)
        environment = training_environment(site)
    except (RegistryError, ValueError) as e:
        raise click.ClickException(str(e)) from e
    return TrainSpec(
        id=new_id(name),
        name=name,
        owner=getpass.getuser(),
        created_at=clock.now(),
        resources=asks,
        environment=environment,
        recipe=to_dict(recipe),
        dataset_dir=str(site.datasets_dir),
        peak_tflops=site.peak_tflops(asks.partition),
    )


def publish_spec(site: Site, checkpoint: dict[str, Any], target: str, resources: dict[str, Any]) -> ConvertSpec:
    """`checkpoint` as the control API describes it; `target` is MODEL or MODEL@ALIAS."""
    model, _, alias = target.partition("@")
    try:
        checked_name("model", model)
        if alias:
            checked_name("alias", alias)
        asks = resources_from(site.defaults.convert, resources)
        environment = training_environment(site)
    except (RegistryError, ValueError) as e:
        raise click.ClickException(str(e)) from e
    return ConvertSpec(
        id=new_id(f"publish-{model}"),
        name=f"publish-{model}",
        owner=getpass.getuser(),
        created_at=clock.now(),
        resources=asks,
        environment=environment,
        checkpoint=checkpoint["path"],
        checkpoint_id=checkpoint["id"],
        model=model,
        alias=alias or None,
    )


def script_of(site: Site, spec: SupervisedSpec) -> str:
    """The job.sh that `submit` would submit."""
    folder = RunFolder(site.runs_dir.resolve() / spec.id)
    try:
        return scheduler_for(site).script(request_for(spec, folder))
    except SchedulerError as e:
        raise click.ClickException(str(e)) from e


def submit(site: Site, spec: SupervisedSpec) -> Launched:
    try:
        with sources_pinned([spec]):
            launched = launch(spec, site.runs_dir, scheduler_for(site))
    except SchedulerError as e:
        raise click.ClickException(str(e)) from e
    except OSError as e:
        raise click.ClickException(f"{site.runs_dir}: {e.strerror or e}") from e
    Control(site.control_socket).poke()
    return launched


def report(launched: Launched, as_json: bool) -> None:
    folder, job = launched.folder, launched.job
    if as_json:
        click.echo(
            json.dumps({"run": folder.id, "folder": str(folder.root), "job": job.job_id, "cluster": job.cluster})
        )
    else:
        click.echo(f"run {folder.id} submitted as job {job.job_id} on {job.cluster}")
