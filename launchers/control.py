"""The control API: the one door to state for the command line. JSON over a Unix socket; the kernel says who calls."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import pwd
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from launchers.controller import Controller
from launchers.resources import resources_from
from launchers.scheduler import Scheduler, SchedulerError, SchedulerUnavailable
from launchers.vllm.arguments import refuse_unlisted
from registry import accounting, checkpoints, deployments, models, reports, runs, tenants
from registry.access import Forbidden, Object, Principal, Verb, require
from registry.db import Conflict, NotFound, RegistryError, StorageError, open_reader, open_writer
from registry.deployments import DeploymentState
from registry.migrations import MIGRATIONS
from registry.site import Site

log = logging.getLogger(__name__)

CONTROLLER = web.AppKey("controller", Controller)
PRINCIPAL = web.RequestKey("principal", Principal)
MAX_REPLICAS = 256  # of one deployment
STATUS = {Forbidden: 403, NotFound: 404, Conflict: 409, StorageError: 503, SchedulerUnavailable: 503}


def make_app(site: Site, scheduler: Scheduler) -> web.Application:
    """All wiring on one screen. Raises StorageError when the registry cannot be opened as its writer."""
    controller = Controller(site, open_writer(site.registry_db, MIGRATIONS), scheduler)
    app = web.Application(middlewares=[identify, explain], client_max_size=1 << 20)
    app[CONTROLLER] = controller
    app.router.add_routes(
        [
            web.get("/v1/status", status),
            web.get("/v1/runs", listing(runs.everything)),
            web.get("/v1/runs/{id:.+}", get_run),
            web.get("/v1/checkpoints", listing(checkpoints.everything)),
            web.get("/v1/checkpoints/{ref:.+}", get_checkpoint),
            web.get("/v1/models", listing(models.everything)),
            web.get("/v1/deployments", list_deployments),
            web.post("/v1/deployments", create_deployment),
            web.get("/v1/deployments/{name}", get_deployment),
            web.post("/v1/deployments/{name}/stop", stop_deployment),
            web.get("/v1/tenants", listing(tenants.everyone)),
            web.post("/v1/tenants", create_tenant),
            web.post("/v1/tenants/{name}/limits", set_limits),
            web.get("/v1/keys", list_keys),
            web.post("/v1/keys", create_key),
            web.post("/v1/keys/{id}/revoke", revoke_key),
            web.get("/v1/report/usage", report_usage),
            web.post("/v1/poke", poke),
        ]
    )
    app.cleanup_ctx.append(turning)
    return app


async def turning(app: web.Application) -> Any:
    """The controller's loop, for as long as the API is served."""
    controller = app[CONTROLLER]
    loop = asyncio.create_task(controller.run())
    loop.add_done_callback(_loop_ended)
    yield
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    controller.close()


def _loop_ended(loop: asyncio.Task[None]) -> None:
    """A controller that stopped turning must not go on answering as if it did."""
    if not loop.cancelled() and loop.exception() is not None:
        log.critical("the controller's loop failed", exc_info=loop.exception())
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
    request[PRINCIPAL] = principal_of(request.transport.get_extra_info("socket"), os.getuid())
    return await handler(request)


@web.middleware
async def explain(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Our own errors as JSON with a status; anything else is a bug and stays aiohttp's 500."""
    try:
        return await handler(request)
    except (Forbidden, RegistryError, SchedulerError, ValueError) as e:
        status = next((code for kind, code in STATUS.items() if isinstance(e, kind)), 400)
        return web.json_response({"error": {"type": type(e).__name__, "message": str(e)}}, status=status)


async def body_of(request: web.Request, required: dict[str, type], optional: dict[str, type]) -> dict[str, Any]:
    """The request's JSON object with just these fields. Raises ValueError naming the field and what is allowed."""
    try:
        body = await request.json()
    except json.JSONDecodeError as e:
        raise ValueError(f"the body is not JSON: {e}") from e
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    allowed = required | optional
    for key, value in body.items():
        if key not in allowed:
            raise ValueError(f"{key!r} is unknown; allowed: {', '.join(allowed)}")
        if value is not None and (not isinstance(value, allowed[key]) or isinstance(value, bool)):
            raise ValueError(f"{key!r} must be {allowed[key].__name__}, not {value!r}")
    for key in required:
        if body.get(key) is None:
            raise ValueError(f"{key!r} is missing")
    return body


def answer(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status, dumps=lambda v: json.dumps(v, default=_plain))


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        shown.pop("upstream_key", None)  # the engine's key is the gateway's alone
        return shown
    raise TypeError(f"{type(value).__name__} is not JSON")


# Handlers.


def listing(everything: Callable[..., Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        controller = request.app[CONTROLLER]
        return answer(await controller.write(everything, controller.db))

    return handler


async def status(request: web.Request) -> web.Response:
    controller = request.app[CONTROLLER]
    site = controller.site
    return answer(
        {
            "site": site.name,
            "pid": os.getpid(),
            "scheduler": {"kind": site.scheduler.kind, "cluster": controller.scheduler.cluster},
            "scheduler_error": controller.scheduler_error,
        }
    )


async def poke(request: web.Request) -> web.Response:
    request.app[CONTROLLER].poke()
    return answer({})


async def get_run(request: web.Request) -> web.Response:
    controller = request.app[CONTROLLER]
    run = await controller.write(runs.get, controller.db, request.match_info["id"])
    jobs = await controller.write(accounting.of_subject, controller.db, run.id)
    return answer({"run": run, "jobs": jobs})


async def get_checkpoint(request: web.Request) -> web.Response:
    controller = request.app[CONTROLLER]
    return answer(await controller.write(checkpoints.get, controller.db, request.match_info["ref"]))


async def list_deployments(request: web.Request) -> web.Response:
    controller = request.app[CONTROLLER]

    def everything() -> list[dict[str, Any]]:
        return [_described(controller, d) for d in deployments.everything(controller.db)]

    return answer(await controller.write(everything))


async def get_deployment(request: web.Request) -> web.Response:
    controller = request.app[CONTROLLER]

    def one() -> dict[str, Any]:
        return _described(controller, deployments.get(controller.db, request.match_info["name"]))

    return answer(await controller.write(one))


def _described(controller: Controller, deployment: deployments.Deployment) -> dict[str, Any]:
    """A deployment with its replicas, each with its job."""
    theirs = [
        {"replica": r, "jobs": accounting.of_subject(controller.db, r.id)}
        for r in deployments.replicas(controller.db, deployment.name)
        if deployments.is_current(deployment, r)
    ]
    return {"deployment": deployment, "replicas": theirs}


async def create_deployment(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(
        request, {"model": str}, {"name": str, "replicas": int, "resources": dict, "engine_args": list}
    )
    resources = resources_from(controller.site.defaults.serve, body.get("resources") or {})
    if (resources.nodes, resources.tasks_per_node) != (1, 1):
        raise ValueError("a replica is one engine on one node: 'nodes' and 'tasks_per_node' must be 1")
    controller.site.environment("engine")
    replicas = 1 if body.get("replicas") is None else int(body["replicas"])
    if not 1 <= replicas <= MAX_REPLICAS:
        raise ValueError(f"'replicas' must be 1 ... {MAX_REPLICAS}, not {replicas}")
    if not all(isinstance(word, str) for word in body.get("engine_args") or ()):
        raise ValueError("'engine_args' must be a list of texts")
    if not principal.admin:
        refuse_unlisted(body.get("engine_args") or ())

    def create() -> dict[str, Any]:
        model = _model(controller, principal, str(body["model"]), body.get("name"))
        name = body.get("name") or model.name
        require(principal, Verb.CREATE, Object("deployment", principal.name))
        _require_own(controller, principal, name)
        wanted = {"resources": body.get("resources") or {}, "engine_args": body.get("engine_args") or []}
        made = deployments.create(
            controller.db,
            name,
            principal.name,
            model=model.name,
            version=model.version,
            model_path=model.path,
            replicas=replicas,
            request=wanted,
        )
        return _described(controller, made)

    made = await controller.write(create)
    controller.poke()
    return answer(made, 201)


def _model(controller: Controller, principal: Principal, ref: str, name: str | None) -> models.ModelVersion:
    """A registered model, or a model directory (absolute path), which is registered on the way.

    A directory is for administrators: the engine would read it with the service's eyes, not its owner's.
    """
    if ref.startswith("/"):
        require(principal, Verb.ADMINISTER, Object("model directory", principal.name))
        directory = Path(ref)
        if not (directory / "config.json").is_file():
            raise NotFound(f"{ref}: no model directory (there is no config.json in it)")
        if name is None:
            raise ValueError("a model directory needs a name to be served under (--name)")
        return models.register(controller.db, name, principal.name, str(directory.resolve()))
    model = models.resolve(controller.db, ref)
    if not (Path(model.path) / "config.json").is_file():
        raise NotFound(f"model {model.name}@{model.version} is gone: {model.path} has no config.json")
    return model


def _require_own(controller: Controller, principal: Principal, name: str) -> None:
    try:
        old = deployments.get(controller.db, name)
    except NotFound:
        return
    require(principal, Verb.CHANGE, Object("deployment", old.owner))


async def stop_deployment(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]

    def stop() -> dict[str, Any]:
        deployment = deployments.get(controller.db, request.match_info["name"])
        require(principal, Verb.CHANGE, Object("deployment", deployment.owner))
        if not deployment.state.ended:
            deployments.set_state(controller.db, deployment.name, DeploymentState.STOPPING)
        return _described(controller, deployments.get(controller.db, deployment.name))

    stopped = await controller.write(stop)
    controller.poke()
    return answer(stopped)


async def create_tenant(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {"name": str}, {"account": str, "requests_per_minute": int, "token_budget": int})
    require(principal, Verb.ADMINISTER, Object("tenant", principal.name))
    default = controller.site.tenants.default
    made = await controller.write(
        lambda: tenants.create(
            controller.db,
            body["name"],
            principal.name,
            account=body.get("account"),
            requests_per_minute=body.get("requests_per_minute", default.requests_per_minute),
            token_budget=body.get("token_budget", default.token_budget),
        )
    )
    return answer(made, 201)


async def set_limits(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {}, {"requests_per_minute": int, "token_budget": int})
    require(principal, Verb.ADMINISTER, Object("tenant", principal.name))

    def change() -> tenants.Tenant:
        old = tenants.get(controller.db, request.match_info["name"])
        return tenants.set_limits(
            controller.db,
            old.name,
            requests_per_minute=body.get("requests_per_minute", old.requests_per_minute),
            token_budget=body.get("token_budget", old.token_budget),
        )

    return answer(await controller.write(change))


async def list_keys(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    require(principal, Verb.ADMINISTER, Object("key", principal.name))
    return answer(await controller.write(tenants.keys, controller.db))


async def create_key(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {"tenant": str}, {})
    require(principal, Verb.ADMINISTER, Object("key", principal.name))
    key, secret = await controller.write(tenants.create_key, controller.db, body["tenant"], principal.name)
    return answer({"key": key, "secret": secret}, 201)


async def revoke_key(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    require(principal, Verb.ADMINISTER, Object("key", principal.name))
    return answer(await controller.write(tenants.revoke_key, controller.db, request.match_info["id"]))


async def report_usage(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    require(principal, Verb.READ, Object("report", ""))
    await controller.settle(running=True)

    def make() -> reports.UsageReport:
        ledger_db = open_reader(controller.site.ledger_db)
        try:
            return reports.usage(controller.db, ledger_db)
        finally:
            ledger_db.close()

    return answer(await controller.write(make))


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
