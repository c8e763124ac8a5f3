"""`headgate runs`: every run, with how far it is. From the registry, or from the run folders while that is down."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cli import metrics, record
from cli.client import Control, Unreachable
from cli.context import Context
from cli.folders import RUNS
from cli.jobs import scheduler_answers
from cli.table import ago, json_option, show
from launchers.run_folder import RunFolder
from launchers.spec import Spec, SpecError, after_its_time, load
from launchers.subjects import user_name
from registry import clock
from registry.site import Site
from slurm import amounts

COLUMNS = ("run", "kind", "state", "owner", "age", "progress", "loss", "tokens_per_s", "ETA", "cause")


@click.command()
@click.option("--state", "states", type=click.Choice(record.STATES), multiple=True, help="Repeatable.")
@click.option("--kind", "kinds", type=click.Choice(RUNS), multiple=True, help="Repeatable.")
@click.option("--mine", is_flag=True, help="My own runs.")
@click.option("-u", "--user", help="Somebody's runs.")
@json_option
@click.pass_obj
def runs(
    context: Context,
    /,
    states: tuple[str, ...],
    kinds: tuple[str, ...],
    mine: bool,
    user: str | None,
    as_json: bool,
) -> None:
    """Runs, newest last. Without a controller: as their folders tell."""
    if mine and user:
        raise click.UsageError("--mine and --user exclude each other")
    whose = getpass.getuser() if mine else user
    site = context.site()
    found = [
        r | standing(RunFolder(Path(r["folder"])), r["kind"])
        for r in everything(site)
        if (not states or r["state"] in states) and (not kinds or r["kind"] in kinds) and whose in (None, r["owner"])
    ]
    empty = "no such run" if states or kinds or whose else "no run yet"
    show(found if as_json else [row(r) for r in found], COLUMNS, as_json, empty)


def everything(site: Site) -> list[dict[str, Any]]:
    """The registry's rows, or what the folders tell in their shape; oldest first."""
    try:
        found: list[dict[str, Any]] = Control(site.control_socket).get("/v1/runs")
    except Unreachable:
        found = sorted(told(site), key=lambda r: r["created_at"])
        ask_about_scripts(site, [r for r in found if r["kind"] == "script"])
    return found


def registered(site: Site, run: str) -> dict[str, Any] | None:
    """The run as the control API describes it; None where no controller answers, or has not heard of it."""
    found: dict[str, Any] | None = Control(site.control_socket).find("/v1/runs/{}", run)
    return found


def completed(site: Site) -> Callable[[str], bool]:
    """Whether the registry knows a run, by its id, as completed: it would find one by its name, too."""

    def asked(run: str) -> bool:
        known = registered(site, run)
        return known is not None and known["run"]["id"] == run and known["run"]["state"] == "completed"

    return asked


def told(site: Site) -> Iterator[dict[str, Any]]:
    """Runs by their folders. A folder that cannot be read, or that is a replica's, is none."""
    try:
        folders = [RunFolder(path) for path in site.runs_dir.iterdir()]
    except FileNotFoundError:
        return
    for folder in folders:
        try:
            spec = load(folder.spec)
            owner = user_name(os.stat(folder.root, follow_symlinks=False).st_uid)
        except (OSError, SpecError):
            continue
        if spec.kind in RUNS:
            yield as_row(folder, spec, owner)


def ask_about_scripts(site: Site, rows: list[dict[str, Any]]) -> None:
    """Fill in how they stand, which nothing in their folders tells."""
    if not rows:
        return
    from cli import scripts
    from launchers.schedulers import scheduler_for

    folders = [RunFolder(Path(r["folder"])) for r in rows]
    with scheduler_answers():
        stand = scripts.states(scheduler_for(site), folders)
    for r in rows:
        r["state"], r["cause"] = stand[r["id"]]


def as_row(folder: RunFolder, spec: Spec, owner: str) -> dict[str, Any]:
    """A registry.runs.Run, as far as the folder tells it."""
    story = record.story(folder)
    first, last = story.attempts[:1], story.attempts[-1:]
    ended_at = last[0].ended_at if last and not story.goes_on else None
    cause = f"{story.cause}; {after_its_time(spec)}" if story.cause == record.OUT_OF_TIME else story.cause
    return {
        "id": spec.id,
        "kind": spec.kind,
        "name": spec.name,
        "owner": owner,
        "state": story.state,
        "folder": str(folder.root),
        "cause": cause,
        "created_at": spec.created_at,
        "started_at": moment(first[0].started_at) if first else None,
        "ended_at": moment(ended_at),
    }


def standing(folder: RunFolder, kind: str) -> dict[str, Any]:
    """How far a training run is, as of its newest iteration."""
    nothing = dict.fromkeys(("iteration", "iterations", "loss", "tokens_per_s", "mfu", "eta_s"))
    if kind != "train" or (newest := metrics.newest_step(folder.metrics)) is None:
        return nothing
    found = nothing | {key: metrics.count(newest.get(key)) for key in ("iteration", "iterations")}
    found |= {key: metrics.number(newest.get(key)) for key in ("loss", "tokens_per_s", "mfu")}
    found["eta_s"] = metrics.seconds(newest.get("eta_s"))
    return found


def row(r: dict[str, Any]) -> dict[str, Any]:
    """A run as the table shows it: speed and end of what runs only."""
    goes = r["state"] == "running"
    return {
        **r,
        "run": r["id"],
        "age": ago(r["created_at"]),
        "progress": progress(r),
        "loss": None if r["loss"] is None else f"{r['loss']:.4f}",
        "tokens_per_s": f"{r['tokens_per_s']:,.0f}" if goes and r["tokens_per_s"] is not None else None,
        "ETA": amounts.duration(r["eta_s"]) if goes and r["eta_s"] is not None else None,
        "cause": first_line(r["cause"]),
    }


def progress(r: dict[str, Any]) -> str | None:
    if r["iteration"] is None:
        return None
    return f"{r['iteration']:,}/{r['iterations']:,}" if r["iterations"] is not None else f"{r['iteration']:,}"


def first_line(text: str | None) -> str | None:
    return text.splitlines()[0][:100] if text else None


def moment(at: float | None) -> str | None:
    """Seconds since the epoch as the registry writes instants."""
    return None if at is None else clock.text(datetime.fromtimestamp(at, UTC))
