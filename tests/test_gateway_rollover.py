"""What clients notice when one replica takes another's place: nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from engine import Engine, running
from gateway_fixtures import HELLO, Platform, gateway, until

from gateway.app_keys import GATEWAY
from gateway.continuation import COMMENT
from registry import replicas
from registry.ledger import Outcome

PIECES = ["Gra", "vity ", "is ", "round", " and ", "heavy."]


def text(body: bytes) -> str:
    chunks = [json.loads(e[6:]) for e in body.split(b"\n\n") if e.startswith(b"data: {")]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c.get("choices"))


async def drained(platform: Platform, replica: str) -> None:
    """Its row says that it drains, and the gateway has read it."""
    replicas.drain_replica(platform.registry, replica, "its successor is ready")
    assert platform.app is not None
    catalog = platform.app[GATEWAY].catalog
    await until(lambda: replica not in {r.id for r in catalog.every_ready()})


async def test_a_stream_stays_with_its_draining_replica_while_new_requests_go_to_the_successor(tmp_path: Path) -> None:
    old, new = Engine(pieces=PIECES, hold_after=2), Engine(pieces=["new"])
    async with gateway(tmp_path, old) as platform, running(new), platform.http() as http:
        stream = await http.post("/v1/chat/completions", json=HELLO | {"stream": True})
        platform.ready(new, "replica-2")
        await drained(platform, "replica-1")
        for _ in range(3):
            async with http.post("/v1/chat/completions", json=HELLO) as answer:
                assert answer.status == 200
        assert (len(old.requests), len(new.requests)) == (1, 3)
        old.go.set()
        assert text(await stream.read()) == "".join(PIECES)
        assert {e.outcome for e in await platform.settled(4)} == {Outcome.COMPLETED}


@pytest.mark.parametrize("how", ["die", "give up", "error event"])
async def test_a_stream_longer_than_the_drain_is_continued_once_at_the_successor_and_nothing_is_doubled(
    tmp_path: Path, how: str
) -> None:
    old, new = Engine(pieces=PIECES, hold_after=4), Engine(pieces=PIECES)
    async with gateway(tmp_path, old, continue_streams=True) as platform, running(new), platform.http() as http:
        stream = await http.post("/v1/chat/completions", json=HELLO | {"stream": True})
        platform.ready(new, "replica-2")
        await drained(platform, "replica-1")
        old.fail = how  # its drain is over, and so is its shutdown time-out
        old.go.set()
        body = await stream.read()
        assert text(body) == "".join(PIECES)
        assert body.count(COMMENT) == 1 and body.count(b"[DONE]") == 1
        settled = await platform.settled(2)
        assert sorted(e.attempt.replica for e in settled) == ["replica-1", "replica-2"]
        assert sum(e.completion_tokens for e in settled) == len(PIECES)


async def test_a_request_that_a_stopping_engine_turns_away_is_answered_by_the_successor(tmp_path: Path) -> None:
    old, new = Engine(fail="silent"), Engine(pieces=PIECES)
    async with gateway(tmp_path, old) as platform, running(new), platform.http() as http:
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=HELLO))
        await until(lambda: old.running)
        platform.ready(new, "replica-2")
        await drained(platform, "replica-1")
        old.fail = "abort"  # as vLLM ends what it has when its time is over
        old.go.set()
        answer = await asked
        assert answer.status == 200
        assert (await answer.json())["choices"][0]["message"]["content"] == "".join(PIECES)


async def test_an_engine_that_starts_again_in_place_is_not_asked_until_it_is_ready_and_who_waits_is_told(
    tmp_path: Path,
) -> None:
    engine = Engine(pieces=PIECES)
    async with gateway(tmp_path, engine) as platform, platform.http() as http:
        replicas.note_job(platform.registry, "replica-1", job_id="7", ends_at="2099-01-01T00:00:00.000000Z")
        replicas.replica_is_restarting(platform.registry, "replica-1", "the engine was killed by signal 9", 1)
        assert platform.app is not None
        catalog = platform.app[GATEWAY].catalog
        await until(lambda: not catalog.every_ready())
        stream = await http.post("/v1/chat/completions", json=HELLO | {"stream": True})
        told = await stream.content.readuntil(b"\n\n")
        assert told == b": waiting for deployment tiny: job 7 runs and its engine is starting again\n\n"
        assert engine.requests == []
        endpoint = (engine.host, engine.port, engine.key)
        replicas.replica_is_ready(platform.registry, "replica-1", *endpoint, certificate=engine.certificate)
        assert text(await stream.read()) == "".join(PIECES)


async def seen_failing(platform: Platform, engine: Engine) -> None:
    """A client waits for another replica than the one that failed."""
    assert platform.app is not None
    room = platform.app[GATEWAY].room
    await until(lambda: engine.requests and room.waiting().get("tiny"))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_whose_only_replica_dies_waits_for_the_successor_and_is_answered(
    tmp_path: Path, stream: bool
) -> None:
    old, new = Engine(pieces=PIECES, hold_after=0, fail="die"), Engine(pieces=PIECES)
    settings = {"continue_streams": True, "start_wait_s": 60}
    async with gateway(tmp_path, old, **settings) as platform, running(new), platform.http() as http:
        if not stream:
            old.go.set()
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=HELLO | {"stream": stream}))
        await seen_failing(platform, old)
        platform.gone("replica-1")
        platform.ready(new, "replica-2")
        answer = await asked
        assert answer.status == 200
        body = await answer.read()
        said = text(body) if stream else json.loads(body)["choices"][0]["message"]["content"]
        assert said == "".join(PIECES)


@pytest.mark.parametrize("stream", [True, False])
async def test_one_whose_only_engine_loses_its_core_waits_for_its_new_start_too(tmp_path: Path, stream: bool) -> None:
    old, new = Engine(pieces=PIECES, hold_after=0, fail="core"), Engine(pieces=PIECES)
    settings = {"continue_streams": True, "start_wait_s": 60}
    async with gateway(tmp_path, old, **settings) as platform, running(new), platform.http() as http:
        old.go.set()
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=HELLO | {"stream": stream}))
        await seen_failing(platform, old)
        platform.gone("replica-1")
        platform.ready(new, "replica-2")
        assert (await asked).status == 200


async def test_a_stream_whose_only_engine_crashes_goes_on_when_it_was_started_again_in_place(tmp_path: Path) -> None:
    engine = Engine(pieces=PIECES, hold_after=4)
    settings = {"continue_streams": True, "start_wait_s": 60}
    async with gateway(tmp_path, engine, **settings) as platform, platform.http() as http:
        stream = await http.post("/v1/chat/completions", json=HELLO | {"stream": True})
        engine.fail = "die"
        engine.go.set()
        await seen_failing(platform, engine)
        engine.fail, engine.hold_after = None, None
        replicas.replica_is_restarting(platform.registry, "replica-1", "the engine was killed by signal 9", 1)
        endpoint = (engine.host, engine.port, engine.key)
        replicas.replica_is_ready(platform.registry, "replica-1", *endpoint, certificate=engine.certificate)
        body = await stream.read()
        assert text(body) == "".join(PIECES) and body.count(COMMENT) == 1
