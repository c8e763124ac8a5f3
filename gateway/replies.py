"""The headers of an answer, and the shape of a refusal."""

from __future__ import annotations

import re
import time

from gateway import errors
from gateway.attempt import Asked
from gateway.errors import GatewayError
from gateway.front import Front, Headers, Request
from gateway.surfaces.table import SURFACES
from registry.site import Site

REQUEST_ID = re.compile(r"[!-~]{1,128}")


def request_id(request: Request) -> str | None:
    """The client's own, echoed to it; never a name for anything of ours."""
    given = request.headers.get("x-request-id")
    return given if given is not None and REQUEST_ID.fullmatch(given) else None


def headers(site: Site, asked: Asked, replica: str = "") -> Headers:
    """`replica`: of the attempt, where one has begun."""
    request = asked.front.request
    made: Headers = [("x-request-id", request_id(request) or asked.request_id)]
    if site.gateway.show_route:
        made += [
            ("x-headgate-deployment", asked.served_by),
            *([("x-headgate-replica", replica)] if replica else []),
            ("x-headgate-queue-ms", f"{asked.queued_s * 1000:.0f}"),
        ]
    requests, tokens = asked.hold.left()
    if requests is not None or tokens is not None:
        made += asked.surface.dialect.headers(requests, tokens, time.time())
    if "origin" in request.headers:
        made += cross_origin(site.gateway.cors_origins, request.headers["origin"])
    return made


def cross_origin(allowed: tuple[str, ...], origin: str) -> Headers:
    """What lets a web page of `origin` read the answer."""
    if "*" in allowed or origin in allowed:
        return [
            ("access-control-allow-origin", "*" if "*" in allowed else origin),
            ("access-control-expose-headers", "*"),
            ("vary", "origin"),
        ]
    return []


def refuse(site: Site, front: Front, error: GatewayError, minted: str | None = None) -> None:
    """Tell the client; within a stream that has begun, as its last event.

    `minted`: the id of a request that came as far as having one.
    """
    dialect = SURFACES[front.request.path].dialect if front.request.path in SURFACES else None
    named = request_id(front.request) or minted
    if front.started:
        front.write(errors.event(error, dialect, named))
        front.end()
        front.request.keep_alive = False
        return
    status, made, body = errors.raw(error, dialect, named)
    if named is not None:
        made.append(("x-request-id", named))
    if "origin" in front.request.headers:
        made += cross_origin(site.gateway.cors_origins, front.request.headers["origin"])
    front.whole(status, made, body)
