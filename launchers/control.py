"""The control API: the one door to state for the command line. JSON over a Unix socket, where the kernel says who
calls, and, for other hosts, over HTTPS with a key.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pwd
import signal
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from launchers import (
    control_aliases,
    control_cluster,
    control_deployments,
    control_endpoints,
    control_keys,
    control_ledger,
    control_limits,
    control_login,
    control_prices,
    control_promotions,
    control_reports,
    control_runs,
    control_tenants,
    notify,
)
from launchers.alerts import Alerting
from launchers.control_cluster import CLUSTER, Cluster, Misdirected
from launchers.control_http import CONTROLLER, PRINCIPAL, Unauthenticated, answer, reading
from launchers.controller import Controller
from launchers.scheduler import Scheduler, SchedulerError, SchedulerUnavailable
from launchers.schedulers import watch_for
from registry import models, tenants
from registry.access import Forbidden, Principal
from registry.db import AnotherWriter, Conflict, NotFound, RegistryError, StorageError, open_writer
from registry.migrations import MIGRATIONS
from registry.server_tls import server_context
from registry.site import Site
from slurm.errors import SlurmUnavailable

log = logging.getLogger(__name__)

STANDBY_POLL_S = 1.0
STATUS = {
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    Misdirected: 421,
    StorageError: 503,
    SchedulerUnavailable: 503,
    SlurmUnavailable: 503,
}


def make_app(site: Site, scheduler: Scheduler) -> web.Application:
    """All wiring on one screen. Raises StorageError when the registry cannot be opened as its writer."""
    controller = Controller(site, open_writer(site.registry_db, MIGRATIONS), scheduler, watch_for(site, scheduler))
    app = web.Application(middlewares=[explain, identify], client_max_size=1 << 20)
    app[CONTROLLER] = controller
    app[CLUSTER] = Cluster(controller)
    app[control_login.LOGIN] = control_login.make_login()
    app.router.add_routes(
        [
            web.get("/v1/status", status),
            *control_login.routes(),
            *control_runs.routes(),
            web.get("/v1/models", listing("model", models.everything)),
            *control_aliases.routes(),
            *control_deployments.routes(),
            *control_endpoints.routes(),
            *control_tenants.routes(),
            *control_keys.routes(),
            *control_limits.routes(),
            *control_prices.routes(),
            *control_ledger.routes(),
            *control_promotions.routes(),
            *control_reports.routes(),
            web.get("/v1/queue", control_cluster.queue),
            web.get("/v1/nodes", control_cluster.nodes),
            web.get("/v1/limits", control_cluster.usage),
            web.post("/v1/poke", poke),
        ]
    )
    app.cleanup_ctx.append(turning)
    return app


async def turning(app: web.Application) -> Any:
    """The controller's loop, and the watch that it follows, for as long as the API is served."""
    controller = app[CONTROLLER]
    channels = notify.channels(controller.site.alerts, controller.site.name)
    controller.plans.channels = tuple(channels)
    alerting = Alerting(controller, channels)
    loops = [asyncio.create_task(controller.run()), asyncio.create_task(alerting.run())]
    if controller.watch is not None:
        loops.append(asyncio.create_task(controller.watch.run()))
        loops.append(asyncio.create_task(controller.follow(controller.watch)))
    for loop in loops:
        loop.add_done_callback(_loop_ended)
    yield
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
    controller.close()


def _loop_ended(loop: asyncio.Task[None]) -> None:
    """A controller that stopped turning, or watching, must not go on answering as if it did."""
    if not loop.cancelled() and loop.exception() is not None:
        log.critical("one of the controller's loops failed", exc_info=loop.exception())
        os.kill(os.getpid(), signal.SIGTERM)


# Who calls, and how errors are said.


def principal_of(connection: socket.socket, service_uid: int) -> Principal:
    """Whoever is at the other end of a Unix socket, by the kernel's word."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Principal(name, uid, admin=uid in (0, service_uid))


@web.middleware
async def identify(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    assert request.transport is not None
    if request.path in control_login.OPEN:
        return await handler(request)
    connection, controller = request.transport.get_extra_info("socket"), request.app[CONTROLLER]
    if connection.family == socket.AF_UNIX:
        caller = principal_of(connection, os.getuid())
    else:
        caller = await control_login.principal_by_key(request)
    belongs_to = await controller.write(tenants.of_user, controller.db, caller.name)
    request[PRINCIPAL] = dataclasses.replace(caller, tenants=belongs_to)
    return await handler(request)


@web.middleware
async def explain(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Our own errors as JSON with a status; anything else is a bug and stays aiohttp's 500."""
    try:
        return await handler(request)
    except (Unauthenticated, Forbidden, Misdirected, RegistryError, SchedulerError, SlurmUnavailable, ValueError) as e:
        status = next((code for kind, code in STATUS.items() if isinstance(e, kind)), 400)
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        said = {"error": {"type": type(e).__name__, "message": str(e)}}
        return web.json_response(said, status=status, headers=headers)


# What can be read.


def listing(kind: str, everything: Callable[..., Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        controller = reading(request, kind)
        return answer(await controller.write(everything, controller.db))

    return handler


async def status(request: web.Request) -> web.Response:
    controller = reading(request, "status")
    site = controller.site
    return answer(
        {
            "site": site.name,
            "pid": os.getpid(),
            "scheduler": {"kind": site.scheduler.kind, "cluster": controller.cluster},
            "scheduler_error": controller.scheduler_error,
        }
    )


async def poke(request: web.Request) -> web.Response:
    """Somebody submitted or changed something. Anybody may say so: the pace holds, also where Slurm struggles."""
    controller = reading(request, "status")
    controller.poke()
    if controller.watch is not None:
        controller.watch.hurry()
    return answer({})


# The process.


def run(site: Site, scheduler: Scheduler, *, standby: bool = False) -> None:
    """Serve until SIGTERM. Raises StorageError, ValueError or OSError, before it serves, when it cannot start.

    `standby`: where another one has the registry, wait until it ends, however long that takes.
    """
    tls = server_context(site.control.tls, "control.tls") if site.control.tls else None
    app = _led(site, scheduler) if standby else make_app(site, scheduler)
    site.runs_dir.mkdir(parents=True, exist_ok=True)
    path = site.control_socket
    path.unlink(missing_ok=True)  # left by one that was killed; the registry's writer lock says that none is alive
    listeners: list[tuple[socket.socket, ssl.SSLContext | None]] = []
    if site.control.port is not None:
        listeners.append((_listening(site.control.host, site.control.port), tls))
    own = socket.socket(socket.AF_UNIX)
    own.bind(str(path))
    os.chmod(path, 0o666)  # whoever connects is known by uid; `may` decides what they may do
    listeners.append((own, None))
    try:
        asyncio.run(_serve(app, listeners))
    finally:
        path.unlink(missing_ok=True)


def _led(site: Site, scheduler: Scheduler) -> web.Application:
    waits = False
    while True:
        try:
            app = make_app(site, scheduler)
        except AnotherWriter:
            if not waits:
                log.info("another controller leads; this one stands by")
            waits = True
            time.sleep(STANDBY_POLL_S)
        else:
            if waits:
                log.info("the other controller has ended: this one leads")
            return app


async def _serve(app: web.Application, listeners: list[tuple[socket.socket, ssl.SSLContext | None]]) -> None:
    told_to_end = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, told_to_end.set)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        for listener, tls in listeners:
            await web.SockSite(runner, listener, ssl_context=tls).start()
        await told_to_end.wait()
    finally:
        await runner.cleanup()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as e:
        raise OSError(e.errno, f"control.host, control.port: cannot listen on {host}:{port}: {e.strerror}") from e
    return listener
