"""OpenAI's chat completions and completions."""

from __future__ import annotations

from aiohttp import web

from gateway import calls
from gateway.app_keys import GATEWAY
from gateway.auth import authenticate
from gateway.calls import Kind
from gateway.dispatch import dispatch


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, Kind.CHAT)


async def completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, Kind.COMPLETION)


async def _answer(request: web.Request, kind: Kind) -> web.StreamResponse:
    gw = request.app[GATEWAY]
    caller = authenticate(gw.catalog, request.headers)  # before a byte of the body is read
    body = await request.read()
    return await dispatch(gw, request, caller, calls.read(kind, body), body)
