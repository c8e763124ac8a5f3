"""What aiohttp serves: everything that is not a call of a model. Errors have OpenAI's shape; browsers may ask first."""

from __future__ import annotations

import logging
from typing import NoReturn

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gateway import errors, replies
from gateway.app_keys import SITE
from gateway.errors import BadRequest, Bug, GatewayError, NotFound, Refused

log = logging.getLogger(__name__)

PREFLIGHT_S = 86400


async def elsewhere(request: web.Request) -> NoReturn:
    """A route of the front's, which knows it by its exact path: what comes here spelt that in another way."""
    raise web.HTTPNotFound


@web.middleware
async def in_openai_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong leaves as OpenAI's error object."""
    response = await _answer(request, handler)
    if (origin := request.headers.get(hdrs.ORIGIN)) is not None:
        response.headers.update(replies.cross_origin(request.app[SITE].gateway.cors_origins, origin))
    return response


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        if request.method == hdrs.METH_OPTIONS:
            return preflight(request)
        return await handler(request)
    except GatewayError as e:
        return errors.response(e)
    except web.HTTPNotFound:
        return errors.response(NotFound(f"there is nothing at {request.method} {request.raw_path}"))
    except web.HTTPException as e:
        response = errors.response(Refused(f"{request.method} {request.path}: {e.reason}", e.status))
        if hdrs.ALLOW in e.headers:
            response.headers[hdrs.ALLOW] = e.headers[hdrs.ALLOW]
        return response
    except web.RequestPayloadError as e:
        return errors.response(BadRequest(f"the body cannot be read: {e}"))
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return errors.response(Bug())


def preflight(request: web.Request) -> web.Response:
    """What a browser asks before it lets a page call us; and what anybody learns who asks for the options."""
    headers = {hdrs.ALLOW: "GET, HEAD, OPTIONS, POST"}
    if request.headers.get(hdrs.ORIGIN) and request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD):
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "authorization, content-type")
        headers |= {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, OPTIONS",
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: asked,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
        }
    return web.Response(status=204, headers=headers)
