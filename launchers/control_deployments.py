"""The control API's handlers for deployments: what is wanted, who may want it, what is there, and why."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from launchers import replica_load, rollout
from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of, object_of, reading
from launchers.controller import Controller
from launchers.deployment_spec import MAX_REPLICAS, spec_of, to_document
from registry import accounting, clock, deployments, revisions
from registry import canary as percent
from registry.access import Object, Verb, require
from registry.deployments import Deployment, DeploymentState
from registry.revisions import Revision

ENDED_SHOWN = 5  # replicas of a deployment that ended last
REVISIONS_SHOWN = 10
Change = Callable[[Controller, Deployment], None]


def routes() -> list[web.RouteDef]:
    return [
        web.get("/v1/deployments", list_deployments),
        web.post("/v1/deployments", create_deployment),
        web.get("/v1/deployments/{name}", get_deployment),
        web.get("/v1/deployments/{name}/revisions", list_revisions),
        web.get("/v1/deployments/{name}/explain", explain_deployment),
        web.post("/v1/deployments/{name}/apply", apply_deployment),
        web.post("/v1/deployments/{name}/scale", scale_deployment),
        web.post("/v1/deployments/{name}/pause", pause_deployment),
        web.post("/v1/deployments/{name}/rollout", roll_out_deployment),
        web.post("/v1/deployments/{name}/rollback", roll_back_deployment),
        web.post("/v1/deployments/{name}/stop", stop_deployment),
    ]


# What is there.


async def list_deployments(request: web.Request) -> web.Response:
    controller = reading(request, "deployment")
    found = await controller.write(deployments.everything, controller.db)
    # One by one: the registry's writer has others to serve meanwhile.
    return answer([await controller.write(_described, controller, deployment) for deployment in found])


async def get_deployment(request: web.Request) -> web.Response:
    controller = reading(request, "deployment")
    return answer(await _looked_at(controller, request.match_info["name"]))


async def list_revisions(request: web.Request) -> web.Response:
    controller = reading(request, "deployment")
    return answer(await controller.write(revisions.of, controller.db, request.match_info["name"]))


async def explain_deployment(request: web.Request) -> web.Response:
    """What the controller wants, has and does next, in plain words, as it last planned."""
    controller = reading(request, "deployment")
    described = await _looked_at(controller, request.match_info["name"])
    deployment: Deployment = described["deployment"]
    plan = controller.plans.latest.get(deployment.name)
    if deployment.state.ended:
        cause = f": {deployment.cause}" if deployment.cause else ""
        why, coming = [f"{deployment.name} has {deployment.state}{cause}"], []
    elif plan is not None:
        why, coming = list(plan.why), [{"at": _moment(at), "words": words} for at, words in plan.next]
    else:
        why, coming = ["the controller has not planned anything for it since it was started"], []
    told = {
        "why": why,
        "next": coming,
        "planned_at": controller.plans.made_at,
        "scheduler": {"cluster": controller.cluster, "error": controller.scheduler_error},
    }
    return answer(described | told)


async def _looked_at(controller: Controller, name: str) -> dict[str, Any]:
    """A deployment, described, with what its replicas say of their load."""

    def one() -> dict[str, Any]:
        return _described(controller, deployments.get(controller.db, name))

    described = await controller.write(one)

    def loads() -> None:  # files on a file system that may be slow
        for shown in described["replicas"]:
            if not shown["replica"].state.ended:
                shown["load"] = replica_load.read(Path(shown["replica"].folder), os.getuid())

    await asyncio.to_thread(loads)
    return described


def _described(controller: Controller, deployment: Deployment) -> dict[str, Any]:
    """A deployment with its spec as it may be applied again, its last revisions, and its replicas, each with its job:
    those that have not ended, and a few that have."""
    db = controller.db
    theirs = deployments.shown_replicas(db, deployment.name, deployment.created_at, ENDED_SHOWN)
    return {
        "deployment": deployment,
        "spec": to_document(spec_of(deployment)),
        "revisions": [_short(r) for r in revisions.of(db, deployment.name)[-REVISIONS_SHOWN:]],
        "replicas": [{"replica": r, "jobs": accounting.of_subject(db, r.job_subject), "load": None} for r in theirs],
    }


def _short(r: Revision) -> dict[str, Any]:
    return {
        "revision": r.revision,
        "model": r.model,
        "version": r.version,
        "state": r.state,
        "cause": r.cause,
        "created_at": r.created_at,
    }


def _moment(at: float | None) -> str | None:
    return None if at is None else clock.text(datetime.fromtimestamp(at, UTC))


# What is wanted.


async def create_deployment(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    document = await object_of(request)

    def create() -> dict[str, Any]:
        return _described(controller, rollout.serve(controller.site, controller.db, principal, document))

    made = await controller.write(create)
    controller.poke()
    return answer(made, 201)


async def apply_deployment(request: web.Request) -> web.Response:
    controller, principal, name = request.app[CONTROLLER], request[PRINCIPAL], request.match_info["name"]
    body = await body_of(request, {"spec": dict}, {"dry_run": bool, "why": str})
    dry_run = bool(body.get("dry_run"))

    def apply() -> dict[str, Any]:
        told = rollout.apply(
            controller.site, controller.db, principal, name, body["spec"], why=body.get("why"), dry_run=dry_run
        )
        if dry_run and told["done"] == "created":
            return {**told, "deployment": None, "spec": None, "revisions": [], "replicas": []}
        return {**_described(controller, deployments.get(controller.db, name)), **told}

    applied = await controller.write(apply)
    if not dry_run:
        controller.poke()
    return answer(applied)


async def scale_deployment(request: web.Request) -> web.Response:
    """How many replicas there may be; `replicas`: just so many (0: one, or one job of them, while it is called)."""
    body = await body_of(request, {}, {"min": int, "max": int, "replicas": int})
    least, most, exactly = (body.get(field) for field in ("min", "max", "replicas"))
    if (exactly is None) == (least is None and most is None):
        raise ValueError("say either 'replicas', or 'min', 'max' or both")
    if exactly is not None:
        least = most = exactly
    for field, value in (("min", least), ("max", most)):
        if value is not None and not 0 <= value <= MAX_REPLICAS:
            asked = "replicas" if exactly is not None else field
            raise ValueError(f"{asked!r} must be 0 ... {MAX_REPLICAS}, not {value}")

    def scale(controller: Controller, deployment: Deployment) -> None:
        highest = spec_of(deployment).pack if exactly == 0 else most
        deployments.change(controller.db, deployment.name, min_replicas=least, max_replicas=highest)

    return await _changed(request, scale)


async def pause_deployment(request: web.Request) -> web.Response:
    """Nothing is rolled out or scaled while it is paused; what ends is replaced all the same."""
    body = await body_of(request, {}, {"paused": bool})
    paused = body.get("paused") is not False

    def pause(controller: Controller, deployment: Deployment) -> None:
        deployments.change(controller.db, deployment.name, paused=paused)

    return await _changed(request, pause)


async def roll_out_deployment(request: web.Request) -> web.Response:
    body = await body_of(request, {}, {"model": str, "canary": int, "restart": bool, "why": str})
    canary, principal = percent.checked(body.get("canary")), request[PRINCIPAL]

    def roll_out(controller: Controller, deployment: Deployment) -> None:
        rollout.roll_out(
            controller.site,
            controller.db,
            principal,
            deployment.name,
            model=body.get("model"),
            canary=canary,
            restart=bool(body.get("restart")),
            why=body.get("why"),
        )

    return await _changed(request, roll_out)


async def roll_back_deployment(request: web.Request) -> web.Response:
    body = await body_of(request, {}, {"revision": int, "why": str})
    principal = request[PRINCIPAL]

    def roll_back(controller: Controller, deployment: Deployment) -> None:
        rollout.roll_back(controller.db, principal, deployment.name, revision=body.get("revision"), why=body.get("why"))

    return await _changed(request, roll_back)


async def stop_deployment(request: web.Request) -> web.Response:
    def stop(controller: Controller, deployment: Deployment) -> None:
        if not deployment.state.ended:
            deployments.set_state(controller.db, deployment.name, DeploymentState.STOPPING)

    return await _changed(request, stop)


async def _changed(request: web.Request, change: Change) -> web.Response:
    """Do it, where the caller may, and describe what is wanted then."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]

    def changed() -> dict[str, Any]:
        deployment = deployments.get(controller.db, request.match_info["name"])
        require(principal, Verb.CHANGE, Object("deployment", deployment.owner))
        change(controller, deployment)
        return _described(controller, deployments.get(controller.db, deployment.name))

    described = await controller.write(changed)
    controller.poke()
    return answer(described)
