"""What happens when a replica fails: who is tried next, what the client sees, what is billed."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import httpx
import openai
import pytest
from engine import Engine
from gateway_fixtures import HELLO, gateway, until

from gateway import app, billing
from gateway.app_keys import GATEWAY
from registry import journal
from registry.ledger import Outcome


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fail", ["500", "abort", "unreachable"])
async def test_another_replica_is_tried_when_the_first_is_stopping_or_gone(
    tmp_path: Path, fail: str, stream: bool
) -> None:
    failing = Engine(fail=fail)
    async with gateway(tmp_path, failing, Engine()) as platform, platform.openai() as client:
        for _ in range(2):
            if stream:
                chunks = [c async for c in await client.chat.completions.create(**HELLO, stream=True)]
                assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Gravity is round."
            else:
                answer = await client.chat.completions.create(**HELLO)
                assert answer.choices[0].message.content == "Gravity is round."
        events = await platform.settled(2)
        assert {e.attempt.replica for e in events} == {"replica-2"}
        assert {e.outcome for e in events} == {Outcome.COMPLETED}


@pytest.mark.parametrize("fail", ["500", "abort", "die"])
async def test_a_failing_replica_that_is_the_only_one_is_502_and_free(tmp_path: Path, fail: str) -> None:
    async with gateway(tmp_path, Engine(fail=fail)) as platform, platform.openai() as client:
        with pytest.raises(openai.InternalServerError) as failure:
            await client.chat.completions.create(**HELLO)
        assert failure.value.status_code == 502
        await platform.settled(0)


async def test_what_the_engine_refuses_passes_through_and_is_free(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine(fail="refuse")) as platform, platform.openai() as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="maximum context length"):
                await client.chat.completions.create(**HELLO, stream=stream)
        await platform.settled(0)


async def test_a_replica_that_dies_mid_stream_ends_it_with_an_error_and_is_billed_so_far(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine(fail="die", hold_after=2)) as platform:
        async with platform.openai() as client:
            received = ""
            with pytest.raises(openai.APIError, match="closed the connection"):
                async for chunk in await client.chat.completions.create(**HELLO, stream=True):
                    received += chunk.choices[0].delta.content or ""
        assert received == "Gravity "
        (event,) = await platform.settled()
        assert (event.prompt_tokens, event.completion_tokens) == (7, 2)
        assert event.outcome is Outcome.UPSTREAM_FAILED


async def test_a_replica_that_falls_silent_ends_the_stream(tmp_path: Path) -> None:
    engine = Engine(hold_after=1)
    async with gateway(tmp_path, engine, read_timeout_s=1.0) as platform, platform.openai() as client:
        with pytest.raises(openai.APIError, match=r"nothing for 1 s"):
            async for _ in await client.chat.completions.create(**HELLO, stream=True):
                pass
        await until(engine.aborted.is_set)
        (event,) = await platform.settled()
        assert event.outcome is Outcome.UPSTREAM_FAILED


async def test_a_whole_answer_may_take_longer_than_the_wait_between_two_reads(tmp_path: Path) -> None:
    engine = Engine(hold_after=0)
    async with gateway(tmp_path, engine, read_timeout_s=0.1) as platform, platform.openai() as client:
        task = asyncio.create_task(client.chat.completions.create(**HELLO))
        await asyncio.wait([task], timeout=0.5)
        engine.go.set()
        assert (await task).choices[0].message.content == "Gravity is round."
        assert len(engine.requests) == 1
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.COMPLETED, 4)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_replica_was_too_slow_for_is_not_asked_again(
    tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "WHOLE_S", 0.5)
    engines = Engine(fail="silent"), Engine(fail="silent")
    async with (
        gateway(tmp_path, *engines, first_byte_timeout_s=0.5, read_timeout_s=0.5) as platform,
        platform.openai() as client,
    ):
        with pytest.raises(openai.InternalServerError, match="sent nothing for") as failure:
            await client.chat.completions.create(**HELLO, stream=stream)
        assert failure.value.status_code == 504
        assert sum(len(e.requests) for e in engines) == 1
        await platform.settled(0)


async def test_an_error_the_engine_sends_within_a_stream_reaches_the_client_and_is_not_completed(
    tmp_path: Path,
) -> None:
    async with gateway(tmp_path, Engine(fail="error event", hold_after=2)) as platform, platform.openai() as client:
        with pytest.raises(openai.APIError, match="out of memory"):
            async for _ in await client.chat.completions.create(**HELLO, stream=True):
                pass
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.UPSTREAM_FAILED, 2)


async def test_a_stream_that_outlives_the_gateways_patience_is_billed_so_far(tmp_path: Path) -> None:
    engine = Engine(hold_after=2)
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        await platform.stop()
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            async for _ in stream:
                pass
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.ORPHANED, 2)
        assert engine.aborted.is_set()


async def test_requests_go_to_the_replica_with_the_fewest_outstanding(tmp_path: Path) -> None:
    busy, idle = Engine(hold_after=1), Engine()
    async with gateway(tmp_path, busy, idle) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        for _ in range(3):
            await client.chat.completions.create(**HELLO)
        assert (len(busy.requests), len(idle.requests)) == (1, 3)
        busy.go.set()
        async for _ in stream:
            pass
        await platform.settled(4)


async def test_a_slow_client_slows_the_engine_instead_of_filling_memory(tmp_path: Path) -> None:
    sent = 0

    class Counted(list[str]):
        def __iter__(self):
            nonlocal sent
            for piece in super().__iter__():
                sent += len(piece)
                yield piece

    piece, pieces = "x" * 65536, 1000
    engine = Engine(pieces=Counted([piece] * pieces))
    async with gateway(tmp_path, engine) as platform, platform.http() as http:
        async with http.post("/v1/chat/completions", json={**HELLO, "stream": True}) as response:
            await response.content.readany()
            last = -1

            def stuck() -> bool:
                nonlocal last
                last, before = sent, last
                return sent == before

            for _ in range(20):  # no progress from one look to the next, 20 times
                await asyncio.sleep(0.01)
                await until(stuck)
            assert sent < 32 << 20  # of 64 MiB: what sockets and buffers take, at most
            received = 0
            async for line in response.content:
                if line.startswith(b"data: {"):
                    received += len(json.loads(line[6:])["choices"][0]["delta"].get("content", ""))
        assert sent == len(piece) * pieces
        (event,) = await platform.settled()
        assert event.completion_tokens == pieces


async def test_what_cannot_be_journaled_while_a_connection_is_made_is_not_dispatched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:

        def full(self: journal.Journal, lines: list[bytes]) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(journal.Journal, "write", full)
            with pytest.raises(openai.InternalServerError, match="No space left") as failure:
                await client.chat.completions.create(**HELLO)  # the first one: its replica has to be connected to
            assert failure.value.status_code == 503
        assert engine.requests == []
        assert platform.app is not None
        await until(lambda: platform.app[GATEWAY].ledger.failure is None)
        await client.chat.completions.create(**HELLO)
        await platform.settled(1)


async def test_an_answer_whose_settlement_cannot_be_journaled_is_not_given_and_stays_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.openai() as client:
        write = journal.Journal.write

        def full(self: journal.Journal, lines: list[bytes]) -> None:
            if any(b'"completed"' in line for line in lines):
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self, lines)

        with monkeypatch.context() as broken:
            broken.setattr(journal.Journal, "write", full)
            with pytest.raises(openai.InternalServerError, match="No space left") as failure:
                await client.chat.completions.create(**HELLO)
            assert failure.value.status_code == 503
            await until(lambda: platform.open_holds() == 1)
            assert platform.events() == []
        await platform.settled(1)


async def test_an_engine_that_counts_nonsense_ends_its_own_stream_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing, "NOTE_S", 0.01)
    nonsense = Engine(hold_after=2, pieces=["a", "b", "c"])
    async with gateway(tmp_path, nonsense) as platform, platform.openai() as client:
        with monkeypatch.context() as counted:
            counted.setattr(Engine, "counted", lambda *_, **__: {"prompt_tokens": "many", "completion_tokens": 1})
            stream = await client.chat.completions.create(**HELLO, stream=True)
            await anext(stream)
            await asyncio.sleep(0.05)  # several notes are taken of it
            nonsense.go.set()
            with pytest.raises(openai.APIError, match="not in numbers"):
                async for _ in stream:
                    pass
        await until(lambda: platform.open_holds() == 0)
        nonsense.hold_after = None
        answer = await client.chat.completions.create(**HELLO)
        assert answer.choices[0].message.content == "abc"
        await until(lambda: [e for e in platform.events() if e.outcome is Outcome.COMPLETED])
