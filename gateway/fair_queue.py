"""Admission under overload: who gets a replica's next free place, and who need not wait for it.

One FairQueue per deployment, with as many places as its ready replicas take together. While a place is free and nobody
waits, a request takes it at once. Otherwise it waits in its tenant's line, and tenants take turns by the tokens they
were given (turns.py): one with 10,000 requests does not starve one with 10.

A class orders a tenant's own requests, within its line: nobody passes another tenant by calling its requests high.

Refused with QueueFull: who would wait longer than `wait_s`, going by the tokens ahead and the rate at which tokens
leave; who has waited PATIENCE times as long all the same; and, when `length` are waiting, the newest request, of its
lowest class, of whoever has the most waiting.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Callable, Container
from types import TracebackType

from gateway.errors import BadRequest, GatewayError, NoReplica, QueueFull
from gateway.flow import Flow
from gateway.turns import Band, Waiter

PATIENCE = 2.0
LONGEST_RETRY_S = 120  # SDKs give up on more


class Priority(enum.IntEnum):
    """Of one tenant's requests, the lower is served first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2

    @classmethod
    def named(cls, name: str | None) -> Priority:
        """What the header `x-headgate-priority` says; NORMAL when there is none. Raises BadRequest."""
        if name is None:
            return cls.NORMAL
        found = _PRIORITIES.get(name.strip().lower())
        if found is None:
            raise BadRequest(f"no priority is called {name!r}; there are: {', '.join(_PRIORITIES)}")
        return found


_PRIORITIES = {priority.name.lower(): priority for priority in Priority}


class Slot:
    """A place. Leaving it, by `with` or leave(), gives it to the next; leaving it twice is leaving it once."""

    __slots__ = ("_queue", "_replica", "tokens", "waited_s")

    def __init__(self, queue: FairQueue, tokens: int, waited_s: float) -> None:
        self._queue: FairQueue | None = queue
        self._replica: str | None = None
        self.tokens = tokens
        self.waited_s = waited_s

    def used_at(self, replica_id: str) -> None:
        """Where its request runs from now on: a ready replica."""
        self._replica = replica_id
        if self._queue is not None:
            self._queue._outside.discard(self)

    def is_outside(self, ready: Container[str]) -> bool:
        """Whether its request runs on a replica that is not one of these."""
        return self._replica is not None and self._replica not in ready

    def leave(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue._left(self)

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()


class _Waiter(Waiter):
    __slots__ = ("likely", "place", "since")

    def __init__(
        self, tenant: str, tokens: int, priority: Priority, since: float, place: asyncio.Future[Slot], likely: int
    ) -> None:
        super().__init__(tenant, tokens, priority)
        self.since, self.place, self.likely = since, place, likely


class FairQueue:
    """`length` requests wait at most, each for about `wait_s` seconds; `clock` is monotonic, in seconds."""

    def __init__(self, deployment: str, *, length: int, wait_s: float, clock: Callable[[], float]) -> None:
        self.deployment = deployment
        self.capacity = 0
        self.taken = 0
        self.waiting = 0
        self.waiting_tokens = 0  # that they are likely to be, in all
        self._length, self._wait_s, self._clock = length, wait_s, clock
        self._held: set[Slot] = set()
        self._outside: set[Slot] = set()  # those of requests that run on replicas which take no new ones
        self._band = Band[_Waiter]()
        self._flow = Flow(clock())

    def resize(self, capacity: int, ready: Container[str] | None = None) -> None:
        """As the ready replicas, which have these places, change. Who has a place keeps it; new ones go to who waits.

        What still runs on others than the `ready` ones takes no place from those who could run on these.
        """
        self.capacity = capacity
        if ready is not None:
            self._outside = {slot for slot in self._held if slot.is_outside(ready)}
        self._hand_out()

    def refuse_all(self, error: GatewayError) -> None:
        """Everybody who waits: it is in vain."""
        while self.waiting:
            self._refuse(self._next(), error)

    def try_enter(self, tenant: str, tokens: int, priority: Priority) -> Slot | None:
        """A free place, when nobody waits for one."""
        if self.waiting or not self._has_room():
            return None
        self._band.charge(tenant, tokens)
        return self._place(tokens, 0.0)

    async def enter(self, tenant: str, tokens: int, priority: Priority, likely: int = 0) -> Slot:
        """Wait for a place. Tenants take turns by `tokens`, which a request may have; it is `likely` to be so many.

        Raises QueueFull.
        """
        if (slot := self.try_enter(tenant, tokens, priority)) is not None:
            return slot
        if (
            self._wait_behind(self._band.tokens) > self._wait_s  # cheap, and enough as a rule
            and (expected := self.expected_wait(tenant, priority)) > self._wait_s
        ):
            raise self._full(f"the wait would be {expected:.0f} s", expected)
        self._make_room(tenant, tokens, priority)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(tenant, tokens, priority, self._clock(), loop.create_future(), likely)
        self._band.add(waiter)
        self.waiting += 1
        self.waiting_tokens += likely
        timer = loop.call_later(PATIENCE * self._wait_s, self._give_up, waiter)
        try:
            return await waiter.place
        except BaseException:  # cancelled: before it had a place, or just after; or refused
            self._remove(waiter)
            if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
                waiter.place.result().leave()
            raise
        finally:
            timer.cancel()

    def expected_wait(self, tenant: str, priority: Priority) -> float:
        """Seconds until a request of this tenant that comes now would get a place; 0 while nothing is known."""
        if not self.waiting and self._has_room():
            return 0.0
        return self._wait_behind(self._band.ahead_of(tenant, priority))

    def longest_wait(self) -> float:
        """Seconds that the one which waits longest has waited; 0 where nobody waits."""
        if not self.waiting:
            return 0.0
        return self._clock() - min(waiter.since for waiter in self._band.firsts())

    def _wait_behind(self, tokens: int) -> float:
        return self._flow.wait_behind(tokens, self.taken, self.capacity, self._clock())

    def _has_room(self) -> bool:
        return self.taken - len(self._outside) < self.capacity

    def _place(self, tokens: int, waited_s: float) -> Slot:
        self.taken += 1
        self._flow.held -= self._clock()
        slot = Slot(self, tokens, waited_s)
        self._held.add(slot)
        return slot

    def _left(self, slot: Slot) -> None:
        self.taken -= 1
        self._held.remove(slot)
        self._outside.discard(slot)
        self._flow.leave(slot.tokens, self.taken, self._clock())
        if self.waiting:
            self._hand_out()

    def _hand_out(self) -> None:
        while self.waiting and self._has_room():
            waiter = self._next()
            if waiter.place.done():
                continue  # cancelled, and about to find out; it costs its tenant nothing
            self._band.charge(waiter.tenant, waiter.tokens)
            waiter.place.set_result(self._place(waiter.tokens, self._clock() - waiter.since))

    def _next(self) -> _Waiter:
        waiter = self._band.pop()
        self.waiting -= 1
        self.waiting_tokens -= waiter.likely
        return waiter

    def _make_room(self, tenant: str, tokens: int, priority: Priority) -> None:
        """Raises QueueFull unless there is room, or somebody with more waiting makes it, or the tenant's own lower one.

        Of another tenant's requests none has to go because of its class.
        """
        if self.waiting < self._length:
            return
        lines = self._band.lines
        mine = lines.get(tenant)
        longest = max(lines.values(), key=lambda line: line.tokens, default=None)
        if longest is not None and longest.tokens > tokens + (mine.tokens if mine else 0):
            return self._make_leave(longest.last(), "others came that have less waiting")
        if mine is not None and (last := mine.last()).rank > priority:
            return self._make_leave(last, "its tenant has sent more urgent ones")
        raise self._full(f"{self.waiting} requests are waiting already", self.expected_wait(tenant, priority))

    def _give_up(self, waiter: _Waiter) -> None:
        waited = f"it has waited for {self._clock() - waiter.since:.0f} s"
        if self.capacity:
            self._make_leave(waiter, waited)
        elif self._remove(waiter):
            self._refuse(
                waiter, NoReplica(f"no replica of deployment {self.deployment} is ready any more, and {waited}")
            )

    def _make_leave(self, waiter: _Waiter, why: str) -> None:
        if self._remove(waiter):
            self._refuse(waiter, self._full(why, self.expected_wait(waiter.tenant, Priority(waiter.rank))))

    def _refuse(self, waiter: _Waiter, error: GatewayError) -> None:
        if not waiter.place.done():
            waiter.place.set_exception(error)

    def _remove(self, waiter: _Waiter) -> bool:
        was_waiting = self._band.remove(waiter)
        if was_waiting:
            self.waiting -= 1
            self.waiting_tokens -= waiter.likely
        return was_waiting

    def _full(self, why: str, wait_s: float) -> QueueFull:
        seconds = math.ceil(min(max(wait_s, 1), LONGEST_RETRY_S))
        return QueueFull(f"deployment {self.deployment} has more to do than its replicas can take: {why}", seconds)
