"""One connection to a replica: one exchange at a time on a raw protocol, framing by httptools.

Bytes go from the kernel to whoever `listens` in the call in which they arrive: no task wakes for a chunk. An answer
that nobody listens to is kept whole until it is complete.
"""

from __future__ import annotations

import asyncio
import socket
import zlib
from collections.abc import Callable
from typing import cast

import httptools

from gateway.errors import UpstreamFailed

WHOLE_LIMIT = 256 << 20  # bytes of an answer that is read whole
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # seconds, seconds, probes: gone after 2 min
PACKED = frozenset({b"gzip", b"x-gzip", b"deflate"})  # what an engine, or a proxy before it, may use unasked


class ConnectionLost(UpstreamFailed):
    """The connection ended before the answer did."""


class Upstream(asyncio.Protocol):
    """`patience`: seconds that each wait for the next bytes may take; `heard_at`: the loop's time of the last ones."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.reused = False  # it carried an exchange before this one
        self.address: object = None  # whose it is, as the pool knows it
        self.lost = False
        self.paused = False
        self.patience = 0.0
        self.heard_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)  # one answer after the other, as long as all is well
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.started = False  # a byte of the answer arrived
        self.spoke = False  # its output has gone on to the client
        self._waits_for_head = False
        self._keep_alive = False
        self._parts: list[bytes] = []
        self._size = 0
        self._listener: Callable[[bytes], None] | None = None
        self._unpack: zlib._Decompress | None = None
        self._error: Exception | None = None

    @property
    def reusable(self) -> bool:
        """Nothing of this exchange is left on the connection, and the other end keeps it open."""
        return self.complete and self._keep_alive and not self.lost and self._error is None and not self.paused

    def begin(self, patience: float) -> None:
        """A new exchange; its request may follow later."""
        self._begin()
        if self.lost:  # while whoever asked for the connection was not running: nobody will say so again
            self._error = ConnectionLost("the replica closed the connection")
            return
        self.patience = patience
        self.heard_at = self._loop.time()

    def send(self, request: bytes) -> bool:
        """Whether it is on its way: a connection may have been lost while it was not looked at."""
        if self._transport is None or self._error is not None or self.lost:
            return False
        self._transport.write(request)
        return True

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def head(self) -> None:
        """Wait for status and headers. Raises UpstreamFailed."""
        if not self.status and self._error is None:
            self._waits_for_head = True
            await self._wait()
        if not self.status and self._error is not None:
            raise self._error

    async def whole(self) -> bytes:
        """Wait for the end of the answer; what came of its body that nobody listened to. Raises UpstreamFailed."""
        self._waits_for_head = False
        if not self.complete and self._error is None:
            await self._wait()
        if self._error is not None:
            raise self._error
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def listen(self, listener: Callable[[bytes], None]) -> None:
        """From now on the body goes to `listener` as it arrives, what has come at once; `whole` waits for the end."""
        waiting, self._parts, self._size = self._parts, [], 0
        self._listener = listener
        if waiting:
            listener(b"".join(waiting))

    def fail(self, error: Exception) -> None:
        """End the exchange: whoever waits gets `error`."""
        if self._error is None and not self.complete:
            self._error = error
            self.abort()
            self._wake()

    def pause(self) -> None:
        """Read nothing more for now: the client is slow, so that the engine's sends shall block in turn."""
        if self._transport is not None and not self.paused and not self.lost:
            self.paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self.paused:
            self.paused = False
            self.heard_at = self._loop.time()
            if not self.lost:
                self._transport.resume_reading()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX:
            return
        # Without it a stream's small writes wait for acknowledgements: 40 ms and more for each.
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
        self.heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self.fail(UpstreamFailed(f"the replica does not speak HTTP: {e}"))
            return
        if self._listener is not None and self._parts:
            parts = self._parts
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self._parts = []
            try:
                self._listener(data)
            except Exception as e:  # noqa: BLE001  handed to whoever waits for this answer, where it is told and logged
                self.complete = self._keep_alive = False
                self.fail(e)
                return
        if self.complete or (self._waits_for_head and self.status):
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if not self.complete and self._error is None:
            self._error = ConnectionLost(f"the replica closed the connection{f': {error}' if error else ''}")
        self._wake()

    def eof_received(self) -> None:
        """An answer that says neither how long it is nor that it comes in chunks ends with its connection."""
        if self.status and not self.complete and not self._framed:
            self.complete = True

    # httptools' side

    @property
    def _framed(self) -> bool:
        return self.header(b"content-length") is not None or b"chunked" in (self.header(b"transfer-encoding") or b"")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def header(self, name: bytes) -> bytes | None:
        """The last one of this (lower-case) name, in lower case. Few are ever asked for, so none is made ready."""
        found = [v for n, v in self._headers if len(n) == len(name) and n.lower() == name]
        return found[-1].lower() if found else None

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 1xx is not the answer yet
            self._headers = []
            return
        self.status = status
        encoding = self.header(b"content-encoding")
        if encoding in PACKED:
            self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif encoding not in (None, b"identity"):
            self.fail(UpstreamFailed(f"the replica answered in an encoding that nobody asked for: {encoding!r}"))

    def on_body(self, data: bytes) -> None:
        if self._unpack is not None:
            try:
                data = self._unpack.decompress(data)
            except zlib.error as e:
                self.fail(UpstreamFailed(f"the replica's compressed answer cannot be read: {e}"))
                return
        self._parts.append(data)
        if self._listener is None:
            self._size += len(data)
            if self._size > WHOLE_LIMIT:
                self.fail(UpstreamFailed(f"the replica's answer is larger than {WHOLE_LIMIT} bytes"))

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
            self._keep_alive = bool(self._parser.should_keep_alive())  # the parser forgets it afterwards
