"""What a gateway tells the controller of its work."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from engine import Engine
from gateway_fixtures import HELLO, Platform, gateway, until
from waiting import eventually

from benchmarks.routing_rules import replica
from gateway import workload
from gateway.catalog import View
from gateway.workload import News, Work, Workload
from registry.demand import DemandReader, Load, Served
from registry.deployments import Deployment, DeploymentState, ReplicaState, drain_replica, replicas

AT = "2026-01-02T14:05:00.000000Z"
CHAT = Deployment("chat", "ada", DeploymentState.READY, "m", 1, "/m", 1, {}, None, AT, None)
READY = replace(replica(0), state=ReplicaState.READY)
SERVES = View(deployments={"chat": CHAT}, live={"chat": [READY, replace(replica(1), state=ReplicaState.PENDING)]})


def told(load: Workload, view: View = SERVES, **busy: Work) -> News:
    return load.news(view, busy, busy.__getitem__, AT)


def idle(name: str) -> Load:
    return Load(name, AT, *Work())


def test_that_there_is_nothing_to_do_is_told_once_of_what_has_come() -> None:
    load = Workload()
    assert told(load) == News(AT, [idle("chat")], [Served("0", AT, 0)], [], False)
    assert told(load) == News(AT, [], [], [], False)


def test_only_what_has_changed_is_told_and_that_it_is_over() -> None:
    load, work = Workload(), Work(2, 300, 1, 40, 0.5)
    told(load)
    tally = load.begun("0")
    assert told(load, chat=work) == News(AT, [Load("chat", AT, *work)], [Served("0", AT, 1)], [], False)
    assert told(load, chat=work) == News(AT, [], [], [], False)
    tally.first_output(0.25)
    load.ended("0", tally)
    assert told(load) == News(AT, [idle("chat")], [Served("0", AT, 0, 1, 0, 1, 0.25)], [], False)


def test_a_replica_that_drains_is_counted_until_its_last_request_has_ended() -> None:
    load = Workload()
    tally = load.begun("0")
    draining = replace(SERVES, live={"chat": [replace(READY, state=ReplicaState.DRAINING)]})
    assert told(load, draining).served == [Served("0", AT, 1)] and told(load, draining).draining
    gone = replace(SERVES, live={"chat": []})
    assert not told(load, gone).draining
    load.ended("0", tally)
    assert told(load, gone).served == [Served("0", AT, 0, 1)]


def test_what_is_gone_is_told_once_and_forgotten() -> None:
    load = Workload()
    told(load)
    assert told(load, View()).gone == ["chat"]
    assert told(load, View(live={})).gone == []
    assert told(load) == News(AT, [idle("chat")], [Served("0", AT, 0)], [], False)


async def test_while_nothing_changes_it_is_told_that_the_gateway_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "EVERY_S", 0.001)
    monkeypatch.setattr(workload, "HEARTBEAT_S", 0.004)
    load, written, looks = Workload(), list[tuple[int, News]](), 0

    def news() -> News:
        nonlocal looks
        looks += 1
        return told(load)

    telling = asyncio.create_task(load.tell(news, lambda one: written.append((looks, one))))

    async def thrice() -> bool:
        return len(written) >= 3

    await eventually(thrice)
    assert [at for at, _ in written[:3]] == [1, 5, 9]
    assert written[1][1] == News(AT, [], [], [], False)
    telling.cancel()
    with suppress(asyncio.CancelledError):
        await telling


def reader(platform: Platform) -> DemandReader:
    return DemandReader(platform.site.ledger_db)


async def test_the_controller_learns_what_runs_what_waits_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "EVERY_S", 0.02)
    engine = Engine(pieces=["a", "b"], hold_after=1)
    async with gateway(tmp_path, engine, max_in_flight=1) as platform, platform.http() as http:
        file = reader(platform)
        stream = await http.post("/v1/chat/completions", json=HELLO | {"stream": True})
        second = asyncio.create_task(http.post("/v1/chat/completions", json=HELLO | {"stream": True}))
        await until(lambda: (load := file.loads().get("tiny")) and (load.running, load.queued) == (1, 1))
        load = file.loads()["tiny"]
        assert load.running_tokens > 0 and load.queued_tokens > 50 and load.waited_s > 0
        assert file.served()["replica-1"].outstanding == 1
        engine.go.set()
        for answer in (stream, await second):
            assert answer.status == 200
            await answer.read()
        await until(lambda: (load := file.loads().get("tiny")) and (load.running, load.queued) == (0, 0))
        served = await until(lambda: (one := file.served()["replica-1"]).requests == 2 and one)
        assert (served.outstanding, served.failures, served.first_outputs) == (0, 0, 2)
        assert served.first_output_s > 0
        file.close()


async def test_a_failed_request_counts_against_its_replica_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "EVERY_S", 0.02)
    async with gateway(tmp_path, Engine(fail="500"), Engine()) as platform, platform.http() as http:
        file = reader(platform)
        for _ in range(2):
            async with http.post("/v1/chat/completions", json=HELLO) as answer:
                assert answer.status == 200
        done = await until(
            lambda: (all_of := file.served()) and sum(o.requests for o in all_of.values()) >= 3 and all_of
        )
        assert done["replica-1"].failures >= 1 and done["replica-2"].failures == 0
        assert done["replica-2"].first_outputs == 0  # whole answers say nothing of it
        file.close()


async def test_what_waits_for_a_first_replica_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "EVERY_S", 0.02)
    async with gateway(tmp_path) as platform, platform.http() as http:
        file = reader(platform)
        async with http.post("/v1/chat/completions", json=HELLO | {"stream": True}) as answer:
            assert answer.status == 200
            load = await until(lambda: (one := file.loads().get("tiny")) and one.queued and one)
            assert (load.running, load.queued) == (0, 1) and load.queued_tokens > 50 and load.waited_s > 0
        await until(lambda: not file.loads()["tiny"].queued)
        file.close()


async def test_a_draining_replica_has_what_it_has_until_its_stream_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "EVERY_S", 0.02)
    old = Engine(pieces=["a", "b"], hold_after=1)
    async with gateway(tmp_path, old) as platform, platform.http() as http:
        file = reader(platform)
        stream = await http.post("/v1/chat/completions", json=HELLO | {"stream": True})
        drain_replica(platform.registry, "replica-1", "its job ends")
        (row,) = replicas(platform.registry, "tiny")
        assert row.draining_at is not None
        left = await until(lambda: (one := file.served().get("replica-1")) and one.left(str(row.draining_at)))
        assert left == 1
        old.go.set()
        assert b"[DONE]" in await stream.read()
        await until(lambda: file.served()["replica-1"].left(str(row.draining_at)) == 0)
        file.close()
