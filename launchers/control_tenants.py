"""The control API's handlers for tenants and their keys."""

from __future__ import annotations

import dataclasses

from aiohttp import web

from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of
from registry import keys, limits, tenants
from registry.access import Object, Verb, require
from registry.limits import Limits


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
            limited=Limits(**{**dataclasses.asdict(default), **{n: body[n] for n in limits.NAMES if n in body}}),
        )
    )
    return answer(made, 201)


async def set_limits(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {}, {"requests_per_minute": int, "token_budget": int})
    require(principal, Verb.ADMINISTER, Object("tenant", principal.name))

    name = request.match_info["name"]

    def change() -> Limits:
        tenants.get(controller.db, name)
        return limits.put(controller.db, limits.Subject.TENANT, name, body, principal.name)

    return answer(await controller.write(change))


async def list_keys(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    require(principal, Verb.ADMINISTER, Object("key", principal.name))
    return answer(await controller.write(keys.everything, controller.db))


async def create_key(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {"tenant": str}, {"scopes": list})
    require(principal, Verb.ADMINISTER, Object("key", principal.name))
    asked = body.get("scopes")
    scopes = (keys.Scope.INFERENCE,) if asked is None else keys.checked_scopes(asked)
    key, secret = await controller.write(
        keys.create, controller.db, controller.key_secret, body["tenant"], principal.name, scopes
    )
    return answer({"key": key, "secret": secret}, 201)


async def revoke_key(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    require(principal, Verb.ADMINISTER, Object("key", principal.name))
    return answer(await controller.write(keys.revoke, controller.db, request.match_info["id"]))
