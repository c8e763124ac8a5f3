"""The control API's handlers for tenants and their members."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from typing import Any

from aiohttp import web

from launchers import tenant_sync
from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of
from launchers.controller import Controller
from launchers.slurm_scheduler import SlurmScheduler
from registry import keys, limits, tenants
from registry.access import Object, Verb, may, require
from registry.limits import Limits, Subject


def routes() -> list[web.RouteDef]:
    return [
        web.get("/v1/tenants", list_tenants),
        web.post("/v1/tenants", create_tenant),
        web.post("/v1/tenants/sync", sync),
        web.get("/v1/tenants/{name}", get_tenant),
        web.post("/v1/tenants/{name}/account", set_account),
        web.post("/v1/tenants/{name}/members", add_member),
        web.post("/v1/tenants/{name}/members/remove", remove_member),
    ]


async def list_tenants(request: web.Request) -> web.Response:
    """Those that the caller may see, each with its limits and how many members it has."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]

    def visible() -> list[dict[str, Any]]:
        limited = limits.everything(controller.db)
        count = Counter(m.tenant for m in tenants.members(controller.db))
        return [
            dataclasses.asdict(t)
            | {
                "members": count[t.name],
                "limits": dataclasses.asdict(limited.get((Subject.TENANT, t.name), limits.UNLIMITED)),
            }
            for t in tenants.everyone(controller.db)
            if may(principal, Verb.READ, Object("tenant", "", t.name))
        ]

    return answer(await controller.write(visible))


async def get_tenant(request: web.Request) -> web.Response:
    """{tenant, limits, members, keys}; of the keys those that the caller may see."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    name = request.match_info["name"]
    require(principal, Verb.READ, Object("tenant", "", name))

    def whole() -> dict[str, Any]:
        tenant = tenants.get(controller.db, name)
        return {
            "tenant": tenant,
            "limits": limits.of(controller.db, Subject.TENANT, name),
            "members": [m for m in tenants.members(controller.db) if m.tenant == name],
            "keys": [
                k
                for k in keys.everything(controller.db)
                if k.tenant == name and may(principal, Verb.READ, Object("key", k.user, name))
            ],
        }

    return answer(await controller.write(whole))


async def create_tenant(request: web.Request) -> web.Response:
    """`limits` are over the site's for a new tenant; null for no limit."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {"name": str}, {"account": str, "limits": dict})
    require(principal, Verb.ADMINISTER, Object("tenant", ""))
    asked = limits.checked(body.get("limits") or {}, f"tenant {body['name']}")

    def make() -> dict[str, Any]:
        limited = Limits(**(dataclasses.asdict(_default(controller)) | asked))
        made = tenants.create(controller.db, body["name"], principal.name, account=body.get("account"), limited=limited)
        return dataclasses.asdict(made) | {"limits": limited}

    return answer(await controller.write(make), 201)


async def set_account(request: web.Request) -> web.Response:
    controller, name, body = await _administered(request, {}, {"account": str})
    return answer(await controller.write(tenants.set_account, controller.db, name, body.get("account")))


async def add_member(request: web.Request) -> web.Response:
    controller, name, body = await _administered(request, {"user": str}, {})

    def add() -> list[tenants.Member]:
        tenants.add_member(controller.db, name, body["user"])
        return [m for m in tenants.members(controller.db) if m.tenant == name]

    return answer(await controller.write(add))


async def remove_member(request: web.Request) -> web.Response:
    """The keys that the user had of this tenant are revoked with it, and answered."""
    controller, name, body = await _administered(request, {"user": str}, {})
    return answer(await controller.write(tenant_sync.remove_member, controller.db, name, body["user"]))


async def sync(request: web.Request) -> web.Response:
    """Tenants and members as Slurm's associations have them: {changes, done}; see launchers.tenant_sync."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {}, {"dry_run": bool, "prune": bool})
    require(principal, Verb.ADMINISTER, Object("tenant", ""))
    if not isinstance(controller.scheduler, SlurmScheduler):
        raise ValueError("this site has no Slurm (scheduler.kind is local): make tenants with `headgate tenant create`")
    prune, dry_run = bool(body.get("prune")), bool(body.get("dry_run"))
    # On a thread of its own: the scheduler's may be waiting for a slow squeue.
    associations = await asyncio.to_thread(tenant_sync.associations, controller.scheduler.client, whole=prune)

    def act() -> tenant_sync.Changes:
        changes = tenant_sync.look(controller.db, associations, prune=prune)
        if not dry_run:
            tenant_sync.apply(controller.db, changes, principal.name, _default(controller))
        return changes

    return answer({"changes": await controller.write(act), "done": not dry_run})


def _default(controller: Controller) -> Limits:
    return Limits(**dataclasses.asdict(controller.site.tenants.default))


async def _administered(
    request: web.Request, required: dict[str, type], optional: dict[str, type]
) -> tuple[Controller, str, dict[str, Any]]:
    """The controller, the tenant's name and the body, for an administrator. Raises Forbidden, ValueError."""
    body = await body_of(request, required, optional)
    name = request.match_info["name"]
    require(request[PRINCIPAL], Verb.ADMINISTER, Object("tenant", "", name))
    return request.app[CONTROLLER], name, body
