"""`headgate resume`: submit a run's folder again. It goes on from its newest complete checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from typing import Any

import click

from cli import record
from cli.client import Control
from cli.context import Context
from cli.folders import is_ours, run_folder
from cli.jobs import newest_job, scheduler_answers
from cli.resources import WithSbatchOptions, asked, resource_options
from launchers.launch import launch_again
from launchers.megatron.arithmetic import check
from launchers.megatron.recipe import from_dict
from launchers.resources import changed, check_gpus
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState, JobStatus, Scheduler
from launchers.schedulers import scheduler_for
from launchers.spec import ScriptSpec, SupervisedSpec, TrainSpec, load, promotion_of
from registry.site import Site

LEFT_S = 30.0  # how long the job of a run that has ended may take to leave the scheduler
LOOK_S = 0.5


@click.command(cls=WithSbatchOptions)
@click.argument("run")
@resource_options
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def resume(context: Context, /, run: str, as_json: bool, **options: Any) -> None:
    """Submit a run that was stopped, or that failed, again: the same folder, code and recipe.

    It keeps its id, and goes on from its newest complete checkpoint. It asks for what it asked for before, and where
    sbatch's options say otherwise (--mem 64G, -t 2-0, -N 4), for that from now on. SBATCH_* variables change nothing.

    A promotion's steps are not submitted again one by one: `headgate promote` does all of it again.
    """
    site = context.site()
    folder = run_folder(site, run)
    spec = load(folder.spec)
    if isinstance(spec, ScriptSpec):
        again = shlex.join(["sbatch", str(folder.script), *spec.args])
        raise click.ClickException(f"run {folder.id} is a script of its owner's own; `{again}` submits it again")
    if not is_ours(folder):
        raise click.ClickException(f"run {folder.id} is not yours; its owner may resume it")
    if record.story(folder).state == "completed":
        raise click.ClickException(f"run {folder.id} has come to its end; there is nothing left to go on with")
    if (whole := promotion_of(spec)) is not None:
        again = shlex.join(["headgate", "promote", whole.source, "--to", f"{whole.model}@{whole.alias}"])
        raise click.ClickException(
            f"run {folder.id} is a step of promotion {whole.id}, which does not go on with it; `{again}`, with the "
            "options that it had, does all of it again; more time and memory: --convert-time and --convert-mem for the "
            "conversion, -t and --mem for the jobs with an engine"
        )
    job = submit_again(site, folder, with_resources(site, spec, asked(options)))
    Control(site.control_socket).poke()
    if as_json:
        said = {"run": folder.id, "folder": str(folder.root), "job": job.job_id, "cluster": job.cluster}
        click.echo(json.dumps(said))
    else:
        click.echo(f"run {folder.id} submitted again as job {job.job_id} on {job.cluster}")


def with_resources(site: Site, spec: SupervisedSpec, now: dict[str, Any]) -> SupervisedSpec:
    """The run's spec with what is asked for now. What cannot train its recipe ends the command with the sum."""
    try:
        asks = changed(spec.resources, now)
        if now and isinstance(spec, TrainSpec):
            check(from_dict(spec.recipe), asks.nodes * asks.tasks_per_node)
            check_gpus(asks)
            return dataclasses.replace(spec, resources=asks, peak_tflops=site.peak_tflops(asks.partition))
    except ValueError as e:
        raise click.ClickException(str(e)) from e
    return dataclasses.replace(spec, resources=asks)


def submit_again(site: Site, folder: RunFolder, spec: SupervisedSpec) -> JobRef:
    """Unless a job of the run still waits or runs: two must not write one run's checkpoints."""
    with scheduler_answers():
        scheduler = scheduler_for(site)
        if (status := job_that_goes_on(scheduler, folder)) is not None:
            raise click.ClickException(
                f"run {folder.id} goes on already: job {status.ref.job_id} is {status.state.value}"
                if record.story(folder).goes_on
                else f"run {folder.id} has ended, but its job {status.ref.job_id} is {status.state.value} still: "
                f"try again once it has left, or `scancel {status.ref.job_id}`"
            )
        for left in ("stop", "kill"):  # meant for an attempt that is over
            try:
                (folder.switches / left).unlink(missing_ok=True)
            except OSError as e:
                raise click.ClickException(f"{folder.switches / left}: {e.strerror}; it would end the run again") from e
        try:
            return launch_again(spec, folder, scheduler)
        except OSError as e:
            raise click.ClickException(f"{e.filename or folder.root}: {e.strerror or e}") from e


def job_that_goes_on(scheduler: Scheduler, folder: RunFolder) -> JobStatus | None:
    """The run's job that waits or runs. That of a run that has ended is given some seconds to end as well."""
    deadline = time.monotonic() + LEFT_S
    while True:
        status = newest_job(scheduler, folder)
        if status is None or status.state.ended or status.state is JobState.UNKNOWN:
            return None
        if record.story(folder).goes_on or time.monotonic() > deadline:
            return status
        time.sleep(LOOK_S)
