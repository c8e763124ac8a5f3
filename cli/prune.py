"""`headgate prune`: delete checkpoints of a run that nobody needs any more, as its owner, in its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click

from cli import metrics, pins, record
from cli.checkpoints import used_by
from cli.context import Context
from cli.folders import is_ours, run_folder
from cli.record import Checkpoint
from cli.runs import completed, registered
from cli.table import printable
from launchers.announce import announce
from launchers.megatron import manifest, shelf
from launchers.megatron.manifest import CheckpointError
from launchers.megatron.stop import Switches
from launchers.retention import surplus
from launchers.run_folder import RunFolder
from launchers.spec import TrainSpec, load
from registry.site import Site
from slurm import amounts


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

    The newest whole one stays (its files are compared with its manifest first), and so do those that are pinned, that
    the run goes on from, and that an alias or a deployment uses.
    """
    site = context.site()
    folder = run_folder(site, run, ("train",))
    if not dry_run and not is_ours(folder):
        raise click.ClickException(f"run {folder.id} is not yours; its owner may prune it")
    asked_last, asked_every = policy(folder)
    keep_last = asked_last if keep_last is None else keep_last
    if not keep_last:
        raise click.UsageError("the run's recipe keeps all of its checkpoints; say --keep-last N")
    wanted, spent = reasons(site, folder, alone=offline or dry_run)
    complete = [c for c in record.checkpoints(folder) if c.complete]  # what is not is the run's own business
    keep_every = asked_every if keep_every is None else keep_every
    old = surplus((c.iteration for c in complete), keep_last=keep_last, keep_every=keep_every)
    if any(iteration not in wanted for iteration in old):  # the newest is what is left to go on from: is it whole?
        complete, problems = without_damaged_end(complete)
        for problem in problems:
            click.echo(printable(f"{problem}; it does not count"), err=True)
        old = surplus((c.iteration for c in complete), keep_last=keep_last, keep_every=keep_every)
        wanted, spent = reasons(site, folder, alone=offline or dry_run)  # reading that took minutes
    going = [c for c in complete if c.iteration in old and c.iteration not in wanted]
    if not dry_run:
        wanted |= deleted(folder, going, spent)
        going = [c for c in going if c.iteration not in wanted]
    size = sum(c.bytes or 0 for c in going)
    if as_json:
        pruned = [{"iteration": c.iteration, "path": c.path, "bytes": c.bytes} for c in going]
        click.echo(json.dumps({"pruned": pruned, "bytes": size, "dry_run": dry_run}, indent=2))
        return
    for checkpoint in going:
        click.echo(f"{folder.id}/{checkpoint.iteration}: {checkpoint.bytes or 0:,} bytes")
    for iteration in old:
        if iteration in wanted:
            click.echo(f"{folder.id}/{iteration}: stays: {amounts.several(wanted[iteration])}")
    would = "would be deleted" if dry_run else "deleted"
    click.echo(f"{amounts.counted(len(going), 'checkpoint')}, {size:,} bytes {would}" if going else "nothing to delete")


def policy(folder: RunFolder) -> tuple[int, int]:
    """(keep_last, keep_every) of the run's own recipe; 0 where it does not say."""
    spec = load(folder.spec)
    asked = spec.recipe.get("checkpoint") if isinstance(spec, TrainSpec) else None
    asked = asked if isinstance(asked, dict) else {}
    return metrics.count(asked.get("keep_last")) or 0, metrics.count(asked.get("keep_every")) or 0


def reasons(site: Site, folder: RunFolder, *, alone: bool) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """As of now: what is `needed`, and the pins that were outlived. `alone`: also where no controller answers.

    Pins are read first: whoever uses what a run made of a checkpoint is known once the run has completed.
    """
    try:
        spent = pins.outlived(folder, completed(site))
        known = registered(site, folder.id)
        if known is None and not alone:
            raise click.ClickException(
                "no controller says which checkpoints are used by an alias or a deployment, so none is deleted; "
                "start one (`headgate up`), or say --offline"
            )
        if known is None:
            spent = {}  # nobody says who uses what their runs made
        return needed(folder, known, spent), spent
    except OSError as e:
        raise click.ClickException(
            f"{e.filename or folder.root}: {e.strerror}, so which checkpoints are needed cannot be told; "
            "the run's owner and group may look"
        ) from e


def needed(folder: RunFolder, known: dict[str, Any] | None, spent: Collection[int] = ()) -> dict[int, list[str]]:
    """Why a checkpoint stays however old it is, by iteration. Pins of the `spent` ones do not count any more."""
    found = {iteration: list(users) for iteration, users in used_by(known).items() if users}
    for iteration in Switches(folder.switches).pinned().difference(spent):
        found.setdefault(iteration, []).append(pinned_by(iteration))
    attempts, lives = record.story(folder).attempts, metrics.read(folder.metrics).lives
    # A supervisor compares sizes only when it announces what an attempt goes on from; training may have found that
    # damaged, and have gone on from an older one.
    begun_after = {attempts[-1].first_iteration if attempts else None, lives[-1].begun_after if lives else None}
    for iteration in sorted(i for i in begun_after if i is not None):
        found.setdefault(iteration, []).append("the last attempt went on from it")
    return found


def pinned_by(iteration: int) -> str:
    return f"pinned by switches/keep-{manifest.name_of(iteration)}"


def deleted(folder: RunFolder, going: Sequence[Checkpoint], spent: dict[int, list[str]]) -> dict[int, list[str]]:
    """Delete them, and the pins that they had outlived. What was pinned meanwhile stays, and is told as by `needed`."""
    stayed: dict[int, list[str]] = {}
    for checkpoint in going:
        try:
            if pins.changed(folder, checkpoint.iteration, spent):
                stayed[checkpoint.iteration] = [pinned_by(checkpoint.iteration)]
                continue
            delete(folder, checkpoint)
            if checkpoint.iteration in spent:
                pins.path_of(Path(checkpoint.path)).unlink(missing_ok=True)
        except OSError as e:
            raise click.ClickException(f"{e.filename or checkpoint.path}: {e.strerror}") from e
    return stayed


def without_damaged_end(complete: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[str]]:
    """Up to the newest that is whole to the last byte, which is all read; and what is wrong with those after it."""
    left, problems = list(complete), list[str]()
    while left:
        try:
            manifest.verify(Path(left[-1].path))
            break
        except CheckpointError as problem:
            problems.append(str(problem))
            left.pop()
    return left, problems


def delete(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """As training itself does it: out of sight first, so that whoever looks sees a whole checkpoint or none."""
    path = Path(checkpoint.path)
    try:
        if (going := shelf.set_aside(path)) is None:
            return  # training was quicker
        relative = path.relative_to(folder.root).as_posix()
        announce(folder.announcements, "checkpoint-pruned", iteration=checkpoint.iteration, path=relative)
        shutil.rmtree(going)
    except OSError as e:
        raise click.ClickException(f"{e.filename or path}: {e.strerror}") from e
