"""A scripted engine that speaks vLLM's dialect: what tests of the gateway put behind it.

It counts like vLLM (usage on each chunk when asked to, a last event without choices), checks its API key, and can be
told to stop half-way, to fail, to die, or to give up.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from certificates import minted, serving
from engine_surfaces import ANSWERS

PROMPT_TOKENS = 7
CORE = "EngineCore encountered an issue. See stack trace (above) for the root cause."  # vLLM's, when that died
CONTINUES = "Say it: "  # a completion's prompt; what follows it there is the beginning of the answer


@dataclass
class Engine:
    """`pieces` is the answer, a token each. `hold_after` that many pieces it waits for `go`."""

    key: str = "upstream-secret"
    pieces: list[str] = field(default_factory=lambda: ["Gra", "vity ", "is ", "round."])
    hold_after: int | None = None
    # "500" | "core" | "abort" | "refuse" | "silent" | "unreachable"; after hold_after, also when that is said as it
    # holds: "die" | "error event" | "give up"; of a stream whose text is whole: "die before count" | "die before done"
    fail: str | None = None
    chunk_id: str = "x"  # of a chat's or a completion's stream
    heeds_max_tokens: bool = False
    cached: int | None = None  # of its prompt's tokens, as it says once it is done; None: it does not say
    reasoning: int | None = None  # of its answer's tokens, the first ones; None: it does not say
    linger: bool = False  # after a stream's last event, the stream goes on until `go`
    split_events: bool = False  # send each event in two writes
    host: str = "127.0.0.1"
    port: int = 0
    tls: bool = False
    certificate: str | None = None  # PEM, once it runs with TLS
    requests: list[dict[str, Any]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0

    @property
    def usage(self) -> dict[str, Any]:
        return self.counted(len(self.pieces))

    def counted(self, completion: int, done: bool = True) -> dict[str, Any]:
        """As vLLM counts: reasoning tokens in running counts, too, cached ones only in the last."""
        used: dict[str, Any] = {
            "prompt_tokens": PROMPT_TOKENS,
            "total_tokens": PROMPT_TOKENS + completion,
            "completion_tokens": completion,
        }
        if self.cached is not None and done:
            used["prompt_tokens_details"] = {"cached_tokens": self.cached, "created_cache_tokens": None}
        if self.reasoning is not None:
            used["completion_tokens_details"] = {"reasoning_tokens": min(self.reasoning, completion)}
        return used

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json()
        self.requests.append(body)
        self.running += 1
        try:
            if self.fail == "500":
                error = {"message": "cannot schedule new futures after shutdown", "type": "InternalServerError"}
                return web.json_response({"error": error}, status=500)
            if self.fail == "core" and not body.get("stream"):
                return web.json_response({"error": {"message": CORE, "type": "InternalServerError"}}, status=500)
            if self.fail == "refuse":
                error = {"message": "maximum context length is 16 tokens", "type": "BadRequestError", "code": 400}
                return web.json_response({"error": error}, status=400, headers={"Retry-After": "3600"})
            if self.fail == "silent":
                await self.go.wait()
            if self.heeds_max_tokens and body.get("max_tokens") is not None:
                self.pieces = self.pieces[: body["max_tokens"]]
            if request.path in ANSWERS:
                return await ANSWERS[request.path](self, request, body)
            if body.get("stream"):
                return await self.stream(request, body)
            return await self.whole(request)
        except (asyncio.CancelledError, ConnectionResetError):  # the latter in a write that comes before the former
            self.aborted.set()
            raise
        finally:
            self.running -= 1

    async def whole(self, request: web.Request) -> web.Response:
        if self.hold_after is not None:
            await self.go.wait()
        if self.fail == "die":
            assert request.transport is not None
            request.transport.abort()
        text, reason = ("", "abort") if self.fail == "abort" else ("".join(self.pieces), "stop")
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        chat = request.path.endswith("chat/completions")
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        kind = "chat.completion" if chat else "text_completion"
        return compact(
            {"id": "x", "object": kind, "created": 1, "model": "m", "choices": [choice], "usage": self.usage}
        )

    async def stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        options = body.get("stream_options") or {}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def send(choices: list[dict[str, Any]], used: int, counted: bool) -> None:
            event: dict[str, Any] = {"id": self.chunk_id, "object": "chat.completion.chunk", "created": 1, "model": "m"}
            event["choices"] = choices
            if counted:
                event["usage"] = self.counted(used, done=not choices)
            data = b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
            for part in (data[:40], data[40:]) if self.split_events else (data,):
                await response.write(part)
                await asyncio.sleep(0)

        chat = request.path.endswith("chat/completions")

        def said(piece: str) -> dict[str, Any]:
            return {"delta": {"content": piece} if piece else {}} if chat else {"text": piece}

        continuous = bool(options.get("include_usage") and options.get("continuous_usage_stats"))
        pieces = self.pieces
        if self.fail == "abort":
            await send([{"index": 0, "delta": {}, "finish_reason": "abort"}], 0, continuous)
        else:
            pieces = rest_of(self.pieces, body)
            if chat:
                await send([{"index": 0, "delta": {"role": "assistant", "content": ""}}], 0, continuous)
            for n, piece in enumerate(pieces, start=1):
                if n - 1 == self.hold_after:
                    if self.fail is None:
                        await self.go.wait()
                    if self.fail == "die":
                        self.dead(request, response)
                    if self.fail in ("error event", "core"):
                        words = b"out of memory" if self.fail == "error event" else CORE.encode()
                        await response.write(b'data: {"error":{"message":"%b","code":500}}\n\n' % words)
                        await response.write(b"data: [DONE]\n\n")
                        return response
                    if self.fail == "give up":
                        await send([{"index": 0, **said(""), "finish_reason": "abort"}], n - 1, continuous)
                        await send([], n - 1, True)
                        await response.write(b"data: [DONE]\n\n")
                        return response
                    await self.go.wait()  # "silent"
                await send([{"index": 0, **said(piece)}], n, continuous)
            await send([{"index": 0, **said(""), "finish_reason": "stop"}], len(pieces), continuous)
        if self.fail == "die before count":
            return self.dead(request, response)
        if options.get("include_usage"):
            await send([], len(pieces), True)
        if self.fail == "die before done":
            return self.dead(request, response)
        await response.write(b"data: [DONE]\n\n")
        if self.linger:
            await self.go.wait()
        return response

    @staticmethod
    def dead(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return response


def rest_of(pieces: list[str], body: dict[str, Any]) -> list[str]:
    """The answer, less the beginning that the prompt ends with; as from vLLM with a template that trims messages."""
    begun = ""
    if body.get("continue_final_message"):
        assert body["add_generation_prompt"] is False and body["messages"][-1]["role"] == "assistant"
        begun = body["messages"][-1]["content"].strip()
    elif isinstance(body.get("prompt"), str):
        _, split, begun = body["prompt"].partition(CONTINUES)
        begun = begun if split else ""
    if not begun:
        return pieces
    assert "".join(pieces).startswith(begun), begun
    rest, skipped = [], len(begun)
    for piece in pieces:
        if len(piece) > skipped:
            rest.append(piece[skipped:])
        skipped = max(0, skipped - len(piece))
    return rest


def compact(value: Any) -> web.Response:
    return web.Response(body=json.dumps(value, separators=(",", ":")).encode(), content_type="application/json")


@asynccontextmanager
async def served(
    app: web.Application, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve an application on a free port, with clients that leave cancelling their handlers."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, host, 0, ssl_context=tls)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def alive(request: web.Request) -> web.Response:
    return web.Response()


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Engine]:
    app = web.Application()
    for path in ("/v1/chat/completions", "/v1/completions", *ANSWERS):
        app.router.add_post(path, engine.answer)
    app.router.add_get("/health", alive)
    shown = minted(engine.host) if engine.tls else None
    engine.certificate = shown.certificate if shown else None
    async with served(app, tls=serving(shown) if shown else None) as port:
        engine.port = 1 if engine.fail == "unreachable" else port  # where nothing listens
        yield engine
