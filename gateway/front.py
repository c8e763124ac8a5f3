"""The clients' side of the data plane: HTTP/1.1 on a raw protocol for the routes that carry traffic.

A connection belongs to a Front, which parses every request (httptools: the parser that aiohttp and uvicorn use). What
asks for one of the hot routes is answered by `answer`; anything else is written out anew, without ambiguity, for
aiohttp's own protocol, which answers it and closes. So there is one way of reading requests, and none to smuggle past.

Requests of one connection are answered in order. A client that closes, or half-closes, its connection has left: its
request is cancelled, as nginx, uvicorn and Go do, because an engine that generates for nobody costs GPU time.
"""

from __future__ import annotations

import asyncio
from collections import deque

import httptools

from gateway.backing import Backing
from gateway.errors import BadRequest, BodyTooLarge, GatewayError, HeadersTooLarge, RequestTimeout
from gateway.request import KNOWN, OF_BODIES, OF_UPGRADES, origin_form, unpacked
from gateway.request import Headers as Headers
from gateway.request import Request as Request
from gateway.sender import Sender
from gateway.status_lines import STATUS_LINES

HEAD_LIMIT = 64 << 10  # bytes of a request's line and headers, apart from what comes with them in the last read
HEADERS_LIMIT = 128  # how many
PIPELINE_LIMIT = 16  # requests that are read ahead on one connection
IDLE_S = 75.0  # of a connection between two requests
LINGER_S = 2.0  # for a client to read why its request was not
BODY_S = 600.0  # for a request's body as a whole
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PARTS = 1024  # pieces of a body before they are joined: tiny ones weigh many times what they carry
CLOSED = b"connection: close\r\n"


class Front(Sender):
    """One connection; `request` is the one being answered."""

    def __init__(self, backing: Backing, fronts: set[Front]) -> None:
        super().__init__()
        self.request = Request()
        self.started = False  # bytes of an answer to `request` are written
        self._backing, self._fronts = backing, fronts
        self._task: asyncio.Task[None] | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._ready: deque[Request] = deque()
        self._reading: Request | None = None
        self._parts: list[bytes] = []
        self._blocks: list[bytes] = []  # earlier parts
        self._size = 0  # of the head, then of the body
        self._bare = 0  # bytes that came for a body and brought none of it: chunks' extensions, trailers
        self._repeated = 0  # headers that came before
        self._in_head = True
        self._began = self._heard = 0.0  # the loop's time: of the request being read, of its last bytes
        self._last = False  # the gateway stops: no request after the next answer
        self._closing = False  # nothing is read any more
        self._chunked = False
        self._read_on = True

    # What whoever answers calls.

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.started = True
        head = self._head(status, headers)
        self._write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))

    def start(self, status: int, headers: Headers, data: bytes) -> None:
        """Begin an answer that comes in pieces, the first one with it."""
        self.started = True
        self._chunked = self.request.chunks_allowed
        if not self._chunked:
            self.request.keep_alive = False  # the answer ends with its connection
            self._write(b"%b\r\n%b" % (self._head(status, headers), data))
            return
        head = self._head(status, headers)
        self._write(b"%btransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (head, len(data), data))

    def write(self, data: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        if self._chunked:
            self._write(b"0\r\n\r\n")

    def cut(self) -> None:
        """The answer cannot be ended well: the client sees a broken connection, not a short answer."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _head(self, status: int, headers: Headers) -> bytes:
        text = "".join([f"{name}: {value}\r\n" for name, value in headers])
        last = not self.request.keep_alive or (self._closing and not self._ready)
        return STATUS_LINES[status] + text.encode("latin-1", "replace") + (CLOSED if last else b"")

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._began = self._heard = self._loop.time()
        self._fronts.add(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._heard = self._loop.time()
        if self._in_head:
            if self._reading is None and not self._size:
                self._began = self._heard
            self._size += len(data)
        else:
            self._bare += len(data)
        try:
            while data:
                try:
                    self._parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as e:
                    data = data[e.args[0] :]
                    self._not_upgraded()
        except httptools.HttpParserError as e:
            self._malformed(BadRequest(f"the request is not valid HTTP/1.1: {e}"))
        if (self._in_head and self._size > HEAD_LIMIT) or self._bare > HEAD_LIMIT:
            self._malformed(HeadersTooLarge(f"a request's headers may have {HEAD_LIMIT} bytes"))
        if self._ready:
            if self._task is None:
                self._next()
            if self._ready and self._read_on and self._far_ahead() and self._transport is not None:
                self._read_on = False
                self._transport.pause_reading()

    def _not_upgraded(self) -> None:
        """An upgrade is a wish, and not heeded. The parser has stopped before the body: it gets the head without it."""
        if self._closing:
            return
        request = self._ready.pop()
        if request.method == "CONNECT":
            self._reading = request
            self._malformed(BadRequest("this server connects nobody to others"))
            return
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(request.head(OF_UPGRADES, "keep-alive" if request.keep_alive else "close"))

    def _far_ahead(self) -> bool:
        ready = self._ready
        return len(ready) > PIPELINE_LIMIT or sum([len(r.body) for r in ready]) > self._backing.max_body

    def _go_on(self) -> None:
        if self._task is None and self._ready:
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._fronts.discard(self)
        self._closing = True
        self._ready.clear()
        super().connection_lost(error)
        if self._task is not None:
            self._task.cancel()

    # httptools' side

    def on_message_begin(self) -> None:
        self._reading = Request()
        self._bare = self._repeated = 0

    def on_url(self, url: bytes) -> None:
        assert self._reading is not None
        self._reading.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._reading
        if request is None or not self._in_head:  # a trailer says nothing that could still be heeded
            return
        key = KNOWN.get(name) or name.decode("ascii").lower()
        text = value.decode("latin-1")
        if key in request.headers:
            if key in ("content-length", "transfer-encoding", "host", "authorization", "x-api-key"):
                request.wrong = BadRequest(f"the header {key!r} comes twice")
            self._repeated += 1
            text = f"{request.headers[key]}, {text}" if self._repeated < HEADERS_LIMIT else text
        request.headers[key] = text

    def on_headers_complete(self) -> None:
        request = self._reading
        assert request is not None
        self._in_head, self._size = False, 0
        request.method = self._parser.get_method().decode("ascii")
        version = self._parser.get_http_version()
        request.chunks_allowed = version == "1.1"
        request.keep_alive = self._parser.should_keep_alive() and not self._last
        if not request.target.startswith(b"/"):
            request.target = origin_form(request.target)
        request.path = request.target.partition(b"?")[0].decode("latin-1")
        request.hot = request.method == "POST" and request.path in self._backing.hot
        headers = request.headers
        if len(headers) + self._repeated > HEADERS_LIMIT:
            request.wrong = HeadersTooLarge(f"a request may have {HEADERS_LIMIT} headers")
        elif not request.target or not (request.chunks_allowed or version == "1.0"):
            request.wrong = BadRequest("a request names a path of this server, in HTTP/1.1")
        elif "transfer-encoding" in headers and (
            "content-length" in headers
            or headers["transfer-encoding"].lower() != "chunked"
            or not request.chunks_allowed
        ):
            request.wrong = BadRequest("a request says how long it is in one way: a length, or just chunks")
        elif int(headers.get("content-length") or 0) > self._backing.max_body:
            request.wrong = self._too_large()
        if request.hot and request.wrong is None:
            try:
                request.context = self._backing.admit(request)
            except GatewayError as e:
                request.wrong = e
        if request.wrong is not None:
            self._malformed(request.wrong)  # its body stays unread
        elif "expect" in headers and request.expects_continue and not self._ready and self._task is None:
            self._write(CONTINUE)

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        self._bare = 0
        if self._size > self._backing.max_body:
            self._malformed(self._too_large())
        elif self._reading is not None and self._reading.hot:  # no other route reads a body
            self._parts.append(data)
            if len(self._parts) == PARTS:
                self._blocks.append(b"".join(self._parts))
                self._parts = []

    def on_message_complete(self) -> None:
        request = self._reading
        self._reading, self._in_head, self._size = None, True, 0
        if request is None or self._closing:
            return
        if self._blocks:
            self._parts, self._blocks = [*self._blocks, *self._parts], []
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._ready.append(request)

    def _malformed(self, error: GatewayError) -> None:
        """Told in its turn; nothing that follows on this connection is read."""
        if self._closing:
            return
        self._closing = True
        request = self._reading or Request()
        request.wrong, request.keep_alive, self._reading = error, False, None
        self._parts, self._blocks = [], []
        self._ready.append(request)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"a body may have {self._backing.max_body} bytes (the site's gateway.max_body_mb)")

    # One request after the other.

    def _next(self) -> None:
        if self.blocked or self._then is not None:  # the answers before are not read yet: no more of them for now
            return
        self.request = self._ready.popleft()
        self.started, self.source, self._chunked = False, None, False
        if self.request.wrong is not None:
            self._backing.refuse(self, self.request.wrong)
            self._after()
        elif self.request.hot:
            self._task = self._loop.create_task(self._answer())
        else:
            self._hand_over()

    async def _answer(self) -> None:
        try:
            packed = self.request.headers.get("content-encoding")
            if packed is not None:
                self.request.body = unpacked(packed.lower(), self.request.body, self._backing.max_body)
            await self._backing.answer(self)
        except GatewayError as e:
            self._backing.refuse(self, e)
        finally:
            self.source = self._task = None
            self._after()

    def _after(self) -> None:
        if self._transport is None:
            return
        if not self.request.keep_alive or (self._closing and not self._ready):
            self._close()
            return
        self._began = self._heard = self._loop.time()
        if not self._read_on and len(self._ready) <= PIPELINE_LIMIT // 2:
            self._read_on = True
            self._transport.resume_reading()
        if self._ready:
            self._next()

    def _close(self) -> None:
        self._closing = True
        self._ready.clear()  # or they would be answered while the last answer waits to be read
        transport = self._transport
        if transport is None:
            return
        self._heard = self._loop.time()
        if self.request.wrong is not None:
            # Bytes that nobody read would turn the close into a reset, which may overtake the answer.
            if transport.can_write_eof():  # not with TLS
                transport.write_eof()
            self._loop.call_later(LINGER_S, transport.close)
        else:
            transport.close()

    def _hand_over(self) -> None:
        """aiohttp gets the connection, and one request on it, after which it closes."""
        transport, request = self._transport, self.request
        assert transport is not None
        self._fronts.discard(self)
        self._closing, self._transport = True, None
        cold = self._backing.cold()
        transport.set_protocol(cold)
        cold.connection_made(transport)
        cold.data_received(request.head(OF_BODIES | OF_UPGRADES, "close"))
        if not self._read_on:
            transport.resume_reading()

    # Looked after from outside.

    def look(self, now: float) -> None:
        """End a connection whose client is too slow: to send its request, to read its answer, to ask again."""
        patience, slow = self._backing.request_timeout, self._backing.client_timeout
        if self._blocked_since is not None and now - self._blocked_since > slow:
            self.cut()
        elif self._task is not None:
            return
        elif self._closing:
            if now - self._heard > slow:  # the last of its answer is still not read
                self.cut()
        elif self._reading is not None:
            if now - (self._began if self._in_head else self._heard) > patience or now - self._began > BODY_S:
                self._malformed(RequestTimeout(f"the request did not arrive in time: nothing for {patience:g} s"))
                self._next()
        elif now - (self._began if self._size else self._heard) > IDLE_S:  # an empty line is nothing heard
            self._close()

    def stop(self, linger: float) -> bool:
        """No further request than the one that is answered, and one more within `linger` seconds of being idle.

        Whether it still has to be waited for. Whoever is in the middle of an answer was not told that it is the last.
        """
        self._last = True
        if not self.started:
            self.request.keep_alive = False
        if self._task is not None or self._unsent:
            return True
        if self._closing:
            return False
        if self._reading is not None or self._loop.time() - self._heard < linger:
            return True
        self._close()
        return self._unsent

    @property
    def _unsent(self) -> bool:
        """The end of an answer still waits for its client to read it."""
        return self._waiting > 0

    @property
    def busy(self) -> bool:
        return self._task is not None
