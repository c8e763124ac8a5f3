"""The control API's handlers for keys. A member of a tenant sees to their own; an administrator to everyone's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from launchers.control_cluster import query_of
from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of, instant_of
from launchers.control_limits import unknown_model
from registry import clock, keys, tenants
from registry.access import Object, Principal, Verb, may, require
from registry.keys import Key, Scope
from registry.settings import LONGEST_GRACE_S


def routes() -> list[web.RouteDef]:
    return [
        web.get("/v1/keys", list_keys),
        web.post("/v1/keys", create_key),
        web.post("/v1/keys/{id}/revoke", revoke_key),
        web.post("/v1/keys/{id}/rotate", rotate_key),
    ]


async def list_keys(request: web.Request) -> web.Response:
    """Those that the caller may see: `?tenant=NAME` of one tenant, `?mine=1` the caller's own."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    asked = query_of(request, "tenant", "mine")
    tenant, mine = asked.get("tenant"), asked.get("mine") == "1"
    if tenant is not None:
        require(principal, Verb.READ, Object("tenant", "", tenant))

    def visible() -> list[Key]:
        if tenant is not None:
            tenants.get(controller.db, tenant)
        return [
            key
            for key in keys.everything(controller.db)
            if tenant in (None, key.tenant)
            and (not mine or key.user == principal.name)
            and may(principal, Verb.READ, _object(key))
        ]

    return answer(await controller.write(visible))


async def create_key(request: web.Request) -> web.Response:
    """{key, secret, warnings}. The key is the caller's unless `user` or `app` says whose."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(
        request, {"tenant": str}, {"user": str, "app": str, "scopes": list, "models": list, "expires_at": str}
    )
    if body.get("user") and body.get("app"):
        raise ValueError("a key is a user's or an application's: say 'user' or 'app', not both")
    user = keys.APPLICATION + body["app"] if body.get("app") else body.get("user") or principal.name
    scopes = keys.checked_scopes((Scope.INFERENCE,) if body.get("scopes") is None else body["scopes"])
    models = body.get("models")
    if models is not None and not all(isinstance(name, str) for name in models):
        raise ValueError("'models' must be a list of names")
    expires_at = instant_of(body, "expires_at")
    _require_new(principal, user, body["tenant"], scopes)

    def make() -> dict[str, Any]:
        key, secret = keys.create(
            controller.db,
            controller.key_secret,
            body["tenant"],
            principal.name,
            scopes,
            user=user,
            models=models,
            expires_at=expires_at,
        )
        warnings = [unknown_model(controller, name) for name in key.models or ()]
        if body.get("user") and key.tenant not in tenants.of_user(controller.db, user):
            warnings.append(
                f"{user} is no member of tenant {key.tenant}: they can neither rotate this key nor make others"
            )
        return {"key": key, "secret": secret, "warnings": [w for w in warnings if w]}

    return answer(await controller.write(make), 201)


async def revoke_key(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]

    def revoke() -> Key:
        key = keys.get(controller.db, request.match_info["id"])
        require(principal, Verb.CHANGE, _object(key))
        return keys.revoke(controller.db, key.id)

    return answer(await controller.write(revoke))


async def rotate_key(request: web.Request) -> web.Response:
    """{key, secret, old}. The old key works for `grace_s` seconds more, by default the site's."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {}, {"grace_s": int, "expires_at": str})
    grace_s = body.get("grace_s")
    if grace_s is None:
        grace_s = controller.site.keys.rotation_grace_s
    if not 0 <= grace_s <= LONGEST_GRACE_S:
        raise ValueError(f"'grace_s' must be 0 ... {LONGEST_GRACE_S}, not {grace_s}")
    expires_at = instant_of(body, "expires_at")

    def rotate() -> dict[str, Any]:
        key = keys.get(controller.db, request.match_info["id"])
        _require_new(principal, key.user, key.tenant, key.scopes)
        until = clock.text(datetime.now(UTC) + timedelta(seconds=grace_s))
        new, secret = keys.rotate(
            controller.db, controller.key_secret, key.id, principal.name, until, expires_at=expires_at
        )
        return {"key": new, "secret": secret, "old": keys.get(controller.db, key.id)}

    return answer(await controller.write(rotate), 201)


def _object(key: Key) -> Object:
    return Object("key", key.user, key.tenant)


def _require_new(principal: Principal, user: str, tenant: str, scopes: tuple[Scope, ...]) -> None:
    """A key with power over other tenants is an administrator's to give. Raises Forbidden."""
    require(principal, Verb.ADMINISTER if Scope.ADMIN in scopes else Verb.CREATE, Object("key", user, tenant))
