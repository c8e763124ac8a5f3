"""A local server that speaks Anthropic's Messages API, and OpenAI's embeddings: what providers are in the tests."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TEXT = ["Apples ", "fall ", "down."]


@dataclass
class Provider:
    """`fail` is the status of every answer. `hold_after` so many parts it waits for `go`; with `die` it hangs up."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    fail: int | None = None
    hold_after: int | None = None
    die: bool = False
    cached: int = 0  # of its prompt's 12 tokens
    go: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def prompt_used(self) -> dict[str, int]:
        return (
            {"input_tokens": 12 - self.cached, "cache_read_input_tokens": self.cached}
            if self.cached
            else {"input_tokens": 12}
        )

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/messages", self.messages)
        app.router.add_post("/v1/embeddings", self.embeddings)
        return app

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        usage = {"prompt_tokens": 4, "total_tokens": 4}
        return web.json_response({"object": "list", "data": data, "model": "theirs", "usage": usage})

    async def messages(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("x-api-key"))
        if self.fail is not None:
            error = {"type": "error", "error": {"type": "some_error", "message": "the provider says no"}}
            return web.json_response(error, status=self.fail)
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}
        if not body.get("stream"):
            if self.hold_after is not None:
                await self.go.wait()
            content = [{"type": "text", "text": "".join(TEXT)}]
            usage = {**self.prompt_used, "output_tokens": 5}
            return web.json_response({**message, "content": content, "stop_reason": "end_turn", "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(kind: str, **rest: Any) -> None:
            await response.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **rest})}\n\n".encode())

        try:
            usage = {**self.prompt_used, "output_tokens": 1}
            start = {**message, "content": [], "stop_reason": None, "usage": usage}
            await send("message_start", message=start)
            await send("content_block_start", index=0, content_block={"type": "text", "text": ""})
            for n, text in enumerate(TEXT):
                if n == self.hold_after:
                    if self.die:
                        assert request.transport is not None
                        request.transport.abort()
                    await self.go.wait()
                await send("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
            await send("content_block_stop", index=0)
            delta = {"stop_reason": "end_turn", "stop_sequence": None}
            await send("message_delta", delta=delta, usage={"output_tokens": 5})
            await send("message_stop")
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response
