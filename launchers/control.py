"""The control API: the one door to state for the command line. JSON over a Unix socket; the kernel says who calls."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pwd
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from launchers import (
    control_cluster,
    control_deployments,
    control_endpoints,
    control_keys,
    control_ledger,
    control_limits,
    control_prices,
    control_reports,
    control_runs,
    control_tenants,
    notify,
)
from launchers.alerts import Alerting
from launchers.control_cluster import CLUSTER, Cluster, Misdirected
from launchers.control_http import CONTROLLER, PRINCIPAL, answer, reading
from launchers.controller import Controller
from launchers.scheduler import Scheduler, SchedulerError, SchedulerUnavailable
from launchers.schedulers import watch_for
from registry import models, tenants
from registry.access import Forbidden, Principal
from registry.db import Conflict, NotFound, RegistryError, StorageError, open_writer
from registry.migrations import MIGRATIONS
from registry.site import Site

log = logging.getLogger(__name__)

STATUS = {Forbidden: 403, NotFound: 404, Conflict: 409, Misdirected: 421, StorageError: 503, SchedulerUnavailable: 503}


def make_app(site: Site, scheduler: Scheduler) -> web.Application:
    """All wiring on one screen. Raises StorageError when the registry cannot be opened as its writer."""
    controller = Controller(site, open_writer(site.registry_db, MIGRATIONS), scheduler, watch_for(site, scheduler))
    app = web.Application(middlewares=[identify, explain], client_max_size=1 << 20)
    app[CONTROLLER] = controller
    app[CLUSTER] = Cluster(controller)
    app.router.add_routes(
        [
            web.get("/v1/status", status),
            *control_runs.routes(),
            web.get("/v1/models", listing("model", models.everything)),
            web.get("/v1/deployments", control_deployments.list_deployments),
            web.post("/v1/deployments", control_deployments.create_deployment),
            web.get("/v1/deployments/{name}", control_deployments.get_deployment),
            web.post("/v1/deployments/{name}/stop", control_deployments.stop_deployment),
            *control_endpoints.routes(),
            *control_tenants.routes(),
            *control_keys.routes(),
            *control_limits.routes(),
            *control_prices.routes(),
            *control_ledger.routes(),
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
    alerting = Alerting(controller, notify.channels(controller.site.alerts, controller.site.name))
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
    caller, controller = principal_of(request.transport.get_extra_info("socket"), os.getuid()), request.app[CONTROLLER]
    belongs_to = await controller.write(tenants.of_user, controller.db, caller.name)
    request[PRINCIPAL] = dataclasses.replace(caller, tenants=belongs_to)
    return await handler(request)


@web.middleware
async def explain(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Our own errors as JSON with a status; anything else is a bug and stays aiohttp's 500."""
    try:
        return await handler(request)
    except (Forbidden, Misdirected, RegistryError, SchedulerError, ValueError) as e:
        status = next((code for kind, code in STATUS.items() if isinstance(e, kind)), 400)
        return web.json_response({"error": {"type": type(e).__name__, "message": str(e)}}, status=status)


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


def run(site: Site, scheduler: Scheduler) -> None:
    """Serve until SIGTERM. Raises StorageError or OSError, before anything is served, when it cannot start."""
    app = make_app(site, scheduler)
    site.runs_dir.mkdir(parents=True, exist_ok=True)
    path = site.control_socket
    path.unlink(missing_ok=True)  # left by one that was killed; the registry's writer lock says that none is alive
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    os.chmod(path, 0o666)  # whoever connects is known by uid; `may` decides what they may do
    try:
        web.run_app(app, sock=listener, print=None, access_log=None)
    finally:
        path.unlink(missing_ok=True)
