"""Which calls a revision on trial gets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine import Engine, running
from gateway_fixtures import HELLO, Platform, gateway, until

from benchmarks.routing_rules import replica
from gateway.app_keys import GATEWAY
from gateway.catalog import View
from gateway.errors import NoReplica
from gateway.trial import Trial, on_trial, share, with_adapter
from registry import deployments, replicas, revisions
from registry.deployments import Deployment, DeploymentState, Replica

STABLE, STABLE_TOO = (replace(replica(n), revision=1, adapters=()) for n in (0, 1))
NEW = replace(replica(2), revision=2, adapters=())
OLDER = replace(replica(3), revision=0)
CHAT = Deployment("chat", "ada", DeploymentState.READY, "m", 2, "/m", 1, {}, None, "", None, revision=2, stable=1)
TRIAL = Trial("chat", 2, 1, 10)


def shares(ready: list[Replica], trial: Trial, calls: int = 2000) -> dict[str, int]:
    chance = random.Random(7)
    found: dict[str, int] = {}
    for _ in range(calls):
        for one in share(ready, trial, None, chance.random):
            found[one.id] = found.get(one.id, 0) + 1
    return found


def test_a_canary_gets_its_percent_of_the_calls_however_many_replicas_there_are() -> None:
    found = shares([STABLE, STABLE_TOO, NEW], TRIAL)
    assert found["0"] == found["1"] == 2000 - found["2"]
    assert 150 < found["2"] < 250


@pytest.mark.parametrize(("percent", "served"), [(0, {"0"}), (100, {"2"}), (None, {"0", "2"})])
def test_a_canary_may_get_nothing_everything_or_its_share_of_the_replicas(
    percent: int | None, served: set[str]
) -> None:
    assert shares([STABLE, NEW], replace(TRIAL, percent=percent)).keys() == served


def test_where_one_of_the_two_is_not_ready_the_other_gets_all() -> None:
    assert shares([STABLE], TRIAL, 9) == {"0": 9}
    assert shares([NEW], replace(TRIAL, percent=0), 9) == {"2": 9}


def test_a_replica_of_neither_serves_only_where_there_is_no_other() -> None:
    assert "3" not in shares([OLDER, STABLE, NEW], replace(TRIAL, percent=None), 9)
    assert shares([OLDER, NEW], replace(TRIAL, revision=2, stable=2), 9) == {"2": 9}
    assert shares([OLDER], TRIAL, 9) == {"3": 9}


def test_while_those_of_a_revision_that_was_given_up_are_the_most_they_serve_too() -> None:
    back = replace(TRIAL, revision=2, stable=2)
    others = [replace(OLDER, id=f"{n}") for n in range(6, 9)]
    assert shares([NEW, *others[:1]], back, 9) == {"2": 9}
    assert shares([NEW, *others], back, 40).keys() == {"2", "6", "7", "8"}


def test_a_conversation_stays_with_its_revision_also_when_the_canary_grows() -> None:
    def with_the_new(percent: int) -> set[int]:
        grown = replace(TRIAL, percent=percent)
        return {n for n in range(500) if share([STABLE, NEW], grown, f"physics/{n}", random.random) == [NEW]}

    assert with_the_new(10) == with_the_new(10) < with_the_new(25)
    assert 25 < len(with_the_new(10)) < 80


def test_there_is_a_trial_only_while_replicas_of_several_revisions_are_ready() -> None:
    assert on_trial(CHAT, [STABLE, STABLE_TOO]) is on_trial(CHAT, []) is None
    assert on_trial(replace(CHAT, canary=10), [STABLE, NEW]) == TRIAL
    assert on_trial(replace(CHAT, stable=2), [STABLE, NEW]) == Trial("chat", 2, 2, None)


def test_an_adapter_that_is_loaded_as_replicas_run_is_asked_of_those_that_have_it() -> None:
    chat = replace(CHAT, request={"adapters": {"poet": "/a"}})
    has = replace(NEW, adapters=("poet",))
    assert with_adapter([STABLE, has], "poet", chat) == [has]
    assert with_adapter([STABLE, has], "given-at-the-start", chat) == [STABLE, has]


def roll(platform: Platform, canary: int | None, **request: Any) -> None:
    """Another revision is wanted; the first has proven itself."""
    db = platform.registry
    revisions.settle(db, "tiny", 1, True, "it serves")
    revisions.add(
        db, "tiny", model="tiny", version=2, model_path="/m2", request=request, by="ada", why="newer", canary=canary
    )


def joins(platform: Platform, engine: Engine, name: str) -> None:
    """A replica of the second revision."""
    deployments.add_replica(
        platform.registry, name, "tiny", "root", f"/runs/{name}", revision=2, reason="a newer revision"
    )
    replicas.replica_is_ready(platform.registry, name, engine.host, engine.port, engine.key)


async def known(platform: Platform, what: Callable[[View], bool]) -> None:
    """The gateway has read it."""
    assert platform.app is not None
    catalog = platform.app[GATEWAY].catalog
    await until(lambda: what(catalog.view))


async def call(platform: Platform, times: int = 1, **more: Any) -> int:
    async with platform.http() as http:
        for _ in range(times):
            async with http.post("/v1/chat/completions", json=HELLO | more) as response:
                await response.read()
    return response.status


async def test_a_canary_that_fails_is_retried_at_the_stable_revision_and_nobody_sees_it(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, running(Engine(fail="500")) as broken:
        roll(platform, 100)
        joins(platform, broken, "new")
        await known(platform, lambda view: "tiny" in view.trials)
        assert await call(platform, 3) == 200
        assert broken.requests


async def test_an_adapter_answers_where_it_is_loaded_and_is_refused_in_words_where_it_is_nowhere(
    tmp_path: Path,
) -> None:
    async with gateway(tmp_path, Engine()) as platform, running(Engine()) as newer:
        roll(platform, 0, adapters={"poet": "/adapters/poet"})
        joins(platform, newer, "new")
        async with platform.http() as http, http.post("/v1/chat/completions", json=HELLO | {"model": "poet"}) as no:
            assert no.status == NoReplica.status
            assert "no replica of tiny has loaded the LoRA adapter poet yet" in await no.text()
        replicas.note_adapters(platform.registry, "new", ["poet"])
        await known(platform, lambda view: view.replicas["tiny"][-1].adapters == ("poet",))
        assert await call(platform, 3, model="poet") == 200
        assert [body["model"] for body in newer.requests] == ["poet"] * 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_for_an_adapter_waits_while_it_is_being_loaded(tmp_path: Path, stream: bool) -> None:
    async with gateway(tmp_path, Engine(), start_wait_s=60.0) as platform, running(Engine()) as newer:
        roll(platform, 0, adapters={"poet": "/adapters/poet"})
        joins(platform, newer, "new")
        await known(platform, lambda view: "poet" in view.adapters and len(view.replicas["tiny"]) == 2)
        assert platform.app is not None
        room = platform.app[GATEWAY].room
        waits = asyncio.create_task(call(platform, model="poet", stream=stream))
        await until(lambda: room.waiting() == {"tiny": 1})
        replicas.note_adapters(platform.registry, "new", ["poet"])
        assert await waits == 200
        assert [body["model"] for body in newer.requests] == ["poet"]
