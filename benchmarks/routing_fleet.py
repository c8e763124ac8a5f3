"""Simulated replicas: a serial prefill, and a prefix cache that drops the blocks used longest ago."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from benchmarks.routing_trace import BLOCK_TOKENS, Request

PREFILL_TOKENS_PER_S = 8000.0
OUTPUT_TOKENS_PER_S = 30.0
CACHE_BLOCKS = 1_000_000 // BLOCK_TOKENS


class Sent(Protocol):
    """What a rule keeps of a request that it sent somewhere."""

    @property
    def to(self) -> int: ...
    def first_output(self) -> None: ...
    def done(self) -> None: ...


class Rule(Protocol):
    def send(self, request: Request) -> Sent: ...


class Engine:
    def __init__(self) -> None:
        self.free_at = 0.0  # seconds
        self._cache: OrderedDict[int, None] = OrderedDict()  # the least recent first

    def cached_blocks(self, request: Request) -> int:
        """Leading ones. Only a full block can be shared."""
        full = request.blocks[: request.input_tokens // BLOCK_TOKENS]
        return next((n for n, block in enumerate(full) if block not in self._cache), len(full))

    def prefill(self, request: Request) -> float:
        """When it will be done. What was sent before is in the cache by the time it begins."""
        uncached = max(request.input_tokens - self.cached_blocks(request) * BLOCK_TOKENS, 1)
        self.free_at = max(self.free_at, request.at) + uncached / PREFILL_TOKENS_PER_S
        for block in reversed(request.blocks[: request.input_tokens // BLOCK_TOKENS]):
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > CACHE_BLOCKS:
            self._cache.popitem(last=False)
        return self.free_at


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def times_to_first_token(
    requests: Sequence[Request], rule: Rule, engines: Sequence[Engine], clock: Clock
) -> list[float]:
    """Seconds, of each request, when the rule sends them as they come."""
    waited: list[float] = []
    events: list[tuple[float, int, Callable[[], None]]] = []
    order = count()
    for request in requests:
        while events and events[0][0] <= request.at:
            clock.now, _, happens = heapq.heappop(events)
            happens()
        clock.now = request.at
        sent = rule.send(request)
        first = engines[sent.to].prefill(request)
        waited.append(first - request.at)
        heapq.heappush(events, (first, next(order), sent.first_output))
        heapq.heappush(events, (first + request.output_tokens / OUTPUT_TOKENS_PER_S, next(order), sent.done))
    return waited
