"""`headgate show RUN`: one run on one screen. From its folder; from the registry too, while a controller answers."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cli import metrics, record, runs, scripts, timing
from cli.context import Context
from cli.folders import run_folder
from cli.metrics import Training
from cli.record import Attempt, Checkpoint
from cli.screen import render
from cli.table import json_option
from launchers import claims
from launchers.launch import read_job
from launchers.run_folder import RunFolder
from launchers.spec import ScriptSpec, Spec, SpecError, load
from launchers.subjects import user_name
from registry.site import Site


@click.command()
@click.argument("run")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Draw the losses into a picture (PNG, SVG or PDF, by the name's end) instead.",
)
@json_option
@click.pass_obj
def show(context: Context, /, run: str, plot: Path | None, as_json: bool) -> None:
    """One run: what was asked, its attempts and why they ended, losses, checkpoints, time lost, what became of it."""
    site = context.site()
    folder = run_folder(site, run)
    training = metrics.read(folder.metrics)
    if plot is not None:
        from cli.plot import draw  # matplotlib, for this alone

        draw(plot, folder.id, training)
        click.echo(f"{plot}: the losses of {folder.id}")
        return
    said = gather(site, folder, training, time.time())
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        click.echo(render(said, training, shutil.get_terminal_size((100, 24)).columns))


def gather(site: Site, folder: RunFolder, training: Training, now: float) -> dict[str, Any]:
    """All that is shown of a run, as plain data. `now`: seconds since the epoch."""
    try:
        spec = load(folder.spec)
    except (OSError, SpecError) as e:
        raise click.ClickException(str(e)) from e
    known = runs.registered(site, folder.id)
    story = record.story(folder)
    attempts = [_with_books(a, known) for a in story.attempts]
    of = timing.stretches(attempts, training, now)
    owner = user_name(folder.root.stat().st_uid)
    run = runs.as_row(folder, spec, owner) | (known["run"] if known else {})
    if known is None and isinstance(spec, ScriptSpec):
        runs.ask_about_scripts(site, [run])
    checkpoints = record.checkpoints(folder)
    plain = dataclasses.asdict(spec)
    return {
        "run": run | runs.standing(folder, spec.kind),
        "phase": record.progress(folder).get("phase") if run["state"] == "running" else None,
        "silent_s": _silent_s(folder, attempts, now) if run["state"] == "running" else None,
        "resources": plain.get("resources"),
        "submitted": {key: plain[key] for key in ("argv", "cwd", "script")} if isinstance(spec, ScriptSpec) else None,
        "git": record.git(folder),
        "recipe": plain.get("recipe"),
        "parameters": (training.model or {}).get("parameters"),
        "attempts": [_attempt(a, of[a.number], now) for a in attempts],
        "validation": [{"iteration": i, "loss": loss} for i, loss in training.validation],
        "checkpoints": _checkpoints(checkpoints),
        "time": _time(attempts, of, training, now),
        "lineage": _lineage(plain, known),
        "files": _files(folder, spec, owner, attempts),
        "registry": known is not None,
    }


def _silent_s(folder: RunFolder, attempts: list[Attempt], now: float) -> float | None:
    """For how long the attempt that runs has shown no life; None where it lives, or never shows it."""
    alive_at = claims.alive_at(folder, attempts[-1].attempt) if attempts else None
    silent_s = 0.0 if alive_at is None else now - alive_at
    return round(silent_s) if silent_s > claims.SILENT_S else None


def _with_books(attempt: Attempt, known: dict[str, Any] | None) -> Attempt:
    """With what Slurm's books say of an end that nobody announced."""
    rows = {row["attempt"]: row for row in known["attempts"]} if known else {}
    row = rows.get(attempt.attempt)
    if row is None or (attempt.cause is not None and attempt.cause != "requeued"):
        return attempt
    ended_at = attempt.ended_at
    if ended_at is None and row["ended_at"]:
        ended_at = _epoch(row["ended_at"])
    return dataclasses.replace(attempt, cause=row["cause"], ended_at=ended_at)


def _attempt(attempt: Attempt, stretch: timing.Stretch, now: float) -> dict[str, Any]:
    ended_at = attempt.ended_at
    return {
        "number": attempt.number,
        "attempt": attempt.attempt,
        "job": attempt.job_id,
        "nodes": attempt.nodes,
        "started_at": runs.moment(attempt.started_at),
        "ended_at": runs.moment(ended_at),
        "lasted_s": round(max(0.0, (now if ended_at is None else ended_at) - attempt.started_at), 1),
        "first_iteration": stretch.first,
        "last_iteration": stretch.last if stretch.last is not None else attempt.last_iteration,
        "computed_in_vain": stretch.in_vain,
        "lost_s": None if stretch.lost_s is None else round(stretch.lost_s, 1),
        "cause": attempt.cause,
        "words": attempt.words,
        "exit_code": attempt.exit_code,
        "what_followed": attempt.why,
    }


def _checkpoints(found: list[Checkpoint]) -> dict[str, Any]:
    complete = [c for c in found if c.complete]
    return {
        "complete": len(complete),
        "newest": complete[-1].iteration if complete else None,
        "newest_path": complete[-1].path if complete else None,
        "bytes": sum(c.bytes or 0 for c in complete),
        "incomplete": [c.iteration for c in found if not c.complete],
    }


def _time(
    attempts: list[Attempt], of: dict[int, timing.Stretch], training: Training, now: float
) -> dict[str, Any] | None:
    spent = timing.spent(attempts, training, now) if training.lives else None
    if spent is None:
        return None
    failures = timing.between_failures(attempts, of, now)
    suggested = timing.suggestion(training, failures[0]) if failures else None
    return {
        **{name: round(getattr(spent, name), 1) for name in ("wall", "productive", "lost", "blocked", "other")},
        "effective_training_time_ratio": round(spent.ratio, 4),
        "restarts": len(attempts) - 1,
        "lost_to_restarts_s": round(sum(s.lost_s or 0.0 for s in of.values()), 1),
        "between_failures_s": round(failures[0], 1) if failures else None,
        "failures": failures[1] if failures else 0,
        "suggested_interval": None
        if suggested is None
        else {
            "seconds": suggested[0].seconds,
            "iterations": suggested[0].iterations,
            "save_costs_s": round(suggested[1], 3),
        },
    }


def _lineage(spec: dict[str, Any], known: dict[str, Any] | None) -> dict[str, Any]:
    begun = (spec.get("recipe") or {}).get("init") or {}
    source = begun.get("hugging_face") or begun.get("checkpoint") if isinstance(begun, dict) else None
    branches = known["checkpoints"] if known else []
    return {
        "from": spec.get("checkpoint_id") or spec.get("checkpoint") or source,
        "models": [
            {"checkpoint": branch["checkpoint"]["id"], **model} for branch in branches for model in branch["models"]
        ],
    }


def _files(folder: RunFolder, spec: Spec, owner: str, attempts: list[Attempt]) -> dict[str, str | None]:
    log = folder.attempt_log(attempts[-1].attempt, 0) if attempts else None
    if isinstance(spec, ScriptSpec) and (job := read_job(folder)) is not None:
        log = next(reversed(scripts.printed(spec, job.job_id, owner)), None)
    return {
        "folder": str(folder.root),
        "log": str(log) if log is not None and log.exists() else None,
        "model": str(folder.model) if folder.model.is_dir() else None,
        "tensorboard": str(folder.tensorboard) if folder.tensorboard.is_dir() else None,
    }


def _epoch(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
