"""Whose turn it is: start-time fair queueing (Goyal, Vin, Cheng 1996) over tenants, with tokens as the work.

Each tenant has a tag, the tokens it was given so far, but never less than the virtual time, which is the highest tag
that was served; the lowest tag is served next. A request is charged when it gets its place, so one that leaves its line
before leaves no trace in anybody's tag.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from typing import Generic, TypeVar


class Waiter:
    """One request that waits its turn."""

    __slots__ = ("tenant", "tokens")

    def __init__(self, tenant: str, tokens: int) -> None:
        self.tenant, self.tokens = tenant, tokens


W = TypeVar("W", bound=Waiter)


class Line(Generic[W]):
    """One tenant's waiters, in the order in which they came. `start` is the tag of the first."""

    __slots__ = ("start", "tenant", "tokens", "waiters")

    def __init__(self, tenant: str, start: int) -> None:
        self.tenant, self.start, self.tokens = tenant, start, 0
        self.waiters: OrderedDict[W, None] = OrderedDict()

    def newest(self) -> W:
        return next(reversed(self.waiters))


class Band(Generic[W]):
    """The lines of those who take turns with each other, and their virtual time in tokens."""

    def __init__(self) -> None:
        self.lines: dict[str, Line[W]] = {}  # only tenants of whom somebody waits
        self.tokens = 0  # of all that wait
        self._now = 0  # the virtual time: the highest start tag that was served
        self._finish: dict[str, int] = {}  # by tenant; there are never more than the registry has
        self._heap: list[tuple[int, int, Line[W]]] = []  # lines by start tag, with those that have become empty
        self._order = itertools.count()

    def charge(self, tenant: str, tokens: int) -> None:
        start = self._finish.get(tenant, 0)
        if start > self._now:
            self._now = start
        else:
            start = self._now
        self._finish[tenant] = start + tokens

    def add(self, waiter: W) -> None:
        line = self.lines.get(waiter.tenant)
        if line is None:
            line = self.lines[waiter.tenant] = Line[W](waiter.tenant, self._start(waiter.tenant))
            self._push(line)
        line.waiters[waiter] = None
        line.tokens += waiter.tokens
        self.tokens += waiter.tokens

    def pop(self) -> W:
        """The first of the line with the lowest tag, which the caller charges."""
        while not (line := heapq.heappop(self._heap)[2]).waiters:
            pass
        waiter, _ = line.waiters.popitem(last=False)
        self._less(line, waiter)
        if line.waiters:
            line.start = line.start + waiter.tokens
            self._push(line)
        return waiter

    def remove(self, waiter: W) -> bool:
        """Whether it was waiting."""
        line = self.lines.get(waiter.tenant)
        if line is None or waiter not in line.waiters:
            return False
        del line.waiters[waiter]
        self._less(line, waiter)
        if len(self._heap) > 2 * len(self.lines) + 64:  # mostly lines that were left
            self._heap = [entry for entry in self._heap if entry[2].waiters]
            heapq.heapify(self._heap)
        return True

    def ahead_of(self, tenant: str) -> int:
        """Tokens that would be served before a request of this tenant that comes now."""
        mine = self.lines.get(tenant)
        tag = mine.start + mine.tokens if mine else self._start(tenant)
        others = sum(min(max(tag - line.start, 0), line.tokens) for line in self.lines.values() if line is not mine)
        return others + (mine.tokens if mine else 0)

    def _start(self, tenant: str) -> int:
        return max(self._now, self._finish.get(tenant, 0))

    def _push(self, line: Line[W]) -> None:
        heapq.heappush(self._heap, (line.start, next(self._order), line))

    def _less(self, line: Line[W], waiter: W) -> None:
        line.tokens -= waiter.tokens
        self.tokens -= waiter.tokens
        if not line.waiters:
            del self.lines[line.tenant]
