"""How often Slurm is asked in an hour by one controller: its real watch and scheduler, in an hour that takes seconds.

In that hour the controller's turn comes every two seconds and asks for the state of every job, every reader follows
what changes and takes the latest picture, and now and then something is submitted, which hurries the watch. What a
submit itself costs (sbatch, and one squeue for the new job) comes on top, and is not counted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from launchers.scheduler import JobRef
from launchers.slurm_scheduler import SlurmScheduler
from slurm.commands import CommandClient
from slurm.process import Completed, Runner
from slurm.watch import Watch

HOUR_S, TURN_S = 3600.0, 2.0
LEAST_S, MOST_S = 2.0, 30.0  # the defaults of a site
SEPARATOR = "\x1f"  # not drawn by lot, so that the same question is asked in the same words


class Hour:
    """A clock that runs as fast as the watch waits, and what happens at each turn in the meantime."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self.t, self._turn, self._next = 0.0, turn, 0.0
        self._began = datetime.now(UTC)
        self.over = asyncio.Event()

    def clock(self) -> float:
        return self.t

    def now(self) -> datetime:
        return self._began + timedelta(seconds=self.t)

    async def pause(self, wake: asyncio.Event, seconds: float) -> None:
        end = self.t + seconds
        while self._next <= end:
            self.t, self._next = self._next, self._next + TURN_S
            self._turn()
            await asyncio.sleep(0)  # the readers' turn
            if self.t >= HOUR_S:
                self.over.set()
                await asyncio.Event().wait()
            if wake.is_set():
                return
        self.t = end


def per_hour(answer: Runner, refs: Sequence[JobRef], readers: int, submits: int) -> Counter[str]:
    """Commands by name, while these jobs are cared for, so many readers follow, and so many submits are made."""
    asked: Counter[str] = Counter()

    def counted(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        asked[argv[0]] += 1
        return answer(argv, environment, timeout_s)

    async def an_hour() -> None:
        scheduler = SlurmScheduler(CommandClient(counted, separator=SEPARATOR))

        def turn() -> None:
            if watch.latest is not None:
                states = scheduler.states(refs)
                assert all(states[ref].state.value == "PENDING" for ref in refs)
            if hour.t % (HOUR_S / submits) < TURN_S:
                watch.hurry()

        hour = Hour(turn)
        watch = Watch(
            scheduler.client,
            least_s=LEAST_S,
            most_s=MOST_S,
            clock=hour.clock,
            now=hour.now,
            pause=hour.pause,
            chance=lambda: 1.0,
        )
        scheduler.watch = watch

        async def read() -> None:
            async for _ in watch.changes():
                await watch.look()

        tasks = [asyncio.create_task(read()) for _ in range(readers)]
        tasks.append(asyncio.create_task(watch.run()))
        await hour.over.wait()
        assert watch.silence is None, watch.silence
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(an_hour())
    return asked
