"""What a key may call: live deployments, endpoints in front of them, their LoRA adapters, and external models.

A key with a list of models sees those. Anthropic's SDKs, which send `anthropic-version`, are answered in their shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from gateway import errors
from gateway.app_keys import GATEWAY, SITE
from gateway.auth import authenticate
from gateway.catalog import View, created
from gateway.dialects import ANTHROPIC
from gateway.errors import GatewayError, UnknownModel
from registry import clock
from registry.site import External


@dataclass(frozen=True, slots=True)
class Listed:
    name: str
    created: int  # Unix seconds; 0 where nobody knows
    owner: str
    parent: str | None = None  # of an adapter: the deployment that has it


def listed(view: View, external: dict[str, External]) -> dict[str, Listed]:
    """By name. Of several things by one name, the one that is called: a provider's model, a deployment, an endpoint."""
    found: dict[str, Listed] = {}
    for adapter, deployment in view.adapters.items():
        base = view.deployments[deployment]
        found[adapter] = Listed(adapter, created(base), base.owner, deployment)
    for name, endpoint in view.endpoints.items():
        found[name] = Listed(name, int(clock.parse(endpoint.created_at).timestamp()), endpoint.owner)
    found |= {d.name: Listed(d.name, created(d), d.owner) for d in view.deployments.values()}
    found |= {name: Listed(name, 0, model.model.partition("/")[0]) for name, model in external.items()}
    return found


async def models(request: web.Request) -> web.Response:
    def every(found: dict[str, Listed], shape: Callable[[Listed], dict[str, Any]]) -> dict[str, Any]:
        data = [shape(model) for model in found.values()]
        if shape is _openai:
            return {"object": "list", "data": data}
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return {"data": data, "has_more": False, **ends}

    return _answer(request, every)


async def model(request: web.Request) -> web.Response:
    name = request.match_info["model"]

    def one(found: dict[str, Listed], shape: Callable[[Listed], dict[str, Any]]) -> dict[str, Any]:
        if name not in found:
            raise UnknownModel(f"no model is called {name!r}; there are: {', '.join(sorted(found)) or 'none yet'}")
        return shape(found[name])

    return _answer(request, one)


def _answer(
    request: web.Request, look: Callable[[dict[str, Listed], Callable[[Listed], dict[str, Any]]], dict[str, Any]]
) -> web.Response:
    gw, anthropic = request.app[GATEWAY], "anthropic-version" in request.headers
    try:
        caller = authenticate(gw.catalog, request.headers)
        gw.catalog.refresh()
        found = listed(gw.catalog.view, request.app[SITE].external)
        if caller.models is not None:
            found = {name: model for name, model in found.items() if name in caller.models}
        said = look(found, _anthropic if anthropic else _openai)
    except GatewayError as e:
        return errors.response(e, ANTHROPIC if anthropic else None)
    return web.Response(body=orjson.dumps(said), content_type="application/json")


def _openai(model: Listed) -> dict[str, Any]:
    said = {"id": model.name, "object": "model", "created": model.created, "owned_by": model.owner}
    return said if model.parent is None else {**said, "parent": model.parent}


def _anthropic(model: Listed) -> dict[str, Any]:
    at = datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": model.name, "display_name": model.name, "created_at": at}
