"""One poll of the queue serves everyone in a process.

Readers take the latest picture, wait for a newer one (`look`), or follow what changes (`changes`); however many they
are, slurmctld is asked as often as the pace says. A poll without an answer leaves the latest picture as it is, and is
told as a silence. A job has ended when the queue shows it so; one that the queue has forgotten, when the books do.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from slurm.attempts import REQUEUEABLE
from slurm.changes import (
    Answered,
    Change,
    JobChange,
    JobEnded,
    JobUnaccounted,
    LookAtLatest,
    Silence,
    Silent,
    compare,
    end_in_books,
)
from slurm.client import SlurmClient
from slurm.errors import SlurmError, SlurmUnavailable
from slurm.model import ClusterConfig, Job, JobUsage, Node, Partition, Reservation
from slurm.pace import Pace
from slurm.picture import Picture

log = logging.getLogger(__name__)
T = TypeVar("T")
_Identity = tuple[int, datetime]  # raw id and submit time, on the one cluster of a watch

KEPT = 1000  # changes for a reader that does not come to read them
ASK_AGAIN_MOST_S = 600.0  # between two questions to accounting about one job
FORGOTTEN_AFTER = timedelta(days=1)  # no answer about a job will come any more

# Waits for the event or for so many seconds, whichever comes first.
Pause = Callable[[asyncio.Event, float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Unaccounted:
    """A job that the queue does not show any more, while accounting does not say that it ended."""

    job: Job  # as the queue showed it last
    since: datetime
    words: str = "accounting was not asked yet"
    questions: int = 0
    again: float = -math.inf  # when accounting is asked next, by the watch's clock


@dataclass(frozen=True, slots=True)
class _Cluster:
    at: datetime
    config: ClusterConfig
    nodes: tuple[Node, ...]
    partitions: tuple[Partition, ...]
    reservations: tuple[Reservation, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one poll brought; worked out on the thread, because 10,000 jobs take a while to compare."""

    at: datetime
    queue: Mapping[int, Job]  # by raw id
    cluster: _Cluster | None
    changes: Sequence[JobChange]
    missing: Sequence[Job]  # not shown, and not known to have ended


async def pause(wake: asyncio.Event, seconds: float) -> None:
    # Not asyncio.wait_for, which in Python 3.11 loses a cancellation that comes with the event.
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        pass


def utc_now() -> datetime:
    return datetime.now(UTC)


class Watch:
    """Of the one cluster that `client` speaks for. Its blocking calls are made on one thread, one after the other."""

    def __init__(
        self,
        client: SlurmClient,
        *,
        least_s: float,
        most_s: float,
        cluster_every_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
        pause: Pause = pause,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.pace = Pace(least_s, most_s)
        self.latest: Picture | None = None
        self.silence: Silence | None = None
        self.running = False
        self._client, self._cluster_every_s = client, cluster_every_s
        self._clock, self._now, self._pause, self._chance = clock, now, pause, chance
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake, self._polled = asyncio.Event(), asyncio.Event()
        self._readers: set[_Reader] = set()
        self._waiting = 0  # how many wait for a newer picture
        self._hurried = -math.inf  # when somebody last submitted or cancelled, by the clock
        self._took_s = 0.0  # the last poll
        self._changing = False
        self._queue: Mapping[int, Job] = {}
        self._cluster: _Cluster | None = None
        self._cluster_due = -math.inf
        self._unaccounted: dict[_Identity, Unaccounted] = {}
        self._over = False

    # For everyone.

    @property
    def config(self) -> ClusterConfig | None:
        """slurmctld's configuration, as of `latest.cluster_at`."""
        return None if self._cluster is None else self._cluster.config

    @property
    def unaccounted(self) -> tuple[Unaccounted, ...]:
        return tuple(self._unaccounted.values())

    def hurry(self) -> None:
        """Something was submitted or cancelled: look soon, and often for a while. May be called on any thread."""
        self._hurried = self._clock()
        if (loop := self._loop) is not None:
            loop.call_soon_threadsafe(self._wake.set)

    async def look(self, newer_than: datetime | None = None) -> Picture:
        """A picture that was asked for after this moment; all who wait share one poll.

        Raises SlurmUnavailable when Slurm does not answer.
        """
        while True:
            if self._over:
                raise SlurmUnavailable("the watch has ended")
            if self.silence is not None:
                raise SlurmUnavailable(self.silence.words)
            if self.latest is not None and (newer_than is None or self.latest.at > newer_than):
                return self.latest
            self._waiting += 1
            self._wake.set()
            try:
                await self._polled.wait()
            finally:
                self._waiting -= 1

    async def changes(self) -> AsyncIterator[Change]:
        """From now on, until the watch ends. After LookAtLatest, `latest` and `silence` say what the events did not."""
        reader = _Reader()
        if self._over:
            reader.end()
        elif self.latest is not None or self.silence is not None:
            reader.tell([LookAtLatest()])
        self._readers.add(reader)
        try:
            while (change := await reader.next()) is not None:
                yield change
        finally:
            self._readers.discard(reader)

    # The loop.

    async def run(self) -> None:
        """Poll until cancelled. Once only."""
        self._loop, self.running = asyncio.get_running_loop(), True
        thread = ThreadPoolExecutor(1, "slurm-watch")
        try:
            while True:
                await self._poll(thread)
                await self._settle(thread)
                await self._rest()
        finally:
            self._loop, self.running = None, False
            thread.shutdown(wait=False, cancel_futures=True)
            self._over = True
            self._polled.set()
            for reader in self._readers:
                reader.end()

    async def _poll(self, thread: ThreadPoolExecutor) -> None:
        at, began = self._now(), self._clock()
        try:
            seen = await _on(thread, self._ask, at)
        except SlurmError as e:
            self._no_answer(at, str(e))
        else:
            self._answer(seen)
        self._took_s = self._clock() - began
        polled, self._polled = self._polled, asyncio.Event()
        polled.set()

    async def _rest(self) -> None:
        """Until the next poll is due, which a hurry, or somebody who waits, may bring nearer."""
        since, chance = self._clock(), self._chance()
        while True:
            self._wake.clear()
            wait_s = self.pace.wait_s(
                since_hurry_s=max(0.0, since - self._hurried),
                changing=self._changing,
                awaited=self._waiting > 0,
                took_s=self._took_s,
                failures=0 if self.silence is None else self.silence.failures,
                remembers_s=(self.config.min_job_age_s if self.config else 0) or math.inf,
                chance=chance,
            )
            left_s = since + wait_s - self._clock()
            if left_s <= 0:
                return
            await self._pause(self._wake, left_s)

    # Questions to slurmctld.

    def _ask(self, at: datetime) -> _Seen:
        """On the thread. Nothing else changes what it reads until it is done."""
        queue = {job.raw_id: job for job in self._client.jobs()}
        cluster = self._ask_cluster(at)
        changes, missing = compare(self._queue, [lost.job for lost in self._unaccounted.values()], queue)
        return _Seen(at, queue, cluster, changes, missing)

    def _ask_cluster(self, at: datetime) -> _Cluster | None:
        """Where the queue was told and the cluster is not, its older picture stays, with its time."""
        if self._clock() < self._cluster_due:
            return self._cluster
        self._cluster_due = self._clock() + self._cluster_every_s
        try:
            return _Cluster(
                at,
                self._client.config(),
                _as_far_as_shown(self._client.nodes),
                _as_far_as_shown(self._client.partitions),
                _as_far_as_shown(self._client.reservations),
            )
        except SlurmError as e:
            log.warning("slurmctld did not say how its nodes and partitions are: %s", e)
            return self._cluster

    def _answer(self, seen: _Seen) -> None:
        first = self.latest is None
        self._queue, self._cluster, self._changing = seen.queue, seen.cluster, bool(seen.changes)
        cluster = seen.cluster
        self.latest = Picture(
            at=seen.at,
            jobs=tuple(seen.queue.values()),
            cluster_at=cluster.at if cluster else None,
            nodes=cluster.nodes if cluster else (),
            partitions=cluster.partitions if cluster else (),
            reservations=cluster.reservations if cluster else (),
        )
        self._unaccounted = {
            key: self._unaccounted.get(key) or Unaccounted(job, seen.at)
            for key, job in ((_identity(job), job) for job in seen.missing)
        }
        silence, self.silence = self.silence, None
        if silence is not None:
            log.info("Slurm answers again, after a silence since %s", silence.since.isoformat())
            self._publish([Answered(silence)])
        self._publish([LookAtLatest()] if first else seen.changes)

    def _no_answer(self, at: datetime, words: str) -> None:
        before = self.silence
        self.silence = Silence(before.since if before else at, words, before.failures + 1 if before else 1)
        if before is None:
            log.warning("Slurm gives no answer: %s", words)
            self._publish([Silent(self.silence)])

    def _publish(self, changes: Sequence[Change]) -> None:
        for reader in self._readers:
            reader.tell(changes)

    # Questions to accounting, about jobs that the queue does not show any more.

    async def _settle(self, thread: ThreadPoolExecutor) -> None:
        """One question for all that are due; how they ended, or what is not known of them, is told."""
        due = {key: lost for key, lost in self._unaccounted.items() if lost.again <= self._clock()}
        if not due or self.silence is not None:
            return
        silent, books = await self._ask_books(thread, [str(lost.job.raw_id) for lost in due.values()])
        told: list[Change] = []
        for key, lost in due.items():
            record, words = (None, silent) if silent else end_in_books(lost.job, books)
            if record is not None and (record.state not in REQUEUEABLE or lost.questions):
                # Having ended in a state that a requeue may follow is believed when it is still so at another look.
                del self._unaccounted[key]
                told.append(JobEnded(lost.job, record))
                continue
            if self._now() - lost.since > FORGOTTEN_AFTER:
                log.warning("how job %s ended will not be known: %s", lost.job.id, words)
                del self._unaccounted[key]
                continue
            again = self._clock() + min(self.pace.least_s * 2.0 ** min(lost.questions, 32), ASK_AGAIN_MOST_S)
            self._unaccounted[key] = replace(lost, words=words, questions=lost.questions + 1, again=again)
            if not lost.questions:
                told.append(JobUnaccounted(lost.job, words))
        self._publish(told)

    async def _ask_books(self, thread: ThreadPoolExecutor, ids: Sequence[str]) -> tuple[str, Sequence[JobUsage]]:
        """Why there is no answer (empty: there is one), and the records."""
        if self.config is not None and not self.config.accounting:
            return "this cluster keeps no accounting", ()
        try:
            return "", await _on(thread, self._client.accounting, ids)
        except SlurmError as e:
            return f"accounting gives no answer: {e}", ()


class _Reader:
    """Changes that were not read yet. None: the watch has ended."""

    def __init__(self) -> None:
        self._pending: deque[Change | None] = deque()
        self._some = asyncio.Event()

    def tell(self, changes: Sequence[Change]) -> None:
        if len(self._pending) + len(changes) > KEPT:
            self._pending.clear()
            changes = [LookAtLatest()]
        self._pending.extend(changes)
        self._some.set()

    def end(self) -> None:
        self._pending.append(None)
        self._some.set()

    async def next(self) -> Change | None:
        while not self._pending:
            self._some.clear()
            await self._some.wait()
        return self._pending.popleft()


def _as_far_as_shown(ask: Callable[[], Sequence[T]]) -> tuple[T, ...]:
    """Nothing, of what PrivateData hides from us: slurmctld refuses such a question."""
    try:
        return tuple(ask())
    except SlurmUnavailable:
        raise
    except SlurmError as e:
        log.debug("slurmctld refuses: %s", e)
        return ()


def _identity(job: Job) -> _Identity:
    return job.raw_id, job.submitted_at


async def _on(thread: ThreadPoolExecutor, function: Callable[..., T], *args: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, function, *args)
