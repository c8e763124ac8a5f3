"""The path of a request: auth, admission (Hold), queue (Slot), routing, ledger (hold), relay, ledger (settle).

What bounds it is one event loop's time: all of this runs there, and waits for nothing but its turn in the queue, a
connection and the upstream's bytes, which go on to the client in the call in which they arrive.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from gateway import attempt, calls, delivery, media, replies, trial
from gateway.admission import Admission
from gateway.attempt import Asked, Attempt, Patience
from gateway.auth import authenticate, may_call
from gateway.billing import Billing
from gateway.calls import Call, renamed
from gateway.catalog import Catalog
from gateway.continuation import Said, may_continue
from gateway.demand import Called
from gateway.errors import (
    BudgetExhausted,
    Bug,
    GatewayError,
    NoReplica,
    QueueFull,
    TooManyRequests,
    Unreachable,
    UpstreamFailed,
    UpstreamSilent,
)
from gateway.fair_queue import Priority
from gateway.front import Front, Request
from gateway.ledger_writer import LedgerWriter
from gateway.metering import DEAD, STOPPING, Meter, Usage
from gateway.metrics import Metrics
from gateway.names import Names
from gateway.providers import Providers
from gateway.queues import Queues
from gateway.relay import Address, Pool
from gateway.replica_health import Fault, ReplicaHealth
from gateway.router import LIKELY_OUTPUT_TOKENS, Routed, Router
from gateway.shadow import Shadow
from gateway.surfaces.table import SURFACES
from gateway.upstream import ConnectionLost
from gateway.waiting_room import WaitingRoom
from gateway.workload import Tally, Workload
from registry.deployments import Replica
from registry.keys import LiveKey
from registry.ledger import Outcome
from registry.site import Site

log = logging.getLogger(__name__)

Life = tuple[str, int]  # a replica, and how often its engine was started again: after that, it is as good as another

ATTEMPTS = 3  # replicas that one request is tried on, and a stream that broke off before it gets any further
SESSION = "x-headgate-session"  # requests that share one go where their prompts are cached
PRIORITY = "x-headgate-priority"


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything a request needs; put together in app.py. `clock` is monotonic, in seconds."""

    site: Site
    catalog: Catalog
    names: Names
    admission: Admission
    queues: Queues
    room: WaitingRoom
    called: Called
    workload: Workload
    router: Router
    health: ReplicaHealth
    pool: Pool
    ledger: LedgerWriter
    billing: Billing
    providers: Providers
    shadow: Shadow
    metrics: Metrics
    patience: Patience
    clock: Callable[[], float]
    draw: Callable[[], float] = random.random


def admit(gw: Gateway, request: Request) -> LiveKey:
    """Who is calling, from a request's head alone. Raises WrongKey."""
    return authenticate(gw.catalog, request.headers)


async def respond(gw: Gateway, front: Front) -> None:
    """Answer an authenticated request, whatever comes of it."""
    surface = SURFACES[front.request.path]
    asked = Asked(front, surface, front.request.context, gw.clock(), gw.billing.request_id())
    try:
        await answer(gw, asked)
    except GatewayError as e:
        asked.error = e
        replies.refuse(gw.site, front, e, asked.request_id)
    except Exception:
        log.exception("%s failed", front.request.path)
        asked.error = Bug()
        if asked.delivered:
            front.cut()
        else:
            replies.refuse(gw.site, front, asked.error, asked.request_id)
    finally:
        _count(gw, asked)


async def answer(gw: Gateway, asked: Asked) -> None:
    """The whole path. Raises GatewayError."""
    request, caller = asked.front.request, asked.caller
    call = asked.surface.read(request.body)
    may_call(caller, call.model)
    media.check(call, gw.site.gateway.media_hosts)
    chosen = gw.names.choose(call.model, caller.id, request.headers, caller.models)
    first = chosen.chain[0]
    models: dict[str, str] = {}  # whose limits count, and whose price, by who serves
    tokens = credits = False
    for name in chosen.chain:
        models[name] = model = call.model if chosen.keeps_name else name
        limited = gw.admission.limits(caller, model)
        tokens, credits = tokens or limited.tokens, credits or limited.credits
    if tokens or credits:
        call = calls.bounded(call, gw.catalog.context(first))
    # Whoever serves in the end, that much is held: of the dearest.
    cost = max(gw.billing.estimate(call, model, name) for name, model in models.items()) if credits else 0
    with gw.admission.admit(caller, models[first], call.tokens, cost, call.model) as asked.hold:
        for name in chosen.missed:
            gw.called.miss(name)
        if chosen.shadow:
            gw.shadow.copy(asked.surface, call, request.body, chosen.shadow)
        for name in chosen.chain:
            asked.served_by = name
            serve = _from_provider if name in gw.site.external else _from_replicas
            try:
                if name != first:
                    asked.hold.move(caller, models[name], call.model)
                return await serve(gw, asked, call if call.model == models[name] else renamed(call, name))
            except (NoReplica, QueueFull, UpstreamFailed, TooManyRequests, BudgetExhausted) as e:
                if asked.delivered or name == chosen.chain[-1]:
                    raise
                gw.metrics.retried(name, e.code or "")
                log.warning("%s: %s cannot serve, falling back: %s", call.model, name, e)


async def _from_replicas(gw: Gateway, asked: Asked, call: Call) -> None:
    """In its turn, on the replica with the least to do; on another one if that fails before its first output.

    Where the site allows it, a stream that broke off later is continued on another one, too, as often as it got further
    meanwhile. Where a replica ends and there is no other, its successor is waited for, or its engine's new start.
    """
    name, tenant, front = asked.served_by, asked.caller.tenant.name, asked.front
    gw.called.note(name)
    priority = Priority.named(front.request.headers.get(PRIORITY))
    if not eligible(gw, name, call):
        # Where there are some, its adapter may be being loaded; in the end `_nobody` says more.
        with suppress(*((NoReplica,) if gw.catalog.ready(name) else ())):
            await _wait_for_replica(gw, asked, call)
    queue = gw.queues.of(name)
    slot = queue.try_enter(tenant, call.tokens, priority)
    if slot is None:
        slot = await queue.enter(tenant, call.tokens, priority, likely_tokens(call))
    failed: dict[Life, UpstreamFailed] = {}
    said = Said(call) if gw.site.gateway.continue_streams and may_continue(call) else None
    tried = so_far = 0
    with slot:
        asked.queued_s += slot.waited_s
        while (routed := await _next(gw, asked, call, failed)) is not None:
            slot.used_at(routed.replica.id)
            try:
                with routed:
                    return await _on_replica(gw, asked, call, routed, said)
            except UpstreamFailed as e:
                log.warning("replica %s of %s failed: %s", routed.replica.id, name, e)
                gw.health.failed(routed.replica.id, str(e), fault(e))
                failed[life(routed.replica)] = e
                spoke = asked.outcome is not None  # this replica, before it failed
                tried += 1
                if said is not None and said.pieces > so_far:
                    tried, so_far = 0, said.pieces
                if tried == ATTEMPTS or (isinstance(e, UpstreamSilent) and not spoke):
                    raise
                if asked.delivered:
                    if said is not None and (end := said.ending()) is not None:
                        return _end(asked, end)
                    rest = said.continued() if said is not None else None
                    if rest is None:
                        raise
                    call = rest
                gw.metrics.retried(name, e.code or "")
                gw.catalog.refresh()  # it may be known to be gone
    raise next(iter(failed.values()), None) or _nobody(gw, name, call)


def _end(asked: Asked, end: bytes) -> None:
    """The replica is lost, and its answer is not."""
    asked.outcome = Outcome.COMPLETED
    asked.front.write(end)
    asked.front.end()


def _nobody(gw: Gateway, name: str, call: Call) -> NoReplica:
    if call.model != name and gw.catalog.ready(name):
        return NoReplica(f"no replica of {name} has loaded the LoRA adapter {call.model} yet")
    return NoReplica(f"no replica of {name} is ready")


async def _next(gw: Gateway, asked: Asked, call: Call, failed: Mapping[Life, UpstreamFailed]) -> Routed | None:
    """A place on a replica that has not failed; None where there is none, nor will be soon."""
    routed = _route(gw, asked, call, failed)
    if routed is None and failed and all(ends(error) for error in failed.values()):
        with suppress(NoReplica, QueueFull):  # what it failed of says more
            await _wait_for_replica(gw, asked, call, failed)
            routed = _route(gw, asked, call, failed)
    return routed


async def _wait_for_replica(gw: Gateway, asked: Asked, call: Call, but: Container[Life] = ()) -> None:
    """A stream is told what it waits for, for as long as it takes; anything else waits up to the site's bound.

    So does a stream for another replica than those that there are, which it was tried on or which lack its adapter;
    unless it has begun, it may yet be refused.
    """
    began = gw.clock()
    name, heartbeat = asked.served_by, None
    another = bool(but or gw.catalog.ready(name))
    if call.stream and (not another or asked.front.started):
        heartbeat = delivery.comments(asked.front, replies.headers(gw.site, asked))
    await gw.room.until_ready(
        name,
        lambda: eligible(gw, name, call, but),
        heartbeat=heartbeat,
        bound_s=None if call.stream and not another else gw.site.gateway.start_wait_s,
        tokens=likely_tokens(call),
    )
    asked.queued_s += gw.clock() - began


def _route(gw: Gateway, asked: Asked, call: Call, failed: Container[Life]) -> Routed | None:
    session = asked.front.request.headers.get(SESSION)
    if session is not None:
        session = f"{asked.caller.tenant.name}/{session}"  # tenants may choose alike
    return route(gw, asked.served_by, call, failed, session)


def eligible(gw: Gateway, deployment: str, call: Call, but: Container[Life] = ()) -> list[Replica]:
    """The ready replicas that have not failed it, and have its adapter."""
    ready = [r for r in gw.catalog.ready(deployment) if life(r) not in but]
    view = gw.catalog.view
    if call.model != deployment and view.adapters.get(call.model) == deployment:
        return trial.with_adapter(ready, call.model, view.deployments[deployment])
    return ready


def route(
    gw: Gateway, deployment: str, call: Call, but: Container[Life] = (), session: str | None = None
) -> Routed | None:
    """A place on one of the ready replicas that are healthy; where none is, on the one that failed least recently.

    While two revisions share the calls, a conversation (`session`) stays with its own.
    """
    ready, view = eligible(gw, deployment, call, but), gw.catalog.view
    healthy: Sequence[Replica] = [r for r in ready if gw.health.usable(r.id)]
    if ready and not healthy:
        last = gw.health.fallback(r.id for r in ready)
        healthy = [r for r in ready if r.id == last]
    if (shared := view.trials.get(deployment)) is not None:
        healthy = trial.share(healthy, shared, session, gw.draw)
    return gw.router.route(
        deployment,
        gw.names.policy(deployment),
        healthy,
        call.prompt_tokens,
        call.completion_tokens,
        calls.longest(call),
        calls.prompt_bytes(call),
        call.model.encode(),  # as the engine knows it: an adapter's cached blocks are nobody else's
        session,
    )


async def _on_replica(gw: Gateway, asked: Asked, call: Call, routed: Routed, said: Said | None) -> None:
    replica = routed.replica
    body = calls.upstream_body(call, asked.front.request.body)
    probes = gw.health.started(replica.id)
    tally = gw.workload.begun(replica.id)

    def spoke() -> None:
        routed.first_output()
        gw.health.succeeded(replica.id)

    try:
        await _attempt(gw, asked, call, body, replica.id, gw.catalog.address(replica), spoke, said, tally)
    except UpstreamFailed:
        tally.failures += 1
        raise
    finally:
        gw.workload.ended(replica.id, tally)
        if probes:
            gw.health.abandoned(replica.id)  # to no effect, unless nothing was heard of it: its client left


async def _from_provider(gw: Gateway, asked: Asked, call: Call) -> None:
    """Through LiteLLM, in a process of its own that is just another upstream."""
    external = gw.site.external[asked.served_by]
    body = gw.providers.request(external, call)  # first: a bad request starts nothing
    address = Address("provider", 0, unix=await gw.providers.address())
    await _attempt(gw, asked, call, body, external.model, address)


async def _attempt(
    gw: Gateway,
    asked: Asked,
    call: Call,
    body: bytes,
    upstream: str,
    address: Address,
    spoke: Callable[[], None] = lambda: None,
    said: Said | None = None,
    tally: Tally | None = None,
) -> None:
    """Hold, relay, settle: one dispatch and its one entry in the ledger. `spoke`: the upstream's own word has come."""
    surface = asked.surface
    if said is not None:
        if asked.delivered:
            call = replace(call, prompt_tokens=0)  # it was billed
        meter: Meter = said.meter(call)
    else:
        meter = surface.stream_meter(call) if call.stream and surface.stream_meter else surface.meter(call)

    def begun() -> None:
        now = gw.clock()
        if asked.first_output is None:
            asked.first_output = now
        if tally is not None and call.stream:
            tally.first_output(now - began)
        spoke()

    began = gw.clock()
    asked.attempts += 1
    event_id = f"{asked.request_id}:{asked.attempts}"
    with gw.billing.attempt(asked.caller, call, upstream, asked.hold, meter, asked.served_by, event_id) as bill:
        try:
            headers = replies.headers(gw.site, asked, upstream)
            await attempt.ask(gw.pool, Attempt(asked, call, body, address, bill, headers, gw.patience, begun, spoke))
        except asyncio.CancelledError:
            # The client is gone, or the process ends; unless it has all that it asked for.
            if bill.outcome is not Outcome.COMPLETED:
                bill.outcome = Outcome.ORPHANED if gw.billing.stopping else Outcome.CLIENT_LEFT
            raise
        finally:
            asked.used, asked.outcome = meter.usage, bill.outcome
            if said is not None:
                said.over(meter.usage if bill.outcome is not None else None)
                asked.used = said.used


def likely_tokens(call: Call) -> int:
    return call.prompt_tokens + min(call.completion_tokens, LIKELY_OUTPUT_TOKENS)


def life(replica: Replica) -> Life:
    return replica.id, replica.restarts


def ends(error: UpstreamFailed) -> bool:
    """Whether a replica that failed so has ended or is about to: another follows, or its engine starts again."""
    return isinstance(error, Unreachable | ConnectionLost) or str(error) == STOPPING or DEAD in str(error)


def fault(error: UpstreamFailed) -> Fault:
    return Fault.UNREACHABLE if isinstance(error, Unreachable) or DEAD in str(error) else Fault.REQUEST


def _count(gw: Gateway, asked: Asked) -> None:
    used = asked.used or Usage()
    status = asked.error.status if asked.error else asked.refused or 200
    if asked.error is not None:
        outcome = asked.error.code or "refused"
    else:
        outcome = "refused" if asked.refused else asked.outcome or "client_left"
    now = gw.clock()
    gw.metrics.finished(
        asked.served_by,
        asked.surface.kind,
        status,
        outcome,
        asked.caller.tenant.name,
        used,
        asked.queued_s,
        None if asked.first_output is None else asked.first_output - asked.began,
        now - asked.began,
    )
