"""A client that knows what it was delivered, when, to the token: also of a connection that was reset.

Not aiohttp's, which gives up what it has read when the connection breaks.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections import deque

from benchmarks.crash_bounds import Delivered
from benchmarks.soak_clients import RECEIVE_BUFFER, Plan

ENDED = b"data: [DONE]\n\n"


class Stream(asyncio.Protocol):
    """One request on a connection of its own; `over` is what came of it."""

    def __init__(self, plan: Plan, life: int, arrivals: deque[float]) -> None:
        self._plan = plan
        self._arrivals = arrivals
        self._seen = Delivered(plan.nonce, plan.tokens, life)
        self._piece = re.compile(rb'"%d\.(\d+) [^"]*"' % plan.nonce)  # in whole: its closing quote has come
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None

    async def over(self) -> Delivered:
        await self._over
        return self._seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, key: str) -> None:
        assert self._transport is not None
        body = json.dumps(self._plan.body()).encode()
        head = (
            f"POST {self._plan.path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._arrivals.append(now)
        data = self._rest + data
        seen = self._seen
        if not seen.status and data.startswith(b"HTTP/1.1 ") and len(data) > 12:
            seen.status = int(data[9:12])
        last = None
        for last in self._piece.finditer(data):
            assert int(last[1]) == seen.tokens + 1, f"stream {seen.nonce}: after {seen.tokens} tokens came {last[1]!r}"
            seen.tokens += 1
        if last is not None:
            seen.arrivals.append((now, seen.tokens))
        seen.ended = seen.ended or ENDED in data
        self._rest = data[last.end() if last is not None else 0 :]
        if self._plan.pause_s and self._transport is not None:
            self._transport.pause_reading()
            self._loop.call_later(self._plan.pause_s, self._read_on)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._over.set_result(None)

    def _read_on(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()


async def begin(port: int, key: str, plan: Plan, life: int, arrivals: deque[float]) -> Stream:
    """Connect and ask. Raises ConnectionRefusedError."""
    connection = socket.socket()
    connection.setblocking(False)
    if plan.pause_s:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(connection, ("127.0.0.1", port))
    except OSError:
        connection.close()
        raise
    _, stream = await loop.create_connection(lambda: Stream(plan, life, arrivals), sock=connection)
    stream.send(key)
    return stream
