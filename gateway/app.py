"""make_app: everything the gateway is made of, wired on one screen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from aiohttp import web

from gateway import cold, dispatch, replies
from gateway.admission import Admission
from gateway.app_keys import GATEWAY, SITE
from gateway.attempt import Patience
from gateway.backing import Backing
from gateway.billing import Billing
from gateway.capture import Capture
from gateway.catalog import Catalog, View
from gateway.demand import Called
from gateway.dispatch import Gateway
from gateway.engine_polls import TIMEOUT_S as POLL_TIMEOUT_S
from gateway.engine_polls import poll_engines
from gateway.ledger_writer import LedgerWriter
from gateway.metrics import Metrics
from gateway.names import Names
from gateway.projector import end_process
from gateway.providers import Providers
from gateway.queues import Queues
from gateway.relay import SWEEP_S, WHOLE_S, Pool
from gateway.replica_gauges import watch_deployments, watch_replicas
from gateway.replica_health import Fault, ReplicaHealth
from gateway.router import Router
from gateway.shadow import Shadow
from gateway.surfaces import health, metrics, models, usage
from gateway.surfaces.table import SURFACES
from gateway.waiting_room import Standing, WaitingRoom
from gateway.windows import Calendar
from gateway.workload import Work, Workload
from gateway.workload import write as write_news
from registry import clock as registry_clock
from registry.db import StorageError
from registry.demand import note_demand
from registry.site import Site

log = logging.getLogger(__name__)

BUDGETS_S = 5.0  # between two looks at what the ledger says tenants used


def make_app(site: Site) -> web.Application:
    """The gateway of a site: its parts, and the routes that aiohttp serves.

    Starting it raises StorageError when the ledger cannot be opened for writing.
    """
    app = web.Application(middlewares=[cold.in_openai_shape])
    app[SITE] = site
    for path in SURFACES:
        app.router.add_post(path, cold.elsewhere)  # the front's; known here so that GET is told what is allowed
    app.router.add_get("/v1/models", models.models)
    app.router.add_get("/v1/models/{model:.+}", models.model)
    app.router.add_get("/v1/usage", usage.usage)
    app.router.add_get("/metrics", metrics.metrics)
    app.router.add_get("/health", health.health)
    app.router.add_get("/ready", health.ready)

    async def parts(app: web.Application) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        settings = site.gateway
        catalog = Catalog(site.registry_db, site.key_secret)
        ledger = LedgerWriter(site.ledger_db, loop, keep_months=site.ledger.keep_months)
        counted = Metrics()
        pool = Pool(connect_timeout=settings.connect_timeout_s, sweep=min(SWEEP_S, settings.read_timeout_s / 4))
        called, workload = Called(), Workload()

        def ejected(replica_id: str, fault: Fault) -> None:
            counted.ejected(fault)
            hung = next((r for r in catalog.every_ready() if r.id == replica_id), None)
            if fault is Fault.HUNG and hung is not None:  # it accepts connections and answers nothing
                pool.give_up(catalog.address(hung), "the replica does not answer, not even when asked for its health")

        replicas = ReplicaHealth(loop.time, ejected=ejected)
        providers = Providers(site, os.environ)
        capture = Capture(ledger.on_projector, catalog.every_ready)
        billing = Billing(ledger, providers.prices, repeated=capture.repeated)
        gw = app[GATEWAY] = Gateway(
            site=site,
            catalog=catalog,
            names=Names(catalog, site.external, random.random),
            admission=Admission(ledger.used(*Calendar(time.time()).words), loop.time),
            queues=Queues(settings, loop.time),
            room=WaitingRoom(
                lambda name: Standing(catalog.deployment(name), catalog.view.live.get(name, ())),
                heartbeat_s=settings.heartbeat_s,
                length=settings.queue_length,
                asked=called.urge,
                monotonic=loop.time,
            ),
            called=called,
            workload=workload,
            router=Router(),
            health=replicas,
            pool=pool,
            ledger=ledger,
            billing=billing,
            providers=providers,
            shadow=Shadow(pool, billing, lambda name, call: dispatch.route(gw, name, call)),
            metrics=counted,
            patience=Patience(settings.first_byte_timeout_s, settings.read_timeout_s, WHOLE_S),
            clock=loop.time,
        )
        limited = asyncio.Event()  # somebody who was not before
        # Another gateway settled something until it let go of the ledger.
        ledger.on_projector(lambda _: loop.call_soon_threadsafe(limited.set))

        def registered(view: View) -> None:
            gw.billing.priced(view.prices)
            if gw.admission.limit(view.limits):
                limited.set()

        catalog.on_change += [gw.queues.resize, lambda _: gw.room.changed(), registered]
        catalog.on_gone += [gw.router.forget, gw.health.forget]
        catalog.refresh()
        _show_gauges(gw, capture)
        background = [
            _watched(task)
            for task in (
                _budgets(gw.admission, ledger, limited),
                catalog.watch(),
                pool.watch(),
                gw.billing.note_running(),
                poll_engines(
                    catalog.every_ready,
                    lambda replica, path: pool.get(catalog.address(replica), path, POLL_TIMEOUT_S),
                    replicas,
                    gw.router.gauged,
                    loop.time,
                    fault_of=dispatch.fault,
                    counted=capture.counted,
                ),
                capture.watch(),
                called.tell(
                    lambda told: ledger.on_projector(lambda db: note_demand(db, told)),
                    gw.queues.in_use,
                    gw.room.waiting,
                ),
                workload.tell(
                    lambda: workload.news(
                        catalog.view,
                        {*gw.queues.in_use(), *gw.room.waiting()},
                        lambda name: _work(gw, name),
                        registry_clock.now(),
                    ),
                    lambda news: ledger.on_projector(lambda db: write_news(db, ledger.name, news)),
                ),
            )
        ]
        yield
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await gw.shadow.close()
        await gw.providers.close()
        capture.tell()
        await ledger.close()
        pool.close()
        catalog.close()

    app.cleanup_ctx.append(parts)
    return app


def backing_of(app: web.Application, cold_protocol: Callable[[], asyncio.Protocol]) -> Backing:
    """What the connections of a started gateway need of it."""
    gw, settings = app[GATEWAY], app[SITE].gateway
    return Backing(
        hot=frozenset(SURFACES),
        admit=lambda request: dispatch.admit(gw, request),
        answer=lambda front: dispatch.respond(gw, front),
        refuse=lambda front, error: replies.refuse(gw.site, front, error),
        cold=cold_protocol,
        max_body=settings.max_body_mb << 20,
        request_timeout=settings.request_timeout_s,
        client_timeout=settings.client_timeout_s,
    )


async def _budgets(admission: Admission, ledger: LedgerWriter, limited: asyncio.Event) -> None:
    """What was used, also by a gateway that was taken over from and finishes its streams, or before a limit was set."""
    while True:
        # Not asyncio.wait_for, which in Python 3.11 loses a cancellation that comes with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BUDGETS_S):
                await limited.wait()
        limited.clear()
        with contextlib.suppress(StorageError):  # the ledger's own failure is told elsewhere
            admission.settled(await asyncio.to_thread(ledger.used, *admission.periods))


def _watched(task: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A gateway without one of its tasks would serve on half blind: it ends, to be started again."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a task of the gateway died; the process ends", exc_info=error)
            end_process()

    watched = asyncio.create_task(task)
    watched.add_done_callback(ended)
    return watched


def stopping(app: web.Application) -> None:
    """What is cut off from now on is cut off by us."""
    app[GATEWAY].billing.stopping = True


def _work(gw: Gateway, deployment: str) -> Work:
    """What this gateway has to do for a deployment, now."""
    running, in_line, tokens, waited_s = gw.queues.work(deployment)
    waiting, more, longest_s = gw.room.work(deployment)
    computing = gw.router.queued(gw.catalog.view.live.get(deployment, ()))
    return Work(running, computing, in_line + waiting, tokens + more, max(waited_s, longest_s))


def _show_gauges(gw: Gateway, capture: Capture) -> None:
    """What /metrics reads at each scrape."""
    watch_deployments(gw.metrics, lambda: gw.catalog.view)
    watch_replicas(gw.metrics, gw.catalog.every_ready, gw.health, gw.router.snapshot, gw.clock)
    deployment = ("deployment",)
    gw.metrics.watch("requests_running", "Requests at a deployment's replicas.", deployment, gw.queues.taken)
    gw.metrics.watch("requests_queued", "Requests that wait for a place.", deployment, gw.queues.waiting)
    text = "Steps that the ledger refused, as what it has says otherwise."
    gw.metrics.watch_counter("ledger_conflicts", text, (), lambda: {(): gw.ledger.conflicts})
    gw.metrics.watch(
        "ledger_engine_tokens_ratio",
        "Tokens in the ledger for each that a replica's engine counted.",
        ("deployment", "replica", "type"),
        capture.ratios,
    )
