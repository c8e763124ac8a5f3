"""HTTP/1.1 as the front speaks it: by bytes on a socket, on the event loop that the gateway runs on."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from pathlib import Path

import orjson
import pytest
import uvloop
from engine import Engine
from gateway_fixtures import gateway, until
from wire import CHAT, STREAM, WHOLE, chunked, head, post, wired

from gateway.front import PIPELINE_LIMIT

SAID = "Gravity is round."
GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n"


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


async def test_requests_of_one_connection_are_answered_in_their_order(tmp_path: Path) -> None:
    engine = Engine()
    count = PIPELINE_LIMIT + 10
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        for _ in range(2):  # in one write, and the connection is kept
            wire.send(*(post(platform, STREAM if n % 2 else WHOLE, f"X-Request-Id: {n}") for n in range(count)))
            answers = [await wire.answer() for _ in range(count)]
            assert [a.headers["x-request-id"] for a in answers] == [str(n) for n in range(count)]
            assert {(a.status, a.text) for a in answers} == {(200, SAID)}
            assert not any("connection" in a.headers for a in answers)
        await platform.settled(2 * count)


async def test_a_request_for_aiohttp_behind_others_is_answered_in_its_turn_and_is_the_last(tmp_path: Path) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        wire.send(post(platform), post(platform, STREAM), GET_HEALTH, post(platform))
        assert [(await wire.answer()).text for _ in range(2)] == [SAID, SAID]
        health = await wire.answer()
        assert (health.status, health.headers["connection"]) == (200, "close")
        wire.send(post(platform))
        assert await wire.rest() == b""
        assert len(engine.requests) == 2


async def test_bodies_waiting_in_their_connection_are_bounded_together(tmp_path: Path) -> None:
    engine = Engine(hold_after=0)
    padded = WHOLE + b" " * (900 << 10)
    async with gateway(tmp_path, engine, max_body_mb=1) as platform, wired(platform) as wire:
        wire.send(*([post(platform, padded)] * 40))
        last = -1

        def stuck() -> bool:
            nonlocal last
            last, before = wire.writer.transport.get_write_buffer_size(), last
            return last == before

        for _ in range(20):
            await asyncio.sleep(0.01)
            await until(stuck)
        assert last > 20 << 20  # of 36 MiB: what the gateway has not read
        engine.go.set()
        assert [(await wire.answer()).text for _ in range(40)] == [SAID] * 40


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_request_is_read_the_same_wherever_it_is_split(tmp_path: Path, framing: str) -> None:
    engine = Engine()
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "?"}]}
    body = orjson.dumps(asked)
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        request = post(platform, body)
        if framing == "chunks":
            request = head(platform, "Transfer-Encoding: chunked") + chunked(body[:7], body[7:8], body[8:])
        for at in range(1, len(request)):
            wire.send(request[:at])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert (await wire.ask(request[at:])).text == SAID
        for byte in request[:-1]:
            wire.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await wire.ask(request[-1:])).text == SAID
        assert engine.requests == [asked] * len(request)


async def test_trailers_are_no_headers(tmp_path: Path) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        trailers = b"Content-Encoding: gzip\r\nAuthorization: Bearer x\r\nX-Request-Id: mine\r\n\r\n"
        answer = await wire.ask(head(platform, "Transfer-Encoding: chunked"), chunked(WHOLE)[:-2], trailers)
        assert (answer.text, answer.headers["x-request-id"] != "mine") == (SAID, True)


@pytest.mark.parametrize("body", [WHOLE, STREAM])
async def test_a_client_of_http_1_0_gets_no_chunks(tmp_path: Path, body: bytes) -> None:
    async with gateway(tmp_path, Engine()) as platform, wired(platform) as wire:
        wire.send(post(platform, body, "Connection: keep-alive", version="1.0") * (1 if body is WHOLE else 2))
        answer = await wire.answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.text == SAID
        if body is STREAM:  # it ends where its connection ends, and nothing follows in it
            assert answer.headers["connection"] == "close"
            assert answer.body.count(b"[DONE]") == 1
            assert await wire.rest() == b""
        else:
            answer = await wire.ask(post(platform, body, version="1.0"))
            assert (answer.text, answer.headers["connection"]) == (SAID, "close")
            assert await wire.rest() == b""


@pytest.mark.parametrize("body", [WHOLE, STREAM])
async def test_a_client_that_wants_the_connection_closed_gets_that(tmp_path: Path, body: bytes) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        answer = await wire.ask(post(platform, body, "Connection: close"), post(platform))
        assert (answer.text, answer.headers["connection"]) == (SAID, "close")
        assert await wire.rest() == b""
        assert len(engine.requests) == 1


async def test_a_client_that_asks_whether_to_go_on_is_told(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, wired(platform) as wire:
        wire.send(head(platform, "Expect: 100-continue", f"Content-Length: {len(WHOLE)}"))
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await wire.ask(WHOLE)).text == SAID


@pytest.mark.parametrize(
    "headers",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA"),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    ],
)
async def test_an_upgrade_is_not_taken_and_the_request_answered(tmp_path: Path, headers: tuple[str, ...]) -> None:
    """As Java's client asks for HTTP/2 with each first request."""
    async with gateway(tmp_path, Engine()) as platform, wired(platform) as wire:
        wire.send(post(platform, WHOLE, *headers), post(platform, STREAM, *headers), post(platform))
        assert [(await wire.answer()).text for _ in range(3)] == [SAID] * 3
        answer = await wire.ask(head(platform, *headers, method="GET", target="/health"))
        assert answer.status == 200


async def test_any_number_of_wishes_to_upgrade_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        upgrade = ("Connection: Upgrade", "Upgrade: h2c")
        wire.send(post(platform, WHOLE, *upgrade), head(platform, *upgrade, method="GET", target="/health") * 1500)
        assert (await wire.answer()).text == SAID
        assert (await wire.answer()).status == 200
        assert await wire.rest() == b""
        assert [r.message for r in caplog.records if r.levelname == "ERROR"] == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
async def test_a_compressed_body_is_unpacked(tmp_path: Path, encoding: str) -> None:
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[encoding](WHOLE)
    async with gateway(tmp_path, Engine()) as platform, wired(platform) as wire:
        assert (await wire.ask(post(platform, packed, f"Content-Encoding: {encoding}"))).text == SAID


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(b" " * (20 << 20)), "gzip", 413),
        (gzip.compress(WHOLE)[:-9], "gzip", 400),
        (gzip.compress(WHOLE) + b"more", "gzip", 400),
        (b"nonsense", "gzip", 400),
        (WHOLE, "br", 400),
        (gzip.compress(gzip.compress(WHOLE)), "gzip, gzip", 400),
    ],
)
async def test_what_does_not_unpack_to_a_body_is_refused(
    tmp_path: Path, body: bytes, encoding: str, status: int
) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine, max_body_mb=1) as platform, wired(platform) as wire:
        answer = await wire.ask(post(platform, body, f"Content-Encoding: {encoding}"))
        assert (answer.status, engine.requests) == (status, [])
        assert (await wire.ask(post(platform))).text == SAID  # the next request begins where it should


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("POST", f"{CHAT}?api-version=1", 200),
        ("POST", f"http://gateway{CHAT}", 200),
        ("POST", f"HTTPS://gateway:443{CHAT}?x=/", 200),
        ("GET", "http://gateway/health", 200),
        ("HEAD", "/health", 200),
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("HEAD", CHAT, 405),
        ("POST", "/v1/nothing", 404),
        ("POST", "/v1/chat/completion%73", 404),
        ("POST", "/v1//chat/completions", 404),
        ("POST", "//v1/chat/completions", 404),
        ("POST", "/x/../v1/chat/completions", 404),
        ("POST", f"{CHAT}/", 404),
        ("POST", "*", 404),
        ("POST", "/V1/chat/completions", 404),
        ("POST", f"http:{CHAT}", 404),
    ],
)
async def test_a_route_is_known_by_its_exact_path(tmp_path: Path, method: str, target: str, status: int) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        wire.send(post(platform, target=target) if method == "POST" else head(platform, target=target, method=method))
        if method == "HEAD":
            answer = await wire.rest()
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            return
        answer = await wire.answer()
        assert answer.status in ((404, 400) if status == 404 else (status,))
        assert len(engine.requests) == (method == "POST" and status == 200)
        if status >= 400:
            assert answer.error
            assert answer.headers["content-type"].startswith("application/json")
        if status == 405:
            assert "post" in answer.headers["allow"]


async def test_pages_of_the_sites_origins_may_call_from_a_browser(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine(), cors_origins=("https://lab.example",)) as platform:
        for origin, allowed in (("https://lab.example", "https://lab.example"), ("https://evil.example", None)):
            asks = (
                head(platform, f"Origin: {origin}", "Access-Control-Request-Method: POST", method="OPTIONS"),
                post(platform, WHOLE, f"Origin: {origin}"),
                post(platform, STREAM, f"Origin: {origin}"),
                post(platform, b"nonsense", f"Origin: {origin}"),
                post(platform, WHOLE, f"Origin: {origin}", "X-Api-Key: wrong"),
                head(platform, f"Origin: {origin}", method="GET", target="/v1/models"),
            )
            for ask, status in zip(asks, (204, 200, 200, 400, 400, 200), strict=True):
                async with wired(platform) as wire:
                    answer = await wire.ask(ask)
                    if status != 400:
                        assert answer.status == status
                    assert answer.headers.get("access-control-allow-origin") == allowed


async def test_a_body_with_a_wrong_key_is_not_read(tmp_path: Path) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, wired(platform) as wire:
        request = head(platform, "Expect: 100-continue", "Content-Length: 1000000").replace(b"Bearer ", b"Bearer x")
        answer = await wire.ask(request)
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert await wire.rest() == b""
        async with wired(platform) as anonymous:
            answer = await anonymous.ask(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
            assert answer.status == 401
        assert engine.requests == []


async def test_a_request_id_is_the_clients_own_if_it_is_one_and_names_nothing_of_ours(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, wired(platform) as wire:
        for body in (WHOLE, STREAM, b"nonsense"):
            assert (await wire.ask(post(platform, body, "X-Request-Id: mine-1"))).headers["x-request-id"] == "mine-1"
        for nonsense in ("x" * 129, "a b", "caf\xe9", ""):
            answer = await wire.ask(post(platform, WHOLE, f"X-Request-Id: {nonsense}"))
            assert answer.headers["x-request-id"] not in (nonsense, "mine-1")
        events = await platform.settled(6)
        assert len({e.attempt.event_id for e in events} - {"mine-1"}) == 6
        assert f"{answer.headers['x-request-id']}:1" == events[-1].attempt.event_id


async def test_where_a_request_went_is_told_unless_the_site_does_not_want_it(tmp_path: Path) -> None:
    names = {"x-headgate-deployment": "tiny", "x-headgate-replica": "replica-1", "x-headgate-queue-ms": "0"}
    for shown in (True, False):
        async with gateway(tmp_path / str(shown), Engine(), show_route=shown) as platform, wired(platform) as wire:
            for body in (WHOLE, STREAM):
                answer = await wire.ask(post(platform, body))
                ours = {n: v for n, v in answer.headers.items() if n.startswith("x-headgate")}
                assert ours == (names if shown else {})
