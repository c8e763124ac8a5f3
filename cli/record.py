"""A run as its own folder tells it: its attempts, its state, its checkpoints. Needs no control plane.

Whoever owns the folder wrote it: what is read is bounded and of the expected types, and nothing more is believed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Any

from cli.metrics import count
from launchers.announce import Announcement
from launchers.history import statements
from launchers.launch import read_job
from launchers.megatron import manifest
from launchers.megatron.manifest import CheckpointError
from launchers.restart import Action, Cause
from launchers.run_folder import RunFolder
from launchers.untrusted import Unbelievable, read_object

STATES = ("pending", "running", "completed", "failed", "stopped")  # registry.runs.RunState, without its database
ENDED = ("completed", "failed", "stopped")
OUT_OF_TIME = "time limit"
MAX_PROGRESS_BYTES = 1 << 16
MAX_GIT_BYTES = 1 << 18
_ITERATION = re.compile(r"iter_(\d{1,15})")
_FAILURES = frozenset(cause.value for cause in Cause if cause.failure)
_TOLD_TO_END = {"cancelled": Cause.CANCELLED, "timeout": Cause.TIME_LIMIT}  # by words, where no cause is named


@dataclass(frozen=True, slots=True)
class Attempt:
    """One life of a run: `JOB.RESTART`."""

    attempt: str
    number: int  # 1, 2, ...: the order in which they began
    job_id: str
    nodes: str
    started_at: float  # seconds since the epoch, by the job's clock
    ended_at: float | None = None  # None: it said nothing of an end
    cause: str | None = None  # launchers.restart.Cause
    words: str | None = None  # why, as its supervisor put it
    exit_code: int | None = None
    first_iteration: int | None = None  # it began after this one: a checkpoint's
    last_iteration: int | None = None  # the last that it finished
    judged: bool = False  # its batch script has the last word, or had it
    action: str | None = None  # launchers.restart.Action: what followed
    why: str | None = None  # why that
    successor: str | None = None  # the job that goes on, where its own could not be requeued


@dataclass(frozen=True, slots=True)
class Checkpoint:
    iteration: int
    path: str
    bytes: int | None = None
    created_at: str | None = None
    problem: str | None = None  # why it is not complete

    @property
    def complete(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Story:
    """What the folder of a training run or a conversion tells of its life."""

    attempts: tuple[Attempt, ...] = ()  # oldest first
    submitted_at: float | None = None  # when the noted job was, seconds since the epoch

    @property
    def submitted_again(self) -> bool:
        """Whether its last attempt ended before its job was submitted."""
        ended_at = self.attempts[-1].ended_at if self.attempts else None
        return ended_at is not None and self.submitted_at is not None and self.submitted_at > ended_at

    @property
    def state(self) -> str:
        """registry.runs.RunState, as far as it is told."""
        return self._ends()[0]

    @property
    def cause(self) -> str | None:
        return self._ends()[1]

    @property
    def goes_on(self) -> bool:
        return self.state in ("pending", "running")

    def _ends(self) -> tuple[str, str | None]:
        if not self.attempts or self.submitted_again:
            return "pending", None
        last = self.attempts[-1]
        if last.cause is None or (last.judged and last.action is None):
            return "running", None  # or about to be judged
        words = last.words if last.cause in _FAILURES and last.words else last.cause
        if last.action in (Action.RESTART, Action.WAIT):
            return "pending", f"{words}; {last.why}"
        if last.cause == Cause.COMPLETED:
            return "completed", None
        if last.cause == Cause.CANCELLED:
            return "stopped", None
        if last.action is None and last.cause == Cause.TIME_LIMIT:
            return "stopped", OUT_OF_TIME
        return "failed", f"{words}; {last.why}" if last.why else words


def story(folder: RunFolder) -> Story:
    """A folder that was deleted, or that says nothing yet, tells of no attempt."""
    found: dict[str, Attempt] = {}
    for said in statements(folder, "attempt-started", "attempt-ended", "attempt-judged"):
        facts = said.facts
        name = str(facts.get("attempt"))
        # One whose step never came to its supervisor is heard of when it is judged.
        if said.kind == "attempt-started" or (said.kind == "attempt-judged" and name not in found):
            nodes = str(facts.get("nodes") or facts.get("host") or "")
            job_id = str(facts.get("job_id") or name.rpartition(".")[0])
            begun_after = count(facts.get("saved"))
            made = Attempt(name, len(found) + 1, job_id, nodes, said.at, first_iteration=begun_after)
            found.setdefault(name, made)
        if said.kind != "attempt-started" and (attempt := found.get(name)) is not None:
            found[name] = _ended(attempt, said) if said.kind == "attempt-ended" else _judged(attempt, said)
    noted = read_job(folder)
    return Story(tuple(found.values()), noted.submitted_at.timestamp() if noted else None)


def checkpoints(folder: RunFolder) -> list[Checkpoint]:
    """Every `iter_*` directory, by iteration; complete means that a manifest stands in it that can be read."""
    try:
        entries = list(os.scandir(folder.checkpoints))
    except OSError:
        return []
    found = []
    for entry in entries:
        match = _ITERATION.fullmatch(entry.name)
        if match is None or not entry.is_dir(follow_symlinks=False):
            continue
        iteration, path = int(match[1]), folder.checkpoints / entry.name
        try:
            promised = manifest.read(path)
            found.append(Checkpoint(iteration, str(path), promised.bytes, promised.created_at))
        except CheckpointError as e:
            found.append(Checkpoint(iteration, str(path), problem=str(e)))
    return sorted(found, key=lambda c: c.iteration)


def progress(folder: RunFolder) -> dict[str, Any]:
    """What the training last said of where it stands; nothing before it said anything."""
    try:
        return read_object(folder.progress, MAX_PROGRESS_BYTES)
    except (OSError, Unbelievable):
        return {}


def git(folder: RunFolder) -> dict[str, Any] | None:
    """The repository that the submitted code stood in (launchers.freeze.Code); None where that is not known."""
    try:
        return read_object(folder.code / "git.json", MAX_GIT_BYTES)
    except (OSError, Unbelievable):
        return None


def _ended(attempt: Attempt, said: Announcement) -> Attempt:
    exit_code, words = said.facts.get("exit_code"), str(said.facts.get("cause") or "")
    cause = said.facts.get("end")
    if cause is None:
        cause = _TOLD_TO_END.get(words, Cause.COMPLETED if exit_code == 0 else Cause.CRASHED)
    return replace(
        attempt,
        ended_at=said.at,
        cause=str(cause),
        words=words,
        exit_code=exit_code if isinstance(exit_code, int) else None,
        last_iteration=count(said.facts.get("iteration")),
        judged=bool(said.facts.get("judged")),
    )


def _judged(attempt: Attempt, said: Announcement) -> Attempt:
    successor = said.facts.get("successor")
    return replace(
        attempt,
        ended_at=said.at if attempt.ended_at is None else attempt.ended_at,
        cause=str(said.facts.get("cause")),
        judged=True,
        action=str(said.facts.get("action")),
        why=str(said.facts.get("why")),
        successor=None if successor is None else str(successor),
    )
