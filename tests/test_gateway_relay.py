"""The upstream client by itself: connections kept and dropped, and counts taken from bytes."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
from gateway_fixtures import HELLO, until

from gateway import calls, relay
from gateway.calls import Kind
from gateway.errors import UpstreamFailed
from gateway.metering import StreamMeter, Usage
from gateway.relay import Address, Pool
from gateway.upstream import Upstream

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Counts connections; answers each request with `answer`, then does as `then` says."""

    def __init__(self, answer: bytes = ANSWER, close_after: bool = False) -> None:
        self.answer, self.close_after = answer, close_after
        self.connections = 0
        self.requests: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                writer.write(self.answer)
                if self.close_after:
                    break
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        writer.close()


@asynccontextmanager
async def reached(server: Server) -> AsyncIterator[tuple[Pool, Address]]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    pool = Pool(connect_timeout=5, sweep=0.02)
    watching = asyncio.create_task(pool.watch())
    try:
        yield pool, Address("127.0.0.1", listening.sockets[0].getsockname()[1], "secret")
    finally:
        watching.cancel()
        pool.close()
        listening.close()
        await until(lambda: all(w.is_closing() for w in server.writers))


@asynccontextmanager
async def asked(pool: Pool, address: Address, patience: float = 5.0, fresh: bool = False) -> AsyncIterator[Upstream]:
    upstream = await pool.connection(address, fresh=fresh)
    try:
        upstream.begin(patience)
        upstream.send(relay.request("POST", "/v1/x", address, b"{}"))
        yield upstream
    finally:
        pool.give_back(address, upstream)


async def ask(pool: Pool, address: Address, patience: float = 5.0) -> bytes:
    async with asked(pool, address, patience) as upstream:
        answer = await upstream.whole()
        assert upstream.status == 200
        return answer


async def test_a_connection_is_used_again_and_carries_the_replicas_key() -> None:
    server = Server()
    async with reached(server) as (pool, address):
        assert [await ask(pool, address) for _ in range(3)] == [b"ok"] * 3
    assert server.connections == 1
    assert b"\r\nAuthorization: Bearer secret\r\n" in server.requests[0]
    assert server.requests[0].endswith(b"\r\n\r\n{}")


async def test_as_many_connections_are_opened_as_requests_run_at_once() -> None:
    server = Server()
    async with reached(server) as (pool, address):
        await asyncio.gather(*(ask(pool, address) for _ in range(3)))
        await asyncio.gather(*(ask(pool, address) for _ in range(3)))
    assert server.connections == 3


async def test_an_answer_that_is_left_half_read_closes_its_connection() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    heard: list[bytes] = []
    async with reached(server) as (pool, address):
        async with asked(pool, address) as upstream:
            upstream.listen(heard.append)
            await until(lambda: heard == [b"half"])
        await until(lambda: server.writers[0].is_closing())
        async with asked(pool, address):
            pass
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "closed"),
        (b"", "closed"),
        (b"garbage\r\n\r\n", "HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nok", "encoding"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok", "compressed"),
    ],
)
async def test_a_replica_that_hangs_up_or_talks_nonsense_has_failed(answer: bytes, wrong: str) -> None:
    async with reached(Server(answer, close_after=True)) as (pool, address):
        with pytest.raises(UpstreamFailed, match=wrong):
            await ask(pool, address)


async def test_what_an_upstream_compressed_is_unpacked() -> None:
    packed = gzip.compress(b"hello")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with reached(Server(head + packed)) as (pool, address):
        assert await ask(pool, address) == b"hello"


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with reached(Server(b"HTTP/1.1 200 OK\r\n\r\nok", close_after=True)) as (pool, address):
        assert await ask(pool, address) == b"ok"


async def test_a_replica_that_is_silent_or_not_there_has_failed_after_its_time() -> None:
    async with reached(Server(b"")) as (pool, address):
        with pytest.raises(UpstreamFailed, match=r"nothing for 0\.05 s"):
            await ask(pool, address, patience=0.05)
        with pytest.raises(UpstreamFailed, match="cannot be reached"):
            await ask(pool, Address("127.0.0.1", 1))


async def test_silence_is_not_the_replicas_while_its_client_does_not_read() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
    async with reached(server) as (pool, address), asked(pool, address) as upstream:
        await upstream.head()
        upstream.patience = 0.05
        upstream.pause()
        waiting = asyncio.create_task(upstream.whole())
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        upstream.resume()
        with pytest.raises(UpstreamFailed, match="nothing for"):
            await waiting


async def test_a_host_that_vanished_is_noticed_however_long_an_answer_may_take() -> None:
    async with reached(Server()) as (pool, address), asked(pool, address) as upstream:
        assert upstream._transport is not None
        connection = upstream._transport.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


async def test_small_writes_leave_at_once() -> None:
    async with reached(Server()) as (pool, address), asked(pool, address) as upstream:
        assert upstream._transport is not None
        connection = upstream._transport.get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def streamed(**fields: object) -> StreamMeter:
    return StreamMeter(calls.read(Kind.CHAT, orjson.dumps({**HELLO, "stream": True, **fields})))


def chunk(index: int, completion: int) -> bytes:
    usage = b'{"prompt_tokens":7,"completion_tokens":%d,"details":{"cached":{"tokens":1}}}' % completion
    return b'data: {"choices":[{"index":%d,"delta":{}}],"usage":%b,"more":1}\n\n' % (index, usage)


def test_a_stream_cut_anywhere_is_read_the_same() -> None:
    whole = chunk(0, 1) + chunk(0, 2) + b"data: [DONE]\n\n"
    plain = b'data: {"choices":[{"index":0,"delta":{}}],"more":1}\n\n' * 2 + b"data: [DONE]\n\n"
    for cut in range(len(whole)):
        meter = streamed()
        assert meter.feed(whole[:cut]) + meter.feed(whole[cut:]) + meter.rest() == plain
        assert meter.usage == Usage(7, 2)


def test_the_running_counts_of_several_choices_add_up() -> None:
    meter = streamed(n=2)
    meter.feed(chunk(0, 3) + chunk(1, 2) + chunk(0, 4))
    assert meter.usage == Usage(7, 6)
    meter.feed(b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}}\n\n')
    assert meter.usage == Usage(7, 9)


def test_nothing_is_counted_before_the_engine_counted() -> None:
    meter = streamed()
    assert meter.feed(b'data: {"choices":[{"index":0}]}\n\n') == b'data: {"choices":[{"index":0}]}\n\n'
    assert meter.usage is None


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 10**9}, calls.COMPLETION_CAP),
        ({"max_tokens": None}, calls.COMPLETION_CAP),
        ({"max_tokens": 5, "n": 3}, 15),
    ],
)
def test_what_is_held_for_the_answer_is_what_the_client_allows_up_to_a_cap(
    fields: dict[str, object], held: int
) -> None:
    assert calls.read(Kind.CHAT, orjson.dumps({**HELLO, **fields})).completion_tokens == held


def test_every_prompt_of_a_batch_is_held_for() -> None:
    read = calls.read(Kind.COMPLETION, b'{"model":"m","prompt":["a","b"],"max_tokens":5}')
    assert read.completion_tokens == 10
    assert calls.read(Kind.COMPLETION, b'{"model":"m","prompt":[1,2],"max_tokens":5}').completion_tokens == 5
