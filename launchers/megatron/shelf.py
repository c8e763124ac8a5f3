"""The directory that holds a run's checkpoints: which is the latest, and how one goes. Standard library only.

A checkpoint goes by another name first, so that no reader ever sees half of one under its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from launchers.megatron import manifest

_GOING = ".going-"


def complete(checkpoints: Path) -> list[int]:
    """The iterations whose checkpoints have a manifest, oldest first; nothing is compared with it."""
    found = manifest.directories(checkpoints)
    return sorted(i for i, path in found.items() if (path / manifest.NAME).is_file())


def note_latest(checkpoints: Path, name: str | None) -> None:
    """Say in `latest` which checkpoint is the newest complete one, or that there is none."""
    note = checkpoints / "latest"
    if name is None:
        note.unlink(missing_ok=True)
        return
    temporary = checkpoints / f".latest.{os.getpid()}"
    temporary.write_text(name + "\n", encoding="utf-8")
    os.rename(temporary, note)


def set_aside(path: Path) -> Path | None:
    """Take a checkpoint out of sight, at once; the returned directory is left to be deleted. None: there was none."""
    going = path.with_name(f"{_GOING}{path.name}.{os.getpid()}")
    shutil.rmtree(going, ignore_errors=True)
    try:
        os.rename(path, going)
    except FileNotFoundError:
        return None
    return going


def delete(going: Iterable[Path]) -> None:
    """Delete what was set aside. A file that cannot be deleted now is left for the next attempt to try."""
    for path in going:
        shutil.rmtree(path, ignore_errors=True)


def remains(checkpoints: Path) -> list[Path]:
    """What an earlier attempt left: set aside and not deleted, or never completed. Nobody may be writing."""
    unfinished = [p for p in manifest.directories(checkpoints).values() if not (p / manifest.NAME).exists()]
    return [*checkpoints.glob(f"{_GOING}*"), *(p for path in unfinished if (p := set_aside(path)))]
