"""A running count is what has left the gateway, not what waits in it for a client that reads slowly."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import gateway_fixtures
import pytest
from engine import Engine, running
from gateway_fixtures import HELLO, Platform, gateway, until

from gateway.metering import Usage
from gateway.passed_on import PassedOn
from gateway.serve import bind
from registry.ledger import Outcome

PIECES = 50
LARGE = "x" * 4000  # all of them: more than the kernel takes here, less than the gateway keeps for a slow client


@dataclass
class Reader:
    written: int = 0
    sent: int = 0


def test_what_was_sent_at_once_counts_at_once() -> None:
    reader = Reader()
    passed = PassedOn(reader)
    assert passed.of(None) is None
    reader.written = reader.sent = 100
    assert passed.of(Usage(7, 1)) == Usage(7, 1)
    assert passed.of(Usage(7, 1)) == Usage(7, 1)


def test_what_waits_counts_once_it_is_gone_and_the_newest_of_it() -> None:
    reader = Reader()
    passed = PassedOn(reader)
    reader.written = reader.sent = 100
    assert passed.of(Usage(7, 1)) == Usage(7, 1)
    reader.written = 200
    assert passed.of(Usage(7, 2)) == Usage(7, 1)
    reader.written = 300
    assert passed.of(Usage(7, 3)) == Usage(7, 1)
    reader.sent = 250
    assert passed.of(Usage(7, 3)) == Usage(7, 2)
    reader.sent = 300
    assert passed.of(Usage(7, 3)) == Usage(7, 3)


def test_a_client_that_was_sent_nothing_is_counted_nothing() -> None:
    passed = PassedOn(Reader(written=100, sent=0))
    assert passed.of(Usage(7, 1)) is None


def asked(platform: Platform) -> socket.socket:
    """A client that has asked for a stream and has yet to read any of it, with little room for it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    host, port = platform.url.removeprefix("http://").split(":")
    client.connect((host, int(port)))
    body = json.dumps({**HELLO, "max_tokens": PIECES, "stream": True})
    client.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {platform.key}\r\n"
        f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    client.setblocking(False)
    return client


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the kernel, for what the gateway sends."""

    def narrow(host: str, port: int) -> socket.socket:
        listening = bind(host, port)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
        return listening

    monkeypatch.setattr(gateway_fixtures, "bind", narrow)


async def test_a_stream_whose_end_waits_for_its_client_is_settled_once_it_is_sent(
    tmp_path: Path, little_room: None
) -> None:
    large, small = Engine(pieces=[LARGE] * PIECES), Engine()
    async with gateway(tmp_path, large) as platform, running(small):
        platform.deploy("other")
        platform.ready(small, "replica-2", "other")
        with closing(asked(platform)) as client:
            await until(lambda: large.requests and not large.running)
            async with platform.openai() as others:
                await others.chat.completions.create(**{**HELLO, "model": "other"})
            await until(lambda: platform.events())
            assert [e.attempt.model for e in platform.events()] == ["other"] and platform.open_holds() == 1
            async with asyncio.timeout(30):
                while await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                    pass
            large_one = next(e for e in await platform.settled(2) if e.attempt.model == "tiny")
            assert (large_one.completion_tokens, large_one.outcome) == (PIECES, Outcome.COMPLETED)


@pytest.mark.parametrize("how", ["the client leaves", "the gateway stops"])
async def test_a_stream_whose_end_nobody_reads_is_paid_for_as_it_was_made(
    tmp_path: Path, little_room: None, how: str
) -> None:
    large = Engine(pieces=[LARGE] * PIECES)
    async with gateway(tmp_path, large) as platform:
        with closing(asked(platform)):
            await until(lambda: large.requests and not large.running)
            assert platform.events() == []
            if how == "the gateway stops":
                await platform.stop()
        if how == "the client leaves":
            await platform.settled()
    (event,) = platform.events()
    assert (event.completion_tokens, event.outcome) == (PIECES, Outcome.COMPLETED)


async def test_what_ended_is_in_the_journal_before_its_client_hears_so(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.http() as client:
        for stream in (True, False):
            (journal,) = (tmp_path / "journal").iterdir()
            before = journal.stat().st_size
            async with client.post("/v1/chat/completions", json={**HELLO, "stream": stream}) as response:
                await response.content.readuntil(b"[DONE]") if stream else await response.content.readany()
                assert b'"completed"' in journal.read_bytes()[before:]
