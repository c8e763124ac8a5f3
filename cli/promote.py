"""`headgate promote` and `headgate promotions`: from a run's checkpoint to the alias that clients call."""

from __future__ import annotations

import getpass
import json
import os
import time
from pathlib import Path
from typing import Any

import click

from cli.client import Control
from cli.context import Context
from cli.pins import sources_pinned
from cli.resources import Memory, TimeLimit, WithSbatchOptions, asked, resource_options
from cli.runs import first_line
from cli.table import ago, cell, json_option, printable, show, table
from cli.train import find_checkpoint
from launchers.evaluation.promote import Asked, StepOf, steps
from launchers.evaluation.promote import submit as submit_steps
from launchers.launch import Launched
from launchers.scheduler import SchedulerError
from launchers.schedulers import scheduler_for
from registry import canary as percent
from registry import clock
from registry.db import RegistryError
from registry.site import Site

COLUMNS = ("promotion", "to", "from", "state", "owner", "age", "version", "canary", "cause")
ENDED = ("promoted", "failed", "cancelled")
LOOK_S = 0.5


@click.command(cls=WithSbatchOptions)
@click.argument("checkpoint", metavar="RUN[/ITERATION]")
@click.option("--to", "target", required=True, metavar="MODEL@ALIAS", help="The alias that moves: chat@prod.")
@click.option(
    "--canary",
    type=click.IntRange(percent.LEAST, percent.MOST),
    metavar="PERCENT",
    help="Of the calls: what deployments that follow the alias give the new version until it has proved itself.",
)
@click.option(
    "--tasks",
    "tasks_dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="lm_eval tasks of your own: YAML files, and the data that they name. Without it nothing is evaluated.",
)
@click.option("--task", "tasks", multiple=True, help="One of these tasks; repeatable. Default: all of them.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N examples of each task.")
@click.option(
    "--require",
    multiple=True,
    metavar="'TASK.METRIC>=X'",
    help="What must hold, or the alias stays where it is; with >=, <=, > or <, in quotes. Repeatable.",
)
@click.option("--engine-arg", "engine_args", multiple=True, help="One more argument for the engine; repeatable.")
@click.option("--convert-time", type=TimeLimit(), help="The conversion's time limit, as -t is the others'.")
@click.option("--convert-mem", type=Memory(), help="The conversion's memory, as --mem is the others'.")
@click.option("--wait/--no-wait", default=False, show_default=True, help="Until it has ended, well or not.")
@resource_options
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def promote(
    context: Context,
    /,
    checkpoint: str,
    target: str,
    canary: int | None,
    tasks_dir: Path | None,
    tasks: tuple[str, ...],
    limit: int | None,
    require: tuple[str, ...],
    engine_args: tuple[str, ...],
    convert_time: int | None,
    convert_mem: float | None,
    wait: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert a checkpoint, try it on an engine, evaluate it, and move an alias to it.

    Each step is a job of your own that starts when the one before has ended well, so nothing of Headgate need run
    meanwhile. sbatch's options are for the jobs with an engine; the conversion has -A and -q of them, and of its own
    --convert-time and --convert-mem.
    """
    site = context.site()
    model, _, alias = target.partition("@")
    if not alias:
        raise click.UsageError(f"--to {target}: say which alias of {model or 'the model'} moves, as in chat@prod")
    found = find_checkpoint(site, checkpoint)
    refuse_others(site, model)
    converting = {"time_limit_s": convert_time, "mem_gb": convert_mem}
    try:
        specs = steps(
            site,
            Asked(
                checkpoint_id=found["id"],
                checkpoint=found["path"],
                model=model,
                alias=alias,
                owner=getpass.getuser(),
                canary=canary,
                tasks_dir=tasks_dir.absolute() if tasks_dir else None,
                tasks=tasks,
                limit=limit,
                require=require,
                engine_args=engine_args,
                resources=asked(options, os.environ),
                converting={key: value for key, value in converting.items() if value is not None},
            ),
            clock.now(),
        )
    except (RegistryError, ValueError) as e:
        raise click.ClickException(str(e)) from e
    except OSError as e:  # of a task
        raise click.ClickException(f"{e.filename or tasks_dir}: {e.strerror or e}") from e
    launched = submit(site, specs)
    promotion = specs[0].promotion
    assert promotion is not None
    if as_json:
        jobs = [{"run": one.folder.id, "job": one.job.job_id, "cluster": one.job.cluster} for one in launched]
        click.echo(json.dumps({"promotion": promotion.id, "steps": jobs}))
    else:
        click.echo(f"promotion {promotion.id}: {found['id']} -> {target}")
        for spec, one in zip(specs, launched, strict=True):
            click.echo(f"{spec.kind}: run {one.folder.id} submitted as job {one.job.job_id} on {one.job.cluster}")
        if tasks_dir is None:
            click.echo("nothing is evaluated: there are no --tasks")
    if wait:
        known = wait_ended(site, promotion.id)
        if not as_json:
            click.echo(f"{target} is version {known['version']} now")


def refuse_others(site: Site, model: str) -> None:
    """Before anything is submitted, where a controller knows whose the name is; else the promotion fails later."""
    known = Control(site.control_socket).find("/v1/models") or []
    owners = {m["owner"] for m in known if m["name"] == model}
    if owners and getpass.getuser() not in owners:
        raise click.ClickException(f"model {model} belongs to {', '.join(sorted(owners))}; promote to one of your own")


def submit(site: Site, specs: list[StepOf]) -> list[Launched]:
    try:
        with sources_pinned(specs):
            launched = submit_steps(specs, site, scheduler_for(site))
    except SchedulerError as e:
        raise click.ClickException(str(e)) from e
    except OSError as e:
        raise click.ClickException(f"{e.filename or site.runs_dir}: {e.strerror or e}") from e
    Control(site.control_socket).poke()
    return launched


def wait_ended(site: Site, promotion: str) -> dict[str, Any]:
    """Say on stderr what it is at, until it is promoted. One that does not get there ends the command with why."""
    control = Control(site.control_socket)
    said = ""
    while True:
        known = control.find("/v1/promotions/{}", promotion)
        state = known["state"] if known else "not taken up yet: no controller knows it"
        if state != said:
            said = state
            click.echo(f"{promotion}: {state}", err=True)
        if known and state in ENDED:
            if state != "promoted":
                raise click.ClickException(printable(f"promotion {promotion} {state}: {known['cause']}"))
            return dict(known)
        time.sleep(LOOK_S)


@click.command()
@click.argument("promotion", required=False)
@json_option
@click.pass_obj
def promotions(context: Context, /, promotion: str | None, as_json: bool) -> None:
    """Promotions, newest last; with PROMOTION, its steps and what they measured."""
    control = Control(context.site().control_socket)
    if promotion is None:
        found = control.get("/v1/promotions")
        show(found if as_json else [row(p) for p in found], COLUMNS, as_json, "no promotion yet")
        return
    known = control.get("/v1/promotions/{}", promotion)
    click.echo(json.dumps(known, indent=2) if as_json else told(known))


def row(p: dict[str, Any]) -> dict[str, Any]:
    return {
        **p,
        "promotion": p["id"],
        "to": f"{p['model']}@{p['alias']}",
        "from": p["source"],
        "age": ago(p["created_at"]),
        "canary": f"{p['canary']}%" if p["canary"] else None,
        "cause": first_line(p["cause"]),
    }


def told(p: dict[str, Any]) -> str:
    """One promotion on one screen."""
    canary = f", canary {p['canary']}%" if p["canary"] else ""
    lines = [
        f"{p['id']}: {p['source']} -> {p['model']}@{p['alias']}{canary}, by {p['owner']}, {ago(p['created_at'])} ago"
    ]
    version = f" (version {p['version']})" if p["version"] else ""
    lines.append(f"{p['state']}{version}{': ' + p['cause'] if p['cause'] else ''}")
    lines += ["", table([{**s, "cause": first_line(s["cause"])} for s in p["steps"]], ("run", "state", "cause"))]
    for said in (s["said"] for s in p["steps"]):
        if "completion_tokens" in said:
            tokens = f"{said['completion_tokens']} tokens for {said['prompts']} prompts"
            lines += ["", f"the engine started in {said['start_s']:.1f} s and generated {tokens}"]
        if "results" in said:
            lines += [
                "",
                table([result_row(r) for r in said["results"]], ("task", "metric", "value", "stderr", "examples")),
            ]
            lines += [f"not met: {why}" for why in said["unmet"]]
            lines.append(f"tasks: sha256 {said['tasks_sha256']}")
    return printable("\n".join(lines))


def result_row(r: dict[str, Any]) -> dict[str, Any]:
    metric = r["metric"] if r["filter"] == "none" else f"{r['metric']},{r['filter']}"
    better = {True: " ↑", False: " ↓"}.get(r["higher_is_better"], "")
    return {**r, "metric": metric + better, "value": cell(r["value"]), "stderr": cell(r["stderr"])}
