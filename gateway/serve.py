"""Run a site's gateway as a process: bind, serve, and on SIGTERM finish what is running."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys

import uvloop
from aiohttp import web

from gateway.app import make_app
from registry.db import StorageError
from registry.site import Site

log = logging.getLogger(__name__)

BACKLOG = 4096
STOP_S = 30.0  # streams may go on this long after SIGTERM


def run(site: Site, stop_s: float = STOP_S) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit code. Failing to start is one line on stderr and 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    where = f"{site.gateway.host}:{site.gateway.port}"
    try:
        # Before anything else: two gateways must not both touch the ledger before one finds the port taken.
        listening = bind(site.gateway.host, site.gateway.port)
    except OSError as e:
        return _fail(f"cannot listen on {where} (gateway.port): {e.strerror or e}")
    try:
        with listening, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(site, listening, stop_s))
    except StorageError as e:
        return _fail(str(e))
    return 0


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


async def serve(site: Site, listening: socket.socket, stop_s: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # handler_cancellation: a client that is gone cancels its handler, which aborts the upstream. aiohttp waits the
    # shutdown_timeout twice, before and after it interrupts the reading of bodies.
    runner = web.AppRunner(make_app(site), handler_cancellation=True, access_log=None, shutdown_timeout=stop_s / 2)
    try:
        await runner.setup()
        await web.SockSite(runner, listening, backlog=BACKLOG).start()
        host, port = listening.getsockname()[:2]
        log.info("gateway of %s listens on http://%s:%d", site.name, host, port)
        await stop.wait()
        log.info("stopping: no new connections, streams have %g s", stop_s)
    finally:
        await runner.cleanup()


def _fail(text: str) -> int:
    sys.stderr.write(f"headgate gateway: {text}\n")
    return 1
