"""Requests that two readers could read differently: refused, or read in the one harmless way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop
from engine import Engine
from gateway_fixtures import gateway
from wire import WHOLE, chunked, head, post, wired

N = f"Content-Length: {len(WHOLE)}"
TE = "Transfer-Encoding: chunked"
CHUNKED = chunked(WHOLE)


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


FRAMINGS = {
    "both": ((N, TE), CHUNKED),
    "both the other way round": ((TE, N), CHUNKED),
    "two lengths": ((N, "Content-Length: 5"), WHOLE),
    "two equal lengths": ((N, N), WHOLE),
    "two lengths in one": ((f"{N}, {len(WHOLE)}",), WHOLE),
    "two encodings": ((TE, TE), CHUNKED),
    "chunked, identity": ((f"{TE}, identity",), CHUNKED),
    "identity, chunked": (("Transfer-Encoding: identity, chunked",), CHUNKED),
    "gzip, chunked": (("Transfer-Encoding: gzip, chunked",), CHUNKED),
    "chunked, chunked": ((f"{TE}, chunked",), CHUNKED),
    "xchunked": (("Transfer-Encoding: xchunked",), CHUNKED),
    "chunkedx": ((f"{TE}x",), CHUNKED),
    "quoted": (('Transfer-Encoding: "chunked"',), CHUNKED),
    "vertical tab": (("Transfer-Encoding: \x0bchunked",), CHUNKED),
    "space before the colon": (("Transfer-Encoding : chunked",), CHUNKED),
    "tab before the colon": (("Transfer-Encoding\t: chunked",), CHUNKED),
    "space before the name": ((" Transfer-Encoding: chunked",), CHUNKED),
    "obs-fold": (("X-A: b\r\n c", N), WHOLE),
    "folded encoding": (("Transfer-Encoding:\r\n chunked",), CHUNKED),
    "NUL in a value": (("X-A: b\x00c", N), WHOLE),
    "NUL in a name": (("X\x00A: b", N), WHOLE),
    "control in a value": (("X-A: b\x01c", N), WHOLE),
    "no colon": (("X-A", N), WHOLE),
    "no name": ((": a", N), WHOLE),
    "bare LF": (("X-A: b\nX-C: d", N), WHOLE),
    "bare CR": (("X-A: b\rX-C: d", N), WHOLE),
    "bare CR before the end": ((f"{N}\r",), WHOLE),
    "negative": (("Content-Length: -5",), WHOLE),
    "plus": ((f"Content-Length: +{len(WHOLE)}",), WHOLE),
    "hexadecimal": (("Content-Length: 0x5",), WHOLE),
    "underscore": (("Content-Length: 1_0",), WHOLE),
    "fraction": (("Content-Length: 5.0",), WHOLE),
    "empty length": (("Content-Length:",), WHOLE),
    "huge": ((f"Content-Length: {1 << 64}",), WHOLE),
    "very huge": ((f"Content-Length: {'9' * 5000}",), WHOLE),
    "chunk 0x": ((TE,), b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk -1": ((TE,), b"-1\r\nhello\r\n0\r\n\r\n"),
    "chunk +5": ((TE,), b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk 5_": ((TE,), b"5_\r\nhello\r\n0\r\n\r\n"),
    "chunk without size": ((TE,), b"\r\nhello\r\n0\r\n\r\n"),
    "chunk huge": ((TE,), b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "chunk longer than told": ((TE,), b"3\r\nhello\r\n0\r\n\r\n"),
    "chunk ends with LF": ((TE,), b"5\nhello\n0\n\n"),
    "chunk extension with LF": ((TE,), b"5;a\nhello\r\n0\r\n\r\n"),
    "space before the chunk's size": ((TE,), b" 5\r\nhello\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("name", FRAMINGS)
async def test_a_request_whose_length_or_headers_are_in_doubt_is_refused_with_all_that_follows(
    tmp_path: Path, name: str
) -> None:
    headers, body = FRAMINGS[name]
    engine = Engine()
    async with gateway(tmp_path, engine, request_timeout_s=0.5) as platform, wired(platform) as wire:
        answer = await wire.ask(head(platform, *headers), body, post(platform))
        assert answer.status in ((400, 413) if name.endswith("huge") else (400,))
        assert answer.headers["connection"] == "close"
        assert answer.error
        wire.send(post(platform))
        assert await wire.rest() == b""
        assert engine.requests == []


async def test_an_encoding_is_refused_of_a_client_that_cannot_know_it(tmp_path: Path) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        answer = await wire.ask(head(platform, TE, version="1.0"), CHUNKED, post(platform))
        assert answer.status == 400
        assert await wire.rest() == b""
        assert engine.requests == []


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_what_follows_a_wish_to_upgrade_is_the_requests_body_and_nothing_else(
    tmp_path: Path, framing: str
) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        hidden = post(platform)
        upgrade = ("Connection: Upgrade", "Upgrade: h2c")
        if framing == "length":
            request = head(platform, *upgrade, f"Content-Length: {len(hidden)}") + hidden
        else:
            request = head(platform, *upgrade, TE) + chunked(hidden)
        for at in (None, 30, -3):
            wire.send(request[:at])
            if at is not None:
                await asyncio.sleep(0.01)
                wire.send(request[at:])
            assert (await wire.answer()).status == 400  # the body is no JSON
        assert (await wire.ask(post(platform))).status == 200
        assert len(engine.requests) == 1


@pytest.mark.parametrize("extension", [b";a=b", b';a="b;c"', b";" + b"a" * 1000])
async def test_a_chunks_extension_is_passed_over(tmp_path: Path, extension: bytes) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        wire.send(head(platform, TE), b"%x%b\r\n%b\r\n0%b\r\n\r\n" % (len(WHOLE), extension, WHOLE, extension))
        answer = await wire.answer()
        assert (answer.status, len(engine.requests)) == (200, 1)
        assert (await wire.ask(post(platform))).status == 200


@pytest.mark.parametrize(
    "opening",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"CONNECT other:443 HTTP/1.1\r\nHost: other\r\n\r\n",
        b"CONNECT /v1/chat/completions HTTP/1.1\r\nHost: other\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"GET /health\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.2\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"POST /v1/chat/completions x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/chat\x00/completions HTTP/1.1\r\nHost: x\r\n\r\n",
        b"post /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/caf\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_request_of_http_1_1_is_refused(tmp_path: Path, opening: bytes) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        answer = await wire.ask(opening, post(platform))
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await wire.rest() == b""
        assert engine.requests == []


@pytest.mark.parametrize("header", ["Authorization: Bearer other", "Host: other", "X-Api-Key: a\r\nX-Api-Key: b"])
async def test_who_calls_whom_is_said_once(tmp_path: Path, header: str) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        answer = await wire.ask(post(platform, WHOLE, header), post(platform))
        assert answer.status == 400
        assert "twice" in answer.error
        assert await wire.rest() == b""
        assert engine.requests == []


async def test_a_body_for_aiohttp_cannot_hide_a_request(tmp_path: Path) -> None:
    """What the front hands over it writes anew: aiohttp never sees a body, or a header about one."""
    engine = Engine()
    async with gateway(tmp_path, engine) as platform:
        for method, target in (("GET", "/health"), ("POST", "/v1/nothing"), ("DELETE", "/health")):
            for framing in ("length", "chunks"):
                async with wired(platform) as wire:
                    inner = post(platform)
                    if framing == "length":
                        headers, body = (f"Content-Length: {len(inner)}", "Content-Encoding: gzip"), inner
                    else:
                        headers, body = (TE, "Trailer: x"), chunked(inner)
                    answer = await wire.ask(head(platform, *headers, target=target, method=method), body)
                    assert answer.headers["connection"] == "close"
                    assert answer.status == {"GET": 200, "POST": 404, "DELETE": 405}[method]
                    assert await wire.rest() == b""
    assert engine.requests == []
