"""A running count is what has left the gateway, not what waits in it for a client that reads slowly."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gateway_fixtures
import pytest
from engine import Engine, running
from gateway_fixtures import HELLO, Platform, gateway, until

from gateway import calls
from gateway.billing import Billing
from gateway.calls import Kind
from gateway.front import Front
from gateway.ledger_writer import LedgerWriter
from gateway.metering import StreamMeter, Usage
from gateway.passed_on import PassedOn
from gateway.serve import bind
from registry import ledger
from registry.db import open_reader
from registry.keys import LiveKey
from registry.ledger import Outcome
from registry.tenants import Tenant

PIECES = 50
LARGE = "x" * 4000  # all of them: more than the kernel takes here, less than the gateway keeps for a slow client


@dataclass
class Reader:
    written: int = 0
    sent: int = 0
    room: bool = True
    waiting: Callable[[], object] | None = None

    def takes(self, size: int) -> bool:
        return self.room

    def when_sent(self, then: Callable[[], object]) -> None:
        self.waiting = then


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


@pytest.mark.parametrize(
    ("path", "asked", "last"),
    [
        ("/v1/chat/completions", HELLO, b"[DONE]"),
        ("/v1/responses", {"model": "tiny", "input": "Hello"}, b"event: response.completed"),
        ("/v1/messages", HELLO, b"event: message_stop"),
    ],
)
async def test_what_ended_is_in_the_journal_before_its_client_hears_so(
    tmp_path: Path, path: str, asked: dict[str, Any], last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    journaled: list[bool] = []
    write = Front._write

    def watched(self: Front, data: bytes) -> None:
        if last in data or data.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: application/json"):
            journaled.append(any(b'"completed"' in j.read_bytes()[before:] for j in (tmp_path / "journal").iterdir()))
        write(self, data)

    monkeypatch.setattr(Front, "_write", watched)
    async with gateway(tmp_path, Engine()) as platform, platform.http() as client:
        for stream in (True, False):
            (journal,) = (tmp_path / "journal").iterdir()
            before = journal.stat().st_size
            async with client.post(path, json={**asked, "stream": stream}) as response:
                assert response.status == 200
                await response.read()
    assert journaled == [True, True]


@pytest.mark.parametrize("room", [True, False])
async def test_an_end_that_may_have_to_wait_is_settled_when_it_was_sent_and_noted_until_then(
    tmp_path: Path, room: bool
) -> None:
    writer = LedgerWriter(tmp_path / "ledger.db", asyncio.get_running_loop())
    call = calls.read(Kind.CHAT, json.dumps({**HELLO, "stream": True}).encode())
    meter, reader = StreamMeter(call), Reader(room=room)
    ann = LiveKey("key-1", Tenant("physics", "root", None, ""), frozenset(), "ann")
    with Billing(writer, {}).attempt(ann, call, "replica-1", None, meter) as bill:
        (journal,) = (tmp_path / "journal").iterdir()
        bill.passed_on = PassedOn(reader)
        reader.written = reader.sent = 50
        meter.count(Usage(7, 1))
        bill.note()
        meter.count(Usage(7, 4))
        bill.settle(100)
        assert (b'"completed"' in journal.read_bytes()) is room
        reader.written = 150
        bill.pay_when_sent()
        assert (reader.waiting is None) is room
        reader.sent = 150
        bill.note()
        writer.flush()
        assert (b'"completed"' in journal.read_bytes()) is room
        if reader.waiting is not None:
            reader.waiting()
        assert b'"completed"' in journal.read_bytes()
    await writer.close()
    db = open_reader(tmp_path / "ledger.db")
    (event,) = ledger.usage_events(db)
    assert (event.completion_tokens, event.outcome, ledger.check(db)) == (4, Outcome.COMPLETED, [])
    db.close()
