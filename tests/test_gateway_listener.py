"""Limits of what a client may send, how slowly, and when its connection ends; on the gateway's event loop."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import uvloop
from aiohttp import web
from certificates import minted, serving
from engine import Engine, running
from gateway_fixtures import Platform, gateway, prepared, site_at, until
from wire import CHAT, STREAM, WHOLE, chunked, head, post, wired

from gateway import front as front_module
from gateway import listener as listener_module
from gateway import sender
from gateway.app import backing_of, make_app
from gateway.front import HEAD_LIMIT, HEADERS_LIMIT
from gateway.listener import Listener
from gateway.serve import bind
from registry.ledger import Outcome

SAID = "Gravity is round."
TE = "Transfer-Encoding: chunked"


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture(autouse=True)
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "LOOK_S", 0.05)


def resident() -> int:
    return psutil.Process().memory_info().rss


@pytest.mark.parametrize(
    "lines",
    [
        ["X: " + "a" * (8 * HEAD_LIMIT)],
        ["a" * (8 * HEAD_LIMIT)],
        [f"X-{n}: a" for n in range(HEADERS_LIMIT + 1)],
        ["X: a"] * (HEADERS_LIMIT + 1),
    ],
)
async def test_a_head_that_is_too_large_is_431(tmp_path: Path, lines: list[str]) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        answer = await wire.ask(post(platform, WHOLE, *lines), post(platform))
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert await wire.rest() == b""
        assert engine.requests == []


@pytest.mark.parametrize(
    ("opening", "rest"),
    [
        ((), b"X: " + b"a" * 65000),
        ((), b"a" * 65000),
        ((TE,), b"\r\n2\r\n{}\r\n0\r\nX: " + b"a" * 65000),  # a trailer
        ((TE,), b"\r\n2;" + b"a" * 65000),  # a chunk's extension
        ((), b"\r\n" * 32000),
    ],
)
async def test_what_never_ends_is_refused_before_it_fills_memory(
    tmp_path: Path, opening: tuple[str, ...], rest: bytes
) -> None:
    async with gateway(tmp_path, Engine()) as platform, wired(platform) as wire:
        before = resident()
        wire.send(head(platform, *opening, target="/v1/nothing")[:-2] if rest.strip() else b"", rest)
        filler = rest if not rest.strip() else b"a" * 65000

        async def go_on() -> None:
            for _ in range(1000):
                wire.send(filler)
                await wire.writer.drain()

        going_on = asyncio.create_task(go_on())
        assert (await wire.answer()).status == 431
        assert resident() - before < 32 << 20
        going_on.cancel()
        await asyncio.wait([going_on])


@pytest.mark.parametrize("framing", ["length", "chunks", "length to nowhere", "chunks to nowhere"])
async def test_a_body_that_is_too_large_is_413_and_the_client_reads_that_while_it_sends(
    tmp_path: Path, framing: str
) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine, max_body_mb=1) as platform, wired(platform) as wire:
        target = "/v1/nothing" if "nowhere" in framing else CHAT
        piece = b" " * 65536
        before = resident()

        async def send() -> None:
            wire.send(head(platform, "Content-Length: 90000000" if "length" in framing else TE, target=target))
            for _ in range(160):
                wire.send(piece if "length" in framing else chunked(piece)[:-5])
                await wire.writer.drain()

        sending = asyncio.create_task(send())
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert "max_body_mb" in answer.error
        await sending  # all 10 MiB: nothing is reset while the client has not read its answer
        assert resident() - before < 48 << 20
        assert await wire.rest() == b""
        assert engine.requests == []


async def test_a_body_of_tiny_chunks_takes_no_more_memory_than_one_in_a_piece(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine(), max_body_mb=2) as platform, wired(platform) as wire:
        wire.send(head(platform, TE))
        before = resident()
        for _ in range(50):
            wire.send(b"2\r\n  \r\n" * 9000)
            await wire.writer.drain()
        wire.send(chunked(WHOLE))
        assert (await wire.answer()).text == SAID
        assert resident() - before < 16 << 20


@pytest.mark.parametrize("what", ["head", "body"])
async def test_a_client_that_sends_too_slowly_is_408(tmp_path: Path, what: str) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine, request_timeout_s=0.4) as platform, wired(platform) as wire:
        wire.send(head(platform)[:-2] if what == "head" else post(platform)[:-5])

        async def trickle() -> None:
            while True:
                await asyncio.sleep(0.05)
                wire.send(b"X: y\r\n")

        trickling = asyncio.create_task(trickle()) if what == "head" else None
        answer = await wire.answer()
        if trickling is not None:
            trickling.cancel()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await wire.rest() == b""
        assert engine.requests == []


async def test_a_body_that_keeps_coming_may_take_longer_than_one_wait_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "BODY_S", 3.0)
    async with gateway(tmp_path, Engine(), request_timeout_s=1.0) as platform:  # more than this loop may be held up
        for seconds, status in ((1.5, 200), (30.0, 408)):
            async with wired(platform) as wire:
                request = post(platform)
                loop = asyncio.get_running_loop()
                began, at = loop.time(), len(request) - len(WHOLE)
                wire.send(request[:at])
                while loop.time() - began < seconds and not wire.reader._buffer:  # type: ignore[attr-defined]
                    wire.send(request[at : at + 1])
                    at += 1
                    await asyncio.sleep(0.05)
                wire.send(request[at:])
                assert (await wire.answer()).status == status


async def test_a_connection_that_is_idle_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway(tmp_path, Engine()) as platform, wired(platform) as wire, wired(platform) as silent:
        assert (await wire.ask(post(platform))).text == SAID
        monkeypatch.setattr(front_module, "IDLE_S", 0.3)
        assert await wire.rest() == b""
        assert await silent.rest() == b""
        async with wired(platform) as empty:
            while not empty.broken:
                empty.send(b"\r\n")
                await asyncio.sleep(0.02)
            assert await empty.rest() == b""


LONG = ["x" * 65536] * 400


@pytest.mark.parametrize("then", ["nothing", "half-close"])
async def test_a_client_that_does_not_read_its_answer_is_cut_off_and_its_engine_stopped(
    tmp_path: Path, then: str
) -> None:
    engine = Engine(pieces=list(LONG))
    async with gateway(tmp_path, engine, client_timeout_s=0.5) as platform, wired(platform, limit=1024) as wire:
        before = resident()
        wire.writer.transport.pause_reading()
        wire.send(post(platform, STREAM))
        await until(lambda: engine.running)
        if then == "half-close":
            await asyncio.sleep(0.1)
            wire.writer.write_eof()
        await until(engine.aborted.is_set)
        assert resident() - before < 40 << 20
        (event,) = await platform.settled()
        assert event.outcome is Outcome.CLIENT_LEFT
        assert platform.listener is not None
        await until(lambda: platform.listener.open_connections == 0)


async def test_answers_that_nobody_reads_hold_back_those_behind_them(tmp_path: Path) -> None:
    engine = Engine(pieces=["x" * (1 << 20)])
    async with gateway(tmp_path, engine) as platform, wired(platform, limit=1024) as wire:
        wire.writer.transport.pause_reading()
        wire.send(post(platform) * 14, post(platform, STREAM))
        last = -1

        def stuck() -> bool:
            nonlocal last
            last, before = len(engine.requests), last
            return last == before

        for _ in range(50):
            await asyncio.sleep(0.01)
            await until(stuck)
        assert last < 10
        wire.writer.transport.resume_reading()
        assert {len((await wire.answer()).text) for _ in range(15)} == {1 << 20}


async def test_an_answer_that_nobody_reads_does_not_keep_its_connection_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "IDLE_S", 0.2)
    monkeypatch.setattr(sender, "BUFFER", 64 << 20)
    engine = Engine(pieces=["x" * (16 << 20)])
    async with gateway(tmp_path, engine, client_timeout_s=0.3) as platform:
        for headers in ((), ("Connection: close",)):
            async with wired(platform, limit=1024) as wire:
                wire.writer.transport.pause_reading()
                wire.send(post(platform, WHOLE, *headers))
                assert platform.listener is not None
                await until(lambda: platform.events() and engine.running == 0)
                await until(lambda: platform.listener.open_connections == 0)


async def leave(wire: object) -> None:
    wire.writer.transport.abort()  # type: ignore[attr-defined]


async def half_close(wire: object) -> None:
    wire.writer.write_eof()  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", [leave, half_close])
@pytest.mark.parametrize("when", ["queued", "before the first byte", "in the stream", "whole"])
async def test_a_client_that_leaves_stops_its_engine_and_is_billed_what_it_used(
    tmp_path: Path, when: str, how: Callable[[object], object]
) -> None:
    engine = Engine(hold_after=2 if when == "in the stream" else 0, fail="silent" if when != "in the stream" else None)
    async with gateway(tmp_path, engine, max_in_flight=1) as platform, wired(platform) as wire:
        if when == "queued":
            async with wired(platform) as first:
                first.send(post(platform))
                await until(lambda: engine.running == 1)
                wire.send(post(platform, STREAM))
                await asyncio.sleep(0.05)
                await how(wire)  # type: ignore[misc]
                assert await wire.rest() == b""
                engine.fail, _ = None, engine.go.set()
                assert (await first.answer()).text == SAID
                await platform.settled(1)
                assert len(engine.requests) == 1
            return
        wire.send(post(platform, WHOLE if when == "whole" else STREAM))
        await until(lambda: engine.running == 1)
        if when == "in the stream":
            await wire.reader.readuntil(b"vity ")
        await how(wire)  # type: ignore[misc]
        await until(engine.aborted.is_set)
        (event,) = await platform.settled(1)
        assert event.outcome is Outcome.CLIENT_LEFT
        assert event.completion_tokens == (2 if when == "in the stream" else 0)


@asynccontextmanager
async def over_tls(platform: Platform) -> AsyncIterator[ssl.SSLContext]:
    """The platform's gateway with TLS; the context that its clients need."""
    shown = minted()
    app = make_app(platform.site)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    assert runner.server is not None
    listening = bind("127.0.0.1", 0)
    platform.listener = Listener(backing_of(app, runner.server), listening, serving(shown))
    platform.app = app
    await platform.listener.start()
    platform.url = f"https://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield ssl.create_default_context(cadata=shown.certificate)
    finally:
        await platform.stop()
        await runner.cleanup()
        platform.registry.close()


async def test_over_tls_it_is_all_the_same(tmp_path: Path) -> None:
    platform = prepared(site_at(tmp_path, max_body_mb=1))
    async with running(Engine()) as engine, over_tls(platform) as trusted:
        platform.ready(engine)
        async with wired(platform, trusted) as wire:
            for body in (WHOLE, STREAM):
                assert (await wire.ask(post(platform, body))).text == SAID
            answer = await wire.ask(head(platform, method="GET", target="/health"))
            assert (answer.status, json.loads(answer.body)["status"]) == (200, "ok")
            assert await wire.rest() == b""
        async with wired(platform, trusted) as wire:
            wire.send(head(platform, "Content-Length: 9000000"), b" " * 4_000_000)
            assert (await wire.answer()).status == 413
        async with wired(platform, trusted) as wire:
            engine.hold_after = 1
            wire.send(post(platform, STREAM))
            await wire.reader.readuntil(b"Gra")
            wire.writer.transport.abort()
            await until(engine.aborted.is_set)
        events = await platform.settled(3)
        assert events[-1].outcome is Outcome.CLIENT_LEFT


async def test_a_listener_that_stops_closes_what_is_idle_and_finishes_what_runs(tmp_path: Path) -> None:
    engine = Engine(hold_after=1)
    async with gateway(tmp_path, engine) as platform, wired(platform) as idle, wired(platform) as busy:
        engine.go.set()
        assert (await idle.ask(post(platform))).text == SAID
        engine.go.clear()
        busy.send(post(platform, STREAM))
        await busy.reader.readuntil(b"Gra")
        assert platform.listener is not None
        stopping = asyncio.create_task(platform.listener.stop(20))
        assert await idle.rest() == b""
        with pytest.raises(OSError):
            async with wired(platform):
                pass
        assert not stopping.done()
        engine.go.set()
        rest = await busy.rest()  # and then this connection is closed too
        assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await asyncio.wait_for(stopping, 5)
        assert {e.outcome for e in await platform.settled(2)} == {Outcome.COMPLETED}


async def test_an_answer_that_begins_while_the_listener_stops_says_that_it_is_the_last(tmp_path: Path) -> None:
    engine = Engine(hold_after=0)
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        wire.send(post(platform))
        await until(lambda: engine.running)
        assert platform.listener is not None
        stopping = asyncio.create_task(platform.listener.stop(20))
        await asyncio.sleep(0.05)
        engine.go.set()
        answer = await wire.answer()
        assert (answer.text, answer.headers["connection"]) == (SAID, "close")
        await asyncio.wait_for(stopping, 5)


async def test_while_a_listener_lingers_an_idle_connection_is_served_once_more(tmp_path: Path) -> None:
    engine = Engine(hold_after=1)
    async with gateway(tmp_path, engine) as platform, wired(platform) as idle, wired(platform) as busy:
        engine.go.set()
        assert (await idle.ask(post(platform))).text == SAID
        engine.go.clear()
        busy.send(post(platform, STREAM))
        await busy.reader.readuntil(b"Gra")
        assert platform.listener is not None
        stopping = asyncio.create_task(platform.listener.stop(None, linger=1.5))
        assert await idle.rest() == b""  # it has lingered for those that are idle
        engine.go.set()
        await busy.reader.readuntil(b"\r\n0\r\n\r\n")
        await asyncio.sleep(0.1)
        # The stream's client was not told that this connection would end: it too may be about to ask.
        answer = await busy.ask(post(platform))
        assert (answer.text, answer.headers["connection"]) == (SAID, "close")
        await asyncio.wait_for(stopping, 5)


async def test_what_outlasts_the_listeners_patience_is_cut_and_orphaned(tmp_path: Path) -> None:
    engine = Engine(hold_after=2)
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        wire.send(post(platform, STREAM))
        await wire.reader.readuntil(b"vity ")
        await platform.stop()
        assert b"[DONE]" not in await wire.rest()
        await until(engine.aborted.is_set)
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.ORPHANED, 2)


# What a stop must not take from clients.

AT_LENGTH = json.dumps(
    {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000}
).encode()


async def test_a_stop_waits_until_a_slow_client_has_read_the_end_of_its_answer(tmp_path: Path) -> None:
    engine = Engine(pieces=["x" * 1000] * 20_000)  # 20 MB
    async with gateway(tmp_path, engine) as platform, wired(platform, limit=1 << 16) as wire:
        listener = platform.listener
        assert listener is not None
        wire.send(post(platform, AT_LENGTH))
        front = await until(lambda: next(iter(listener._fronts), None))
        await until(lambda: front.started and not front.busy)
        stop = asyncio.create_task(listener.stop(20))
        length = int((await wire.reader.readuntil(b"\r\n\r\n")).lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert len(await wire.rest()) == length > 20_000_000
        await stop


async def test_a_stop_waits_for_a_request_that_is_still_arriving(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, wired(platform) as wire:
        listener = platform.listener
        assert listener is not None
        request = post(platform)
        wire.send(request[:-20])
        await until(lambda: any(front._reading for front in listener._fronts))
        stop = asyncio.create_task(listener.stop(20))
        await asyncio.sleep(0)
        wire.send(request[-20:])
        assert (await wire.rest()).startswith(b"HTTP/1.1 200")
        await stop


async def test_requests_behind_the_last_answer_of_a_connection_are_not_executed(tmp_path: Path) -> None:
    engine = Engine(pieces=["x" * 1000] * 20_000, fail="silent")
    async with gateway(tmp_path, engine) as platform, wired(platform, limit=1 << 16) as wire:
        listener = platform.listener
        assert listener is not None
        wire.send(post(platform, AT_LENGTH), post(platform, AT_LENGTH))
        await until(lambda: engine.requests)
        stop = asyncio.create_task(listener.stop(20))
        await asyncio.sleep(0)
        engine.go.set()
        assert (await wire.rest()).count(b"HTTP/1.1 200") == 1
        await stop
        await platform.settled(1)
        assert len(engine.requests) == 1
