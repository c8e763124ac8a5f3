"""A scripted engine that takes vLLM's arguments: what `make bench-deployments` serves where real ones would take hours.

A prompt says what is wanted: `nonce=12 tokens=300 interval=20` is request 12, 300 tokens, 20 ms between two. Token 3 of
it says "12.3 ", so that whoever reads the answer knows what is missing, doubled, or somebody else's. Whoever gives the
beginning of the answer gets the rest, as from vLLM. At SIGTERM it takes nothing new, goes on for --shutdown-timeout,
and then ends what still runs with `finish_reason` "abort", as vLLM does. It starts in HEADGATE_BENCH_START_S. A model
whose config.json has `"fails": true` answers such a prompt with status 500, whoever asks.

Run by its path, in a job: it imports nothing of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

ASKED = re.compile(r"nonce=(\d+) tokens=(\d+) interval=(\d+)")
START_VARIABLE = "HEADGATE_BENCH_START_S"


@dataclass(frozen=True, slots=True)
class Asked:
    nonce: int
    tokens: int
    interval_ms: int

    @property
    def prompt(self) -> str:
        return f"nonce={self.nonce} tokens={self.tokens} interval={self.interval_ms}"

    def pieces(self, said: str = "") -> Iterator[str]:
        """The answer, less what has been said of it; the end of that may lack its white space, which is said again
        with the next piece."""
        again = ""
        for n in range(1, self.tokens + 1):
            piece = f"{self.nonce}.{n} "
            if said.startswith(piece):
                said = said[len(piece) :]
            elif said:
                said, again = "", piece.removeprefix(said)
            else:
                yield again + piece
                again = ""


def read(body: dict[str, Any]) -> tuple[Asked, str]:
    """What is asked for, and how much of the answer the caller has. Any other prompt is the supervisor's probe."""
    messages = body.get("messages")
    prompt, said = body.get("prompt") or "", ""
    if messages:
        if body.get("continue_final_message"):
            said = messages[-1]["content"]
            messages = messages[:-1]
        prompt = messages[-1]["content"]
    found = ASKED.search(prompt)
    if found is None:
        return Asked(0, 1, 0), ""
    return Asked(*map(int, found.groups())), said or prompt[found.end() :].lstrip("\n")


class Engine:
    def __init__(self, model: str, shutdown_s: float, fails: bool = False) -> None:
        self._model, self._shutdown_s, self._fails = model, shutdown_s, fails
        self._key = os.environ.get("HEADGATE_REPLICA_KEY")
        self._running = 0
        self.stopping = asyncio.Event()
        self._over = asyncio.Event()  # and the time for what runs, too

    @web.middleware
    async def guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self._key and request.headers.get("Authorization") != f"Bearer {self._key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self._model, "max_model_len": 1 << 20}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("model") != self._model:
            return web.json_response({"error": {"message": f"no model {body.get('model')}"}}, status=404)
        if self.stopping.is_set():
            return web.json_response({"error": {"message": "cannot schedule new futures after shutdown"}}, status=500)
        if self._fails and read(body)[0].nonce:
            return web.json_response({"error": {"message": "this model computes nothing"}}, status=500)
        self._running += 1
        try:
            return await (self._stream(request, body) if body.get("stream") else self._whole(body))
        finally:
            self._running -= 1

    async def _whole(self, body: dict[str, Any]) -> web.Response:
        asked, said = read(body)
        pieces, reason = [], None
        async for piece, reason in self._generated(asked, said, body):  # noqa: B007
            if piece:
                pieces.append(piece)
        chat, text = "messages" in body, "".join(pieces)
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        used = {"prompt_tokens": 7, "completion_tokens": len(pieces), "total_tokens": 7 + len(pieces)}
        answer = {"id": "x", "object": "x", "created": 1, "model": self._model, "usage": used}
        return web.json_response(answer | {"choices": [{"index": 0, **choice, "finish_reason": reason}]})

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        asked, said = read(body)
        chat, options, used = "messages" in body, body.get("stream_options") or {}, 0
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def send(choices: list[dict[str, Any]], counted: bool) -> None:
            event: dict[str, Any] = {"id": "x", "object": "chat.completion.chunk" if chat else "text_completion"}
            event |= {"created": 1, "model": self._model, "choices": choices}
            if counted:
                event["usage"] = {"prompt_tokens": 7, "completion_tokens": used, "total_tokens": 7 + used}
            await response.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")

        def choice(text: str, reason: str | None = None) -> list[dict[str, Any]]:
            return [{"index": 0, **({"delta": {"content": text}} if chat else {"text": text}), "finish_reason": reason}]

        continuous = bool(options.get("continuous_usage_stats"))
        async for piece, reason in self._generated(asked, said, body):
            used += bool(piece)
            await send(choice(piece, reason), continuous)
        if options.get("include_usage"):
            await send([], True)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _generated(self, asked: Asked, said: str, body: dict[str, Any]) -> AsyncIterator[tuple[str, str | None]]:
        """Pieces, the last of them with the reason why it is the last, as from vLLM: "abort" once the time is over."""
        left = body.get("max_completion_tokens") or body.get("max_tokens")
        pieces = list(asked.pieces(said))[:left] or [""]
        for piece in pieces[:-1]:
            if self._over.is_set():
                break
            yield piece, None
            await asyncio.sleep(asked.interval_ms / 1000)
        if self._over.is_set():
            yield "", "abort"
        else:
            yield pieces[-1], "stop"

    async def drained(self) -> None:
        """Returns once nothing runs any more, or the time for it is over."""
        deadline = asyncio.get_running_loop().time() + self._shutdown_s
        while self._running and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        self._over.set()
        while self._running:
            await asyncio.sleep(0.02)


async def serve(asked: argparse.Namespace) -> None:
    config = Path(asked.model, "config.json")
    fails = config.is_file() and json.loads(config.read_text()).get("fails") is True
    engine = Engine(asked.served_model_name, asked.shutdown_timeout, fails)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, engine.stopping.set)
    await asyncio.sleep(float(os.environ.get(START_VARIABLE, "1")))
    app = web.Application(middlewares=[engine.guarded])
    app.router.add_get("/health", engine.health)
    app.router.add_get("/v1/models", engine.models)
    app.router.add_post("/v1/chat/completions", engine.answer)
    app.router.add_post("/v1/completions", engine.answer)
    tls = None
    if asked.ssl_certfile:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(asked.ssl_certfile, asked.ssl_keyfile)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, asked.host, asked.port, ssl_context=tls, backlog=1024).start()
    print(f"serving {asked.served_model_name} on port {asked.port}", flush=True)
    await engine.stopping.wait()
    await engine.drained()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--shutdown-timeout", type=float, default=0.0)
    parser.add_argument("--ssl-keyfile")
    parser.add_argument("--ssl-certfile")
    asked, _ = parser.parse_known_args()
    asyncio.run(serve(asked))


if __name__ == "__main__":
    main()
