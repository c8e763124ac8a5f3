"""What a run's own folder tells of its attempts: which there were, how they ended, what is saved. Standard library.

Read by the run's batch script and supervisors, and by commands that show it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from launchers.announce import Announcement, AnnouncementError, names, read
from launchers.megatron import manifest
from launchers.restart import Action, Cause, Ended
from launchers.run_folder import RunFolder

_ITERATION = re.compile(r"iter_(\d+)")


def past(folder: RunFolder, *, before: str) -> list[Ended]:
    """The attempts that ended before this one began, oldest first, since somebody last submitted the run anew.

    One that was never judged was ended with its job, and Slurm requeued that.
    """
    began: list[str] = []
    judged: dict[str, Announcement] = {}
    for said in statements(folder, "attempt-started", "attempt-judged"):
        attempt = str(said.facts.get("attempt"))
        if attempt not in began:  # one whose step never came to its supervisor was judged all the same
            began.append(attempt)
        if said.kind == "attempt-judged":
            judged[attempt] = said
    found: list[Ended] = []
    for attempt in began:
        if attempt == before:
            break
        verdict = judged.get(attempt)
        if verdict is None:
            found.append(Ended(attempt, Cause.REQUEUED, found[-1].saved if found else None))
        elif verdict.facts.get("action") != Action.STOP:
            found.append(_ended(verdict))
        else:
            found.clear()  # it was over; whoever started it again has looked at it
    return found


def last_word(folder: RunFolder, attempt: str) -> Cause | None:
    """Why the attempt ended, by its first supervisor; None while it has said nothing."""
    for said in statements(folder, "attempt-ended"):
        if said.facts.get("attempt") == attempt:
            return Cause(str(said.facts.get("end", Cause.CRASHED)))
    return None


def newest_saved(folder: RunFolder) -> int | None:
    """The iteration of the newest checkpoint that is complete by its files' sizes."""
    newest = manifest.newest_complete(folder.checkpoints, hashes=False)
    found = newest and _ITERATION.fullmatch(newest.name)
    return int(found[1]) if found else None


def progress(folder: RunFolder) -> dict[str, Any]:
    """What the training last said of itself; nothing before it said anything."""
    try:
        said = json.loads(folder.progress.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def save_s(folder: RunFolder) -> float:
    """How long the last save took, in seconds; 0 when none was measured."""
    measured = progress(folder).get("save_s")
    return float(measured) if isinstance(measured, int | float) else 0.0


def over(folder: RunFolder) -> set[str]:
    """The attempts that have said that they ended, or were judged."""
    return {str(said.facts.get("attempt")) for said in statements(folder, "attempt-ended", "attempt-judged")}


def _ended(said: Announcement) -> Ended:
    saved = said.facts.get("saved")
    return Ended(str(said.facts["attempt"]), Cause(said.facts["cause"]), saved if isinstance(saved, int) else None)


def statements(folder: RunFolder, *kinds: str) -> Iterator[Announcement]:
    """What a run announced of these kinds, as far as it can be believed, oldest first; nothing of one deleted."""
    try:
        owner = os.stat(folder.root, follow_symlinks=False).st_uid
    except FileNotFoundError:
        return
    for name in names(folder.announcements):
        if name.removesuffix(".json").partition("-")[2] in kinds:
            try:
                yield read(folder.announcements / name, owner)
            except (OSError, AnnouncementError):
                continue  # whoever takes them in says so
