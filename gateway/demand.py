"""Which deployments are called, told to the controller through the ledger's file: at once for one that nobody served
when it was called, and for the others every EVERY_S seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from registry import clock
from registry.demand import Demand

EVERY_S = 10.0
BREATH_S = 0.25  # between two writes, however many deployments are wakened at a time


class Called:
    def __init__(self) -> None:
        self._called: set[str] = set()
        self._missed: set[str] = set()
        self._urgent = asyncio.Event()

    def note(self, name: str) -> None:
        """A request for this deployment. Cheap: for each of them."""
        self._called.add(name)
        self._missed.discard(name)

    def miss(self, name: str) -> None:
        """A request that this deployment had a share in is served by others, as no replica of it is ready.

        The first is urgent; until the deployment itself is called again, the next ones wait with the next write.
        """
        if name in self._missed:
            self._called.add(name)
        else:
            self._missed.add(name)
            self.urge(name)

    def urge(self, name: str) -> None:
        """A request waits because no replica is ready: do not wait with the next write."""
        self._called.add(name)
        self._urgent.set()

    def take(self, in_flight: Iterable[str], waiting: Mapping[str, int], at: datetime) -> list[Demand]:
        """What is to be written now: whatever was called since the last time, is in flight, or is waited for."""
        names = sorted(self._called | set(in_flight) | set(waiting))
        self._called.clear()
        return [Demand(name, clock.text(at), waiting.get(name, 0)) for name in names]

    async def tell(
        self,
        write: Callable[[Sequence[Demand]], None],
        in_flight: Callable[[], Iterable[str]],
        waiting: Callable[[], Mapping[str, int]],
    ) -> None:
        """Runs until cancelled. `write` hands over to the ledger's writer and does not wait for it."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._urgent.wait()
            self._urgent.clear()
            if told := self.take(in_flight(), waiting(), datetime.now(UTC)):
                write(told)
            await asyncio.sleep(BREATH_S)
