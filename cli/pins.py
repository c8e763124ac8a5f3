"""Pins: files in a run's switches directory that keep a checkpoint from being pruned, by its training or by a person.

A pin that Headgate made names the runs it was made for, a line each; one that a person made is empty.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cli.table import printable
from launchers.megatron import manifest
from launchers.megatron.stop import Switches
from launchers.run_folder import RunFolder
from launchers.scheduler import SchedulerError, SchedulerUnavailable
from launchers.spec import ConvertSpec, SupervisedSpec, TrainSpec
from launchers.untrusted import Unbelievable, read_bytes

MAX_BYTES = 1 << 20  # of a pin: a sweep may have 10,000 runs
MODE = 0o660  # whatever the umask says: others of the run's group add lines


@contextmanager
def sources_pinned(specs: Iterable[SupervisedSpec]) -> Iterator[None]:
    """Keep the checkpoints that runs convert or begin with: a run may wait for longer than the newest one lasts.

    To be submitted within; where they are refused, nothing stays pinned for them. What could not be pinned is said.
    """
    sources: dict[Path, list[str]] = {}
    for spec in specs:
        if (source := source_of(spec)) is not None:
            sources.setdefault(source, []).append(spec.id)
    for source, runs in sources.items():
        path = path_of(source)
        if not pin(source, *runs) and os.path.isdir(path.parent):  # what is in no run's folder, nothing prunes
            words = f"{source} is not pinned, and its run may delete it meanwhile; its owner may make {path}"
            click.echo(printable(words), err=True)
    try:
        yield
    except SchedulerUnavailable:
        raise  # they may have been submitted
    except (SchedulerError, OSError):
        for source, runs in sources.items():
            unpin(source, *runs)
        raise


def source_of(spec: SupervisedSpec) -> Path | None:
    match spec:
        case ConvertSpec(direction="to-hf", checkpoint=source):
            return Path(source)
        case TrainSpec(recipe={"init": {"checkpoint": str(source)}}):
            return Path(source)
    return None


def pin(checkpoint: Path, *runs: str) -> bool:
    """Whether it is pinned then: where we may not, the checkpoint's owner has to. A person's pin stays a person's."""
    path, text = path_of(checkpoint), _text(runs)
    try:
        try:
            _place(path, text, os.link)
        except FileExistsError:
            if path.lstat().st_size:
                _append(path, text)
    except OSError:
        return False
    return True


def unpin(checkpoint: Path, *runs: str) -> None:
    """For these runs; what else the pin was made for, it goes on to name."""
    path, gone = path_of(checkpoint), set(runs)
    made_for = _made_for(path)
    left = [run for run in made_for if run not in gone]
    with contextlib.suppress(OSError):
        if made_for and not left:
            path.unlink()
        elif left != made_for:
            _place(path, _text(left), os.replace)


def path_of(checkpoint: Path) -> Path:
    return RunFolder(checkpoint.parent.parent).switches / f"keep-{checkpoint.name}"


def outlived(folder: RunFolder, completed: Callable[[str], bool]) -> dict[int, list[str]]:
    """The iterations whose pins were all made for runs that have `completed`, and these: they read what they needed.

    Raises OSError.
    """
    return {
        iteration: made_for
        for iteration in Switches(folder.switches).pinned()
        if (made_for := _made_for(_path_in(folder, iteration))) and all(map(completed, made_for))
    }


def changed(folder: RunFolder, iteration: int, then: dict[int, list[str]]) -> bool:
    """Whether a checkpoint is pinned now that was not, or is pinned for others than those that had outlived it `then`.

    Raises OSError.
    """
    pinned = iteration in Switches(folder.switches).pinned()
    return pinned and _made_for(_path_in(folder, iteration)) != then.get(iteration)


def _path_in(folder: RunFolder, iteration: int) -> Path:
    return path_of(folder.checkpoints / manifest.name_of(iteration))


def _made_for(pin_file: Path) -> list[str]:
    try:
        return list(filter(None, read_bytes(pin_file, MAX_BYTES).decode("utf-8", "replace").splitlines()))
    except (OSError, Unbelievable):
        return []  # whoever made it, it stands


def _text(runs: Iterable[str]) -> str:
    return "".join(f"{run}\n" for run in runs)


def _place(path: Path, text: str, put: Callable[[str, Path], None]) -> None:
    """The pin appears with all of its text, or not at all: an empty one would be a person's."""
    fd, whole = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "w", encoding="utf-8") as f:
            os.fchmod(fd, MODE)
            f.write(text)
        put(whole, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(whole)


def _append(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "a", encoding="utf-8") as f:
        f.write(text)
