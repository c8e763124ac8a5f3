"""How often a run should save, and how much of its time was training. Pure; standard library only.

The words are those of J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps"
(2006), and of Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters" (2024), whose
Effective Training Time Ratio is the productive part of the time since a run first began to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Suggestion:
    """How often to save: `seconds` of training between two checkpoints, and the `iterations` that are computed then."""

    seconds: float
    iterations: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a run: epoch seconds, and whether it ended without saving what it had computed."""

    started: float
    ended: float | None  # None: it still runs
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Computed:
    """One iteration, and what it took. In the order in which a run computed them, restarts and all."""

    iteration: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Spent:
    """Where a run's time went, in seconds since its first attempt started."""

    wall: float
    productive: float  # iterations that count: the run stands on them
    lost: float  # iterations computed in vain: after a restart they were computed again, or will be
    blocked: float  # training stood still for a checkpoint

    @property
    def other(self) -> float:
        """Waiting for nodes, starting, loading, evaluating."""
        return max(0.0, self.wall - self.productive - self.lost - self.blocked)

    @property
    def ratio(self) -> float:
        """The Effective Training Time Ratio, 0 to 1."""
        return min(1.0, self.productive / self.wall) if self.wall > 0 else 0.0


def daly(blocked_s: float, between_failures_s: float) -> float:
    """Seconds of training between two checkpoints that lose the least time, by Daly's equation 37.

    `blocked_s`: what one checkpoint costs training; `between_failures_s`: the mean time between two failures. For a
    cheap checkpoint it is Young's square root of 2 x cost x time between failures.
    """
    if between_failures_s <= 0 or blocked_s < 0:
        raise ValueError(f"cost {blocked_s} s and time between failures {between_failures_s} s must be positive")
    if blocked_s >= 2 * between_failures_s:
        return between_failures_s
    part = blocked_s / (2 * between_failures_s)
    return math.sqrt(2 * blocked_s * between_failures_s) * (1 + math.sqrt(part) / 3 + part / 9) - blocked_s


def suggest(
    *, blocked_s: float, total_s: float, between_failures_s: float, iteration_s: float, iterations: int
) -> Suggestion:
    """How often a run of `iterations`, each of `iteration_s`, should save.

    Never more often than a checkpoint needs from its beginning to its manifest (`total_s`): one is written at a time.
    """
    seconds = max(daly(blocked_s, between_failures_s), total_s)
    whole = max(1, round(seconds / iteration_s)) if iteration_s > 0 else 1
    return Suggestion(round(seconds, 1), min(whole, max(1, iterations)))


def between_failures(attempts: Iterable[Attempt], now: float) -> float | None:
    """The mean time between failures of these attempts, in seconds of running; None before anything has run.

    Without any failure it is the whole time: the least that it can be.
    """
    ran, failures = 0.0, 0
    for attempt in attempts:
        ran += max(0.0, (now if attempt.ended is None else attempt.ended) - attempt.started)
        failures += attempt.failed
    return ran / max(1, failures) if ran > 0 else None


def computed(metrics: Iterable[Mapping[str, Any]]) -> Iterator[Computed]:
    """The iterations that a run's metrics tell of. Where an attempt goes on is told by one that took no time."""
    for line in metrics:
        iteration, seconds = line.get("iteration"), line.get("seconds")
        if line.get("stage") == "model":
            yield Computed((line.get("resumed_from") or 0) + 1, 0.0)
        elif isinstance(iteration, int) and isinstance(seconds, int | float) and "loss" in line:
            yield Computed(iteration, float(seconds))


def spent(attempts: Iterable[Attempt], metrics: Iterable[Mapping[str, Any]], now: float) -> Spent:
    """Where the time went. An iteration counts once, as it was last computed; what a restart went back over is lost."""
    known = list(attempts)
    lines = list(metrics)
    began = min((a.started for a in known), default=now)
    ended = max((now if a.ended is None else a.ended for a in known), default=now)
    kept: list[Computed] = []
    lost = 0.0
    for one in computed(lines):
        while kept and kept[-1].iteration >= one.iteration:
            lost += kept.pop().seconds
        kept.append(one)
    blocked = sum(float(line["blocked_s"]) for line in lines if isinstance(line.get("blocked_s"), int | float))
    return Spent(max(0.0, ended - began), sum(c.seconds for c in kept), lost, blocked)
