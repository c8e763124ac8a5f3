"""The other side of a request's path: replicas with a certificate, connections that went stale, odd answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop
from certificates import minted, serving
from engine import Engine, running
from gateway_fixtures import Platform, gateway, until
from wire import STREAM, WHOLE, Answer, post, wired

from gateway import dispatch
from gateway.app_keys import GATEWAY
from gateway.errors import QueueFull, TooManyRequests
from gateway.upstream import ConnectionLost, Upstream

SAID = "Gravity is round."
ANSWER = (
    b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"Gravity is round."}}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":4,"total_tokens":11}}'
)


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


def said(answer: bytes = ANSWER, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(answer)}", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + answer


@dataclass
class Raw:
    """A replica that answers the requests of its connections with these bytes; `None` closes instead of answering."""

    answers: Callable[[int], bytes | None] = lambda n: said()
    close_after: Callable[[int], bool] = lambda n: False
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                if head.startswith(b"GET"):  # the gateway looks at the replica's load
                    writer.write(said(b"", "404 Not Found"))
                    continue
                self.requests.append(head + await reader.readexactly(length))
                n = len(self.requests)
                answer = self.answers(n)
                if answer is not None:
                    writer.write(answer)
                if answer is None or self.close_after(n):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@asynccontextmanager
async def replica(raw: Raw, platform: Platform, name: str, tls: ssl.SSLContext | None = None, pem: str | None = None
) -> AsyncIterator[None]:  # fmt: skip
    listening = await asyncio.start_server(raw.serve, "127.0.0.1", 0, ssl=tls)
    engine = Engine(port=listening.sockets[0].getsockname()[1], certificate=pem)
    platform.ready(engine, name)
    try:
        yield
    finally:
        listening.close()
        for writer in raw.writers:
            writer.close()


async def ask(platform: Platform, body: bytes = WHOLE, *headers: str) -> Answer:
    async with wired(platform) as wire:
        return await wire.ask(post(platform, body, *headers))


@pytest.mark.parametrize("body", [WHOLE, STREAM])
async def test_a_replica_is_asked_over_tls_by_the_certificate_it_was_registered_with(
    tmp_path: Path, body: bytes
) -> None:
    async with gateway(tmp_path, Engine(tls=True)) as platform:
        for _ in range(2):
            assert (await ask(platform, body)).text == SAID
        await platform.settled(2)


async def test_an_impostor_on_a_replicas_port_gets_no_request(tmp_path: Path) -> None:
    ours, other = minted(), minted()
    impostor = Raw()
    async with gateway(tmp_path, connect_timeout_s=0.5) as platform, AsyncExitStack() as stack:
        await stack.enter_async_context(replica(impostor, platform, "replica-1", serving(other), ours.certificate))
        plain = Raw()
        await stack.enter_async_context(replica(plain, platform, "replica-2", None, ours.certificate))
        for body in (WHOLE, STREAM):
            answer = await ask(platform, body)
            assert answer.status == 502
        assert (await ask(platform)).status == 502
        honest = await stack.enter_async_context(running(Engine(tls=True)))
        platform.ready(honest, "replica-3")
        for body in (WHOLE, STREAM):
            assert (await ask(platform, body)).text == SAID
        assert impostor.requests == plain.requests == []
        assert len(honest.requests) == 2
        await platform.settled(2)


@pytest.mark.parametrize("how", ["closed while idle", "closed as the request comes"])
async def test_a_kept_connection_that_the_replica_closed_is_not_its_failure(tmp_path: Path, how: str) -> None:
    idle = how == "closed while idle"
    raw = Raw(answers=lambda n: said() if idle or n != 2 else None, close_after=lambda n: idle)
    async with gateway(tmp_path) as platform, replica(raw, platform, "replica-1"):
        for _ in range(3):
            assert (await ask(platform)).text == SAID
            if idle:
                await until(raw.writers[-1].is_closing)
        assert raw.connections >= 2
        assert len(raw.requests) == (3 if idle else 4)
        assert platform.app is not None
        assert platform.app[GATEWAY].health.usable("replica-1")
        assert {e.attempt.replica for e in await platform.settled(3)} == {"replica-1"}


async def test_a_connection_that_is_lost_before_it_is_used_says_so() -> None:
    """As when a replica hangs up right after the handshake: the loss is told once, before anybody waits."""
    here, there = asyncio.get_running_loop(), asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        there.set()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        _, upstream = await here.create_connection(Upstream, *server.sockets[0].getsockname()[:2])
        await there.wait()
        await until(lambda: upstream.lost)
        upstream.begin(5.0)
        upstream.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(upstream.head(), 1)
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(upstream.whole(), 1)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (said(b'{"error":{"message":"odd"}}', "499 Client Closed"), 499),
        (said(b'{"error":{"message":"odd"}}', "460 "), 460),
        (said(b"moved", "302 Found", "Location: http://elsewhere/"), 502),
        (said(b"", "204 No Content"), 502),
        (said(b"<html>", "200 OK"), 502),
        (said(b'{"error":{"message":"who?"}}', "401 Unauthorized"), 502),
        (said(ANSWER) + b"HTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + said(), 200),
        (b"HTTP/1.0 200 OK\r\n\r\n" + ANSWER, 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + ANSWER, 502),
        (b"ICY 200 OK\r\n\r\n", 502),
    ],
)
async def test_whatever_a_replica_answers_the_client_gets_one_answer_that_is_http(
    tmp_path: Path, answer: bytes, status: int
) -> None:
    raw = Raw(answers=lambda n: answer, close_after=lambda n: True)
    async with gateway(tmp_path) as platform, replica(raw, platform, "replica-1"), wired(platform) as wire:
        got = await wire.ask(post(platform))
        assert got.status == status
        if status != 200:
            assert got.error
        raw.answers = lambda n: said()
        assert (await wire.ask(post(platform))).text == SAID


@pytest.mark.parametrize("seconds", [0.2, 7, 100_000])
async def test_nobody_is_told_to_come_back_later_than_sdks_would(
    tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise (QueueFull if seconds < 10 else TooManyRequests)("later", seconds)  # type: ignore[arg-type]

    monkeypatch.setattr(dispatch, "answer", refuse)
    async with gateway(tmp_path, Engine()) as platform:
        answer = await ask(platform)
        assert answer.status == 429
        expected = {0.2: (1, 200), 7: (7, 7000), 100_000: (120, 120_000)}[seconds]
        assert (int(answer.headers["retry-after"]), int(answer.headers["retry-after-ms"])) == expected
