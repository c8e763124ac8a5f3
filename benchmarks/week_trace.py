"""A week of requests: the 58 minutes of a recorded trace over and over, under a daily and a weekly curve.

The trace is Azure's of conversations in 2023 (TIMESTAMP,ContextTokens,GeneratedTokens), or one of its shape made here.
"""

from __future__ import annotations

import csv
import itertools
import math
import random
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

TICK_S = 5
DAY_S, WEEK_S = 86_400, 7 * 86_400
STREAMS = 4  # such traces side by side
OUTPUT_TOKEN_S, PROMPT_TOKEN_S = 0.03, 0.0002
# How much is asked for in each hour of a day of work, and how much less at the weekend (days 5 and 6).
HOURS = (
    0.3,
    0.2,
    0.2,
    0.2,
    0.2,
    0.3,
    0.5,
    0.8,
    1.3,
    1.8,
    2.0,
    1.9,
    1.6,
    1.8,
    2.0,
    1.9,
    1.7,
    1.4,
    1.1,
    0.9,
    0.8,
    0.6,
    0.5,
    0.4,
)
WEEKEND = 0.4
# Of the synthetic trace: as in Azure's.
DURATION_S, PER_S = 3500, 5.53
PROMPT_MEDIAN, PROMPT_SPREAD, OUTPUT_MEDIAN, OUTPUT_SPREAD = 800.0, 0.9, 150.0, 0.85


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Of one tick."""

    requests: float
    prompt_tokens: float  # of each, on average
    output_tokens: float

    @property
    def seconds(self) -> float:
        """That each of them takes, once it runs."""
        return self.output_tokens * OUTPUT_TOKEN_S + self.prompt_tokens * PROMPT_TOKEN_S


class Stays:
    """How long each of the requests that a replica has still takes, when nothing new comes to it: the rest of requests
    of the trace, each as likely as it is long."""

    def __init__(self, trace: Path | None, seed: int = 1) -> None:
        self._seconds = [output * OUTPUT_TOKEN_S + prompt * PROMPT_TOKEN_S for _, prompt, output in _requests(trace)]
        self._sums = list(itertools.accumulate(self._seconds))
        self._chance = random.Random(seed)

    def draw(self, requests: int) -> list[float]:
        drawn = self._chance.choices(self._seconds, cum_weights=self._sums, k=requests)
        return [seconds * self._chance.random() for seconds in drawn]


def week(trace: Path | None) -> list[Arrivals]:
    """One for each tick of the week."""
    ticks = _ticks(_requests(trace))
    found = []
    for n in range(WEEK_S // TICK_S):
        one, factor = ticks[n % len(ticks)], STREAMS * curve(n * TICK_S)
        found.append(Arrivals(one.requests * factor, one.prompt_tokens, one.output_tokens))
    return found


def curve(at: float) -> float:
    """Straight lines from hour to hour."""
    hours = at % DAY_S / 3600
    before, part = HOURS[int(hours)], hours % 1
    daily = before + (HOURS[(int(hours) + 1) % 24] - before) * part
    return daily * (WEEKEND if at // DAY_S >= 5 else 1.0)


def _requests(trace: Path | None) -> list[tuple[float, int, int]]:
    return read(trace) if trace else synthetic()


def read(path: Path) -> list[tuple[float, int, int]]:
    """Seconds since the first request, tokens of the prompt and of the answer. Raises OSError, ValueError."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    try:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
        return [
            (at - times[0], int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for at, row in zip(times, rows, strict=True)
        ]
    except KeyError as e:
        raise ValueError(f"{path} has no column {e}; it is to have TIMESTAMP, ContextTokens and GeneratedTokens") from e


def synthetic(seed: int = 1) -> list[tuple[float, int, int]]:
    chance = random.Random(seed)
    at, made = 0.0, []
    while at < DURATION_S:
        prompt = chance.lognormvariate(math.log(PROMPT_MEDIAN), PROMPT_SPREAD)
        output = chance.lognormvariate(math.log(OUTPUT_MEDIAN), OUTPUT_SPREAD)
        made.append((at, 1 + int(prompt), 1 + int(output)))
        at += chance.expovariate(PER_S)
    return made


def _ticks(trace: list[tuple[float, int, int]]) -> list[Arrivals]:
    sums = [[0, 0, 0] for _ in range(int(trace[-1][0] // TICK_S) + 1)]
    for at, prompt, output in trace:
        one = sums[int(at // TICK_S)]
        one[0], one[1], one[2] = one[0] + 1, one[1] + prompt, one[2] + output
    return [Arrivals(n, prompt / max(n, 1), output / max(n, 1)) for n, prompt, output in sums]
