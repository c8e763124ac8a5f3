"""`headgate stop` and `headgate save`: ask what runs to end, or a run to save a checkpoint and go on."""

from __future__ import annotations

import os
import time

import click

from cli import record
from cli.client import Control
from cli.context import Context
from cli.folders import RUNS, find_folder, is_ours, kind_of, run_folder
from cli.jobs import newest_job, scheduler_answers
from cli.settling import wait_stopped
from launchers.run_folder import RunFolder
from launchers.schedulers import scheduler_for
from registry.site import Site

TAKEN_S = 5.0  # training looks at its switches every second, between two iterations


@click.command()
@click.argument("name", metavar="DEPLOYMENT|RUN")
@click.option("--now", is_flag=True, help="A run: without saving first. A deployment never waits for that.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until a deployment has stopped.")
@click.pass_obj
def stop(context: Context, /, name: str, now: bool, wait: bool) -> None:
    """Stop a deployment (its requests in flight finish first), or a run (it saves a checkpoint first).

    A run that waits in the queue is cancelled. Whoever is in a run's group, and not its owner, asks through its
    folder: it stops at its next iteration.
    """
    site = context.site()
    control = Control(site.control_socket)
    state = deployment_state(control, name)
    run = find_folder(site, name, RUNS)
    goes_on = run is not None and runs_on(site, run)
    if state not in (None, "stopped", "failed"):
        control.post("/v1/deployments/{}/stop", name)
        state = wait_stopped(control, name) if wait else "stopping"
        click.echo(f"deployment {name}: {state}")
        if run is not None and goes_on:
            click.echo(f"run {run.id} of the same name goes on; `headgate stop {run.id}` stops it")
    elif run is not None and goes_on:
        click.echo(f"run {run.id}: {stop_run(site, run, now)}")
    elif run is None and state is None:
        raise click.ClickException(f"there is no deployment and no run called {name!r}; `headgate status` lists them")
    else:
        click.echo(f"{name} had ended already")


@click.command()
@click.argument("run")
@click.pass_obj
def save(context: Context, /, run: str) -> None:
    """Have a training run save a checkpoint at its next iteration, and go on. Its owner's group may ask, too."""
    folder = run_folder(context.site(), run, ("train",))
    state = record.story(folder).state
    if state != "running":
        raise click.ClickException(f"run {folder.id} is {state}; only a running one can save")
    switch(folder, "save")
    click.echo(f"run {folder.id}: asked to save; `headgate checkpoints {folder.id}` shows it when it is complete")


def runs_on(site: Site, folder: RunFolder) -> bool:
    """Whether there is something to stop. Of a script only the scheduler tells."""
    if kind_of(folder) == "script":
        with scheduler_answers():
            status = newest_job(scheduler_for(site), folder)
        return status is not None and not status.state.ended
    return record.story(folder).goes_on


def stop_run(site: Site, folder: RunFolder, now: bool) -> str:
    """Ask a run to end; what was asked, in words."""
    switches = folder.switches.is_dir()
    by_switch = not is_ours(folder) and os.getuid() != 0  # Slurm lets only the owner and root cancel
    if by_switch and switches and os.access(folder.switches, os.W_OK):
        switch(folder, "kill" if now else "stop")
        return "asked to stop at its next iteration" + (", without saving" if now else "")
    if by_switch:
        raise click.ClickException(f"run {folder.id} is not yours, and {folder.switches} is not yours to write")
    if unsaved := now and switches and record.story(folder).state == "running":
        switch(folder, "kill")  # first: what Slurm tells the job to do is to save and end
        deadline = time.monotonic() + TAKEN_S
        while record.story(folder).goes_on and time.monotonic() < deadline:
            time.sleep(0.2)
    with scheduler_answers():
        scheduler = scheduler_for(site)
        status = newest_job(scheduler, folder)
        if status is None:
            raise click.ClickException(f"run {folder.id} has no job yet")
        if not is_ours(folder) and scheduler.find(folder.id) != status.ref:
            # A folder says what its owner likes; root would cancel whatever job it names.
            raise click.ClickException(
                f"run {folder.id} is not yours, and whether job {status.ref.job_id} is its own cannot be told; "
                f"`scancel {status.ref.job_id}` cancels it"
            )
        scheduler.cancel(status.ref)
    return "asked to stop" + (", without saving" if unsaved else "")


def switch(folder: RunFolder, name: str) -> None:
    """Set one of the run's switches, which its training looks at between two iterations."""
    try:
        os.close(os.open(folder.switches / name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o660))
    except OSError as e:
        raise click.ClickException(f"{folder.switches / name}: {e.strerror}; the run's owner and group may") from e


def deployment_state(control: Control, name: str) -> str | None:
    """None when there is no such deployment, or no controller to ask."""
    found = control.find("/v1/deployments/{}", name)
    return None if found is None else str(found["deployment"]["state"])
