"""Copies of requests for deployments that are tried out: their answers reach nobody, and no tenant pays for them.

The engine's work is real, so that each copy is held for and settled like any attempt, as the platform's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from gateway import calls, relay
from gateway.billing import Bill, Billing
from gateway.calls import Call
from gateway.errors import BadRequest, LedgerUnwritable, UpstreamFailed
from gateway.metering import Meter, StreamMeter
from gateway.relay import Pool
from gateway.router import Routed
from gateway.surface import Surface
from gateway.upstream import Upstream
from registry.keys import LiveKey
from registry.ledger import Outcome
from registry.steps import PLATFORM
from registry.tenants import Tenant

log = logging.getLogger(__name__)

LIMIT = 64  # copies on their way at once; beyond it requests are not copied
COPY_S = 600.0  # for one answer
ITSELF = LiveKey("", Tenant(PLATFORM, PLATFORM, None, ""), frozenset(), user="shadow")


class Shadow:
    """`route` picks a replica of a deployment, as for a request of its own."""

    def __init__(self, pool: Pool, billing: Billing, route: Callable[[str, Call], Routed | None]) -> None:
        self._pool, self._billing, self._route = pool, billing, route
        self._running: set[asyncio.Task[None]] = set()

    def copy(self, surface: Surface, call: Call, body: bytes, names: Sequence[str]) -> None:
        for name in names:
            if len(self._running) < LIMIT:
                copy = calls.renamed(call, name)
                task = asyncio.create_task(self._ask(name, surface, copy, calls.upstream_body(copy, body)))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _ask(self, name: str, surface: Surface, call: Call, body: bytes) -> None:
        routed = self._route(name, call)
        if routed is None:
            return
        meter: Meter = surface.stream_meter(call) if call.stream and surface.stream_meter else surface.meter(call)
        address = relay.address_of(routed.replica)
        try:
            with routed, self._billing.attempt(ITSELF, call, routed.replica.id, None, meter, name) as bill:
                request = relay.request("POST", surface.path, address, body, bill.attempt.event_id)
                upstream = await self._pool.connection(address)
                try:
                    await _exchange(upstream, request, bill)
                finally:
                    self._pool.give_back(address, upstream)
        except (UpstreamFailed, LedgerUnwritable, BadRequest) as e:
            log.warning("%s: a shadow of a request failed: %s", name, e)


async def _exchange(upstream: Upstream, request: bytes, bill: Bill) -> None:
    """Raises UpstreamFailed or LedgerUnwritable; what was counted by then is billed."""
    meter = bill.meter
    upstream.begin(COPY_S)
    bill.when_held(lambda: upstream.send(request), upstream.fail)
    if isinstance(meter, StreamMeter):
        await upstream.head()
    else:
        answer = await upstream.whole()
    if upstream.status >= 400:
        raise UpstreamFailed(f"the replica answered {upstream.status}")
    if isinstance(meter, StreamMeter):
        bill.outcome = Outcome.ORPHANED  # until it ended: what ends it before is the gateway's own end
        await _stream(upstream, meter, bill)
    else:
        meter.whole(answer)
    bill.outcome = Outcome.COMPLETED


async def _stream(upstream: Upstream, meter: StreamMeter, bill: Bill) -> None:
    def heard(data: bytes) -> None:
        meter.feed(data)
        if meter.failure is not None:
            upstream.fail(UpstreamFailed(meter.failure))

    try:
        upstream.listen(heard)
        await upstream.whole()
        meter.rest()
        if meter.failure is not None:
            raise UpstreamFailed(meter.failure)
    except UpstreamFailed:
        bill.outcome = Outcome.UPSTREAM_FAILED
        raise
