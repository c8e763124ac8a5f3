"""The gateway speaks to the replica whose certificate was announced, and to nothing else on its port."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import uvloop
from certificates import issued, minted, serving

from gateway.pins import pinned
from launchers.vllm.certificate import Minted

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
REPLICA = minted("g1.cluster")  # under another name than it is reached by here
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]

pytestmark = pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])


async def said_to(server: ssl.SSLContext | None, client: ssl.SSLContext) -> tuple[bytes, list[bytes]]:
    """What a client hears when it says "key" over create_connection, and what the server heard. Raises SSLError."""
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # a client that has refused us is gone
            heard.append(await reader.read(100))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.drain()
        writer.close()

    class Client(asyncio.Protocol):
        def __init__(self) -> None:
            self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            if not self.answer.done():
                self.answer.set_result(data)

        def connection_lost(self, error: Exception | None) -> None:
            if not self.answer.done():
                self.answer.set_exception(error or ConnectionError("closed without a word"))

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(Client, "127.0.0.1", port, ssl=client, server_hostname="")
        transport.write(b"key")
        try:
            async with asyncio.timeout(10):
                return await protocol.answer, heard
        finally:
            transport.abort()


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], shown: Minted | None, pin: str) -> tuple[bytes, list[bytes]]:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(said_to(serving(shown) if shown else None, pinned(pin)))


def test_the_pinned_certificate_is_accepted_by_whatever_name_it_is_reached(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    assert run(new_loop, REPLICA, REPLICA.certificate) == (b"HTTP/1.1 200 OK\r\n\r\n", [b"key"])


@pytest.mark.parametrize(
    "impostor",
    [
        minted("127.0.0.1"),  # the same subject, and the very name that the client asks for
        minted("g1.cluster"),
        minted("g1.cluster", LONG_AGO),
        issued(REPLICA),  # even in the replica's own name
        issued(minted(), own=True, ca=True),
    ],
    ids=["another", "same name", "expired", "signed by the replica", "authority"],
)
def test_another_certificate_on_the_port_is_refused(
    new_loop: Callable[[], asyncio.AbstractEventLoop], impostor: Minted
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        run(new_loop, impostor, REPLICA.certificate)


def test_one_that_speaks_plain_http_on_the_port_never_hears_the_key(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    heard: list[bytes] = []

    async def ask() -> None:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.read(4096))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        listening = await asyncio.start_server(plain, "127.0.0.1", 0)
        async with listening:
            port = listening.sockets[0].getsockname()[1]
            loop, context = asyncio.get_running_loop(), pinned(REPLICA.certificate)
            await loop.create_connection(asyncio.Protocol, "127.0.0.1", port, ssl=context, server_hostname="")

    with asyncio.Runner(loop_factory=new_loop) as runner, pytest.raises(ssl.SSLError):
        runner.run(ask())
    assert len(heard) == 1 and heard[0].startswith(b"\x16\x03")  # a TLS handshake, and nothing more


def test_a_pinned_certificate_that_has_expired_is_refused_too(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    old = minted("g1.cluster", LONG_AGO)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        run(new_loop, old, old.certificate)


def test_tls_1_1_is_refused(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    assert pinned(REPLICA.certificate).minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    "text",
    ["", "no certificate", REPLICA.key, REPLICA.certificate + minted().certificate, "\udc80",
     issued(REPLICA, own=True, ca=True).certificate],
)  # fmt: skip
def test_what_is_not_one_certificate_cannot_be_pinned(
    new_loop: Callable[[], asyncio.AbstractEventLoop], text: str
) -> None:
    with pytest.raises(ValueError, match="the replica's certificate"):
        pinned(text)
