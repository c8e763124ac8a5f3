"""The control API's handlers for tenants and their keys."""

from __future__ import annotations

from aiohttp import web

from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of
from registry import tenants
from registry.access import Object, Verb, require


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
    body = await body_of(request, {"tenant": str}, {"scopes": list})
    require(principal, Verb.ADMINISTER, Object("key", principal.name))
    asked = body.get("scopes")
    scopes = (tenants.Scope.INFERENCE,) if asked is None else tenants.checked_scopes(asked)
    key, secret = await controller.write(tenants.create_key, controller.db, body["tenant"], principal.name, scopes)
    return answer({"key": key, "secret": secret}, 201)


async def revoke_key(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    require(principal, Verb.ADMINISTER, Object("key", principal.name))
    return answer(await controller.write(tenants.revoke_key, controller.db, request.match_info["id"]))
