"""A client that writes bytes as it likes, and reads answers: what tests of HTTP itself need."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson
from gateway_fixtures import HELLO, Platform

CHAT = "/v1/chat/completions"
STREAM = orjson.dumps({**HELLO, "stream": True})
WHOLE = orjson.dumps(HELLO)
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """What the model said, whole or in pieces."""
        if not self.headers["content-type"].startswith("text/event-stream"):
            return orjson.loads(self.body)["choices"][0]["message"]["content"]
        events = [orjson.loads(line[6:]) for line in self.body.splitlines() if line.startswith(b"data: {")]
        return "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])

    @property
    def error(self) -> str:
        return orjson.loads(self.body)["error"]["message"]


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def ask(self, *data: bytes) -> Answer:
        self.send(*data)
        return await self.answer()

    async def answer(self) -> Answer:
        """The next one. Raises IncompleteReadError where the connection ends before it does."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            headers = dict(line.lower().split(": ", 1) for line in lines)
            if headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(await self.reader.readline(), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = await self.reader.read()
        return Answer(int(first.split()[1]), headers, body)

    async def rest(self) -> bytes:
        """All that comes until the other end closes; a connection that is broken ends too."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while piece := await self.reader.read(65536):
                    data += piece
            except ConnectionError:
                pass
        return data

    @property
    def broken(self) -> bool:
        return self.reader.at_eof() or self.reader.exception() is not None


@asynccontextmanager
async def wired(platform: Platform, tls: ssl.SSLContext | None = None, limit: int = 1 << 20) -> AsyncIterator[Wire]:
    host, port = platform.url.split("//")[1].split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls, limit=limit)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def head(platform: Platform, *headers: str, target: str = CHAT, method: str = "POST", version: str = "1.1") -> bytes:
    """Up to, and with, the empty line."""
    lines = [f"{method} {target} HTTP/{version}", "Host: gateway", f"Authorization: Bearer {platform.key}", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def post(platform: Platform, body: bytes = WHOLE, *headers: str, target: str = CHAT, version: str = "1.1") -> bytes:
    return head(platform, *headers, f"Content-Length: {len(body)}", target=target, version=version) + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
