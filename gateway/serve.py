"""Run a site's gateway as a process: bind or take over, serve, and on SIGTERM finish what is running."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine
from typing import Any

import uvloop
from aiohttp import web

from gateway import takeover
from gateway.app import backing_of, make_app, stopping
from gateway.app_keys import GATEWAY
from gateway.catalog import Catalog
from gateway.listener import BACKLOG, Listener
from gateway.takeover import Heir, TakeoverRefused
from registry.db import StorageError
from registry.server_tls import server_context
from registry.site import Site

log = logging.getLogger(__name__)

SWITCH_S = 0.0005  # the loop waits no longer than this for the thread that writes the ledger
COLLECT = (20_000, 20, 20)  # see gc.set_threshold: a collection of the young for about a thousand requests
STOP_S = 30.0  # streams may go on this long after SIGTERM
LINGER_S = 6.0  # after a takeover: longer than clients keep an idle connection that they may be about to use


def run(site: Site, stop_s: float = STOP_S, *, take_over: bool = False) -> int:
    """Serve until SIGTERM or SIGINT, or until another gateway takes over; the process's exit code.

    Failing to start is one line on stderr and 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()  # what is loaded by now stays; and requests leave no cycles behind that would need looking for so often
    gc.set_threshold(*COLLECT)
    where = f"{site.gateway.host}:{site.gateway.port}"
    heir: Heir | None = None
    try:
        tls = server_context(site.gateway.tls, "gateway.tls") if site.gateway.tls else None
        # Before anything else: two gateways must not both touch the ledger before one finds the port taken.
        if take_over:
            _require_registry(site)
            heir = takeover.inherit(site.takeover_socket)
        listening = heir.listening if heir else bind(site.gateway.host, site.gateway.port)
    except OSError as e:
        return _fail(f"cannot listen on {where} (gateway.port): {e.strerror or e}")
    except (TakeoverRefused, ValueError) as e:
        return _fail(str(e))
    try:
        with listening, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(site, listening, stop_s, tls, heir))
    except StorageError as e:
        return _fail(str(e))
    return 0


def _require_registry(site: Site) -> None:
    """Whoever cannot tell a key from another lets the gateway that can serve on. Raises TakeoverRefused."""
    catalog = Catalog(site.registry_db, site.key_secret)
    catalog.refresh()
    catalog.close()
    if catalog.failure is not None:
        raise TakeoverRefused(
            f"does not take over, as the registry cannot be read: {catalog.failure} (after an update, the controller "
            "is restarted first: it brings the registry up to date)"
        )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, proto)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


async def serve(
    site: Site, listening: socket.socket, stop_s: float, tls: ssl.SSLContext | None = None, heir: Heir | None = None
) -> None:
    loop = asyncio.get_running_loop()
    stop, taken = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = make_app(site)
    # aiohttp's own connections: each answers one short request.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    try:
        await runner.setup()
        assert runner.server is not None
        listener = Listener(backing_of(app, runner.server), listening, tls)
        await listener.start()
        if heir is not None:
            heir.serves()
        host, port = listening.getsockname()[:2]
        log.info("gateway of %s listens on %s://%s:%d", site.name, "https" if tls else "http", host, port)
        offering = asyncio.create_task(takeover.offer(site.takeover_socket, listening, taken.set))
        offering.add_done_callback(_told)
        await _any(stop.wait(), taken.wait())
        if taken.is_set():
            log.info("another gateway has taken over: what runs is finished here")
            await app[GATEWAY].ledger.stop_projecting()
            await _any(stop.wait(), listener.stop(None, LINGER_S))
        else:
            takeover.withdraw(site.takeover_socket)
        offering.cancel()
        log.info("stopping: no new connections, streams have %g s", stop_s)
        stopping(app)
        await listener.stop(stop_s)
    finally:
        await runner.cleanup()


def _told(offering: asyncio.Task[None]) -> None:
    if not offering.cancelled() and (e := offering.exception()) is not None:
        log.warning("no other gateway can take over from this one: %s", e)


async def _any(*waits: Coroutine[Any, Any, object]) -> None:
    """Until the first of these is done; the others are cancelled."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _fail(text: str) -> int:
    sys.stderr.write(f"headgate gateway: {text}\n")
    return 1
