"""The way out to a client: what is written, what of it has left this process, and what is told once all of it has."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

from gateway.upstream import Upstream

BUFFER = 256 << 10  # bytes waiting for a slow client before its upstream is left unread
SO_MEMINFO = 55  # of Linux; the socket module does not name it
MEMINFO = struct.Struct("9I")  # see sock_diag(7)
SNDBUF, WMEM_QUEUED = 3, 5
BELOW = 128 << 10  # bytes at most between TLS and the kernel: 64 KiB, and what was written last
WATCH_S = 0.005  # between two looks whether all is sent, with TLS
FRAMING = 8 << 10  # bytes of memory: for an answer's head, its chunks' lengths and end, and TLS around them


class Sender(asyncio.Protocol):
    """The writing half of a connection.

    With TLS a second buffer lies below, between TLS and the kernel, which no loop lets one see. It is in use only when
    the kernel had no room, so that as long as the kernel has little it is taken to be full.
    """

    def __init__(self) -> None:
        self.source: Upstream | None = None  # paused while the client does not read
        self.written = 0  # bytes for this client so far
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._blocked_since: float | None = None
        self._tls = False
        self._then: Callable[[], object] | None = None  # once all is sent

    @property
    def blocked(self) -> bool:
        """Its client does not read what it was sent."""
        return self._blocked_since is not None

    @property
    def sent(self) -> int:
        """Of what is `written`, the bytes that have left this process: they arrive also if it is killed."""
        return max(0, self.written - self._waiting)

    @property
    def _waiting(self) -> int:
        if self._transport is None:
            return 0
        waiting = self._transport.get_write_buffer_size()
        if self._tls:
            free, size = room_of(self._transport)
            if waiting or free < size / 3:  # below that, Linux calls no connection writable
                waiting += BELOW
        return waiting

    def takes(self, size: int) -> bool:
        """Whether so many bytes, written now, will surely leave this process at once."""
        if self._transport is None:
            return True
        return not self._waiting and room_of(self._transport)[0] >= 2 * size + FRAMING

    def when_sent(self, then: Callable[[], object]) -> None:
        """Call `then` once all that is written has left this process, or cannot any more; now, if it has."""
        if not self._waiting:
            then()
            return
        self._then = then
        transport = self._transport
        if self._tls:
            self._loop.call_later(WATCH_S, self._watch)
        elif transport is not None and not transport.is_closing():
            transport.set_write_buffer_limits(high=0)  # so that it says when nothing waits

    def _write(self, data: bytes) -> None:
        if self._transport is not None:  # its client may have left in this very turn of the loop
            self._transport.write(data)
            self.written += len(data)

    def _watch(self) -> None:
        if self._then is not None:
            if self._waiting:
                self._loop.call_later(WATCH_S, self._watch)
            else:
                self._all_sent()
                self._go_on()

    def _all_sent(self) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()

    def _go_on(self) -> None:
        """Nothing keeps this connection's next request from being answered any more."""

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER)
        self._tls = transport.get_extra_info("sslcontext") is not None

    def pause_writing(self) -> None:
        if self._then is None:
            self._blocked_since = self._loop.time()
            if self.source is not None:
                self.source.pause()

    def resume_writing(self) -> None:
        if self._then is not None and not self._waiting:
            if self._transport is not None and not self._transport.is_closing():
                self._transport.set_write_buffer_limits(high=BUFFER)
            self._all_sent()
        self._blocked_since = None
        if self.source is not None:
            self.source.resume()
        self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._all_sent()


def room_of(transport: asyncio.Transport) -> tuple[int, int]:
    """Bytes of memory that the kernel has left for what this connection sends, where a byte takes up to two; of how
    many."""
    try:
        counts = MEMINFO.unpack(transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    except (OSError, struct.error):  # no such connection any more, or no Linux
        return 0, 1
    return int(counts[SNDBUF]) - int(counts[WMEM_QUEUED]), int(counts[SNDBUF])
