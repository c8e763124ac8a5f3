"""Requests to replicas: pooled HTTP/1.1 connections on raw protocols, framing by httptools.

Bodies arrive as bytes and are handed on as they come. Reading stops while HIGH_WATER bytes wait for a slow client, so
that the engine's sends block in turn; the request is in memory as a whole before it is sent, so that direction needs
no more than the transport's own buffer. There is no limit on how long a stream takes, only on each wait for the next
bytes; a whole answer is silent until it is done, and has WHOLE_S. An exchange that is left before its end aborts the
connection, which is how an engine learns to stop generating.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

import httptools

from gateway.errors import UpstreamFailed, UpstreamSilent

HIGH_WATER = 256 << 10  # bytes waiting for the client before the upstream is left unread
WHOLE_LIMIT = 256 << 20  # bytes of an answer that is read whole
WHOLE_S = 6 * 3600.0  # for an answer that does not stream; a host that vanished is noticed by KEEPALIVE long before
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # seconds, seconds, probes: gone after 2 min
IDLE_S = 4.0  # uvicorn closes an idle connection after 5 s; taking one later would race with that

Address = tuple[str, int]


class ConnectionLost(UpstreamFailed):
    """The connection ended before the answer did."""


class Upstream(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.lost = False
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self.started = False  # a byte of the answer arrived
        self._head = False
        self._keep_alive = False
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._error: UpstreamFailed | None = None

    @property
    def reusable(self) -> bool:
        """Nothing of this exchange is left on the connection, and the other end keeps it open."""
        return self._keep_alive and not self._parts and not self.lost and self._error is None

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self._begin()
        self._transport.write(request)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def head(self, timeout: float) -> None:
        """Wait for status and headers. Raises UpstreamFailed."""
        while not self._head:
            await self._wait(timeout)

    async def read(self, timeout: float) -> bytes:
        """The bytes that arrived since; b"" at the end of the answer. Raises UpstreamFailed."""
        while not self._parts and not self.complete:
            await self._wait(timeout)
        data = b"".join(self._parts) if len(self._parts) != 1 else self._parts[0]
        self._parts.clear()
        if self._waiting_bytes > HIGH_WATER and not self.lost and self._transport is not None:
            self._transport.resume_reading()
        self._waiting_bytes = 0
        return data

    async def _wait(self, timeout: float) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._waiter
        except TimeoutError:
            raise UpstreamSilent(f"the replica sent nothing for {timeout:g} s") from None
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Without it a stream's small writes wait for acknowledgements: 40 ms and more for each.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # not everywhere; there it takes the system's hours
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        if self.complete:  # nothing was asked
            self.lost = True
            self.abort()
            return
        self.started = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self._error = UpstreamFailed(f"the replica does not speak HTTP: {e}")
            self.abort()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if not self.complete and self._error is None:
            self._error = ConnectionLost(f"the replica closed the connection{f': {error}' if error else ''}")
        self._wake()

    # httptools' side

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head = self.status >= 200  # 1xx is not the answer yet

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        before, self._waiting_bytes = self._waiting_bytes, self._waiting_bytes + len(data)
        if before <= HIGH_WATER < self._waiting_bytes and self._transport is not None:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self.complete = self._head
        self._keep_alive = self.complete and bool(self._parser.should_keep_alive())  # the parser forgets it afterwards


@dataclass(frozen=True, slots=True)
class _Asked:
    request: bytes
    timeout: float  # for the head of the answer
    sent: Callable[[], None]


class Pool:
    """Connections to every replica. `clock` is monotonic; times are in seconds, `read_timeout` for each wait."""

    def __init__(self, *, connect_timeout: float, read_timeout: float, clock: Callable[[], float]) -> None:
        self.read_timeout = read_timeout
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._idle: dict[Address, list[Upstream]] = defaultdict(list)

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        address: Address,
        path: str,
        key: str,
        body: bytes,
        timeout: float | None = None,
        sent: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[Upstream]:
        """Send a request; the block begins once the answer's head is there, within `timeout` (else read_timeout).

        `sent` is called once the request is on its way.

        Raises UpstreamFailed when the replica cannot be reached, hangs up or stays silent.
        """
        asked = _Asked(_request(address, path, key, body), self.read_timeout if timeout is None else timeout, sent)
        upstream = await self._answering(address, asked)
        try:
            yield upstream
        finally:
            if upstream.reusable:
                upstream.idle_since = self._clock()
                self._idle[address].append(upstream)
            else:
                upstream.abort()

    def close(self) -> None:
        for connections in self._idle.values():
            for upstream in connections:
                upstream.abort()
        self._idle.clear()

    async def _answering(self, address: Address, asked: _Asked) -> Upstream:
        """A connection on which the answer's head has arrived."""
        idle = self._take(address)
        if idle is not None:
            try:
                return await self._ask(idle, asked)
            except ConnectionLost:
                if idle.started:
                    raise
                # It was closed at the other end just as it was taken: that says nothing about the replica.
        return await self._ask(await self._connect(address), asked)

    async def _ask(self, upstream: Upstream, asked: _Asked) -> Upstream:
        answered = False
        try:
            upstream.send(asked.request)
            asked.sent()
            await upstream.head(asked.timeout)
            answered = True
        finally:
            if not answered:
                upstream.abort()
        return upstream

    def _take(self, address: Address) -> Upstream | None:
        """The connection used last, if one is fresh; the rest that went stale are closed."""
        idle = self._idle.pop(address, [])
        fresh = [u for u in idle if not u.lost and self._clock() - u.idle_since < IDLE_S]
        for upstream in idle:
            if upstream not in fresh:
                upstream.abort()
        if not fresh:
            return None
        taken = fresh.pop()
        if fresh:
            self._idle[address] = fresh
        return taken

    async def _connect(self, address: Address) -> Upstream:
        """Plain TCP. A replica's pinned certificate belongs here: create_connection(ssl=...)."""
        host, port = address
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, upstream = await asyncio.get_running_loop().create_connection(Upstream, host, port)
        except TimeoutError:
            raise UpstreamFailed(f"the replica did not accept a connection in {self._connect_timeout:g} s") from None
        except OSError as e:
            raise UpstreamFailed(f"the replica cannot be reached: {e}") from e
        return upstream


async def whole(upstream: Upstream, timeout: float) -> bytes:
    """The rest of the answer. Raises UpstreamFailed."""
    parts: list[bytes] = []
    size = 0
    while data := await upstream.read(timeout):
        parts.append(data)
        size += len(data)
        if size > WHOLE_LIMIT:
            raise UpstreamFailed(f"the replica's answer is larger than {WHOLE_LIMIT} bytes")
    return b"".join(parts)


def _request(address: Address, path: str, key: str, body: bytes) -> bytes:
    host, port = address
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("latin-1") + body
