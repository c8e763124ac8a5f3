"""What a run's metrics say: one JSON object a line, written by the training as it goes.

Anybody may have written them: a line that is not what it should be is passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launchers.untrusted import Unbelievable, open_regular

MAX_LINE = 1 << 16  # bytes; the training's own are a few hundred
LAST_BYTES = 1 << 16  # where the newest iteration is looked for


class Tail:
    """The complete lines that were appended to a JSON-lines file since the last look."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def read(self) -> Iterator[dict[str, Any]]:
        try:
            with open_regular(self.path) as f:
                f.seek(self.offset)
                while (line := f.readline(MAX_LINE)).endswith(b"\n") or len(line) == MAX_LINE:
                    self.offset += len(line)
                    if (found := _object(line)) is not None:
                        yield found
        except (FileNotFoundError, Unbelievable):
            return


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration that an attempt computed."""

    iteration: int
    loss: float
    seconds: float  # that it took
    at: float  # when it was done, seconds since the epoch


@dataclass(frozen=True, slots=True)
class Life:
    """What one attempt trained."""

    number: int  # 1, 2, ...: the attempt's
    begun_after: int  # the iteration it went on from; 0: the beginning
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Save:
    iteration: int
    blocked_s: float  # what training lost by it
    total_s: float  # until its manifest was written
    at: float  # when that was, seconds since the epoch


@dataclass(frozen=True, slots=True)
class Training:
    """A run's metrics as a whole. Lives are in the order in which they were lived."""

    lives: list[Life] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)  # (iteration, loss) of what counts, ascending
    saves: list[Save] = field(default_factory=list)
    newest: dict[str, Any] | None = None  # the last iteration's line
    model: dict[str, Any] | None = None  # the last {"stage": "model"}

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(iteration, loss) of what counts: of an iteration that was computed again, the newest."""
        return [(step.iteration, step.loss) for life in kept(self.lives) for step in life.steps]


def read(path: Path) -> Training:
    return training(Tail(path).read())


def training(facts: Iterable[dict[str, Any]]) -> Training:
    """Raises nothing: a fact of an unknown shape is none."""
    lives: list[Life] = []
    validation: dict[int, float] = {}
    saves: list[Save] = []
    newest = model = None
    before: float | None = None  # when the line before was written
    for fact in facts:
        at = seconds(fact.get("at"))
        iteration, loss = count(fact.get("iteration")), number(fact.get("loss"))
        match fact:
            case {"stage": "model", "attempt": int(attempt)}:
                model = fact
                lives.append(Life(attempt, begun_after := count(fact.get("resumed_from")) or 0))
                validation = {i: loss for i, loss in validation.items() if i <= begun_after}
            case {"loss": _} if iteration is not None and loss is not None:
                newest = fact
                took = seconds(fact.get("seconds")) or (at - before if at and before else 0.0)
                if not lives:
                    lives.append(Life(1, 0))
                lives[-1].steps.append(Step(iteration, loss, max(0.0, took), at or 0.0))
            case {"validation_loss": said} if iteration is not None and (loss := number(said)) is not None:
                validation[iteration] = loss
            case {"checkpoint": said} if (saved := count(said)) is not None:
                blocked = seconds(fact.get("blocked_s", fact.get("block_s")))
                total = seconds(fact.get("total_s", fact.get("save_s")))
                if blocked is not None and total is not None:
                    saves.append(Save(saved, blocked, total, at or 0.0))
        before = at
    return Training(lives, sorted(validation.items()), saves, newest, model)


def kept(lives: Iterable[Life]) -> list[Life]:
    """The lives without what a later one computed again."""
    found: list[Life] = []
    first_again = math.inf
    for life in reversed(list(lives)):
        found.append(Life(life.number, life.begun_after, [s for s in life.steps if s.iteration < first_again]))
        first_again = min(first_again, life.begun_after + 1)
    return found[::-1]


def newest_step(path: Path) -> dict[str, Any] | None:
    """The last iteration's line, from the end of the file alone."""
    try:
        with open_regular(path) as f:
            f.seek(0, 2)
            f.seek(max(0, f.tell() - LAST_BYTES))
            lines = f.read(LAST_BYTES).splitlines()
    except (OSError, Unbelievable):
        return None
    for line in reversed(lines):
        fact = _object(line)
        if fact and count(fact.get("iteration")) is not None and number(fact.get("loss")) is not None:
            return fact
    return None


def number(value: object) -> float | None:
    """A JSON number, NaN and infinities too; None for anything else."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def count(value: object) -> int | None:
    """A whole number that counts something; None for anything else."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def seconds(value: object) -> float | None:
    """A duration, or seconds since the epoch; None for anything else."""
    found = number(value)
    return found if found is not None and math.isfinite(found) and found >= 0 else None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None  # torn by a kill; the next attempt goes on below it
    return found if isinstance(found, dict) else None
