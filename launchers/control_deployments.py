"""The control API's handlers for deployments: what is wanted, who may want it, and what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiohttp import web

from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of, reading
from launchers.controller import Controller
from launchers.resources import REPLICA_OPTIONS, resources_from
from launchers.vllm.arguments import refuse_unlisted
from registry import accounting, deployments, models
from registry.access import Object, Principal, Verb, require
from registry.db import NotFound
from registry.deployments import DeploymentState

MAX_REPLICAS = 256  # of one deployment


async def list_deployments(request: web.Request) -> web.Response:
    controller = reading(request, "deployment")

    def everything() -> list[dict[str, Any]]:
        return [_described(controller, d) for d in deployments.everything(controller.db)]

    return answer(await controller.write(everything))


async def get_deployment(request: web.Request) -> web.Response:
    controller = reading(request, "deployment")

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
        request,
        {"model": str},
        {"name": str, "replicas": int, "resources": dict, "engine_args": list, "routing": str},
    )
    resources = resources_from(controller.site.defaults.serve, body.get("resources") or {}, REPLICA_OPTIONS)
    if (resources.nodes, resources.tasks_per_node) != (1, 1):
        raise ValueError("a replica is one engine on one node: 'nodes' and 'tasks_per_node' must be 1")
    controller.site.environment("engine")
    replicas = 1 if body.get("replicas") is None else int(body["replicas"])
    if not 0 <= replicas <= MAX_REPLICAS:
        raise ValueError(f"'replicas' must be 0 (one while it is called) ... {MAX_REPLICAS}, not {replicas}")
    if not all(isinstance(word, str) for word in body.get("engine_args") or ()):
        raise ValueError("'engine_args' must be a list of texts")
    routing = body.get("routing") or deployments.ROUTING[0]
    if routing not in deployments.ROUTING:
        raise ValueError(f"'routing' must be one of {', '.join(deployments.ROUTING)}, not {routing!r}")
    if not principal.admin:
        refuse_unlisted(body.get("engine_args") or ())

    def create() -> dict[str, Any]:
        model = _model(controller, principal, str(body["model"]), body.get("name"))
        name = body.get("name") or model.name
        require(principal, Verb.CREATE, Object("deployment", principal.name))
        _require_own(controller, principal, name)
        wanted = {
            "resources": body.get("resources") or {},
            "engine_args": body.get("engine_args") or [],
            "routing": routing,
        }
        made = deployments.create(
            controller.db,
            name,
            principal.name,
            model=model.name,
            version=model.version,
            model_path=model.path,
            min_replicas=replicas,
            max_replicas=max(replicas, 1),
            request=wanted,
            by=principal.name,
            why="served",
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
