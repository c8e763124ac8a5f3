"""`headgate prune`: delete checkpoints of a run that nobody needs any more, as its owner, in its folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import click

from cli import metrics, record
from cli.checkpoints import pins, used_by
from cli.context import Context
from cli.folders import is_ours, run_folder
from cli.record import Checkpoint
from cli.runs import registered
from launchers.megatron import manifest
from launchers.retention import surplus
from launchers.run_folder import RunFolder
from launchers.spec import TrainSpec, load


@click.command()
@click.argument("run")
@click.option("--keep-last", type=click.IntRange(1), help="How many stay, the newest. Default: as the recipe says.")
@click.option("--keep-every", type=click.IntRange(1), help="Multiples of this iteration stay. Default: as the recipe.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("--offline", is_flag=True, help="Even where no controller can say what aliases and deployments use.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def prune(
    context: Context,
    /,
    run: str,
    keep_last: int | None,
    keep_every: int | None,
    dry_run: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Delete complete checkpoints beyond the newest N and every M-th.

    The newest stays, and so do those that are pinned, that the run goes on from, and that an alias or a deployment
    uses.
    """
    site = context.site()
    folder = run_folder(site, run, ("train",))
    known = registered(site, folder.id)
    if known is None and not offline and not dry_run:
        raise click.ClickException(
            "no controller says which checkpoints are used by an alias or a deployment, so none is deleted; "
            "start one (`headgate up`), or say --offline"
        )
    if not dry_run and not is_ours(folder):
        raise click.ClickException(f"run {folder.id} is not yours; its owner may prune it")
    asked_last, asked_every = policy(folder)
    keep_last = asked_last if keep_last is None else keep_last
    if not keep_last:
        raise click.UsageError("the run's recipe keeps all of its checkpoints; say --keep-last N")
    in_use = {iteration for iteration, users in used_by(known).items() if users} | going_on_from(folder)
    going = chosen(
        record.checkpoints(folder), keep_last, asked_every if keep_every is None else keep_every, pins(folder), in_use
    )
    if not dry_run:
        for checkpoint in going:
            delete(Path(checkpoint.path))
    size = sum(c.bytes or 0 for c in going)
    if as_json:
        pruned = [{"iteration": c.iteration, "path": c.path, "bytes": c.bytes} for c in going]
        click.echo(json.dumps({"pruned": pruned, "bytes": size, "dry_run": dry_run}, indent=2))
        return
    for checkpoint in going:
        click.echo(f"{folder.id}/{checkpoint.iteration}: {checkpoint.bytes or 0:,} bytes")
    would = "would be deleted" if dry_run else "deleted"
    click.echo(f"{len(going)} checkpoints, {size:,} bytes {would}" if going else "nothing to delete")


def policy(folder: RunFolder) -> tuple[int, int]:
    """(keep_last, keep_every) of the run's own recipe; 0 where it does not say."""
    spec = load(folder.spec)
    asked = spec.recipe.get("checkpoint") if isinstance(spec, TrainSpec) else None
    asked = asked if isinstance(asked, dict) else {}
    return metrics.count(asked.get("keep_last")) or 0, metrics.count(asked.get("keep_every")) or 0


def going_on_from(folder: RunFolder) -> set[int]:
    """The checkpoint that the newest attempt was loaded from."""
    attempts = record.story(folder).attempts
    begun_after = attempts[-1].first_iteration if attempts else None
    return set() if begun_after is None else {begun_after}


def chosen(
    found: Sequence[Checkpoint], keep_last: int, keep_every: int, pinned: Collection[int], in_use: Collection[int]
) -> list[Checkpoint]:
    """Which of them go, oldest first. What is not complete is the run's own business."""
    going = surplus(
        (c.iteration for c in found if c.complete),
        keep_last=keep_last,
        keep_every=keep_every,
        pinned=pinned,
        in_use=in_use,
    )
    return [c for c in found if c.iteration in going]


def delete(path: Path) -> None:
    """Whoever looks at the folder sees a whole checkpoint or none: its manifest goes first, under another name."""
    hidden = path.with_name(f".pruned-{path.name}")
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(path, hidden)
        (hidden / manifest.NAME).unlink(missing_ok=True)
        shutil.rmtree(hidden)
    except OSError as e:
        raise click.ClickException(f"{e.filename or path}: {e.strerror}") from e
