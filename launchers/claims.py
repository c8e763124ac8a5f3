"""One attempt at a time writes a run's folder: agreed through files on the disk that the run's jobs share.

Slurm may start a run's job while an earlier one lives on: two were submitted by hand, or a node that went silent was
given up and still computes. An attempt claims the run; the earliest claim whose owner still shows that it lives counts.
All times are the file system's, because hosts may disagree about the time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from launchers.run_folder import RunFolder

BEAT_S = 5.0  # between two signs of life
SILENT_S = 60.0  # without one, an attempt is over; a shared file system may show them late
SILENT_BEFORE_S = 15.0  # the same of an earlier life of the same job, which Slurm says is over


def claim(folder: RunFolder, attempt: str) -> None:
    folder.rendezvous.mkdir(exist_ok=True)
    _claim(folder, attempt).touch()


def give_up(folder: RunFolder, attempt: str) -> None:
    _claim(folder, attempt).unlink(missing_ok=True)


def beat(folder: RunFolder, attempt: str) -> None:
    """The attempt's batch script lives. Called every few seconds: one that the disk does not take is missed."""
    with contextlib.suppress(OSError):
        (folder.rendezvous / f"{attempt}.beat").touch()


def show_alive(folder: RunFolder, attempt: str) -> None:
    """The attempt's first supervisor lives. Called every few seconds, as `beat` is."""
    with contextlib.suppress(OSError):
        folder.alive(attempt).touch()


def alive_at(folder: RunFolder, attempt: str) -> float | None:
    """When the attempt's supervisor last showed that it lives; None when it has not begun to."""
    return _modified(folder.alive(attempt))


def rival(folder: RunFolder, attempt: str, over: Collection[str]) -> str | None:
    """The attempt that holds the run instead of this one, which has claimed it. `over`: those known to have ended."""
    clock = folder.rendezvous / f"{attempt}.now"
    clock.touch()
    now = os.stat(clock).st_mtime
    mine = (os.stat(_claim(folder, attempt)).st_mtime_ns, attempt)
    for path in folder.rendezvous.glob("*.claim"):
        other = path.name.removesuffix(".claim")
        if other == attempt or other in over:
            continue
        try:
            claimed = os.stat(path)
        except FileNotFoundError:
            continue  # given up
        signs = (claimed.st_mtime, _modified(folder.rendezvous / f"{other}.beat"), alive_at(folder, other))
        silent_s = SILENT_BEFORE_S if _job(other) == _job(attempt) else SILENT_S
        if (claimed.st_mtime_ns, other) < mine and now - max(s for s in signs if s is not None) < silent_s:
            return other
    return None


def superseded(folder: RunFolder, attempt: str) -> bool:
    """Whether a later attempt has the run: this one was silent for too long, or Slurm started its job again.

    False while the disk does not say.
    """
    try:
        mine = (os.stat(_claim(folder, attempt)).st_mtime_ns, attempt)
        for path in folder.rendezvous.glob("*.claim"):
            other = path.name.removesuffix(".claim")
            has_begun = _job(other) == _job(attempt) or alive_at(folder, other) is not None
            if has_begun and (os.stat(path).st_mtime_ns, other) > mine:
                return True
    except OSError:
        pass
    return False


def _claim(folder: RunFolder, attempt: str) -> Path:
    return folder.rendezvous / f"{attempt}.claim"


def _job(attempt: str) -> str:
    return attempt.rpartition(".")[0]


def _modified(path: Path) -> float | None:
    try:
        with open(path, "rb") as f:  # opened, because NFS may answer a mere stat from its cache
            return os.fstat(f.fileno()).st_mtime
    except OSError:
        return None
