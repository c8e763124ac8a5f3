"""Pins: files in a run's switches directory that keep a checkpoint from being pruned, by its training or by a person.

A pin that Headgate made names the runs it was made for, a line each; one that a person made is empty.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launchers.megatron import manifest
from launchers.megatron.stop import Switches
from launchers.run_folder import RunFolder
from launchers.scheduler import SchedulerError, SchedulerUnavailable
from launchers.spec import ConvertSpec, SupervisedSpec, TrainSpec
from launchers.untrusted import Unbelievable, read_bytes

MAX_BYTES = 1 << 16


@contextmanager
def sources_pinned(specs: Iterable[SupervisedSpec]) -> Iterator[None]:
    """Keep the checkpoints that runs convert or begin with: a run may wait for longer than the newest one lasts.

    To be submitted within; where they are refused, nothing stays pinned for them.
    """
    sources = [(source, spec.id) for spec in specs if (source := source_of(spec)) is not None]
    for source, run in sources:
        pin(source, run)
    try:
        yield
    except SchedulerUnavailable:
        raise  # they may have been submitted
    except (SchedulerError, OSError):
        for source, run in sources:
            unpin(source, run)
        raise


def source_of(spec: SupervisedSpec) -> Path | None:
    match spec:
        case ConvertSpec(direction="to-hf", checkpoint=source):
            return Path(source)
        case TrainSpec(recipe={"init": {"checkpoint": str(source)}}):
            return Path(source)
    return None


def pin(checkpoint: Path, run: str) -> None:
    """Where we may not, the checkpoint's owner has to. A person's pin stays a person's."""
    path = path_of(checkpoint)
    line, flags = f"{run}\n".encode(), os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(OSError):
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o660)
        except FileExistsError:
            if not path.lstat().st_size:
                return
            fd = os.open(path, flags)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)


def unpin(checkpoint: Path, run: str) -> None:
    """Unless it was pinned for others too: `headgate prune` then finds out what became of them."""
    path = path_of(checkpoint)
    if _made_for(path) == [run]:
        with contextlib.suppress(OSError):
            path.unlink()


def path_of(checkpoint: Path) -> Path:
    return RunFolder(checkpoint.parent.parent).switches / f"keep-{checkpoint.name}"


def outlived(folder: RunFolder, completed: Callable[[str], bool]) -> set[int]:
    """The iterations whose pins were all made for runs that have `completed`: these have read what they needed."""
    return {
        iteration
        for iteration in Switches(folder.switches).pinned()
        if (made_for := _made_for(path_of(folder.checkpoints / manifest.name_of(iteration))))
        and all(map(completed, made_for))
    }


def _made_for(pin_file: Path) -> list[str]:
    try:
        return read_bytes(pin_file, MAX_BYTES).decode("utf-8", "replace").split()
    except (OSError, Unbelievable):
        return []  # whoever made it, it stands
