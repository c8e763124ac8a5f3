"""Clients of the soak: streams, whole answers, slow readers, some that leave; each answer is checked word by word."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.gateway_parts import MODEL
from benchmarks.soak_causes import Saw, Seen

PATIENCE_S = 180.0
RECEIVE_BUFFER = 16 * 1024  # of a slow reader, so that it is felt at the other end


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, drawn beforehand. `leave_after` chunks, None to stay; `pause_s` after each read of a slow reader."""

    nonce: int
    tenant: str
    path: str
    stream: bool
    tokens: int
    interval_ms: int
    pad: int = 0
    leave_after: int | None = None
    pause_s: float = 0.0

    def body(self) -> dict[str, Any]:
        prompt = f"nonce={self.nonce} interval={self.interval_ms} pad={self.pad}"
        body: dict[str, Any] = {"model": MODEL, "max_tokens": self.tokens, "stream": self.stream}
        if self.path.endswith("chat/completions"):
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        return body


def plans(rng: random.Random, tenants: list[str], limited: str) -> Iterator[Plan]:
    """Endless. One in twenty is of the tenant with a low limit."""
    for nonce in itertools.count(1):
        tenant = limited if rng.random() < 0.05 else rng.choice(tenants)
        path = "/v1/chat/completions" if rng.random() < 0.8 else "/v1/completions"
        tokens, interval_ms = rng.randint(5, 200), rng.randint(5, 40)
        match rng.choices(("stream", "whole", "slow", "leaves"), weights=(55, 25, 10, 10))[0]:
            case "stream":
                yield Plan(nonce, tenant, path, True, tokens, interval_ms)
            case "whole":
                yield Plan(nonce, tenant, path, False, tokens, interval_ms // 2)
            case "slow":
                yield Plan(nonce, tenant, path, True, rng.randint(100, 600), 0, pad=4000, pause_s=0.05)
            case "leaves":
                yield Plan(nonce, tenant, path, True, tokens, interval_ms, leave_after=rng.randint(0, tokens))


class Clients:
    """`seen` grows with every request that is over."""

    def __init__(self, url: str, keys: Mapping[str, str], requests: Iterator[Plan]) -> None:
        self.seen: list[Seen] = []
        self._url = url
        self._keys = keys
        self._requests = requests

    async def run(self, concurrency: int, seconds: float) -> None:
        """So many at a time, for so long; returns when the last has its answer."""
        until = time.monotonic() + seconds

        async def one_by_one() -> None:
            while time.monotonic() < until:
                plan = next(self._requests)
                self.seen.append(await self._ask(plan))
                if self.seen[-1].saw is Saw.REFUSED:
                    await asyncio.sleep(0.2)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one_by_one())

    async def _ask(self, plan: Plan) -> Seen:
        """On a connection of its own: some of them end badly."""
        reader = _Reader(plan)
        began = time.time()
        status, text, saw = 0, "", Saw.CUT
        connector = aiohttp.TCPConnector(socket_factory=_small_socket) if plan.pause_s else aiohttp.TCPConnector()
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        headers = {"Authorization": f"Bearer {self._keys[plan.tenant]}"}
        try:
            async with (
                aiohttp.ClientSession(self._url, connector=connector, timeout=timeout, headers=headers) as session,
                session.post(plan.path, json=plan.body()) as response,
            ):
                status = response.status
                if status != 200:
                    saw, text = Saw.REFUSED, (await response.text())[:300]
                elif plan.stream:
                    saw, text = await _streamed(response, reader)
                else:
                    saw = reader.whole(await response.read())
        except TimeoutError:
            saw, text = Saw.WAITED, f"no end after {PATIENCE_S:g} s"
        except (aiohttp.ClientError, ConnectionError) as e:
            text = f"{type(e).__name__}: {e}"
        return Seen(plan.nonce, plan.tenant, saw, reader.tokens, status, began, time.time(), text)


class _Reader:
    """What a client has of its answer."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tokens = 0

    def takes(self, text: str) -> bool:
        """Whether this is what comes next: one piece or more, each with the next number, and nothing else."""
        for piece in text.split():
            if piece.strip("x") == "":
                continue  # padding
            if piece != f"{self.plan.nonce}.{self.tokens + 1}":
                return False
            self.tokens += 1
        return True

    def whole(self, body: bytes) -> Saw:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        right = self.takes(text) and self.tokens == self.plan.tokens
        return Saw.WHOLE if right else Saw.WRONG


async def _streamed(response: aiohttp.ClientResponse, reader: _Reader) -> tuple[Saw, str]:
    plan, rest = reader.plan, b""
    while True:
        if plan.leave_after is not None and reader.tokens >= plan.leave_after:
            response.close()
            return Saw.LEFT, ""
        data = await response.content.read(8192) if plan.pause_s else await response.content.readany()
        if not data:
            return Saw.CUT, "the stream ended without [DONE]"
        *events, rest = (rest + data).split(b"\n\n")
        for event in events:
            if event.startswith(b":"):
                continue  # a heartbeat
            if event == b"data: [DONE]":
                return (Saw.WHOLE, "") if reader.tokens == plan.tokens else (Saw.WRONG, f"{reader.tokens} tokens")
            said = json.loads(event.removeprefix(b"data: "))
            if "error" in said:
                return Saw.CUT, str(said["error"])[:300]
            for choice in said["choices"]:
                text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
                if not reader.takes(text or ""):
                    return Saw.WRONG, f"after {reader.tokens} tokens came {text[:40]!r}"
        if plan.pause_s:
            await asyncio.sleep(plan.pause_s)


def _small_socket(address: Any) -> socket.socket:
    family, kind, proto, *_ = address
    small = socket.socket(family, kind, proto)
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    small.setblocking(False)
    return small
