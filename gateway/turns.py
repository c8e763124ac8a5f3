"""Whose turn it is: start-time fair queueing (Goyal, Vin, Cheng 1996) over tenants, with tokens as the work.

Each tenant has a tag, the tokens it was given so far, but never less than the virtual time, which is the highest tag
that was served; the lowest tag is served next. A request is charged when it gets its place, so one that leaves its line
before leaves no trace in anybody's tag. Within a tenant's line a lower rank goes first, but of every SHARE requests
served while several ranks wait, one is of the rank that was served longest ago: none is starved for ever. That is the
tenant's own affair, as its tag does not depend on it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar


class Waiter:
    """One request that waits its turn."""

    __slots__ = ("rank", "tenant", "tokens")

    def __init__(self, tenant: str, tokens: int, rank: int) -> None:
        self.tenant, self.tokens, self.rank = tenant, tokens, rank


W = TypeVar("W", bound=Waiter)

RANKS = 3
SHARE = 8


class Line(Generic[W]):
    """One tenant's waiters, of each rank in the order in which they came. `start` is the tag of the next."""

    __slots__ = ("_served", "_turn", "count", "rank_tokens", "ranks", "start", "tenant", "tokens")

    def __init__(self, tenant: str, start: int) -> None:
        self.tenant, self.start, self.tokens, self.count = tenant, start, 0, 0
        self.ranks: tuple[OrderedDict[W, None], ...] = tuple(OrderedDict() for _ in range(RANKS))
        self.rank_tokens = [0] * RANKS
        self._turn = 0  # requests served while several ranks waited
        self._served = [0] * RANKS  # the turn in which each rank was last served

    def last(self) -> W:
        """The newest of its highest rank: whoever can best do without."""
        return next(reversed(next(waiters for waiters in reversed(self.ranks) if waiters)))

    def pop(self) -> W:
        wanting = [rank for rank, waiters in enumerate(self.ranks) if waiters]
        rank = wanting[0]
        if len(wanting) > 1:
            self._turn += 1
            if self._turn % SHARE == 0:
                rank = min(wanting, key=self._served.__getitem__)
        self._served[rank] = self._turn
        return self.ranks[rank].popitem(last=False)[0]

    def tokens_before(self, rank: int) -> int:
        """Of those that go before a newcomer of this rank."""
        return sum(self.rank_tokens[: rank + 1])


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
        line.ranks[waiter.rank][waiter] = None
        line.count += 1
        line.tokens += waiter.tokens
        line.rank_tokens[waiter.rank] += waiter.tokens
        self.tokens += waiter.tokens

    def pop(self) -> W:
        """The next of the line with the lowest tag, which the caller charges."""
        while not (line := heapq.heappop(self._heap)[2]).count:
            pass
        waiter = line.pop()
        self._less(line, waiter)
        if line.count:
            line.start = line.start + waiter.tokens
            self._push(line)
        return waiter

    def remove(self, waiter: W) -> bool:
        """Whether it was waiting."""
        line = self.lines.get(waiter.tenant)
        if line is None or waiter not in line.ranks[waiter.rank]:
            return False
        del line.ranks[waiter.rank][waiter]
        self._less(line, waiter)
        if len(self._heap) > 2 * len(self.lines) + 64:  # mostly lines that were left
            self._heap = [entry for entry in self._heap if entry[2].count]
            heapq.heapify(self._heap)
        return True

    def firsts(self) -> Iterator[W]:
        """The oldest of each line and rank."""
        for line in self.lines.values():
            yield from (next(iter(waiters)) for waiters in line.ranks if waiters)

    def ahead_of(self, tenant: str, rank: int) -> int:
        """Tokens that would be served before a request of this tenant and rank that comes now."""
        mine = self.lines.get(tenant)
        before = mine.tokens_before(rank) if mine else 0
        tag = mine.start + before if mine else self._start(tenant)
        others = sum(min(max(tag - line.start, 0), line.tokens) for line in self.lines.values() if line is not mine)
        return others + before

    def _start(self, tenant: str) -> int:
        return max(self._now, self._finish.get(tenant, 0))

    def _push(self, line: Line[W]) -> None:
        heapq.heappush(self._heap, (line.start, next(self._order), line))

    def _less(self, line: Line[W], waiter: W) -> None:
        line.tokens -= waiter.tokens
        line.rank_tokens[waiter.rank] -= waiter.tokens
        self.tokens -= waiter.tokens
        line.count -= 1
        if not line.count:
            del self.lines[line.tenant]
