"""A cluster for a simulated week: jobs that wait, start up, are preempted and reach their time limit; and requests.

Requests are a fluid: a replica works on SLOTS of them at a time, and what does not fit waits in line. Who waits for
longer than PATIENCE_S is refused. How long a job waits in Slurm's queue depends on when it was submitted alone, so that
it is the same for everybody who is compared.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from benchmarks.week_trace import DAY_S, TICK_S, Arrivals, curve

SLOTS = 16
PATIENCE_S = 300.0
TIME_LIMIT_S = DAY_S
START_S = 120.0  # from a job's start to the first token
QUEUE_MEDIAN_S, QUEUE_SPREAD, BUSY_FACTOR = 45.0, 1.2, 3.0  # by day it is longer
QUEUE_SLOT_S = 300
PREEMPTED_EVERY_S = 4 * DAY_S  # of a job's running time, on average
SEED = 7


@dataclass(slots=True, eq=False)
class Job:
    id: str
    submitted_at: float
    starts_at: float
    ends_at: float  # by its time limit
    preempted_at: float
    replaces: str | None = None
    draining_at: float | None = None
    leaves: list[float] = field(default_factory=list)  # when each request is done that it had when it began to drain
    ended_at: float | None = None

    @property
    def ready_at(self) -> float:
        return self.starts_at + START_S

    def outstanding(self, now: float) -> int:
        """Of one that drains."""
        return sum(at > now for at in self.leaves)


@dataclass(slots=True)
class Cluster:
    now: float = 0.0
    jobs: list[Job] = field(default_factory=list)  # that have not ended
    over: list[Job] = field(default_factory=list)
    submitted: int = 0
    gpu_s: float = 0.0
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=5))  # of the last jobs that began
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))

    def submit(self, replaces: str | None = None) -> Job:
        self.submitted += 1
        starts_at = self.now + queue_s(self.now)
        preempted_at = starts_at + self.chance.expovariate(1 / PREEMPTED_EVERY_S)
        job = Job(f"j{self.submitted}", self.now, starts_at, starts_at + TIME_LIMIT_S, preempted_at, replaces)
        self.jobs.append(job)
        return job

    def end(self, job: Job) -> None:
        job.ended_at = self.now
        self.jobs.remove(job)
        self.over.append(job)
        self.gpu_s += max(0.0, self.now - job.starts_at)

    def tick(self) -> list[Job]:
        """Time passes. Those that ended of themselves while they served."""
        before, self.now = self.now, self.now + TICK_S
        cut = []
        for job in list(self.jobs):
            if before < job.starts_at <= self.now:
                self.waits.append(job.starts_at - job.submitted_at)
            if self.now >= min(job.ends_at, job.preempted_at):
                if job.ready_at <= self.now:
                    cut.append(job)
                self.end(job)
        return cut

    def ready(self) -> list[Job]:
        return [job for job in self.jobs if job.ready_at <= self.now and job.draining_at is None]


def queue_s(at: float) -> float:
    """What a job that is submitted now waits: the same in each run."""
    chance = random.Random(f"{SEED} {int(at // QUEUE_SLOT_S)}")
    return QUEUE_MEDIAN_S * (1 + BUSY_FACTOR * curve(at) / 2) * chance.lognormvariate(0.0, QUEUE_SPREAD) / 2


class Line:
    """The requests: those that wait, and what became of the others."""

    def __init__(self) -> None:
        self._cohorts: deque[tuple[float, float, float, float]] = deque()  # since, requests, seconds of each, tokens
        self._waits: dict[int, float] = {}  # seconds -> requests
        self.queued = self.queued_tokens = self.running = self.refused = self.cut = self.asked = 0.0

    def tick(self, now: float, new: Arrivals, ready: int) -> None:
        if new.requests:
            tokens = new.prompt_tokens + new.output_tokens
            self._cohorts.append((now, new.requests, new.seconds, tokens))
            self._count(new.requests, tokens)
            self.asked += new.requests
        room = float(ready * SLOTS * TICK_S)
        self.running = 0.0
        while self._cohorts:
            since, requests, each, tokens = self._cohorts.popleft()
            if now - since > PATIENCE_S:
                self.refused += requests
                self._count(-requests, tokens)
                self._note(PATIENCE_S, requests)
                continue
            served = min(requests, room / each)
            room -= served * each
            self.running += served * each / TICK_S
            self._count(-served, tokens)
            self._note(now - since, served)
            if served < requests:
                self._cohorts.appendleft((since, requests - served, each, tokens))
                return

    def oldest_s(self, now: float) -> float:
        return now - self._cohorts[0][0] if self._cohorts else 0.0

    def p99_s(self) -> float:
        left = sum(self._waits.values()) * 0.01
        for wait in sorted(self._waits, reverse=True):
            left -= self._waits[wait]
            if left <= 0:
                return float(wait)
        return 0.0

    def lose(self, job: Job, now: float, ready: int) -> None:
        """A replica ends with what it has in flight. `ready`: how many took calls, with it."""
        self.cut += self.each(ready) if job.draining_at is None else job.outstanding(now)

    def each(self, ready: int) -> float:
        """Requests in flight on each of the replicas that take calls."""
        return min(SLOTS, self.running / max(ready, 1))

    def _count(self, requests: float, tokens: float) -> None:
        self.queued = max(0.0, self.queued + requests)
        self.queued_tokens = max(0.0, self.queued_tokens + requests * tokens)

    def _note(self, wait_s: float, requests: float) -> None:
        self._waits[int(wait_s)] = self._waits.get(int(wait_s), 0.0) + requests
