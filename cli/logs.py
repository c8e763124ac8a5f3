"""`headgate logs`: what a run, a replica or a service printed. Reads run folders; needs no control plane."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import click

from cli.context import Context
from launchers.announce import names
from launchers.run_folder import RunFolder
from launchers.spec import SpecError, load
from registry.site import Site

KINDS = ("train", "convert", "serve")
ID = re.compile(r"(?P<name>.+)-\d{8}-\d{6}-[0-9a-f]{4}")


@click.command()
@click.argument("name", metavar="RUN|DEPLOYMENT|REPLICA|gateway|controller")
@click.option("-f", "--follow", is_flag=True, help="Go on until it has ended (or Ctrl-C).")
@click.option("--task", type=click.IntRange(0), default=0, show_default=True, help="Whose output: the task's number.")
@click.pass_obj
def logs(context: Context, /, name: str, follow: bool, task: int) -> None:
    """Print what the newest attempt printed."""
    site = context.site()
    if name in ("gateway", "controller"):
        path, ended = site.services_dir / f"{name}.log", lambda: False
        if not path.exists():
            raise click.ClickException(f"{path}: the {name} was never started here")
    else:
        folder = find_folder(site, name)
        if folder is None:
            raise click.ClickException(f"nothing of the name {name!r} has run in {site.runs_dir}")
        if follow:
            wait_for_log(folder, task)
        newest = newest_log(folder, task)
        if newest is None:
            raise click.ClickException(f"{folder.logs}: task {task} has printed nothing yet")
        path, ended = newest, lambda: has_ended(folder)
    try:
        for piece in read_on(path, ended) if follow else [path.read_bytes()]:
            sys.stdout.write(piece.decode(errors="replace"))
            sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        raise SystemExit(130) from None


def find_folder(site: Site, name: str, kinds: Collection[str] = KINDS) -> RunFolder | None:
    """By id, or by name: then the newest one of these kinds. Ids carry their time, so names sort."""
    if "/" in name:
        return None
    try:
        entries = sorted((p.name for p in site.runs_dir.iterdir()), reverse=True)
    except FileNotFoundError:
        return None
    for entry in entries:
        found = ID.fullmatch(entry)
        if entry == name or (found and found["name"] == name):
            folder = RunFolder(site.runs_dir / entry)
            if kind_of(folder) in kinds:
                return folder
    return None


def kind_of(folder: RunFolder) -> str | None:
    try:
        return load(folder.spec).kind
    except (OSError, SpecError):
        return None  # being made, or not ours to read


def newest_log(folder: RunFolder, task: int = 0) -> Path | None:
    """What one task of the newest attempt printed."""
    found = sorted(folder.logs.glob(f"*-{task}.log"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def has_ended(folder: RunFolder) -> bool:
    """Whether the newest word of the job is that its attempt ended."""
    said = list(names(folder.announcements))
    return bool(said) and said[-1].endswith("-attempt-ended.json")


def wait_for_log(folder: RunFolder, task: int) -> None:
    while newest_log(folder, task) is None and not has_ended(folder):
        time.sleep(0.3)


def read_on(path: Path, ended: object) -> Iterator[bytes]:
    """The file's bytes, and those that come, until `ended()` and nothing is left."""
    assert callable(ended)
    with open(path, "rb") as f:
        while True:
            over = ended()
            piece = f.read(1 << 16)
            if piece:
                yield piece
            elif over:
                return
            else:
                time.sleep(0.3)
