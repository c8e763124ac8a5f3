"""Asks every ready replica how it is: /health for its standing, /metrics for its load and
its counts of tokens. Spread over the period."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from gateway import engine_gauges
from gateway.errors import UpstreamFailed, UpstreamSilent
from gateway.replica_health import Fault, ReplicaHealth
from gateway.routing import Gauges
from registry.deployments import Replica

PERIOD_S = 3.0  # between two looks at one replica
TIMEOUT_S = 5.0  # for each of its two answers: an engine that tokenizes a long prompt answers nobody for a while

Ask = Callable[[Replica, str], Awaitable[tuple[int, bytes]]]


async def poll_engines(
    ready: Callable[[], Iterable[Replica]],
    ask: Ask,
    health: ReplicaHealth,
    gauged: Callable[[str, Gauges], None],
    clock: Callable[[], float],
    period_s: float = PERIOD_S,
    *,
    timeout_s: float = TIMEOUT_S,
    fault_of: Callable[[UpstreamFailed], Fault] = lambda error: Fault.POLL,
    counted: Callable[[Replica, int, int], None] = lambda replica, prompt, generated: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Runs until cancelled. `ask(replica, path)` GETs: (status, body); raises UpstreamFailed. `clock` is monotonic.

    `fault_of` tells who cannot be reached; whatever else goes wrong is the poll's, not a request's. `counted` is told
    the tokens that an engine read and generated since its start. Replicas that are
    no longer ready are forgotten by `health`. A slow engine is asked again when it has answered or its time is over; no
    other waits for it.
    """

    async def look_at(replica: Replica) -> None:
        try:
            status, text = await _within(timeout_s, ask(replica, "/health"))
        except UpstreamSilent as e:
            return health.failed(replica.id, f"/health: {e}", Fault.HUNG)
        except UpstreamFailed as e:
            unreachable = fault_of(e) is Fault.UNREACHABLE
            return health.failed(replica.id, f"/health: {e}", Fault.UNREACHABLE if unreachable else Fault.POLL)
        except TimeoutError:
            return health.failed(replica.id, f"/health said nothing for {timeout_s:g} s", Fault.HUNG)
        if status != 200:
            said = text[:200].decode(errors="replace").strip()
            return health.failed(replica.id, f"/health answered {status}{': ' if said else ''}{said}", Fault.POLL)
        health.polled(replica.id)
        try:
            status, page = await _within(timeout_s, ask(replica, "/metrics"))
        except (UpstreamFailed, TimeoutError):
            return  # its load stays unknown; whether it is well, /health said
        if status != 200:
            return
        if (gauges := engine_gauges.read(page, clock())) is not None:
            gauged(replica.id, gauges)
        if (tokens := engine_gauges.tokens(page)) is not None:
            counted(replica, *tokens)

    async with asyncio.TaskGroup() as group:
        looking: dict[str, asyncio.Task[None]] = {}
        while True:
            replicas = sorted(ready(), key=lambda r: r.id)
            health.forget(health.snapshot().keys() - {r.id for r in replicas})
            looking = {replica_id: task for replica_id, task in looking.items() if not task.done()}
            for replica in replicas:
                if replica.id not in looking:
                    looking[replica.id] = group.create_task(look_at(replica))
                await sleep(period_s / len(replicas))
            if not replicas:
                await sleep(period_s)


async def _within(timeout_s: float, answer: Awaitable[tuple[int, bytes]]) -> tuple[int, bytes]:
    async with asyncio.timeout(timeout_s):
        return await answer
