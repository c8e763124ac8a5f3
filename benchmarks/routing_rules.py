"""Rules for choosing a replica: the gateway's own, as it runs, and what others do."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.routing_fleet import Clock, Engine, Sent
from benchmarks.routing_trace import BLOCK_TOKENS, Request
from gateway import routing
from gateway.prefix import Prefixes, blocks
from gateway.router import Routed, Router
from gateway.routing import Policy, ReplicaLoad, Work
from registry.deployments import Replica, ReplicaState

EXPECTED_OUTPUT_TOKENS = 343  # the mean: a gateway does not know how long an answer will be
# sglang-router's own defaults.
MATCH_RATIO, IMBALANCED_BY, IMBALANCED_TIMES = 0.3, 64, 1.5
BOUND = 1.25  # times the mean load: the usual one of consistent hashing with bounded loads
POINTS = 100  # of each replica on the ring


def replica(n: int) -> Replica:
    """A ready one."""
    fields: dict[str, Any] = dict.fromkeys(Replica.__dataclass_fields__)
    return Replica(**{**fields, "id": str(n), "deployment": "chat", "state": ReplicaState.READY})


@dataclass(slots=True)
class Ours:
    """The gateway's router with one of its policies."""

    router: Router
    policy: Policy
    ready: Sequence[Replica]

    def send(self, request: Request) -> Sent:
        routed = self.router.route(
            "chat",
            self.policy,
            self.ready,
            request.input_tokens,
            EXPECTED_OUTPUT_TOKENS,
            EXPECTED_OUTPUT_TOKENS,
            request.prompt(),
            b"",
            None,
        )
        assert routed is not None
        return _Place(routed)


@dataclass(slots=True)
class Knowing:
    """Our rule with other knowledge of what is cached, such as the engines' own."""

    loads: Sequence[ReplicaLoad]
    matched: Callable[[Request], Mapping[str, int]]  # blocks of the trace
    clock: Clock
    choices: int = 0

    def send(self, request: Request) -> Sent:
        matched = self.matched(request)
        work = Work(request.input_tokens, EXPECTED_OUTPUT_TOKENS, BLOCK_TOKENS)
        load = routing.pick(Policy.LEAST_WORK, self.loads, work, matched, self.clock())
        assert load is not None
        self.choices += 1
        load.last_chosen = self.choices
        uncached = routing.uncached(work, matched.get(load.id, 0))
        return _Place(Routed(replica(int(load.id)), load, uncached, EXPECTED_OUTPUT_TOKENS))


def exact(engines: Sequence[Engine], clock: Clock) -> Knowing:
    loads = [ReplicaLoad(str(n)) for n in range(len(engines))]
    return Knowing(loads, lambda request: {str(n): e.cached_blocks(request) for n, e in enumerate(engines)}, clock)


def least_queued(replicas: int, clock: Clock) -> Knowing:
    """Blind to caches."""
    return Knowing([ReplicaLoad(str(n)) for n in range(replicas)], lambda _: {}, clock)


@dataclass(slots=True)
class Random:
    replicas: int
    chance: random.Random

    def send(self, request: Request) -> Sent:
        return _Counted(self.chance.randrange(self.replicas), [0] * self.replicas)


@dataclass(slots=True)
class Sglang:
    """The longest match, if it is a good one and nobody is far busier than another; else the shortest queue."""

    outstanding: list[int]
    seen: Prefixes

    def send(self, request: Request) -> Sent:
        least, most = min(self.outstanding), max(self.outstanding)
        hashes = blocks(request.prompt(), b"")
        matched = self.seen.matched(hashes)
        best = max(matched, key=lambda name: (matched[name], -self.outstanding[int(name)]), default="")
        if most - least > IMBALANCED_BY and most > IMBALANCED_TIMES * least:
            to = self.outstanding.index(least)
        elif best and matched[best] > MATCH_RATIO * len(hashes):
            to = int(best)
        else:
            to = self.outstanding.index(least)
        self.seen.note(str(to), hashes)
        return _Counted(to, self.outstanding)


@dataclass(slots=True)
class ConsistentHashing:
    """With bounded loads, by the second block: the first one is everybody's, the second a conversation's own."""

    outstanding: list[int]
    ring: list[tuple[int, int]] = field(default_factory=list)  # (point, replica)

    def __post_init__(self) -> None:
        chance = random.Random(1)
        self.ring = sorted((chance.getrandbits(32), n) for n in range(len(self.outstanding)) for _ in range(POINTS))

    def send(self, request: Request) -> Sent:
        key = random.Random(request.blocks[:2][-1]).getrandbits(32)
        limit = math.ceil(BOUND * (sum(self.outstanding) + 1) / len(self.outstanding))
        at = bisect(self.ring, (key, -1))
        around = (self.ring[(at + n) % len(self.ring)][1] for n in range(len(self.ring)))
        return _Counted(next(n for n in around if self.outstanding[n] < limit), self.outstanding)


class _Place:
    def __init__(self, routed: Routed) -> None:
        self._routed = routed
        self.to = int(routed.replica.id)
        self.first_output = routed.first_output

    def done(self) -> None:
        self._routed.__exit__(None, None, None)


class _Counted:
    def __init__(self, to: int, outstanding: list[int]) -> None:
        self.to = to
        self._outstanding = outstanding
        outstanding[to] += 1

    def first_output(self) -> None:
        """Nothing that these rules look at."""

    def done(self) -> None:
        self._outstanding[self.to] -= 1
