"""Asks every ready replica how it is: /health for its standing, /metrics for its load. Spread over the period."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from gateway.engine_gauges import Gauges
from gateway.errors import UpstreamFailed
from gateway.replica_health import Fault, ReplicaHealth
from registry.deployments import Replica

PERIOD_S = 5.0  # between two looks at one replica
TIMEOUT_S = 4.0  # for each of the two answers


async def poll_engines(
    ready: Callable[[], Iterable[Replica]],
    ask: Callable[[Replica, str], Awaitable[tuple[int, bytes]]],
    health: ReplicaHealth,
    gauged: Callable[[str, Gauges], None],
    clock: Callable[[], float],
    period_s: float = PERIOD_S,
    *,
    timeout_s: float = TIMEOUT_S,
    fault_of: Callable[[UpstreamFailed], Fault] = lambda error: Fault.POLL,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Runs until cancelled. `ask(replica, path)` GETs: (status, body); raises UpstreamFailed."""
    raise NotImplementedError
