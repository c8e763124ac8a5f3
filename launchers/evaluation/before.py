"""The step before: whether it has come to its end, by what its run folder says.

Slurm starts no step before the one it depends on has ended well; where jobs are local processes, the step itself waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from launchers import claims
from launchers.history import statements
from launchers.restart import Cause
from launchers.run_folder import RunFolder
from launchers.spec import load

LOOK_S = 1.0
BEGIN_S = 600.0  # for the step before to begin, where both were submitted at once


class NotReached(RuntimeError):
    """The step before did not come to its end; the message says why."""


def ended(folder: RunFolder) -> bool:
    """Whether the run has completed. Raises NotReached once it cannot any more."""
    began, last = None, None
    for said in statements(folder, "attempt-started", "attempt-ended"):
        began, last = (said, None) if said.kind == "attempt-started" else (began, said)
    if last is not None:
        if last.facts.get("exit_code") == 0 and last.facts.get("end") == Cause.COMPLETED:
            return True
        raise NotReached(f"the step before, {folder.id}, did not come to its end: {last.facts.get('cause')}")
    if began is not None:
        alive_at = claims.alive_at(folder, str(began.facts.get("attempt")))
        if alive_at is not None and _now(folder) - alive_at > claims.SILENT_S:
            raise NotReached(f"the step before, {folder.id}, fell silent: its supervisor was killed")
    return False


def wait(
    folder: RunFolder,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when the run in `folder` has completed. Raises NotReached; OSError or SpecError for none."""
    load(folder.spec)
    began = clock()
    while not ended(folder):
        if clock() - began > BEGIN_S and not list(statements(folder, "attempt-started")):
            raise NotReached(f"the step before, {folder.id}, did not begin within {BEGIN_S:.0f} s")
        sleep(LOOK_S)


def _now(folder: RunFolder) -> float:
    """By the file system that holds the folder, whose clock its signs of life have."""
    mark = folder.rendezvous / f".now.{os.getpid()}"
    mark.touch()
    try:
        return os.stat(mark).st_mtime
    finally:
        mark.unlink()
