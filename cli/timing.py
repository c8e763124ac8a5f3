"""Where a run's time went, and how often it should save: the folder's story and its metrics, added up. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cli.metrics import Life, Step, Training, kept
from cli.record import Attempt
from launchers import interval
from launchers.restart import Cause

RECENT = 100  # iterations that tell what one takes now
RECENT_SAVES = 10
_FAILURES = frozenset(c for c in Cause if c.failure or c is Cause.NODE_FAILURE)


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one attempt contributed. Seconds are None where its metrics do not tell."""

    first: int | None  # the first and the last iteration that it computed
    last: int | None
    in_vain: int  # how many of them were computed again, or will be
    lost_s: float | None  # from its last iteration that counts to the next attempt's first, training again


def stretches(attempts: Sequence[Attempt], training: Training, now: float) -> dict[int, Stretch]:
    """By the attempt's number."""
    lives = {life.number: life for life in training.lives}
    counting = {life.number: life for life in kept(training.lives)}
    found = {}
    for attempt, following in zip(attempts, [*attempts, None][1:], strict=True):
        life = lives.get(attempt.number)
        steps = life.steps if life else []
        counts = counting[attempt.number].steps if life else []
        lost_s = None if following is None else _lost(attempt, counts, following, lives.get(following.number), now)
        first, last = (steps[0].iteration, steps[-1].iteration) if steps else (None, None)
        found[attempt.number] = Stretch(first, last, len(steps) - len(counts), lost_s)
    return found


def _lost(attempt: Attempt, counts: Sequence[Step], following: Attempt, then: Life | None, now: float) -> float:
    """From the last iteration that counts (or the attempt's start) until training went on in the one that followed."""
    since = counts[-1].at if counts and counts[-1].at else attempt.started_at
    if then is not None and then.steps and then.steps[0].at:
        return max(0.0, then.steps[0].at - then.steps[0].seconds - since)
    return max(0.0, (now if following.ended_at is None else following.ended_at) - since)


def spent(attempts: Sequence[Attempt], training: Training, now: float) -> interval.Spent | None:
    """None before anything has run."""
    if not attempts:
        return None
    lives = [interval.Attempt(a.started_at, _ended(a, attempts)) for a in attempts]
    return interval.spent(lives, _lines(training), now)


def between_failures(attempts: Sequence[Attempt], of: dict[int, Stretch], now: float) -> tuple[float, int] | None:
    """The mean seconds between two ends that cost computed iterations, and how many those were."""
    lives = [interval.Attempt(a.started_at, _ended(a, attempts), _failed(a, of[a.number])) for a in attempts]
    mean = interval.between_failures(lives, now)
    return None if mean is None else (mean, sum(life.failed for life in lives))


def suggestion(training: Training, between_failures_s: float) -> tuple[interval.Suggestion, float] | None:
    """How often to save, and what a save costs training in seconds; None before both were measured."""
    recent = [step.seconds for life in training.lives for step in life.steps][-RECENT:]
    saves = training.saves[-RECENT_SAVES:]
    iterations = training.newest.get("iterations") if training.newest else None
    if not saves or not recent or not isinstance(iterations, int) or between_failures_s <= 0:
        return None
    blocked_s = median(save.blocked_s for save in saves)
    suggested = interval.suggest(
        blocked_s=blocked_s,
        total_s=median(save.total_s for save in saves),
        between_failures_s=between_failures_s,
        iteration_s=median(recent),
        iterations=iterations,
    )
    return suggested, blocked_s


def _ended(attempt: Attempt, attempts: Sequence[Attempt]) -> float | None:
    """When it ended; one that never said so was over when the next one began."""
    if attempt.ended_at is not None:
        return attempt.ended_at
    later = attempts[attempt.number : attempt.number + 1]
    return later[0].started_at if later else None


def _failed(attempt: Attempt, stretch: Stretch) -> bool:
    """Whether it cost iterations, or will, because it ended in its own time and not in ours."""
    return stretch.in_vain > 0 or attempt.cause in _FAILURES


def _lines(training: Training) -> Iterator[dict[str, Any]]:
    """The metrics again, without what nobody could believe."""
    for life in training.lives:
        yield {"stage": "model", "resumed_from": life.begun_after}
        for step in life.steps:
            yield {"iteration": step.iteration, "loss": step.loss, "seconds": step.seconds}
    for save in training.saves:
        yield {"blocked_s": save.blocked_s}
