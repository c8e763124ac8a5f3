"""What has left the process on its way to a client, and what is told when."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import uvloop
from certificates import minted
from gateway_fixtures import until

from gateway.sender import Sender

LARGE = b"x" * 200_000


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as made:
        yield made


@asynccontextmanager
async def connected(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Sender, socket.socket]]:
    """A sender and its client, with little room between them."""
    made: list[Sender] = []

    def sender() -> Sender:
        made.append(Sender())
        return made[0]

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
    server = await asyncio.get_running_loop().create_server(sender, sock=listening, ssl=tls)
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        client.connect(listening.getsockname())
        client.setblocking(False)
        await until(lambda: made and (tls or made[0].takes(1)))
        yield made[0], client
    server.close()


async def read(client: socket.socket, size: int) -> None:
    while size:
        size -= len(await asyncio.get_running_loop().sock_recv(client, size))


def test_what_the_kernel_has_room_for_is_taken_at_once(runner: asyncio.Runner) -> None:
    async def story() -> None:
        async with connected() as (sender, client):
            assert sender.takes(1000) and not sender.takes(len(LARGE))
            sender._write(b"x" * 1000)
            told: list[int] = []
            await asyncio.sleep(0)
            sender.when_sent(lambda: told.append(sender.sent))
            await until(lambda: told)
            assert told == [1000]
            await read(client, 1000)

    runner.run(story())


def test_nothing_more_is_surely_taken_while_the_client_does_not_read(runner: asyncio.Runner) -> None:
    async def story() -> None:
        async with connected() as (sender, _):
            for _ in range(1000):
                if not sender.takes(500):
                    break
                sender._write(b"x" * 500)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert sender.sent == sender.written
            assert not sender.takes(500)

    runner.run(story())


def test_what_waits_is_told_of_once_it_is_sent(runner: asyncio.Runner) -> None:
    async def story() -> None:
        async with connected() as (sender, client):
            sender._write(LARGE)
            told: list[int] = []
            sender.when_sent(lambda: told.append(sender.sent))
            await read(client, 1000)
            assert not told and not sender.takes(1)
            await read(client, len(LARGE) - 1000)
            await until(lambda: told)
            assert told == [len(LARGE)] and not sender.blocked
            sender._write(b"x" * (1 << 20))
            assert sender.blocked  # it is bounded as before

    runner.run(story())


def test_what_can_no_longer_be_sent_is_told_of_when_the_client_has_left(runner: asyncio.Runner) -> None:
    async def story() -> None:
        async with connected() as (sender, client):
            sender._write(LARGE)
            told: list[bool] = []
            sender.when_sent(lambda: told.append(True))
            client.close()
            await until(lambda: told)

    runner.run(story())


def test_with_tls_what_waits_below_it_is_not_taken_for_sent(runner: asyncio.Runner, tmp_path: Path) -> None:
    ours = minted()
    (tmp_path / "pem").write_text(ours.certificate + ours.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    trusting = ssl.create_default_context(cadata=ours.certificate)

    async def story() -> None:
        async with connected(context) as (sender, client):
            client.setblocking(True)
            client.settimeout(0.5)
            with await asyncio.to_thread(trusting.wrap_socket, client, server_hostname="127.0.0.1") as reading:
                await until(lambda: sender.takes(1))
                while not sender.blocked and sender.written < 2 << 20:
                    sender._write(b"x" * 500)
                    await asyncio.sleep(0)
                said, got = sender.sent, 0
                with contextlib.suppress(TimeoutError):
                    while part := reading.recv(1 << 16):  # and this process does nothing else
                        got += len(part)
                assert 0 <= said <= got < sender.written
                told: list[bool] = []
                sender.when_sent(lambda: told.append(True))
                reading.settimeout(30)
                while got < sender.written:
                    got += len(await asyncio.to_thread(reading.recv, 1 << 16))
                await until(lambda: told)

    runner.run(story())
