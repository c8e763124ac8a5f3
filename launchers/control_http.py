"""What the handlers of the control API share: who asks, what they sent, and how it is answered."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from aiohttp import web

from launchers.controller import Controller
from registry import clock
from registry.access import Object, Principal, Verb, require

CONTROLLER = web.AppKey("controller", Controller)
PRINCIPAL = web.RequestKey("principal", Principal)


class Unauthenticated(PermissionError):
    """Nobody knows who asks; the message says why."""


def reading(request: web.Request, kind: str) -> Controller:
    """The controller, for a principal who may read things of this kind. Raises Forbidden."""
    require(request[PRINCIPAL], Verb.READ, Object(kind, ""))
    return request.app[CONTROLLER]


async def object_of(request: web.Request) -> dict[str, Any]:
    """The request's JSON object. Raises ValueError."""
    try:
        body = await request.json()
    except json.JSONDecodeError as e:
        raise ValueError(f"the body is not JSON: {e}") from e
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body


async def body_of(request: web.Request, required: dict[str, type], optional: dict[str, type]) -> dict[str, Any]:
    """The request's JSON object with just these fields. Raises ValueError naming the field and what is allowed."""
    body = await object_of(request) if required or request.can_read_body else {}
    allowed = required | optional
    for key, value in body.items():
        if key not in allowed:
            raise ValueError(f"{key!r} is unknown; allowed: {', '.join(allowed)}")
        wanted = allowed[key]
        fits = isinstance(value, int | float if wanted is float else wanted)
        if value is not None and (not fits or isinstance(value, bool) is not (wanted is bool)):
            raise ValueError(f"{key!r} must be {wanted.__name__}, not {value!r}")
    for key in required:
        if body.get(key) is None:
            raise ValueError(f"{key!r} is missing")
    return body


def instant_of(body: dict[str, Any], field: str) -> str | None:
    """An instant as registry.clock writes it, None where the body has none. Raises ValueError."""
    text = body.get(field)
    if text is None:
        return None
    try:
        instant = clock.parse(text)
        if instant.tzinfo is not None:
            return clock.text(instant)
    except (ValueError, OverflowError):  # no instant, or one that is in no year from 1 to 9999 in UTC
        pass
    raise ValueError(f"{field!r} must be an instant with its zone, as 2026-12-01T00:00:00Z, not {text!r}")


def answer(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status, dumps=lambda v: json.dumps(v, default=_plain))


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        shown.pop("upstream_key", None)  # the engine's key is the gateway's alone
        return shown
    raise TypeError(f"{type(value).__name__} is not JSON")
