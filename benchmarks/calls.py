"""How often slurmctld is asked in an hour, by one watch for all its readers: the real watch, an imagined hour."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from slurm.commands import CommandClient
from slurm.process import Completed, Runner
from slurm.watch import Watch

LEAST_S, MOST_S = 5.0, 60.0
HOUR_S = 3600.0
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Hour:
    """A clock that jumps to whatever is due next."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.time_s)

    async def sleep(self, seconds: float) -> None:
        awake = asyncio.Event()
        heapq.heappush(self._sleepers, (self.time_s + seconds, next(self._order), awake))
        await awake.wait()

    async def pause(self, wake: asyncio.Event, seconds: float) -> None:
        """The watch's: others get their turns until it is due, or is woken."""
        due = self.time_s + seconds
        await self._everyone()
        while not wake.is_set() and self._sleepers and self._sleepers[0][0] <= due:
            self.time_s, _, awake = heapq.heappop(self._sleepers)
            awake.set()
            await self._everyone()
        if not wake.is_set():
            self.time_s = due

    async def _everyone(self) -> None:
        for _ in range(3):  # a sleeper wakes, asks, waits
            await asyncio.sleep(0)


async def the_latest(watch: Watch, hour: Hour) -> object:
    return await watch.look()


async def a_newer_one(watch: Watch, hour: Hour) -> object:
    return await watch.look(newer_than=hour.now())


def per_hour(readers: int, reads: Callable[[Watch, Hour], Awaitable[object]], answer: Runner) -> int:
    """Commands that reach slurmctld in an hour while so many readers each read once a minute, and as many follow."""
    commands = 0

    def counted(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        nonlocal commands
        commands += 1
        return answer(argv, environment, timeout_s)

    async def an_hour() -> None:
        hour = Hour()
        client = CommandClient(counted)
        watch = Watch(client, least_s=LEAST_S, most_s=MOST_S, clock=lambda: hour.time_s, now=hour.now, pause=hour.pause)

        async def read(i: int) -> None:
            await hour.sleep(60 * i / readers)
            while hour.time_s < HOUR_S:
                await reads(watch, hour)
                await hour.sleep(60)

        async def follow() -> None:
            async for _ in watch.changes():
                pass

        tasks = [asyncio.create_task(t) for i in range(readers) for t in (read(i), follow())]
        polls = asyncio.create_task(watch.run())
        while hour.time_s < HOUR_S:
            await asyncio.sleep(0)
        assert watch.silence is None and watch.config is not None, "the watch was not answered"
        for task in (*tasks, polls):
            task.cancel()
        await asyncio.gather(*tasks, polls, return_exceptions=True)

    asyncio.run(an_hour())
    return commands
