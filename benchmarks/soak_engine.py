"""A scripted engine for the soak: `python -m benchmarks.soak_engine PORT KEY LOG`, ended by SIGTERM or worse.

The prompt says what to do: `nonce=12 interval=20 pad=100` is request 12, 20 ms between two chunks, 100 bytes of padding
in each. Chunk 3 of it says "12.3", a whole answer of three tokens "12.1 12.2 12.3", so that whoever reads it knows
what is missing, doubled, or somebody else's. The prompt is counted as PROMPT_BASE + nonce tokens, by which the ledger's
events tell requests apart. The log has a line when a request begins and one when it was answered to its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

PROMPT_BASE = 1_000_000
STOP_S = 60.0  # for what is running at SIGTERM
ASKED = re.compile(r"nonce=(\d+) interval=(\d+) pad=(\d+)")


@dataclass(frozen=True, slots=True)
class Asked:
    nonce: int
    interval_ms: int
    pad: int
    tokens: int

    def pieces(self) -> Iterator[str]:
        for n in range(1, self.tokens + 1):
            yield f"{self.nonce}.{n} " + "x" * self.pad

    def usage(self, completion: int) -> dict[str, int]:
        prompt = PROMPT_BASE + self.nonce
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def asked_for(body: dict[str, Any]) -> Asked:
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    found = ASKED.search(prompt)
    assert found is not None, prompt
    nonce, interval_ms, pad = map(int, found.groups())
    return Asked(nonce, interval_ms, pad, body["max_tokens"])


class Engine:
    """`log` is a file descriptor opened for appending: what is written survives a SIGKILL."""

    def __init__(self, key: str, log: int) -> None:
        self._key = key
        self._log = log

    def say(self, what: str, asked: Asked) -> None:
        os.write(self._log, f"{what} {asked.nonce} {asked.tokens} {time.time():.3f}\n".encode())

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self._key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json()
        asked = asked_for(body)
        self.say("begin", asked)
        chat = "messages" in body
        if body.get("stream"):
            response = await self._stream(request, asked, chat, body.get("stream_options") or {})
        else:
            response = await self._whole(request, asked, chat)
        self.say("end", asked)
        return response

    async def _whole(self, request: web.Request, asked: Asked, chat: bool) -> web.StreamResponse:
        await asyncio.sleep(asked.tokens * asked.interval_ms / 1000)
        text = "".join(asked.pieces())
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        answer = {
            "id": "x",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, **choice, "finish_reason": "stop"}],
            "usage": asked.usage(asked.tokens),
        }
        response = web.Response(body=_json(answer), content_type="application/json")
        await response.prepare(request)
        await response.write_eof()
        return response

    async def _stream(
        self, request: web.Request, asked: Asked, chat: bool, options: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        running = bool(options.get("include_usage") and options.get("continuous_usage_stats"))

        async def send(choices: list[dict[str, Any]], used: int, counted: bool) -> None:
            kind = "chat.completion.chunk" if chat else "text_completion"
            event: dict[str, Any] = {"id": "x", "object": kind, "created": 1, "model": "m", "choices": choices}
            if counted:
                event["usage"] = asked.usage(used)
            await response.write(b"data: " + _json(event) + b"\n\n")

        for n, piece in enumerate(asked.pieces(), start=1):
            choice = {"delta": {"content": piece}} if chat else {"text": piece}
            await send([{"index": 0, **choice, "finish_reason": "stop" if n == asked.tokens else None}], n, running)
            await asyncio.sleep(asked.interval_ms / 1000)
        if options.get("include_usage"):
            await send([], asked.tokens, True)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


async def serve(port: int, key: str, log: str) -> None:
    engine = Engine(key, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    app = web.Application()
    app.router.add_get("/health", engine.health)
    app.router.add_post("/v1/chat/completions", engine.answer)
    app.router.add_post("/v1/completions", engine.answer)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=STOP_S)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), *sys.argv[2:4]))
