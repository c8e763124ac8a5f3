"""The control API's handlers for endpoints: the stable names that clients call."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of, reading
from registry import endpoints
from registry.access import Object, Verb, require
from registry.db import NotFound


def routes() -> list[web.RouteDef]:
    return [
        web.get("/v1/endpoints", list_endpoints),
        web.post("/v1/endpoints", set_endpoint),
        web.post("/v1/endpoints/{name}/delete", delete_endpoint),
    ]


async def list_endpoints(request: web.Request) -> web.Response:
    controller = reading(request, "endpoint")
    return answer(await controller.write(endpoints.everything, controller.db))


async def set_endpoint(request: web.Request) -> web.Response:
    """Make one, or replace all that one's owner had asked of it."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {"name": str, "targets": dict}, {"sticky": str, "shadow": dict, "fallbacks": list})
    targets, shadow = _shares(body, "targets"), _shares(body, "shadow")
    fallbacks = body.get("fallbacks") or []
    if not all(isinstance(name, str) for name in fallbacks):
        raise ValueError("'fallbacks' must be a list of names")

    def change() -> endpoints.Endpoint:
        try:
            owner = endpoints.get(controller.db, body["name"]).owner
        except NotFound:
            require(principal, Verb.CREATE, Object("endpoint", principal.name))
            owner = principal.name
        else:
            require(principal, Verb.CHANGE, Object("endpoint", owner))
        return endpoints.put(
            controller.db,
            body["name"],
            owner,
            targets=targets,
            sticky=body.get("sticky"),
            shadow=shadow,
            fallbacks=fallbacks,
            external=controller.site.external,
        )

    return answer(await controller.write(change), 201)


async def delete_endpoint(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]

    def delete() -> endpoints.Endpoint:
        endpoint = endpoints.get(controller.db, request.match_info["name"])
        require(principal, Verb.CHANGE, Object("endpoint", endpoint.owner))
        return endpoints.delete(controller.db, endpoint.name)

    return answer(await controller.write(delete))


def _shares(body: dict[str, Any], field: str) -> list[tuple[str, int]]:
    shares = body.get(field) or {}
    for name, share in shares.items():
        if not isinstance(share, int) or isinstance(share, bool):
            raise ValueError(f"{field!r}: {name} must have a whole number, not {share!r}")
    return list(shares.items())
