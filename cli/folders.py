"""Run folders by the names that people type. Needs no control plane."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

import click

from launchers.run_folder import RunFolder
from launchers.spec import SpecError, load
from registry.site import Site

RUNS = ("train", "convert", "smoke", "evaluate", "script")  # a spec's kind; a replica's is "serve"
KINDS = (*RUNS, "serve")
ID = re.compile(r"(?P<name>.+)-\d{8}-\d{6}-[0-9a-f]{4}")


def find_folder(site: Site, name: str, kinds: Collection[str] = KINDS) -> RunFolder | None:
    """By id, or by name: then the newest of one's own, else of anybody's, of these kinds. Ids carry their time."""
    if "/" in name:
        return None
    try:
        entries = sorted((p.name for p in site.runs_dir.iterdir()), reverse=True)
    except FileNotFoundError:
        return None
    others: list[RunFolder] = []
    for entry in entries:
        found = ID.fullmatch(entry)
        if entry == name or (found and found["name"] == name):
            folder = RunFolder(site.runs_dir / entry)
            if kind_of(folder) in kinds:
                if entry == name or is_ours(folder):
                    return folder
                others.append(folder)
    return others[0] if others else None


def run_folder(site: Site, name: str, kinds: Collection[str] = RUNS) -> RunFolder:
    """The same for a command that needs one: without it, the command ends and says where it looked."""
    folder = find_folder(site, name, kinds)
    if folder is None:
        raise click.ClickException(f"no run called {name!r} has left a folder in {site.runs_dir}; see `headgate runs`")
    return folder


def kind_of(folder: RunFolder) -> str | None:
    try:
        return load(folder.spec).kind
    except (OSError, SpecError):
        return None  # being made, or not ours to read


def is_ours(folder: RunFolder) -> bool:
    """Whether we own the run: what is submitted or deleted for it is so as ourselves, not as root either."""
    return os.stat(folder.root, follow_symlinks=False).st_uid == os.getuid()
