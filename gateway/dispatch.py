"""The path of a request: admission (Hold) -> routing -> ledger (hold) -> relay -> metering -> ledger (settle)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from dataclasses import dataclass

from aiohttp import web

from gateway import calls, errors, metering, relay
from gateway.admission import Admission, Hold
from gateway.auth import Caller
from gateway.billing import Bill, Billing
from gateway.calls import Call
from gateway.catalog import Catalog
from gateway.errors import GatewayError, NoReplica, UnknownModel, UpstreamFailed, UpstreamSilent
from gateway.ledger_writer import LedgerWriter
from gateway.metering import Meter, StreamMeter
from gateway.providers import Providers
from gateway.relay import Pool, Upstream
from gateway.routing import Load, pick
from registry.deployments import Replica
from registry.ledger import Outcome
from registry.site import External

log = logging.getLogger(__name__)

ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything a request needs; put together in app.py."""

    catalog: Catalog
    admission: Admission
    load: Load
    pool: Pool
    ledger: LedgerWriter
    billing: Billing
    providers: Providers
    external: Mapping[str, External]


async def dispatch(gw: Gateway, request: web.Request, caller: Caller, call: Call, body: bytes) -> web.StreamResponse:
    """Answer an authenticated call. Raises GatewayError while nothing has been sent to the client."""
    external = gw.external.get(call.model)
    if external is None and gw.catalog.find(lambda view: view.deployments.get(call.model)) is None:
        known = ", ".join(sorted({*gw.catalog.view.deployments, *gw.external})) or "none yet"
        raise UnknownModel(f"no model is called {call.model!r}; there are: {known}")
    if caller.tenant.token_budget is not None:
        call = calls.bounded(call, _context(gw, call.model))
    with gw.admission.admit(caller.tenant, call.tokens) as hold:
        if external is not None:
            return await _ask_provider(gw, request, caller, call, hold, external)
        failed: dict[str, UpstreamFailed] = {}
        while True:
            replica = _choose(gw, call.model, failed)
            try:
                return await _ask_replica(gw, request, caller, call, body, hold, replica)
            except UpstreamFailed as e:  # raised only while nothing has been sent to the client
                log.warning("replica %s of %s failed: %s", replica.id, call.model, e)
                gw.catalog.refresh()  # it may be known to be gone
                failed[replica.id] = e
                if len(failed) == ATTEMPTS or isinstance(e, UpstreamSilent):
                    raise


async def _ask_replica(
    gw: Gateway, request: web.Request, caller: Caller, call: Call, body: bytes, hold: Hold, replica: Replica
) -> web.StreamResponse:
    meter = StreamMeter(call) if call.stream else Meter(call)
    patience = gw.pool.read_timeout if call.stream else relay.WHOLE_S
    carried = gw.load.carried_by(replica.id)
    with carried, gw.billing.attempt(caller, call, replica.id, hold, meter) as bill, _leaving(gw, bill):
        address, key = _upstream(replica)
        sent = calls.upstream_body(call, body)
        async with gw.pool.exchange(address, calls.PATHS[call.kind], key, sent, patience, meter.sent) as upstream:
            if upstream.status >= 400:
                return await _refusal(upstream, patience)
            if isinstance(meter, StreamMeter):
                return await _stream(request, bill, _events(upstream, meter, patience))
            answer = await relay.whole(upstream, patience)
            if metering.aborted(answer):
                raise UpstreamFailed("the replica is stopping and gave up on the request")
            return _whole(bill, answer)


async def _ask_provider(
    gw: Gateway, request: web.Request, caller: Caller, call: Call, hold: Hold, external: External
) -> web.StreamResponse:
    meter = Meter(call)
    with gw.billing.attempt(caller, call, external.model, hold, meter) as bill, _leaving(gw, bill):
        if not call.stream:
            return _whole(bill, await gw.providers.whole(external, call, meter))
        async with contextlib.aclosing(gw.providers.stream(external, call, meter)) as events:
            return await _stream(request, bill, events)


def _choose(gw: Gateway, model: str, failed: Mapping[str, UpstreamFailed]) -> Replica:
    """Raises NoReplica, or what the only replica failed with."""
    replica = pick(_ready(gw, model, failed), gw.load.outstanding)
    if replica is not None:
        return replica
    for error in failed.values():
        raise error
    raise NoReplica(f"no replica of {model} is ready; it is {_state(gw, model)}")


def _ready(gw: Gateway, model: str, but: Collection[str]) -> list[Replica]:
    ready = gw.catalog.find(lambda view: view.replicas.get(model)) or []
    return [r for r in ready if r.id not in but]


def _context(gw: Gateway, model: str) -> int | None:
    """The longest sequence that every ready replica takes; None where no engine says."""
    ready = gw.catalog.find(lambda view: view.replicas.get(model)) or []
    return min((r.context_tokens for r in ready if r.context_tokens is not None), default=None)


def _state(gw: Gateway, model: str) -> str:
    deployment = gw.catalog.view.deployments.get(model)
    return deployment.state if deployment else "gone"


def _upstream(replica: Replica) -> tuple[relay.Address, str]:
    assert replica.host is not None and replica.port is not None, replica  # a ready replica has both
    return (replica.host, replica.port), replica.upstream_key or ""


def _whole(bill: Bill, answer: bytes) -> web.Response:
    bill.meter.whole(answer)
    bill.outcome = Outcome.COMPLETED
    return web.Response(body=answer, content_type="application/json")


async def _refusal(upstream: Upstream, timeout: float) -> web.Response:
    """The engine's own words about a request it will not serve; the hold is released, as nothing was used."""
    answer = await relay.whole(upstream, timeout)
    # An engine that does not know our key is our fault, and must not read as the client's.
    if upstream.status >= 500 or upstream.status in (401, 403):
        raise UpstreamFailed(f"the replica answered {upstream.status}: {answer[:500].decode(errors='replace')}")
    headers = {"Content-Type": upstream.headers.get("content-type", "application/json")}
    return web.Response(body=answer, status=upstream.status, headers=headers)


async def _events(upstream: Upstream, meter: StreamMeter, timeout: float) -> AsyncIterator[bytes]:
    while data := await upstream.read(timeout):
        if out := meter.feed(data):
            yield out
    if rest := meter.rest():
        yield rest


async def _stream(request: web.Request, bill: Bill, events: AsyncIterator[bytes]) -> web.StreamResponse:
    """Hand events on as they come. Raises GatewayError only before the first one; later it is the last event."""
    first = await anext(events, b"")
    if not first:
        raise UpstreamFailed("the replica ended the stream before it began")
    if metering.aborted(first):
        raise UpstreamFailed("the replica is stopping and gave up on the request")
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    try:
        bill.outcome = Outcome.UPSTREAM_FAILED  # until it ended well
        await response.prepare(request)
        await response.write(first)
        broken = metering.broken(first)
        try:
            async for event in events:
                broken = broken or metering.broken(event)
                await response.write(event)
            if not broken:
                bill.outcome = Outcome.COMPLETED
        except GatewayError as e:
            await response.write(errors.event(e))
        await response.write_eof()
    except ConnectionResetError:  # seen while writing, before aiohttp could cancel us
        bill.outcome = Outcome.CLIENT_LEFT
    return response


@contextlib.contextmanager
def _leaving(gw: Gateway, bill: Bill) -> Iterator[None]:
    """aiohttp cancels a handler whose client is gone, and, past the grace period, one that outlives a stop."""
    try:
        yield
    except asyncio.CancelledError:
        bill.outcome = Outcome.ORPHANED if gw.billing.stopping else Outcome.CLIENT_LEFT
        raise
